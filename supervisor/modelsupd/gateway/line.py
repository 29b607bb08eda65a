"""One connection to an engine, and the parser of what it says: read with suspicion.

Rules. A connection carries one request at a time. It is used again only when its answer ended where it said it would,
and nothing came behind it; whatever an idle one says closes it. An answer that is not HTTP is an error, not a guess.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

import httptools
import structlog

from modelsupd.gateway.relay import Relay

log = structlog.get_logger()

#: An answer's head that is longer than this is broken.
MAX_HEAD_BYTES = 65536
_MAX_HEADERS = 256

_FINAL = 200

#: Headers that go no further: those of the framing and of the connection to the engine (RFC 9110, 7.6.1), for one.
_SPECIAL = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        # What an engine says of other origins does not hold for the gateway's.
        b"access-control-allow-credentials",
        b"access-control-allow-headers",
        b"access-control-allow-methods",
        b"access-control-allow-origin",
        b"access-control-allow-private-network",
        b"access-control-expose-headers",
        b"access-control-max-age",
    }
)


class Keeper(Protocol):
    """Where a connection goes between two requests."""

    def put(self, line: Line) -> None:
        """Keep it for the next request."""

    def forget(self, line: Line) -> None:
        """Learn that the engine closed it."""


class _BrokenError(Exception):
    """Raised in a parser's callback to stop it."""


class Line(asyncio.Protocol):
    """One connection to an engine, and the parser of its answers."""

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_clean",
        "_head_bytes",
        "_in_chunk",
        "_interim",
        "_keep",
        "_keeper",
        "_open",
        "_parser",
        "_paused",
        "_relay",
        "_surplus",
        "_trailed",
        "complete",
        "endpoint",
        "heard",
        "idle_since",
        "length",
        "made",
        "pairs",
        "pieces",
        "reused",
        "status",
        "transport",
        "whole",
    )

    transport: asyncio.Transport

    def __init__(self, keeper: Keeper, endpoint: str) -> None:
        """Wait for `begin`."""
        self.endpoint = endpoint
        self.idle_since = 0.0
        self.made = False
        self.reused = False
        self.pieces: list[bytes] = []
        self.pairs: list[tuple[bytes, bytes]] = []
        self._keeper = keeper
        self._relay: Relay | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._open = False
        self._paused = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.length: bytes | None = None
        self.whole = False
        self.complete = False
        self.heard = False
        self._bodiless = False
        self._chunked = False
        self._clean = False
        self._head_bytes = 0
        self._in_chunk = False
        self._interim = False
        self._keep = False
        self._surplus = False
        self._trailed = False

    # What a relay calls

    def begin(self, relay: Relay) -> None:
        """Expect the answer to a request that is about to be written."""
        self._relay = relay
        self._reset()
        self._bodiless = relay.exchange.method == "HEAD"

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
        """Parse what came, and have it passed on."""
        relay = self._relay
        if relay is None:
            self.drop()  # it spoke unasked, or still speaks though nobody listens any more
            return
        self.heard = True
        self.pieces.clear()
        began_clean = self._clean
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                relay.failed("bad-answer", f"no HTTP answer: {error.__context__ or error}")
                return
            self._surplus = True
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                relay.failed("bad-answer", f"more than {MAX_HEAD_BYTES} bytes of headers")
                return
        elif self._chunked:
            # Behind a chunk's end there may stand the beginning of the next size, which only the end of line tells.
            self._clean = not self._in_chunk and data.endswith(b"\r\n")
            self.whole = began_clean and self._clean and not self._surplus and not self._trailed
        if self._bodiless and self.status and not self.complete:
            self.complete = True  # whatever length it promises; the parser waits for it, and is of no more use
            self._keep = False
        try:
            relay.took(self, data)
        except Exception:  # the connection of one client must not take the gateway with it
            log.exception("an exchange failed", path=relay.exchange.path)
            relay.exchange.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take the end for the end of the answer where nothing else marks it; else the engine failed."""
        was_open, self._open = self._open, False
        relay, self._relay = self._relay, None
        if relay is None:
            self._keeper.forget(self)
        elif was_open:
            self._end(relay, exc)

    def _end(self, relay: Relay, exc: Exception | None) -> None:
        self.pieces.clear()
        self.whole = False
        try:
            if self.status and exc is None and self.length is None and not self._chunked:
                self.complete = True
                relay.took(self, b"")
            else:
                relay.lost(f"connection closed ({exc})" if exc else "connection closed")
        except Exception:  # as above
            log.exception("an exchange failed", path=relay.exchange.path)
            relay.exchange.abort()

    # httptools

    def on_message_begin(self) -> None:
        """Refuse what follows a complete answer; make ready for one that follows an interim one."""
        if self.complete:
            raise _BrokenError("more than one answer came")
        self.pairs = []
        self.length = None
        self._chunked = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; note what frames the body. Trailers are dropped."""
        if self.status:
            self._trailed = True
            return
        key = name.lower()
        if key not in _SPECIAL:
            self.pairs.append((key, value))
            if len(self.pairs) > _MAX_HEADERS:
                raise _BrokenError(f"more than {_MAX_HEADERS} headers")
        elif key == b"content-length":
            self.length = value
        elif key == b"transfer-encoding":
            if value.lower() != b"chunked" or self._chunked:
                raise _BrokenError("a Transfer-Encoding other than `chunked`")
            self._chunked = True

    def on_headers_complete(self) -> None:
        """Note the status; an informational one is not the answer."""
        status = self._parser.get_status_code()
        if status < _FINAL:
            self._interim = True
            return
        if self._chunked and self.length is not None:
            raise _BrokenError("both Content-Length and Transfer-Encoding")
        if status in (204, 304):
            self._bodiless = True
        self.status = status
        self._keep = self._parser.should_keep_alive()

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
        if self._interim:
            self._interim = False
        else:
            self.complete = True
