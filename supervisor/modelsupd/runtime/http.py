"""A minimal HTTP/1.1 client for probes: one request, one answer, one connection.

A probe is sent every few seconds to every engine, so it has to be cheap; and what went wrong has to be told apart, so
that a client that only says "error" is of no use. The rules: the body is bounded, the deadline holds for everything
from connecting to the last byte, and the connection is always closed, once and by whoever opened it.

No transport is used. A socket that is handed to one has two owners for a moment: when the engine closes, or the probe
is cancelled, before `create_connection` has returned, uvloop (0.23) closes the descriptor, and Python's socket closes
the same number again when it is collected. By then that may be anything; once it was the pidfd of another run.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

import httptools

from modelsupd.engines.base import Request

#: An answer to a probe that is longer than this is broken: the largest known, vLLM's /metrics, has 48 KiB.
MAX_BODY_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 64 * 1024
_READ_BYTES = 256 * 1024

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
    exchange = _Exchange(sock, _payload(request))
    # Three turns of the loop lie between the deadline and the verdict: after a pause of the daemon itself an answer may
    # lie in the socket while the timer is already due; one turn finds that, and the next one reads it.
    timer = loop.call_at(give_up_at, _in_turns, loop, 3, lambda: exchange.time_out(timeout_s))
    try:
        exchange.begin()
        return await exchange.done
    finally:
        timer.cancel()
        exchange.close()


def _in_turns(loop: asyncio.AbstractEventLoop, turns: int, then: Callable[[], None]) -> None:
    """Do something so many turns of the loop from now."""
    if turns:
        loop.call_soon(_in_turns, loop, turns - 1, then)
    else:
        then()


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


class _Exchange:
    """One request and its answer; `done` holds status and body, or a ProbeError."""

    def __init__(self, sock: socket.socket, payload: bytes) -> None:
        """Take over a connected socket."""
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._sock = sock
        self._unsent = payload
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._unparsed_bytes = 0
        self._status = 0
        self._delimited = False

    def begin(self) -> None:
        """Send the request, and read from now on."""
        self._loop.add_reader(self._sock.fileno(), self._readable)
        self._send()
        if self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._send)

    def close(self) -> None:
        """Close the connection; nothing more is heard of it."""
        if not self.done.cancel() and not self.done.cancelled():
            self.done.exception()  # looked at, so that an error that came during a cancellation is not complained of
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = b""  # what has come of an answer, or how the connection ended, is read all the same
        if not self._unsent:
            self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._lost(error)
            return
        if data:
            self._received(data)
        else:
            self._lost(None)

    def time_out(self, timeout_s: float) -> None:
        """End the exchange for lack of time."""
        came = f"only {len(self._body)} bytes of an answer {self._status}" if self._status else "no answer"
        self._fail(ProbeTimeoutError(f"{came} within {timeout_s:g} s"))

    def _fail(self, error: ProbeError) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def _received(self, data: bytes) -> None:
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

    def _lost(self, exc: OSError | None) -> None:
        """Take the end for the end of the answer where nothing else marks it; else the answer is broken."""
        self._loop.remove_reader(self._sock.fileno())
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
