"""What all connections of a worker share: limits, the clock that ends what takes too long, counts, and the pool.

There is one timer for the worker, not one for each connection: every connection carries an instant, and four times a
second those that have passed are looked for. A round that comes late passes no verdicts: what the others had to say
meanwhile still lies unread in the sockets.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from email.utils import formatdate
from typing import Final, Protocol

from modelsupd.gateway.base import Limits
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.request import Gauge
from modelsupd.gateway.upstream import Pool

TICK_S: Final = 0.25

#: A round of the clock that is late by this much says that the worker itself got no CPU.
_LATE_S: Final = 1.0

#: In so many rounds all connections are looked at, for clients that have vanished.
_HEARD_IN_ROUNDS = 16

#: How long an idle connection is left open once the gateway drains: a request may be on its way on it.
_DRAINING_IDLE_S: Final = 1.0

#: How long whoever was taken in may take for the handshake before the first byte, once the gateway drains.
_DRAINING_HANDSHAKE_S: Final = 5.0

Handle = Callable[[Exchange], None]
"""Handles an exchange, on the loop, at once."""


class Timed(Protocol):
    """A connection of a client, as the clock sees it."""

    deadline: float
    """When `expire` is to be called; infinite while nothing has to happen."""

    def expire(self) -> None:
        """End what takes too long."""

    def leave(self, idle_s: float) -> None:
        """Close once it has been idle for so long."""

    def abort(self) -> None:
        """Close at once."""

    def unheard_s(self) -> float:
        """Return for how long nothing was heard of a client that does not confirm what it is sent; else 0."""


class Front(Gauge):
    """The state of a worker: what its connections have in common."""

    def __init__(self, limits: Limits, handle: Handle, *, tick_s: float = TICK_S) -> None:
        """Prepare; `start` sets the clock going. Every request that comes whole is given to `handle`."""
        super().__init__()
        self.limits = limits
        self.handle = handle
        self.pool = Pool(limits)
        self.connections: set[Timed] = set()
        self.greeting: dict[Timed, float] = {}
        """Those taken in of late that are no connections before a handshake is done, and since when, in that order."""
        self.in_flight = 0
        self.accepted = 0
        self.refused: Counter[int] = Counter()
        self.draining = False
        self.date = b""
        self._tick_s = tick_s
        self._timer: asyncio.TimerHandle | None = None
        self.now = time.monotonic()
        """When the clock last looked."""
        self._to_hear: list[Timed] = []
        self._id_prefix = os.urandom(8).hex()
        self._ids = 10_000_000  # so that ids are of one length

    def start(self) -> None:
        """Set the clock going."""
        self.now = time.monotonic()
        self._tick()

    def late_s(self) -> float:
        """Return by how much the clock is late: the loop has turned within that time and a tick. From any thread."""
        return max(0.0, time.monotonic() - self.now - self._tick_s)

    def drain(self) -> None:
        """Close connections as they fall idle, and tell clients so in every answer."""
        self.draining = True
        for connection in list(self.connections):
            connection.leave(_DRAINING_IDLE_S)

    def deserted(self) -> bool:
        """Tell whether nobody is connected any more, nor about to be. Those who never come are forgotten in time."""
        return not self.connections and not self.greeting

    def close(self) -> None:
        """Close everything at once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self.connections):
            connection.abort()
        self.pool.close()

    def new_id(self) -> str:
        """Return an id that no other request has, of this worker or another."""
        self._ids += 1
        return self._id_prefix + str(self._ids)

    def _tick(self) -> None:
        now = time.monotonic()
        late = now - self.now > self._tick_s + _LATE_S
        self.now = now
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        self.date = f"date: {formatdate(usegmt=True)}".encode()
        if late:
            return
        while self.greeting and self.greeting[first := next(iter(self.greeting))] < now - _DRAINING_HANDSHAKE_S:
            del self.greeting[first]
        for connection in list(self.connections):
            if connection.deadline <= now:
                connection.expire()
        self._listen_for_signs_of_life()
        self.pool.tick(now)

    def _listen_for_signs_of_life(self) -> None:
        """Close connections of clients that have vanished. A few are looked at each time, so that it takes no time."""
        if not self._to_hear:
            self._to_hear = list(self.connections)
        for _ in range(min(len(self._to_hear), 1 + len(self.connections) // _HEARD_IN_ROUNDS)):
            connection = self._to_hear.pop()
            if connection in self.connections and connection.unheard_s() >= self.limits.vanished_after_s:
                connection.abort()
