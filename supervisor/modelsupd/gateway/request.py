"""Reads the requests of one connection, strictly, without knowing the connection: bytes in, whole requests out.

Rules. What may be read in two ways is refused (see parsing), and after a refusal nothing is read any more, because what
follows cannot be told from the body. Every size has its limit, and bodies are counted over all connections. What comes
behind a chunked request in the same piece is not trusted to begin where the next request begins; it is thrown away, and
the connection is closed after the answer, which tells the client to send it again.
"""

from __future__ import annotations

from typing import Final

import httptools

from modelsupd.gateway import heads
from modelsupd.gateway.base import Limits
from modelsupd.gateway.parsing import Headers, Refusal

#: Chunks of a request may not be all framing: so much of it, and as much again as there is body.
_FRAMING_BYTES: Final = 65536

_CHUNKED_HEAD: Final = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


class Gauge:
    """Where the bodies of all connections are counted."""

    def __init__(self) -> None:
        """Begin with none."""
        self.buffered_bytes = 0


class _SurplusError(Exception):
    """Raised in the parser's callback to stop it behind the last chunk."""


class _Chunks:
    """The chunks of one body."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.complete = False
        self.came_bytes = 0
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(_CHUNKED_HEAD)

    def on_message_begin(self) -> None:
        if self.complete:
            raise _SurplusError

    def on_body(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        self.complete = True


class Reader:
    """The reader of one connection. `feed` it until `complete` or `refusal`; `reset` it for the next request."""

    __slots__ = (
        "_body",
        "_chunks",
        "_gauge",
        "_length",
        "_limits",
        "_part",
        "_sentinel",
        "body_bytes",
        "complete",
        "expects",
        "headed",
        "headers",
        "keep",
        "method",
        "minor",
        "path",
        "query",
        "refusal",
    )

    headers: Headers

    def __init__(self, limits: Limits, gauge: Gauge) -> None:
        """Read the first request."""
        self._limits = limits
        self._gauge = gauge
        self._body: list[bytes] = []
        self.body_bytes = 0
        self.refusal: Refusal | None = None
        self.method = self.path = self.query = ""
        self.minor = 1
        self.reset()

    def reset(self) -> None:
        """Make ready for the next request."""
        self._part = b""
        self._sentinel: httptools.HttpRequestParser | None = None
        self._chunks: _Chunks | None = None
        self._length = 0
        self.complete = False
        self.headed = False
        self.expects = False
        self.keep = True

    def take_body(self) -> bytes:
        """Return the body of a request that is whole. It counts until `release`."""
        body = self._body
        if not body:
            return b""
        whole = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        return whole

    def release(self) -> None:
        """Let go of the body."""
        self._body.clear()
        self._gauge.buffered_bytes -= self.body_bytes
        self.body_bytes = 0

    def feed(self, data: bytes) -> bytes:
        """Read data; return what follows the request where that is whole."""
        if not self.headed:
            fresh = data
            if self._part:
                data = self._part + data
            end = data.find(heads.END)
            if end < 0:
                self._wait_for_head(data, fresh)
                return b""
            end += len(heads.END)
            self._read_head(data[:end])
            if self.refusal is not None:
                return b""
            data = data[end:]
        if self._chunks is not None:
            self._read_chunks(self._chunks, data)
            return b""
        lacking = self._length - self.body_bytes
        if len(data) < lacking:
            self._take(data)
            return b""
        if lacking:
            self._take(data[:lacking])
        self.complete = self.refusal is None
        return data[lacking:]

    def _wait_for_head(self, data: bytes, fresh: bytes) -> None:
        """Keep a part of a head, unless it is too long or can become none: its sender would wait for an answer."""
        if len(data) > self._limits.max_head_bytes:
            self.refusal = self._too_long(data)
            return
        if self._sentinel is None:
            self._sentinel = httptools.HttpRequestParser(None)  # nothing is asked of it but whether it objects
        self._part += fresh
        try:
            self._sentinel.feed_data(fresh)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.refusal = Refusal(400, f"the request cannot be read: {error}")

    def _read_head(self, data: bytes) -> None:
        """Decide whether the request may go on."""
        limits = self._limits
        if len(data) > limits.max_head_bytes:
            self.refusal = self._too_long(data)
            return
        head, length = heads.read_request(data)
        if isinstance(head, Refusal):
            self.refusal = head
            return
        self.headed = True
        self.method = head.method
        self.path = head.path
        self.query = head.query
        self.headers = head.headers
        self.minor = head.minor
        self.keep = head.keep
        self.expects = head.expects
        self._length = length
        if head.chunked:
            self._chunks = _Chunks()
        if len(head.headers.pairs) > limits.max_headers:
            self.refusal = Refusal(431, f"the request has more than {limits.max_headers} headers")
        elif length > limits.max_body_bytes:
            self.refusal = Refusal(413, f"the body is larger than {limits.max_body_bytes} bytes")

    def _too_long(self, data: bytes) -> Refusal:
        limit = self._limits.max_head_bytes
        in_target = not -1 < data.find(b"\r\n") <= limit
        what = "target" if in_target else "head"
        return Refusal(414 if in_target else 431, f"the request's {what} is longer than {limit} bytes")

    def _read_chunks(self, chunks: _Chunks, data: bytes) -> None:
        chunks.came_bytes += len(data)
        try:
            chunks.parser.feed_data(data)
        except httptools.HttpParserError as error:
            if chunks.complete:
                self.keep = False  # what follows is thrown away
            else:
                self.refusal = Refusal(400, f"the request's chunks cannot be read: {error}")
                return
        for piece in chunks.pieces:
            self._take(piece)
        chunks.pieces.clear()
        self.complete = chunks.complete and self.refusal is None
        if chunks.came_bytes > 2 * self.body_bytes + _FRAMING_BYTES and not self.complete and self.refusal is None:
            self.refusal = Refusal(400, "the request's chunks are too small for what they hold")

    def _take(self, piece: bytes) -> None:
        """Collect a piece of the body, within the limits."""
        limits, gauge = self._limits, self._gauge
        self._body.append(piece)
        self.body_bytes += len(piece)
        gauge.buffered_bytes += len(piece)
        if self.body_bytes > limits.max_body_bytes:
            self.refusal = Refusal(413, f"the body is larger than {limits.max_body_bytes} bytes")
        elif gauge.buffered_bytes > limits.buffered_bytes:
            self.refusal = Refusal(503, "there are too many large requests at once; try again", 1)
