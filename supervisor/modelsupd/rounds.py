"""The daemon's housekeeping, once a second: orphans, the journal's disk, what changed on disk, the service manager."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from modelsupd.core.phases import Ready, Replica
from modelsupd.runtime.driver import Driver
from modelsupd.runtime.fetching import Fetches
from modelsupd.runtime.journal import Journal
from modelsupd.runtime.orphans import reap_orphans
from modelsupd.runtime.process import Processes
from modelsupd.runtime.systemd import Notifier

log = structlog.get_logger("daemon")

#: How often the daemon looks after what is its own: journal, watchdog, orphans. In seconds.
ROUND_S = 1.0

#: How much more time is asked of the service manager while engines are being stopped, in seconds.
EXTEND_BY_S = 10.0

#: How often the disk is looked at while nobody asks for anything, in seconds.
DISK_LOOK_S = 5.0


class _Changes(Protocol):
    async def changed(self, replica: Replica) -> str:
        """Return what has changed on disk since the replica's engine was started, in words."""
        ...


@dataclass(kw_only=True, eq=False)
class Rounds:
    """Goes its round for as long as the daemon lives.

    `leaving` tells whether the daemon is on its way out, `compare_every_s` how often what running engines were started
    from is compared with what is on the disk.
    """

    driver: Driver
    journal: Journal
    processes: Processes
    fetches: Fetches
    notify: Notifier
    effects: _Changes
    leaving: Callable[[], bool]
    compare_every_s: Callable[[], float]
    refresh: Callable[[], None]
    more_pids: Callable[[], frozenset[int]]
    _looked_at: float = 0.0
    _fed_at: float = 0.0
    _compared_at: float = 0.0
    _comparing: asyncio.Task[None] | None = None
    _found: dict[str, tuple[int, str]] = field(default_factory=dict)

    def changes(self) -> dict[str, str]:
        """Return, by replica, what has changed on disk since its present run was started, in words."""
        replicas = self.driver.replicas
        return {
            name: words
            for name, (run, words) in self._found.items()
            if name in replicas and replicas[name].last_run == run
        }

    async def go(self) -> None:
        """Go round for ever; one round that fails does not end the others."""
        try:
            while True:
                await asyncio.sleep(ROUND_S)
                try:
                    await self._round(asyncio.get_running_loop().time())
                except Exception:
                    log.exception("housekeeping failed")
        finally:
            if self._comparing is not None:
                self._comparing.cancel()

    async def _round(self, now: float) -> None:
        reap_orphans(self.processes.children() | self.fetches.pids() | self.more_pids())
        await self._look_at_disk(now)
        idle = self._comparing is None or self._comparing.done()
        if idle and not self.leaving() and now - self._compared_at >= self.compare_every_s():
            self._compared_at = now
            self._comparing = asyncio.create_task(self._compare())
        self.refresh()
        if self.leaving():
            self.notify.extend(EXTEND_BY_S)
        else:
            ready = sum(isinstance(replica.phase, Ready) for replica in self.driver.replicas.values())
            self.notify.status(f"{ready} of {len(self.driver.replicas)} replicas ready")
        watchdog_s = self.notify.watchdog_s
        if watchdog_s is not None and now - self._fed_at >= watchdog_s / 4 and self.driver.progressing():
            self.notify.tell(WATCHDOG=1)
            self._fed_at = now

    async def _look_at_disk(self, now: float) -> None:
        was = self.journal.read_only
        if was is not None or now - self._looked_at >= DISK_LOOK_S:
            self._looked_at = now
            if not await self.journal.probe_writable() and was is None:
                log.error("commands are refused: the journal cannot be written", why=self.journal.read_only)
            elif was is not None and self.journal.read_only is None:
                log.info("the journal can be written again")
        if self.journal.read_only is None:
            await self.driver.catch_up()

    async def _compare(self) -> None:
        """Look at what running engines were started from, one after the other: nobody waits for it."""
        found = {}
        for name, replica in list(self.driver.replicas.items()):
            if isinstance(replica.phase, Ready) and (words := await self.effects.changed(replica)):
                found[name] = replica.last_run, words
                if self._found.get(name) != found[name]:
                    log.warning("changed under a running engine", replica=name, what=words)
        self._found = found
