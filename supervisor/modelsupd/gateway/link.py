"""The gateway's side of the link to the daemon: dials, says all that it knows, and takes what comes.

While the daemon is away it is dialled again, and again; nothing else of the gateway notices. Evidence that comes up
meanwhile is kept, the newest of it, and told when the daemon is back.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import structlog

from modelsupd.gateway import wire
from modelsupd.gateway.channel import Channel, connect
from modelsupd.gateway.traffic import Ledger

log = structlog.get_logger("gateway.link")

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 1.0

#: A peer that does not answer a hello within this is no daemon at work; it is dialled anew.
WELCOME_TIMEOUT_S = 10.0

_KEPT_EVIDENCE = 256


class Station(Protocol):
    """What a link speaks for."""

    def hello(self) -> tuple[wire.Hello, Sequence[socket.socket]]:
        """Return who it is and all that it knows, with its listening sockets."""

    def wanted(self) -> tuple[wire.Wanted, ...]:
        """Return every model that requests wait for."""

    def welcome(self, message: wire.Welcome, sockets: Sequence[socket.socket]) -> None:
        """Take the whole table, and the listening sockets, if there are any."""

    def models(self, message: wire.Models) -> None:
        """Take what has changed of the table."""

    def accept(self) -> None:
        """Take connections from now on."""

    def drain(self) -> None:
        """Take none any more."""


class Link:
    """One gateway's link. All of it happens on the loop."""

    def __init__(self, path: str, station: Station, ledger: Ledger) -> None:
        """Dial `path`, once `start` is called."""
        self._path = path
        self._station = station
        self._ledger = ledger
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wanted: tuple[wire.Wanted, ...] = ()
        self._urgent: asyncio.Handle | None = None
        self._urgent_at = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._evidence: deque[wire.Evidence] = deque(maxlen=_KEPT_EVIDENCE)
        self._welcomed = False
        self._said_away = False
        self._closed = False

    @property
    def connected(self) -> bool:
        """Tell whether the daemon is there and has answered."""
        return self._welcomed

    def start(self) -> None:
        """Dial, now and whenever there is no daemon."""
        self._dial()

    def close(self) -> None:
        """Hang up for good."""
        self._closed = True
        self._stop_timer()
        if self._urgent is not None:
            self._urgent.cancel()
            self._urgent = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._welcomed = False

    def evidence(self, run: str, kind: str, words: str) -> None:
        """Tell the daemon that a run failed a client; at once, or as soon as it is there."""
        message = wire.Evidence(run=run, kind=str(kind), words=words, at=time.monotonic())
        if self._channel is not None and self._welcomed:
            self._channel.send(message)
        else:
            self._evidence.append(message)

    def seen(self, seq: int) -> None:
        """Tell the daemon that no request goes by an older table any more than that of this number."""
        if self._channel is not None:
            self._channel.send(wire.Seen(seq))

    def stir(self) -> None:
        """Tell the daemon in a moment what has changed by then. One that is away learns it by the next hello."""
        if self._urgent is not None or not self._welcomed:
            return
        now = self._loop.time()
        self._urgent_at = max(self._urgent_at, now - wire.URGENT_BURST * wire.URGENT_EVERY_S) + wire.URGENT_EVERY_S
        if self._urgent_at <= now:
            self._urgent = self._loop.call_soon(self._tell_urgent)
        else:
            self._urgent = self._loop.call_at(self._urgent_at, self._tell_urgent)

    def _dial(self) -> None:
        self._timer = None
        try:
            connected = connect(self._path)
        except OSError as error:
            self._lost((error.strerror or str(error)).lower())
            return
        self._channel = Channel(connected, on_message=self._take, on_closed=self._lost)
        hello, sockets = self._station.hello()
        self._ledger.changed()  # all of it stands in the hello
        self._wanted = hello.wanted
        self._channel.send(hello, sockets)
        if self._channel is not None:
            self._timer = self._loop.call_later(WELCOME_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._lost(f"nothing came within {WELCOME_TIMEOUT_S:g} s")

    def _lost(self, why: str) -> None:
        self._channel = None
        self._stop_timer()
        if self._closed:
            return
        if self._welcomed or not self._said_away:
            log.info("the daemon is away; going on with what is known", why=why)
            self._said_away = True
        self._welcomed = False
        self._timer = self._loop.call_later(self._pause_s, self._dial)
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _take(self, message: wire.Message, sockets: tuple[socket.socket, ...]) -> None:
        if isinstance(message, wire.Welcome):
            self._be_welcome(message, sockets)
            return
        if not self._welcomed:
            return  # before the table there is nothing that a change could be of
        if isinstance(message, wire.Models):
            self._station.models(message)
        elif isinstance(message, wire.Accept):
            self._station.accept()
        elif isinstance(message, wire.Drain):
            self._station.drain()

    def _be_welcome(self, message: wire.Welcome, sockets: tuple[socket.socket, ...]) -> None:
        log.info("the daemon is there", models=len(message.models), table_seq=message.seq)
        self._welcomed, self._said_away = True, False
        self._pause_s = FIRST_PAUSE_S
        self._stop_timer()
        self._station.welcome(message, sockets)
        while self._evidence and self._channel is not None:
            self._channel.send(self._evidence.popleft())
        self.stir()  # of what changed since the hello
        if self._channel is not None:
            self._timer = self._loop.call_later(wire.TRAFFIC_EVERY_S, self._report)

    def _report(self) -> None:
        self._timer = self._loop.call_later(wire.TRAFFIC_EVERY_S, self._report)
        self._tell()

    def _tell_urgent(self) -> None:
        self._urgent = None
        if self._welcomed:
            self._tell()

    def _tell(self) -> None:
        changed = self._ledger.changed()
        if changed and self._channel is not None:
            self._channel.send(wire.TrafficReport(traffic=changed))
        wanted = self._station.wanted()
        if wanted != self._wanted and self._channel is not None:
            self._wanted = wanted
            self._channel.send(wire.Demand(wanted))
