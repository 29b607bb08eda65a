"""A client's connection: strict HTTP/1.1 in, one exchange at a time.

Rules. A request is handed on when it is whole, so that no engine ever waits for a slow client, and every wait for one
has its deadline. Requests that were sent ahead wait until the answer before theirs is out. A client that closes even
one direction of its connection is taken to have gone. A refused connection is read on for a moment, since closing it
with bytes unread would be a reset, which takes the answer with it.
"""

from __future__ import annotations

import asyncio
import math
import time
from enum import Enum, auto
from typing import Final, cast

import structlog

from modelsupd.gateway import parsing, vanished
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.front import Front
from modelsupd.gateway.parsing import Refusal
from modelsupd.gateway.ports import Client
from modelsupd.gateway.request import Reader

log = structlog.get_logger()

#: How long a connection that was refused is still read.
_LINGER_S: Final = 2.0

#: A body that comes at this pace or faster is never too slow, however large.
_SLOWEST_BODY_BYTES_S: Final = 65536

#: More connections than the limit are answered, up to this many; further ones are closed without a word.
_TURNED_AWAY: Final = 256


class _State(Enum):
    IDLE = auto()
    """Between two requests, or before the first."""
    READING = auto()
    """In the middle of a request."""
    BUSY = auto()
    """An exchange is under way."""
    LINGERING = auto()
    """Refused: what comes is thrown away."""
    CLOSED = auto()


#: As names of the module they are found faster than in their class, and they are asked for with every piece.
_IDLE: Final = _State.IDLE
_READING: Final = _State.READING
_BUSY: Final = _State.BUSY


class Connection(Client):
    """One connection of one client; an asyncio.Protocol in all but its base, as `Line` is."""

    __slots__ = (
        "_close_after",
        "_dispatching",
        "_exchange",
        "_front",
        "_peer",
        "_reader",
        "_reading_paused",
        "_rest",
        "_since",
        "_state",
        "_transport",
        "deadline",
    )

    def __init__(self, front: Front, *, greets: bool = False) -> None:
        """Wait for `connection_made`; where it `greets`, not before a handshake that may take long, or fail."""
        self._front = front
        self._reader = Reader(front.limits, front)
        self._exchange: Exchange | None = None
        self._state = _IDLE
        self._peer: str | None = None
        self._rest = b""
        self._reading_paused = False
        self._close_after = False
        self._dispatching = False
        self._since = time.monotonic()
        self.deadline = math.inf
        self.minor = 1
        self.paused = False
        if greets:
            front.greeting[self] = self._since

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        # uvloop's transports are no subclass of asyncio's, so an isinstance would be wrong here.
        self._transport = cast("asyncio.Transport", transport)
        front = self._front
        if front.greeting:
            front.greeting.pop(self, None)
        front.accepted += 1
        limit = front.limits.max_connections
        if len(front.connections) >= limit + _TURNED_AWAY:
            self._state = _State.CLOSED
            front.refused[503] += 1
            self._transport.abort()
            return
        front.connections.add(self)
        self._transport.set_write_buffer_limits(high=front.limits.stream_buffer_bytes)
        self.deadline = self._since + front.limits.idle_timeout_s
        if len(front.connections) > limit:
            self._refuse(Refusal(503, f"there are {limit} connections, as many as may be", 1))
        elif front.draining:
            self.leave(front.limits.head_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Read what came, or keep it while an exchange is under way."""
        state = self._state
        if state is _BUSY:
            self._keep_for_later(data)
        elif state is _IDLE or state is _READING:
            self._feed(data)

    def pause_writing(self) -> None:
        """Take no more from the engine: the client is slow."""
        self.paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        """Go on."""
        self.paused = False
        if self._exchange is not None:
            self._exchange.resume()

    def eof_received(self) -> None:
        """Let the transport close: a client that says no more is taken to have gone."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Cancel what was under way."""
        self._state = _State.CLOSED
        self.deadline = math.inf
        self._front.connections.discard(self)
        exchange = self._exchange
        self._forget_exchange()
        if exchange is not None:
            exchange.gone()

    # The clock

    def expire(self) -> None:
        """End what takes too long."""
        if self._state is _READING:
            what = "body" if self._reader.headed else "head"
            self._refuse(Refusal(408, f"the request's {what} did not come in time"))
        else:
            self.abort()

    def leave(self, idle_s: float) -> None:
        """Close once it has been idle for so long."""
        if self._state is _IDLE:
            self.deadline = min(self.deadline, max(time.monotonic(), self._since + idle_s))

    def unheard_s(self) -> float:
        """Return for how long nothing was heard of a client that does not confirm what it is sent; else 0."""
        return vanished.unheard_s(self._transport.get_extra_info("socket")) if self._exchange is not None else 0.0

    # What an exchange calls

    @property
    def peer(self) -> str:
        """Return the client's address."""
        if self._peer is None:
            name = self._transport.get_extra_info("peername")
            self._peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "local"
        return self._peer

    def write(self, data: bytes) -> None:
        """Send."""
        self._transport.write(data)

    def closing(self) -> bool:
        """Tell whether the connection is closed after the exchange."""
        return self._close_after or self._front.draining

    def close_after(self) -> None:
        """Close it after the exchange."""
        self._close_after = True

    def date(self) -> bytes:
        """Return the line that tells the time."""
        return self._front.date

    def new_id(self) -> str:
        """Return an id that no other request has."""
        return self._front.new_id()

    def release_body(self) -> None:
        """Learn that the body is not needed any more."""
        self._reader.release()

    def abort(self) -> None:
        """Close at once, so that the client sees that it did not get everything."""
        exchange = self._exchange
        self._forget_exchange()
        self._state = _State.CLOSED
        self.deadline = math.inf
        self._transport.abort()
        if exchange is not None:
            exchange.gone()

    def ended(self) -> None:
        """Go on after an answer: close, or take the next request."""
        self._forget_exchange()
        if self.closing():
            self._close()
            return
        self._state = _IDLE
        front = self._front
        self._since = now = front.now  # a little early, which does not matter here
        self.deadline = now + front.limits.idle_timeout_s
        if self._dispatching:
            return  # the loop below this call goes on with what is left
        if self._rest:
            data, self._rest = self._rest, b""
            self._feed(data)
        self._read_on()

    def _close(self) -> None:
        """Close when everything is written, or when that takes too long."""
        self._state = _State.CLOSED
        self.deadline = time.monotonic() + self._front.limits.write_timeout_s
        self._transport.close()

    def _forget_exchange(self) -> None:
        if self._reader.body_bytes:
            self._reader.release()
        if self._exchange is not None:
            self._exchange = None
            self._front.in_flight -= 1

    # Reading

    def _keep_for_later(self, data: bytes) -> None:
        """Keep what was sent ahead; more than a head's worth has to wait in the socket."""
        self._rest += data
        if len(self._rest) > self._front.limits.max_head_bytes and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading_paused and self._state is not _BUSY and not self._transport.is_closing():
            self._reading_paused = False
            self._transport.resume_reading()

    def _feed(self, data: bytes) -> None:
        """Read data, handing on each request that is whole, until one has to be waited for."""
        reader = self._reader
        while data:
            if self._state is _IDLE:
                data = data.lstrip(b"\r\n")  # old clients send a line's end behind a body, which does not count
                if not data:
                    return
                self._state = _READING
                self._since = time.monotonic()
                reader.reset()
            rest = reader.feed(data)
            if reader.refusal is not None:
                self.minor = reader.minor
                self._refuse(reader.refusal)
                return
            if not reader.complete:
                self._wait_for_more()
                return
            self._dispatch()
            if self._state is _BUSY:
                if rest:
                    self._keep_for_later(rest)
                return
            if self._state is not _IDLE:
                return
            data = rest

    def _wait_for_more(self) -> None:
        """Set the deadline of what is missing."""
        reader, limits = self._reader, self._front.limits
        if not reader.headed:
            self.deadline = self._since + limits.head_timeout_s
            return
        self.deadline = self._since + limits.body_timeout_s + reader.body_bytes / _SLOWEST_BODY_BYTES_S
        if reader.expects:
            reader.expects = False
            if not reader.body_bytes:
                self._transport.write(parsing.CONTINUE)

    def _dispatch(self) -> None:
        """Hand on a request that is whole."""
        reader, front = self._reader, self._front
        self.minor = reader.minor
        self._close_after = not reader.keep
        self._state = _BUSY
        self.deadline = math.inf
        front.in_flight += 1
        self._exchange = exchange = Exchange(
            self,
            front.pool,
            reader.method,
            reader.path,
            reader.query,
            reader.headers,
            reader.take_body(),
            self._since,
        )
        self._dispatching = True
        try:
            front.handle(exchange)
        except Exception:  # a defect in one request's handling must not end the others
            log.exception("an exchange failed", path=exchange.path)
            exchange.respond(500, [parsing.JSON], parsing.error_body(500, "the gateway failed; its log says how"))
        finally:
            self._dispatching = False

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what never became an exchange, and close."""
        self._front.refused[refusal.status] += 1
        self._reader.release()
        body = parsing.error_body(refusal.status, refusal.words)
        headers = [parsing.JSON]
        if refusal.retry_after_s:
            headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
        framing = b"content-length: %d\r\nconnection: close\r\n" % len(body)
        self._transport.write(parsing.own_head(refusal.status, headers, framing, self._front.date) + body)
        if self._transport.can_write_eof():
            self._state = _State.LINGERING
            self.deadline = time.monotonic() + _LINGER_S
            self._transport.write_eof()
        else:
            self._close()
