"""An exchange: one request of a client, whole, and the one answer that it gets.

Three rules. An exchange ends exactly once: by `respond`, `finish_with`, `abort`, the end of a relay, or the client's
going away. As long as not a byte has gone to the client, everything is still open: `respond`, or `relay` to another
run. And nothing here blocks or waits: whoever handles an exchange returns at once and is called back, on the loop.

    def handle(exchange):
        exchange.relay(run, observer=scanner, on_failed=again_or_else, on_done=record, …)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from modelsupd.gateway import parsing
from modelsupd.gateway.base import EndedBy, Run
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.ports import (
    Answer,
    Client,
    Done,
    Judge,
    Observer,
    Pair,
    Relaying,
    UpstreamFailed,
)

__all__ = ["Answer", "Done", "Exchange", "Observer", "Relays", "UpstreamFailed"]


class Relays(ABC):
    """Starts relays: the pool of connections to engines."""

    __slots__ = ()

    @abstractmethod
    def relay(self, exchange: Exchange, run: Run, path: str | None, headers_added: Sequence[Pair]) -> Relaying:
        """Prepare one."""


class Exchange:
    """One request and its answer. All methods are called on the loop, and return at once."""

    __slots__ = (
        "_on_gone",
        "_relay",
        "_relays",
        "_request_id",
        "began",
        "body",
        "chunked",
        "client",
        "client_gone",
        "ended",
        "headers",
        "method",
        "path",
        "query",
        "sent_bytes",
        "started_at",
    )

    def __init__(  # noqa: PLR0913, PLR0917 - what a request consists of; and names cost time on every request
        self,
        client: Client,
        relays: Relays,
        method: str,
        path: str,
        query: str,
        headers: Headers,
        body: bytes,
        started_at: float,
    ) -> None:
        """Hold a request that came whole. `body` is let go once an engine's answer has begun."""
        self._relays = relays
        self._relay: Relaying | None = None
        self._on_gone: Callable[[], None] | None = None
        self._request_id: str | None = None
        self.client = client
        """The connection that it came by."""
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.started_at = started_at
        self.sent_bytes = 0
        """To the client, heads and framing with it."""
        self.began = False
        """Something of an answer has gone to the client."""
        self.chunked = False
        """The answer that has begun is one whose end is not known beforehand."""
        self.ended = False
        self.client_gone = False

    @property
    def request_id(self) -> str:
        """Return the client's own id of the request where it may stand in a log, else one that was made for it."""
        if self._request_id is None:
            came = self.headers.first.get(b"x-request-id")
            self._request_id = parsing.sane_request_id(came) or self.client.new_id()
        return self._request_id

    @property
    def peer(self) -> str:
        """Return the client's address, as `127.0.0.1:40000`."""
        return self.client.peer

    @property
    def can_finish(self) -> bool:
        """Tell whether `finish_with` can add to the answer: not where its length was promised already."""
        return self.began and self.chunked and not self.ended

    def on_client_gone(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the client goes away before the answer is whole. The last one given counts.

        During a relay its `on_done` comes first.
        """
        self._on_gone = callback

    # Answers of our own

    def respond(self, status: int, headers: Iterable[Pair], body: bytes) -> None:
        """Answer with these and end. Only while nothing has gone to the client; after that it aborts."""
        if self.ended:
            return
        if self.began:
            self.abort()
            return
        self._stop_relay("the gateway answered itself")
        client = self.client
        framing = self.connection_line()
        if status != 204:  # noqa: PLR2004 - No Content has no length (RFC 9110, 8.6)
            framing += b"content-length: %d\r\n" % len(body)
        head = parsing.own_head(status, headers, framing, client.date())
        self.began = True
        self.sent_bytes += len(body)
        client.write(head if self.method == "HEAD" else head + body)
        self.end()

    def start_stream(self, status: int, headers: Iterable[Pair]) -> None:
        """Begin an answer whose end is not known; `send`, `relay` and `finish_with` go on with it."""
        if self.ended or self.began:
            return
        framing = self.stream_framing()
        self.client.write(parsing.own_head(status, headers, framing, self.client.date()))
        self.began = self.chunked = True

    def send(self, data: bytes) -> None:
        """Send a piece of a stream that has begun, unless the client is slow to take what it already has."""
        if self.can_finish and not self.client.paused:
            self.sent_bytes += len(data)
            self.client.write(self.framed(data))

    def finish_with(self, data: bytes) -> None:
        """Send the last bytes of a stream that has begun, and end. Where that is impossible it aborts."""
        if self.ended:
            return
        if not self.can_finish:
            self.abort()
            return
        self._stop_relay("the gateway ended it")
        self.sent_bytes += len(data)
        self.client.write(self.framed(data) + (parsing.LAST_CHUNK if self.client.minor else b""))
        self.end()

    def abort(self) -> None:
        """Close the client's connection at once, so that it sees that the answer is not whole."""
        if not self.ended:
            self.ended = True
            self._stop_relay("the gateway aborted it")
            self.client.abort()

    # Answers of engines

    def relay(  # noqa: PLR0913 - a relay's settings, each named where it is called
        self,
        run: Run,
        *,
        path: str | None = None,
        headers_added: Sequence[Pair] = (),
        observer: Observer,
        on_failed: Callable[[UpstreamFailed], None],
        on_done: Callable[[Done], None],
        first_byte_timeout_s: float,
        stall_s: float,
        judge: Judge | None = None,
    ) -> None:
        """Ask `run`, and pass its answer on. Exactly one of `on_failed` and `on_done` is called, once, and last.

        `path` (with a query) takes the place of the request's own. `headers_added` stand in the answer. An answer of
        500, 502, 503 or 504 is held back until `judge` has seen it; without one it is judged by its words.
        """
        if self._relay is not None:
            self._stop_relay("the gateway chose another run")
        if self.ended:
            return
        relay = self._relays.relay(self, run, path, headers_added)
        self._relay = relay
        relay.start(observer, on_failed, on_done, first_byte_timeout_s, stall_s, judge)

    # What relays and connections call

    def framed(self, data: bytes) -> bytes:
        """Return data as they go to the client in a stream."""
        return parsing.chunk(data) if self.client.minor else data

    def stream_framing(self) -> bytes:
        """Return the header lines of an answer whose end is not known: HTTP/1.0 knows nothing but closing."""
        if self.client.minor:
            return b"transfer-encoding: chunked\r\n" + self.connection_line()
        self.client.close_after()
        return self.connection_line()

    def connection_line(self) -> bytes:
        """Return the header line that says what becomes of the connection, where it has to be said."""
        if self.client.closing():
            return b"connection: close\r\n"
        return b"" if self.client.minor else b"connection: keep-alive\r\n"

    def relay_over(self, relay: Relaying) -> None:
        """Note that this relay runs no more."""
        if self._relay is relay:
            self._relay = None

    def end(self) -> None:
        """Note that the last byte was written."""
        if not self.ended:
            self.ended = True
            self.client.ended()

    def gone(self) -> None:
        """Note that the client went away: cancel the engine's work at once, then tell."""
        if self.ended:
            return
        self.ended = True
        self.client_gone = True
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.cancel(EndedBy.CLIENT, "the client went away")
        if self._on_gone is not None:
            self._on_gone()

    def pause(self) -> None:
        """Take no more from the engine until the client has taken what there is."""
        if self._relay is not None:
            self._relay.pause()

    def resume(self) -> None:
        """Go on."""
        if self._relay is not None:
            self._relay.resume()

    def _stop_relay(self, words: str) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.cancel(EndedBy.GATEWAY, words)
