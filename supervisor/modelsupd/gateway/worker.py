"""A gateway at work: its front and service, what the daemon told it, and what it tells.

It has one table, its listening sockets, and one wish of the daemon's: to take connections or not. All of that outlives
the daemon; nothing of it is kept on disk.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from modelsupd.gateway import metrics, tls, wire
from modelsupd.gateway.admin import Admin
from modelsupd.gateway.api import Cors
from modelsupd.gateway.base import Table
from modelsupd.gateway.desk import Reports
from modelsupd.gateway.front import Front
from modelsupd.gateway.keys import Keys
from modelsupd.gateway.link import Link
from modelsupd.gateway.listener import Listener
from modelsupd.gateway.record import AccessLog, Entry
from modelsupd.gateway.service import Service, Ways
from modelsupd.gateway.settings import Settings
from modelsupd.gateway.tally import Tally
from modelsupd.gateway.traffic import Ledger

log = structlog.get_logger("gateway")

#: How often a draining worker looks whether its last answer is out.
_DRAINED_LOOK_S = 0.05

#: How soon a connection to a draining engine is closed once it is idle.
_LET_GO_S = 0.1


class Worker:
    """Everything of one gateway process."""

    def __init__(self, settings: Settings) -> None:
        """Put it together. Raises ModelsupdError where the certificate cannot be used."""
        self.settings = settings
        self.loop = asyncio.get_running_loop()
        self.table = Table()
        self.table_seq: int | None = None
        self.ledger = Ledger()
        self.tally = Tally()
        self.keys = Keys(settings.keys_path, self.loop.time, open_without=False)
        self.certificate: tls.Certificate | None = None
        if settings.tls_cert and settings.tls_key:
            self.certificate = tls.Certificate(Path(settings.tls_cert), Path(settings.tls_key))
        self.access_log = AccessLog(
            settings.access_log_path, max_bytes=settings.access_log.max_bytes, files=settings.access_log.files
        )
        self.service = Service(
            self.keys.check,
            ledger=self.ledger,
            reports=Reports(evidence=self.evidence, record=self.record, demand=self.demand),
            ways=Ways(
                cors=Cors(settings.cors_origins),
                auto=settings.auto,
                warm_after_s=settings.warm_after_s,
                session_headers=tuple(name.lower().encode() for name in settings.session_headers),
            ),
        )
        self.front = Front(settings.limits, self.service.handle)
        self.listener = Listener(self.front)
        self.link = Link(settings.daemon_socket, self, self.ledger)
        self.admin = Admin(self.health, self._scrape, self.front.late_s)
        self._since = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._sockets: list[socket.socket] = []
        self._served: Sequence[socket.socket] | None = None
        self._accept_wanted = False
        self._settling: asyncio.Task[None] | None = None
        self._certificate_timer: asyncio.TimerHandle | None = None
        self._let_go_timer: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()

    async def run(self, admin_path: Path) -> None:
        """Serve until `end` was called and every answer is out."""
        self.front.start()
        self.admin.listen(admin_path)
        self.link.start()
        if self.certificate is not None:
            self._look_at_certificate()
        await self._ended.wait()
        self._wish(accept=False)
        self.front.drain()
        log.info("draining", in_flight=self.front.in_flight, connections=len(self.front.connections))
        while not self.front.deserted():  # noqa: ASYNC110 - the front has no event for what happens once in its life
            await asyncio.sleep(_DRAINED_LOOK_S)
        await self._close()

    def end(self) -> None:
        """Take no connection any more, let what is in flight finish, and leave."""
        self._ended.set()

    # What the service is given

    def evidence(self, run: str, kind: str, words: str) -> None:
        """Tell the daemon that a run failed a client, and count it."""
        self.tally.failed(run, kind)
        self.link.evidence(run, kind, words)

    def record(self, entry: Entry) -> None:
        """Record a request that has ended, and count it."""
        self.tally.count(entry)
        self.access_log.put(entry)

    def demand(self) -> None:
        """Tell the daemon what is waited for."""
        self.link.stir()

    # What the daemon asks

    def hello(self) -> tuple[wire.Hello, Sequence[socket.socket]]:
        """Return who this is and all that it knows."""
        message = wire.Hello(
            run=self.settings.run,
            pid=os.getpid(),
            listening=self.listener.accepting,
            draining=self.front.draining,
            sockets=len(self._sockets),
            connections=len(self.front.connections),
            table_seq=self.table_seq,
            tells_seen=True,
            traffic=self.ledger.all(),
            wanted=self.wanted(),
        )
        return message, self._sockets

    def wanted(self) -> tuple[wire.Wanted, ...]:
        """Return every model that requests wait for."""
        return self.service.wanted()

    def welcome(self, message: wire.Welcome, sockets: Sequence[socket.socket]) -> None:
        """Take the whole table, and the sockets to listen on."""
        if sockets:
            self._replace_sockets(sockets)
        self._take_table(message.table, message.seq)
        self._accept(wanted=message.accept)

    def models(self, message: wire.Models) -> None:
        """Take what has changed of the table."""
        self._take_table(message.applied_to(self.table), message.seq)

    def accept(self) -> None:
        """Take connections."""
        self._accept(wanted=True)

    def drain(self) -> None:
        """Take none any more; what comes by those that are there is answered, and then they are closed."""
        self._accept(wanted=False)
        self.front.drain()

    # What is told about it

    def health(self) -> Mapping[str, object]:
        """Return what `GET /health` tells. Called in a thread of its own, as `_scrape` is: they only read."""
        return {
            "v": wire.VERSION,
            "accepting": self.listener.accepting,
            "draining": self.front.draining,
            "in_flight": self.front.in_flight,
            "connections": len(self.front.connections),
            "table_seq": self.table_seq,
            "daemon": self.link.connected,
            "since": self._since,
        }

    def _scrape(self) -> bytes:
        now = metrics.Now(
            in_flight={each.run: each.in_flight for each in self.ledger.all()},
            queued=self.service.queued(),
            connections=len(self.front.connections),
            accepting=self.listener.accepting,
            daemon_connected=self.link.connected,
            table_seq=self.table_seq or 0,
            records_dropped=self.access_log.dropped,
            accepted=self.front.accepted,
            refused=dict(self.front.refused),
        )
        return metrics.text(self.tally, now)

    # Inside

    def _take_table(self, table: Table, seq: int) -> None:
        self.table, self.table_seq = table, seq
        self.service.update(table)
        self._let_go()
        self.link.seen(seq)

    def _let_go(self) -> None:
        """Close idle connections to engines that get no more requests: who stops one waits for them to close."""
        if self._let_go_timer is not None:
            self._let_go_timer.cancel()
            self._let_go_timer = None
        draining = {run.endpoint for model in self.table.models.values() for run in model.runs if run.draining}
        for endpoint in draining:
            self.front.pool.close(endpoint)
        if draining:
            self._let_go_timer = self.loop.call_later(_LET_GO_S, self._let_go)

    def _replace_sockets(self, sockets: Sequence[socket.socket]) -> None:
        self.listener.stop()
        for each in self._sockets:
            each.close()
        self._sockets = list(sockets)
        self.keys.open_without = self.settings.open_to_network or all(_is_local(each) for each in sockets)
        log.info("listening", addresses=[_words(each) for each in sockets])

    def _accept(self, *, wanted: bool) -> None:
        if wanted and not self._ended.is_set():
            self.front.draining = False
        self._wish(accept=wanted and not self._ended.is_set())

    def _wish(self, *, accept: bool) -> None:
        """Note what is wanted, and have it so: a listener takes turns of the loop to start, and wishes change."""
        self._accept_wanted = accept
        if not accept:
            self.listener.stop()
        if self._settling is None:
            self._settling = self.loop.create_task(self._settle())

    async def _settle(self) -> None:
        try:
            while self._accept_wanted and not (self.listener.accepting and self._served is self._sockets):
                self._served = self._sockets
                self.listener.stop()
                await self._listen(self._served)
                if not self._accept_wanted or not self.listener.accepting:
                    self.listener.stop()
                    if self._served is self._sockets:
                        return
        finally:
            self._settling = None

    async def _listen(self, sockets: Sequence[socket.socket]) -> None:
        try:
            await self.listener.start(sockets, self.certificate.context if self.certificate else None)
        except OSError as error:
            log.warning("cannot accept connections", why=(error.strerror or str(error)).lower())

    def _look_at_certificate(self) -> None:
        self._certificate_timer = self.loop.call_later(tls.LOOK_EVERY_S, self._look_at_certificate)
        if self.certificate is not None:
            self.certificate.refresh()

    async def _close(self) -> None:
        for timer in (self._certificate_timer, self._let_go_timer):
            if timer is not None:
                timer.cancel()
        self.service.close()
        self.link.close()
        self.front.close()
        self.admin.close()
        for each in self._sockets:
            each.close()
        await self.loop.run_in_executor(None, self.access_log.close)


def _is_local(listening: socket.socket) -> bool:
    """Tell whether only this host reaches a socket."""
    if listening.family == socket.AF_UNIX:
        return True
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def _words(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    return f"[{name[0]}]:{name[1]}" if listening.family == socket.AF_INET6 else f"{name[0]}:{name[1]}"
