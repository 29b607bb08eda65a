"""A minimal HTTP/1.1 client for probes: one request, one answer, one connection.

A probe is sent every few seconds to every engine, so it has to be cheap; and what went wrong has to be told apart, so
that a client that only says "error" is of no use. The rules: the body is bounded, the deadline holds for everything
from connecting to the last byte, and the connection is always closed.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import cast
from urllib.parse import urlsplit

import httptools

from modelsupd.engines.base import Request

#: An answer to a probe that is longer than this is broken: the largest known, vLLM's /metrics, has 48 KiB.
MAX_BODY_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 64 * 1024

_SUCCESS = 200
_UNIX = "unix:"

#: Errors of connecting that are ours, not the engine's: no descriptors, no memory, no local ports left.
_OURS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}


class ProbeError(Exception):
    """A request that was not answered; its text is the evidence."""


class ProbeRefusedError(ProbeError):
    """Nobody listens there."""


class ProbeTimeoutError(ProbeError):
    """The answer was not complete in time."""


class ProbeBrokenError(ProbeError):
    """What came is no HTTP answer, or not all of one."""


class ProbeUnableError(ProbeError):
    """The request could not be sent for want of something of our own; it says nothing of the engine."""


async def fetch(endpoint: str, request: Request, timeout_s: float) -> tuple[int, bytes]:
    """Send `request` to `endpoint` (`unix:/path` or `http://127.0.0.1:port`); return status and body of the answer.

    Raises one of the `ProbeError`s, `ProbeTimeoutError` after `timeout_s` seconds.
    """
    loop = asyncio.get_running_loop()
    late = ProbeTimeoutError(f"no connection within {timeout_s:g} s")
    give_up_at = loop.time() + timeout_s
    try:
        sock = await _connect(endpoint, give_up_at)
    except TimeoutError:
        raise late from None
    except OSError as error:
        raise _cannot_connect(error) from None
    exchange = _Exchange(_payload(request), loop.create_future())
    # Two turns of the loop lie between the deadline and the verdict: after a pause of the daemon itself an answer may
    # lie in the socket while the timer is already due, and the turn between reads it.
    timer = loop.call_at(give_up_at, loop.call_soon, loop.call_soon, exchange.time_out, timeout_s)
    try:
        await loop.create_connection(lambda: exchange, sock=sock)
        return await exchange.done
    finally:
        timer.cancel()
        exchange.close()
        if not exchange.connected:
            sock.close()  # else it is its transport's, which closes it


async def _connect(endpoint: str, give_up_at: float) -> socket.socket:
    """Return a connected socket; raises OSError, TimeoutError among them."""
    to_path = endpoint.startswith(_UNIX)
    sock = socket.socket(socket.AF_UNIX if to_path else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if to_path:
            # At once or never: with a full accept queue, as of a stopped engine, this is EAGAIN, which the event
            # loops take either for an error of their own or for success.
            sock.connect(endpoint.removeprefix(_UNIX))
        else:
            address = urlsplit(endpoint)
            async with asyncio.timeout_at(give_up_at):
                await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_connect(error: OSError) -> ProbeError:
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return ProbeRefusedError("nobody listens yet" if isinstance(error, FileNotFoundError) else "connection refused")
    if isinstance(error, BlockingIOError):
        return ProbeBrokenError("its queue of connections is full: it accepts none")
    if error.errno in _OURS:
        return ProbeUnableError(f"cannot connect for want of resources of our own: {error.strerror}")
    return ProbeBrokenError(f"cannot connect: {error.strerror or error}")


def _payload(request: Request) -> bytes:
    lines = [f"{request.method} {request.path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if request.method != "GET":
        lines += ["Content-Type: application/json", f"Content-Length: {len(request.body)}"]
    return "\r\n".join((*lines, "", "")).encode() + request.body


class _Exchange(asyncio.Protocol):
    """One request and its answer; `done` holds status and body, or a ProbeError."""

    def __init__(self, payload: bytes, done: asyncio.Future[tuple[int, bytes]]) -> None:
        self.done = done
        self._payload = payload
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.WriteTransport | None = None
        self._body = bytearray()
        self._unparsed_bytes = 0
        self._status = 0
        self._delimited = False

    @property
    def connected(self) -> bool:
        """Tell whether the socket has passed to a transport."""
        return self._transport is not None

    def close(self) -> None:
        """Close the connection; nothing more is heard of it."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # looked at, so that an error that came during a cancellation is not complained of
        if self._transport:
            self._transport.abort()

    def time_out(self, timeout_s: float) -> None:
        """End the exchange for lack of time."""
        came = f"only {len(self._body)} bytes of an answer {self._status}" if self._status else "no answer"
        self._fail(ProbeTimeoutError(f"{came} within {timeout_s:g} s"))

    def _fail(self, error: ProbeError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        # uvloop's transports are no subclass of asyncio's, so an isinstance would be wrong here.
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self.done.done():
            return
        self._unparsed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.done.done():  # what follows a complete answer is of no interest
                self._fail(ProbeBrokenError(f"no HTTP answer: {error}"))
        if not self._status and self._unparsed_bytes > _MAX_HEADER_BYTES:
            self._fail(ProbeBrokenError(f"more than {_MAX_HEADER_BYTES} bytes of headers"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end for the end of the answer where nothing else marks it; else the answer is broken."""
        if self._status and not self._delimited and exc is None:
            self._finish()
        after = f"{len(self._body)} bytes of an answer {self._status}" if self._status else "no answer at all"
        self._fail(ProbeBrokenError(f"connection closed after {after}" + (f": {exc}" if exc else "")))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note what marks the end of the body."""
        if name.lower() == b"content-length" or (name.lower() == b"transfer-encoding" and b"chunked" in value.lower()):
            self._delimited = True

    def on_headers_complete(self) -> None:
        """Note the status; an informational one is not the answer."""
        status = self._parser.get_status_code()
        self._status = status if status >= _SUCCESS else 0

    def on_body(self, body: bytes) -> None:
        """Collect the body."""
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self._fail(ProbeBrokenError(f"more than {MAX_BODY_BYTES} bytes in answer {self._status}"))

    def on_message_complete(self) -> None:
        """Hand the answer over."""
        if self._status:
            self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result((self._status, bytes(self._body)))
