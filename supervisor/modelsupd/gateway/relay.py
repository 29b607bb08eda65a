"""A relay: one exchange's request to one run, and the answer on its way back.

Rules. Pieces of a body go on as they came; a chunked answer goes on chunk by chunk, with its framing as it is where
whole chunks came, so that there is always a boundary at which a final event can be set. Nothing is sent of an answer
that may yet have to be thrown away: one of 5xx is held back until it is whole. A connection that was kept open and
turns out closed before any byte of an answer says nothing about the engine: it is tried once again on a fresh one.
The request's body is let go when the answer begins, since from then on there is no other attempt.
"""

from __future__ import annotations

import asyncio
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

from modelsupd.gateway import parsing
from modelsupd.gateway.base import EndedBy
from modelsupd.gateway.ends import EngineLine
from modelsupd.gateway.exchange import Exchange, Relays
from modelsupd.gateway.ports import BY_ENGINE, Answer, Done, Judge, Observer, Pair, Relaying, UpstreamFailed

#: An answer of 5xx is held back up to this size; a longer one is no error message.
MAX_HELD_BYTES: Final = 65536

#: Up to this size a request goes out in one piece; a longer body is not copied for it.
_JOIN_BYTES: Final = 65536

_HELD: Final = frozenset({500, 502, 503, 504})
_ERROR: Final = 400

#: vLLM's words when its engine process is gone and its server about to end: `EngineDeadError`, and what it says of it.
_DYING: Final = re.compile(rb"EngineDead|EngineCore encountered an issue|[Ee]ngine (?:process |core )?(?:is dead|died)")


def looks_dying(answer: Answer) -> bool:
    """Tell whether an answer's own words say that its engine is dead."""
    return _DYING.search(answer.body) is not None


class Lines(Relays):
    """Where connections come from."""

    __slots__ = ("relays",)

    relays: set[Relay]

    @abstractmethod
    def take(self, endpoint: str) -> EngineLine | None:
        """Return one that is open and idle."""

    @abstractmethod
    def dial(self, relay: Relay) -> None:
        """Open one and call `relay.ask` with it, or `relay.failed`."""

    @abstractmethod
    def host(self, endpoint: str) -> bytes:
        """Return what the engine is called in the Host header."""


class Relay(Relaying):
    """One attempt at an exchange."""

    __slots__ = (
        "_body_bytes",
        "_first_byte_at",
        "_first_byte_timeout_s",
        "_headed",
        "_headers_added",
        "_held",
        "_judge",
        "_lacking_bytes",
        "_line",
        "_lines",
        "_observer",
        "_on_done",
        "_on_failed",
        "_path",
        "_paused_since",
        "_quiet_since",
        "_redialled",
        "_stall_s",
        "_status",
        "_streaming",
        "_unread_timeout_s",
        "dialling",
        "endpoint",
        "exchange",
        "moved",
        "over",
    )

    def __init__(
        self,
        exchange: Exchange,
        lines: Lines,
        endpoint: str,
        path: str | None,
        headers_added: Sequence[Pair],
        unread_timeout_s: float,
    ) -> None:
        """Prepare; `start` begins. A client that takes nothing for `unread_timeout_s` is given up."""
        self.exchange = exchange
        self.endpoint = endpoint
        self.dialling: asyncio.Task[None] | None = None
        self.moved = True
        """Something came since the clock last looked, or it has not looked yet."""
        self.over = False
        self._lines = lines
        self._path = path
        self._headers_added = headers_added
        self._unread_timeout_s = unread_timeout_s
        self._line: EngineLine | None = None
        self._held: list[bytes] | None = None
        self._headed = False
        self._lacking_bytes = 0
        self._streaming = False
        """The client gets chunks."""
        self._redialled = False
        self._status = 0
        self._body_bytes = 0
        self._first_byte_at: float | None = None
        self._paused_since: float | None = None
        self._quiet_since = 0.0

    def start(
        self,
        observer: Observer,
        on_failed: Callable[[UpstreamFailed], None],
        on_done: Callable[[Done], None],
        first_byte_timeout_s: float,
        stall_s: float,
        judge: Judge | None,
    ) -> None:
        """Send the request, on a connection that is there or on a new one."""
        self._observer = observer
        self._on_failed = on_failed
        self._on_done = on_done
        self._first_byte_timeout_s = first_byte_timeout_s
        self._stall_s = stall_s
        self._judge = judge
        lines = self._lines
        lines.relays.add(self)
        if self.exchange.client.paused:
            self._paused_since = time.monotonic()
        line = lines.take(self.endpoint)
        if line is None:
            lines.dial(self)
        else:
            self.ask(line)

    def ask(self, line: EngineLine) -> None:
        """Send the request on a connection."""
        exchange, path = self.exchange, self._path
        if path is None:
            path = f"{exchange.path}?{exchange.query}" if exchange.query else exchange.path
        self._line = line
        line.begin(self, bodiless=exchange.method == "HEAD")
        if self._paused_since is not None:
            line.pause()
        body = exchange.body
        host = self._lines.host(self.endpoint)
        head = parsing.request_head(exchange.method, path, exchange.headers, host, len(body))
        if len(body) <= _JOIN_BYTES:
            line.transport.write(head + body)
        else:
            line.transport.write(head)
            line.transport.write(body)

    # What the connection tells

    def took(self, line: EngineLine, data: bytes) -> None:
        """Pass on what the last bytes from the engine held."""
        self.moved = True
        head = b""
        if not self._headed:
            if not line.status:
                return
            self._headed = True
            self._status = line.status
            if self._to_be_held(line.status):
                self._held = []
            elif self.exchange.began and not line.headers.plain():
                self.failed("bad-answer", "it compressed, unasked, an answer that had begun as plain text")
                return
            else:
                head = self._begin(line)
        if self._held is not None:
            self._hold(line, self._held)
        else:
            self._pass(line, head, data)

    def lost(self, words: str) -> None:
        """Learn that the connection is gone before the answer was complete."""
        line = self._line
        if line is not None and line.reused and not line.heard and not self._redialled and not self.over:
            self._redialled = True
            self._line = None
            self._lines.dial(self)
        elif self._held is not None:
            answer = self._answer(line, self._held) if line is not None else None
            self.failed("status-5xx-by-dying", f"answer {self._status}, then {words}", answer)
        else:
            came = f"{self._body_bytes} bytes of an answer {self._status}" if self._status else "no answer at all"
            self.failed("closed", f"{words} after {came}")

    def failed(self, kind: str, words: str, answer: Answer | None = None) -> None:
        """End it as the run's failure, or ours."""
        if self.over:
            return
        self._close()
        self._on_failed(UpstreamFailed(kind, words, self.exchange.sent_bytes, answer))

    # What the exchange tells

    def cancel(self, ended_by: EndedBy, words: str) -> None:
        """Close the engine's connection, and report the relay done."""
        if not self.over:
            self._close()
            self._done(ended_by, words)

    def pause(self) -> None:
        """Take no more from the engine for now."""
        self._paused_since = time.monotonic()
        if self._line is not None:
            self._line.pause()

    def resume(self) -> None:
        """Go on."""
        self._paused_since = None
        self._quiet_since = time.monotonic()
        if self._line is not None:
            self._line.resume()

    def tick(self, now: float) -> None:
        """Look at the time: an engine that is silent for too long, a client that takes nothing for too long."""
        if self._paused_since is not None:
            if now - self._paused_since > self._unread_timeout_s:
                self.cancel(EndedBy.CLIENT, f"the client took nothing for {self._unread_timeout_s:g} s")
                self.exchange.abort()
            return
        if self.moved:
            self.moved = False
            self._quiet_since = now
            return
        limit_s = self._stall_s if self._first_byte_at is not None else self._first_byte_timeout_s
        if now - self._quiet_since > limit_s:
            what = "nothing more" if self._first_byte_at is not None else "no first byte of an answer"
            self.failed("timeout", f"{what} within {limit_s:g} s")

    # The answer

    def _to_be_held(self, status: int) -> bool:
        """Tell whether an answer may not go on yet: a dying engine's may be replaced, and no status follows another."""
        return status >= _ERROR if self.exchange.began else status in _HELD

    def _begin(self, line: EngineLine) -> bytes:
        """Begin the answer to the client; return what goes before its body."""
        exchange = self.exchange
        client = exchange.client
        status = line.status
        self._first_byte_at = time.monotonic()
        if exchange.body:
            exchange.body = b""
            client.release_body()
        self._observer.head(status, line.headers)
        if exchange.began or self.over:
            self._streaming = exchange.chunked and client.minor == 1
            return b""
        bodiless = exchange.method == "HEAD" or status in (204, 304)
        if line.length is not None and status != 204:  # noqa: PLR2004 - No Content has no length (RFC 9110, 8.6)
            framing = b"content-length: %d\r\n%b" % (line.length, exchange.connection_line())
        elif bodiless:
            framing = exchange.connection_line()
        else:
            framing = exchange.stream_framing()
        exchange.began = True
        exchange.chunked = line.length is None and not bodiless
        self._streaming = exchange.chunked and client.minor == 1
        return parsing.answer_head(status, line.headers, self._headers_added, framing)

    def _pass(self, line: EngineLine, out: bytes, data: bytes) -> None:
        """Pass on the pieces that came, behind the head if there is one, and end with the answer."""
        if self.over:
            return
        pieces = line.pieces
        passed = self._observed(pieces, complete=line.complete)
        if self.over:
            return
        if not self._streaming:  # its length is promised, or it ends by closing
            out += pieces[0] if len(pieces) == 1 else b"".join(pieces)
        elif line.whole and passed:
            out += data
        else:
            out += parsing.chunks(pieces) + (parsing.LAST_CHUNK if line.complete else b"")
        if out:
            exchange = self.exchange
            exchange.sent_bytes += len(out)
            exchange.client.write(out)
        if line.complete and not self.over:
            self._complete(line)

    def _observed(self, pieces: list[bytes], *, complete: bool) -> bool:
        """Show the pieces to the observer, and put its own in place of some; return whether all stay as they are."""
        passed = True
        for index, piece in enumerate(pieces):
            self._body_bytes += len(piece)
            instead = self._observer.data(piece)
            if instead is not None:
                pieces[index] = instead
                self._lacking_bytes += len(piece) - len(instead)
                passed = False
            if self.over:
                return passed
        if complete and (tail := self._observer.end()):
            pieces.append(tail)
            self._lacking_bytes -= len(tail)
            passed = False
        return passed

    def _complete(self, line: EngineLine) -> None:
        """End with an answer that is whole."""
        exchange = self.exchange
        self._line = None
        self._close()
        line.release()
        try:
            self._done(BY_ENGINE, "")
        finally:
            if self._lacking_bytes and not exchange.can_finish:
                exchange.abort()  # less was sent than its length promised
            else:
                exchange.end()

    def _hold(self, line: EngineLine, held: list[bytes]) -> None:
        """Keep the pieces of an answer that may not go on yet, and decide when it is whole."""
        held += line.pieces
        size = sum(map(len, held))
        if not line.complete and size <= MAX_HELD_BYTES:
            return
        answer = self._answer(line, held)
        judge = self._judge or looks_dying
        if line.complete and judge(answer):
            self.failed("status-5xx-by-dying", f"answer {answer.status}: {_excerpt(answer)}", answer)
        elif self.exchange.began:
            self.failed("status", f"answer {answer.status}: {_excerpt(answer)}", answer)
        else:
            self._held = None
            line.pieces[:] = held
            line.whole = False
            self._pass(line, self._begin(line), b"")

    def _answer(self, line: EngineLine, held: list[bytes]) -> Answer:
        return Answer(line.status, line.headers, b"".join(held)[:MAX_HELD_BYTES])

    def _close(self) -> None:
        """Let go of everything; an engine that is still at it sees its connection closed."""
        self.over = True
        self._lines.relays.discard(self)
        self.exchange.relay_over(self)
        line, self._line = self._line, None
        if line is not None:
            line.drop()
        if self.dialling is not None:
            self.dialling.cancel()

    def _done(self, ended_by: EndedBy, words: str) -> None:
        self._on_done(Done(self._status, self._body_bytes, self._first_byte_at, ended_by, words))


def _excerpt(answer: Answer) -> str:
    return answer.body[:200].decode("utf-8", "replace")
