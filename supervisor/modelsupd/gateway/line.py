"""One connection to an engine, and the parser of what it says: read with suspicion.

Rules. A connection carries one request at a time. It is used again only when its answer ended where it said it would,
and nothing came behind it; whatever an idle one says closes it. An answer that is not HTTP is an error, not a guess.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

import httptools
import structlog

from modelsupd.gateway import heads
from modelsupd.gateway.ends import EngineLine, Listening

log = structlog.get_logger()

#: An answer's head that is longer than this is broken.
MAX_HEAD_BYTES: Final = 65536

_FINAL: Final = 200

_CHUNKED_HEAD: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Keeper(Protocol):
    """Where a connection goes between two requests."""

    def put(self, line: Line) -> None:
        """Keep it for the next request."""

    def forget(self, line: Line) -> None:
        """Learn that the engine closed it."""


class _BrokenError(Exception):
    """Raised in a parser's callback to stop it."""


class Line(EngineLine):
    """One connection to an engine, and the parser of its answers.

    An asyncio.Protocol in all but its base: compiled, a class with a base that is not is no faster than before.
    """

    __slots__ = (
        "_bodiless",
        "_chunks",
        "_clean",
        "_in_chunk",
        "_keep",
        "_keeper",
        "_lacking_bytes",
        "_open",
        "_part",
        "_paused",
        "_relay",
        "_sentinel",
        "_surplus",
        "_trailed",
        "endpoint",
        "idle_since",
        "made",
    )

    def __init__(self, keeper: Keeper, endpoint: str) -> None:
        """Wait for `begin`."""
        self.endpoint = endpoint
        self.idle_since = 0.0
        self.made = False
        self.reused = False
        self.pieces = []
        self._keeper = keeper
        self._relay: Listening | None = None
        self._chunks: httptools.HttpResponseParser | None = None
        self._open = False
        self._paused = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.length = None
        self.chunked = False
        self.whole = False
        self.complete = False
        self.heard = False
        self._bodiless = False
        self._clean = False
        self._in_chunk = False
        self._keep = False
        self._lacking_bytes = 0
        self._part = b""
        self._sentinel: httptools.HttpResponseParser | None = None
        self._surplus = False
        self._trailed = False

    # What a relay calls

    def begin(self, relay: Listening, *, bodiless: bool) -> None:
        """Expect the answer to a request that is about to be written."""
        self._relay = relay
        self._reset()
        self._bodiless = bodiless

    def release(self) -> None:
        """Give it back: its answer is complete."""
        self._relay = None
        if self._keep and not self._surplus and self._open and not self.transport.get_write_buffer_size():
            self.resume()
            self.reused = True
            self._keeper.put(self)
        else:
            self.drop()

    def drop(self) -> None:
        """Close it at once; nothing more is heard of it."""
        self._relay = None
        if self._open:
            self._open = False
            self.transport.abort()

    def pause(self) -> None:
        """Stop reading, so that the engine has to wait."""
        if not self._paused and self._open:
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self._paused and self._open:
            self._paused = False
            self.transport.resume_reading()

    @property
    def usable(self) -> bool:
        """Tell whether it is open."""
        return self._open and not self.transport.is_closing()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the transport."""
        # uvloop's transports are no subclass of asyncio's, so an isinstance would be wrong here.
        self.transport = cast("asyncio.Transport", transport)
        self._open = self.made = True

    def data_received(self, data: bytes) -> None:
        """Read what came, and have it passed on."""
        relay = self._relay
        if relay is None:
            self.drop()  # it spoke unasked, or still speaks though nobody listens any more
            return
        self.heard = True
        self.pieces.clear()
        try:
            if self.status:
                self._read_body(data)
            else:
                body = self._read_heads(data)
                if not self.status:
                    return
                self._begin_body(body)
        except (httptools.HttpParserError, _BrokenError) as error:
            relay.failed("bad-answer", f"no HTTP answer: {error}")
            return
        try:
            relay.took(self, data)
        except Exception:  # the connection of one client must not take the gateway with it
            log.exception("an exchange failed", path=relay.exchange.path)
            relay.exchange.abort()

    def _read_heads(self, data: bytes) -> bytes:
        """Read the answer's head, if it is whole, and what heads come before it; return what follows."""
        fresh = data
        if self._part:
            data = self._part + data
        while not self.status:
            at = data.find(heads.END)
            end = at + len(heads.END) if at >= 0 else len(data)
            if end > MAX_HEAD_BYTES:
                raise _BrokenError(f"more than {MAX_HEAD_BYTES} bytes of headers")
            if at < 0:
                self._wait_for_head(data, fresh)
                return b""
            head, length = heads.read_answer(data[:end])
            if isinstance(head, str):
                raise _BrokenError(head)
            data = fresh = data[end:]
            self._part, self._sentinel = b"", None
            if head.status >= _FINAL:
                self.status = head.status
                self.headers = head.headers
                self.length = length
                self.chunked = head.chunked
                self._keep = head.keep
        return data

    def _wait_for_head(self, data: bytes, fresh: bytes) -> None:
        """Keep a part of a head, unless it can become none: its exchange would wait for nothing."""
        self._part = data
        if fresh:
            if self._sentinel is None:
                self._sentinel = httptools.HttpResponseParser(None)  # nothing is asked of it but whether it objects
            self._sentinel.feed_data(fresh)

    def _begin_body(self, data: bytes) -> None:
        """Read what came of a body with its head."""
        if self._bodiless or self.status in (204, 304):
            self.complete = True  # whatever length it promises
            self._surplus = bool(data)
        elif self.chunked:
            if self._chunks is None:
                self._chunks = httptools.HttpResponseParser(self)
            self._chunks.feed_data(_CHUNKED_HEAD)
            self._trailed = False
            self._read_body(data)
            self.whole = False
        else:
            self._lacking_bytes = self.length or 0
            self.complete = self.length == 0
            if data:
                self._read_body(data)

    def _read_body(self, data: bytes) -> None:
        """Read a part of a body."""
        if self.chunked and self._chunks is not None:
            began_clean = self._clean
            try:
                self._chunks.feed_data(data)
            except httptools.HttpParserError:
                if not self.complete:
                    raise
                self._surplus = True
            # Behind a chunk's end there may stand the beginning of the next size, which only the end of line tells.
            self._clean = not self._in_chunk and (data.endswith(b"\r\n") or not data)
            self.whole = began_clean and self._clean and not self._surplus and not self._trailed
        elif self.length is None:
            self.pieces.append(data)
        else:
            if len(data) > self._lacking_bytes:
                data = data[: self._lacking_bytes]
                self._surplus = True
            self._lacking_bytes -= len(data)
            self.complete = self._lacking_bytes == 0
            if data:
                self.pieces.append(data)

    def eof_received(self) -> None:
        """Let the transport close: whoever says no more hears no more."""

    def pause_writing(self) -> None:
        """Let it be buffered: a request goes out whole."""

    def resume_writing(self) -> None:
        """Nothing was stopped."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end for the end of the answer where nothing else marks it; else the engine failed."""
        was_open, self._open = self._open, False
        relay, self._relay = self._relay, None
        if relay is None:
            self._keeper.forget(self)
        elif was_open:
            self._end(relay, exc)

    def _end(self, relay: Listening, exc: Exception | None) -> None:
        self.pieces.clear()
        self.whole = False
        try:
            if self.status and exc is None and self.length is None and not self.chunked:
                self.complete = True
                relay.took(self, b"")
            else:
                relay.lost(f"connection closed ({exc})" if exc else "connection closed")
        except Exception:  # as above
            log.exception("an exchange failed", path=relay.exchange.path)
            relay.exchange.abort()

    # httptools, of chunks

    def on_message_begin(self) -> None:
        """Refuse what follows a complete answer."""
        if self.complete:
            raise _BrokenError("more than one answer came")

    def on_header(self, name: bytes, value: bytes) -> None:  # noqa: ARG002 - the parser's
        """Note that there are trailers, which are dropped."""
        self._trailed = True

    def on_chunk_header(self) -> None:
        """Note that a chunk has begun."""
        self._in_chunk = True

    def on_chunk_complete(self) -> None:
        """Note that a chunk has ended."""
        self._in_chunk = False

    def on_body(self, piece: bytes) -> None:
        """Collect a piece of the body."""
        self.pieces.append(piece)

    def on_message_complete(self) -> None:
        """Note the end of the answer."""
        self.complete = True
