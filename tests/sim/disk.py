"""The journal on a simulated disk: written, synced, lost; full for a while, slow, or broken under a sync."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from modelsupd.runtime.journal import Unwritable

#: Records that the reserve takes while the disk is full.
RESERVE_RECORDS = 40


class Disk:
    """What is on disk, and in what mood it is. Outlives daemons; `synced` records also outlive a power cut."""

    def __init__(self, rng: random.Random, tell: Callable[[str], None]) -> None:
        """Start empty and well."""
        self.rng = rng
        self.tell = tell
        self.synced: list[dict[str, Any]] = []
        self.written: list[dict[str, Any]] = []
        self.doubtful: list[dict[str, Any]] = []
        self.full = False
        self.broken = False
        self.slow = 0.0
        self.slow_s = (1.0, 20.0)
        self.reserve = RESERVE_RECORDS
        self.latest: dict[str, Any] = {}

    def sync(self) -> None:
        """Make what was written safe."""
        for record in self.written:
            if record["kind"] == "replica":
                self.latest[record["replica"]] = record["state"]
        self.synced += self.written
        self.written = []

    def survive(self, *, power_cut: bool) -> None:
        """Settle what a new daemon will read: after a power cut only a prefix of what was not synced."""
        tail = [*self.written, *self.doubtful]
        kept = (
            self.rng.randint(0, len(tail)) if power_cut else len(self.written) + self.rng.randint(0, len(self.doubtful))
        )
        self.written, self.doubtful = tail[:kept], []
        self.sync()

    def states(self) -> dict[str, Any]:
        """Return the last state of each replica that was not forgotten."""
        return {name: state for name, state in self.latest.items() if state is not None}


class SimJournal:
    """One daemon's writer: records go out in order, those that wait together in one sync."""

    def __init__(self, disk: Disk) -> None:
        """Write to `disk`."""
        self._disk = disk
        self._waiting: list[tuple[dict[str, Any], asyncio.Future[int]]] = []
        self._writer: asyncio.Task[None] | None = None
        self.read_only: str | None = None

    async def append(self, body: Mapping[str, Any]) -> int:
        """Return the record's number once it is synced."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((json.loads(json.dumps(body)), done))
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())
        return await done

    async def _write(self) -> None:
        disk, rng = self._disk, self._disk.rng
        while self._waiting:
            batch, self._waiting = self._waiting, []
            if disk.full:
                self.read_only = "no space left on device"
                if disk.reserve < len(batch):
                    self._fail(batch, "no space left on device, and the reserve is spent")
                    continue
                disk.reserve -= len(batch)
            # Success after a failed sync means a new segment: what was in doubt is in the old one, which is over.
            disk.doubtful.clear()
            disk.written += [body for body, _done in batch]
            await asyncio.sleep(rng.uniform(*disk.slow_s) if rng.random() < disk.slow else rng.uniform(0.0001, 0.01))
            if disk.broken:
                disk.doubtful, disk.written = disk.written, []
                self._fail(batch, "input/output error")
                continue
            disk.sync()
            for _body, done in batch:
                if not done.done():
                    done.set_result(len(disk.synced))
        self._writer = None

    def _fail(self, batch: list[tuple[dict[str, Any], asyncio.Future[int]]], why: str) -> None:
        for _body, done in batch:
            if not done.done():
                done.set_exception(Unwritable(why))

    async def probe_writable(self) -> bool:
        """Get back to normal if the disk is."""
        await asyncio.sleep(0.001)
        if self._disk.full:
            return False
        if self.read_only:
            self._disk.tell("the journal is writable again")
        self.read_only, self._disk.reserve = None, RESERVE_RECORDS
        return True

    def die(self) -> None:
        """End with the daemon; what was not written is lost."""
        if self._writer is not None:
            self._writer.cancel()
        for _body, done in self._waiting:
            done.cancel()
        self._waiting = []
