"""Reads the requests of one connection, strictly, without knowing the connection: bytes in, whole requests out.

Rules. What may be read in two ways is refused (see parsing), and after a refusal nothing is read any more, because what
follows cannot be told from the body. Every size has its limit, and bodies are counted over all connections. What comes
behind a chunked request in the same piece is not trusted to begin where the next request begins; it is thrown away, and
the connection is closed after the answer, which tells the client to send it again.
"""

from __future__ import annotations

from typing import Protocol

import httptools

from modelsupd.gateway import parsing
from modelsupd.gateway.base import Limits
from modelsupd.gateway.parsing import Headers, Refusal

#: Chunks of a request may not be all framing: so much of it, and as much again as there is body.
_FRAMING_BYTES = 65536

_END = b"\r\n\r\n"


class Gauge(Protocol):
    """Where the bodies of all connections are counted."""

    buffered_bytes: int


class _StopError(Exception):
    """Raised in a parser's callback to stop it."""


class Reader:
    """The reader of one connection. `feed` it until `complete` or `refusal`; `reset` it for the next request."""

    headers: Headers

    def __init__(self, limits: Limits, gauge: Gauge) -> None:
        """Read the first request."""
        self._limits = limits
        self._max_headers = limits.max_headers
        self._gauge = gauge
        self._parser = httptools.HttpRequestParser(self)
        self._body: list[bytes] = []
        self.body_bytes = 0
        self.refusal: Refusal | None = None
        self.method = self.path = self.query = ""
        self.reset()

    def reset(self) -> None:
        """Make ready for the next request."""
        self._url = b""
        self._pairs: list[tuple[bytes, bytes]] = []
        self._chunked = False
        self._length = 0
        self._seen_bytes = 0
        self._tail = b""
        self._upgraded = False
        self.complete = False
        self.headed = False
        self.expects = False
        self.keep = True
        self.minor = 1

    def take_body(self) -> bytes:
        """Return the body of a request that is whole. It counts until `release`."""
        body = self._body
        whole = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return whole

    def release(self) -> None:
        """Let go of the body."""
        if self.body_bytes:
            self._body.clear()
            self._gauge.buffered_bytes -= self.body_bytes
            self.body_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Read data; return what follows the request where that is whole."""
        was_headed, came_bytes = self.headed, self.body_bytes
        self._seen_bytes += len(data)
        rest = b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.refusal is None:
                rest = self._behind_upgrade(data, upgrade.args[0])
        except httptools.HttpParserError as error:
            if self.refusal is None and self.complete:
                rest = self._surplus(data, was_headed=was_headed, came_bytes=came_bytes)
            elif self.refusal is None:
                self.refusal = Refusal(400, f"the request cannot be read: {error}")
        if self._seen_bytes > self._limits.max_head_bytes and self.refusal is None:
            self._check_sizes(data, was_headed=was_headed)
        if not self.headed:
            self._tail = (self._tail + data)[-3:]
        return rest

    def _behind_upgrade(self, data: bytes, at: int) -> bytes:
        """Read the body of a request that offers another protocol, which is not taken.

        The parser takes what follows such a head for the other protocol. Java's own client sends one with every first
        request (`Upgrade: h2c`), body and all, so another parser is told where the body ends and nothing else.
        """
        self._parser = httptools.HttpRequestParser(self)
        if not self._chunked and not self._length:
            return data[at:]
        self.complete = False
        self._upgraded = True
        framing = b"Transfer-Encoding: chunked" if self._chunked else b"Content-Length: %d" % self._length
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%b%b" % (framing, _END))
        self._upgraded = False
        self._seen_bytes -= len(data) - at
        return self.feed(data[at:]) if at < len(data) else b""

    def _surplus(self, data: bytes, *, was_headed: bool, came_bytes: int) -> bytes:
        """Return what follows a request that is whole; the parser has gone too far and is put aside."""
        self._parser = httptools.HttpRequestParser(self)
        if self._chunked or not self.keep:
            self.keep = False
            return b""
        if was_headed:
            return data[self._length - came_bytes :]
        joined = self._tail + data
        return joined[joined.index(_END) + len(_END) + self._length :]

    def _check_sizes(self, data: bytes, *, was_headed: bool) -> None:
        """Refuse a head that is too long, whether it came whole or not, and a body that is nothing but framing."""
        limit = self._limits.max_head_bytes
        if not was_headed:
            head_bytes = self._seen_bytes
            if self.headed:
                joined = self._tail + data
                head_bytes -= len(joined) - joined.index(_END) - len(_END)
            if head_bytes > limit:
                in_target = len(self._url) > limit or (not self.headed and not self._pairs)
                what = "target" if in_target else "head"
                words = f"the request's {what} is longer than {limit} bytes"
                self.refusal = Refusal(414 if in_target else 431, words)
                return
        if self._chunked and self._seen_bytes > 2 * self.body_bytes + limit + _FRAMING_BYTES:
            self.refusal = Refusal(400, "the request's chunks are too small for what they hold")

    def _stop(self, refusal: Refusal) -> None:
        self.refusal = refusal
        raise _StopError

    # httptools

    def on_message_begin(self) -> None:
        """Stop at what follows a request that is whole."""
        if self.complete:
            raise _StopError

    def on_url(self, url: bytes) -> None:
        """Collect the target."""
        if not self._upgraded:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        pairs = self._pairs
        pairs.append((name.lower(), value))
        if len(pairs) > self._max_headers:
            self._stop(Refusal(431, f"the request has more than {self._max_headers} headers"))

    def on_headers_complete(self) -> None:
        """Decide whether the request may go on."""
        if self._upgraded:
            return
        self.headed = True
        parser = self._parser
        self.headers = headers = Headers(self._pairs)
        self._pairs = []  # for trailers, which are dropped
        method = parser.get_method()
        self.keep = parser.should_keep_alive()
        first = headers.first
        # Only HTTP/1.1 keeps a connection without being asked to.
        version = "1.1" if self.keep and b"connection" not in first else parser.get_http_version()
        if version == "1.0":
            self.minor = 0
        refusal = parsing.examine(method, version, headers, self._limits)
        if refusal is not None:
            self._stop(refusal)
        self.method = parsing.METHODS[method]
        found = parsing.target(self._url, self.method)
        if isinstance(found, Refusal):
            self._stop(found)
        else:
            self.path, self.query = found
        length = first.get(b"content-length")
        if length is not None:
            self._length = int(length)
        self._chunked = b"transfer-encoding" in first
        self.expects = b"expect" in first and self.minor == 1

    def on_body(self, piece: bytes) -> None:
        """Collect a piece of the body, within the limits."""
        limits, gauge = self._limits, self._gauge
        self._body.append(piece)
        self.body_bytes += len(piece)
        gauge.buffered_bytes += len(piece)
        if self.body_bytes > limits.max_body_bytes:
            self._stop(Refusal(413, f"the body is larger than {limits.max_body_bytes} bytes"))
        if gauge.buffered_bytes > limits.buffered_bytes:
            self._stop(Refusal(503, "there are too many large requests at once; try again", 1))

    def on_message_complete(self) -> None:
        """Note that the request is whole."""
        self.complete = True
