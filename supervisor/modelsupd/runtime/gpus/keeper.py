"""Looks after the host's GPUs: reads them, keeps account, puts into quarantine what is not to be used, has runs placed.

Nothing is read, and no process started, before a model is declared that uses a GPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from modelsupd.core.allotment import Card, alike
from modelsupd.core.events import Event, GpuLost, Measured
from modelsupd.core.gpu_spec import GpusSpec
from modelsupd.core.phases import Asleep, Ready, Replica, Starting, Waiting
from modelsupd.core.spec import ModelSpec, gpu_count
from modelsupd.errors import Refused
from modelsupd.runtime.gpus import ledger
from modelsupd.runtime.gpus.inventory import Inventory, Look
from modelsupd.runtime.gpus.ledger import Account, Missing
from modelsupd.runtime.gpus.quarantine import Entry, Kind, Quarantine
from modelsupd.runtime.gpus.reading import PROHIBITED, Seen
from modelsupd.runtime.gpus.telling import meant, processes, row
from modelsupd.runtime.placer import Placer

log = structlog.get_logger("gpus")

#: How often GPUs are looked at while somebody waits for one, or for memory to come back, in seconds.
WAITING_S = 0.5
MEMORY_LOOK_S = 0.1

#: Errors of NVIDIA's (Xid) after which nothing can be expected of a GPU until it is reset: memory and rows that cannot
#: be mended, links, the bus, its own firmware. Others are mostly the program's own fault. (NVIDIA, "Xid Errors".)
FATAL_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})

#: Phases of a process that is to go on; where its GPU is lost, it cannot.
_AT_WORK = Starting | Ready | Asleep

_GIB = 1024**3


@dataclass(eq=False)
class _Run:
    """What was seen of one run on GPUs."""

    run: int
    pids: set[int] = field(default_factory=set)
    most: dict[str, int] = field(default_factory=dict)
    measured: tuple[int, ...] = ()


class Gpus:
    """The host's GPUs, for the daemon.

    `spec` returns the present `[gpus]`, `wanted` whether any model uses a GPU, `replicas` what is published; `put`
    hands a replica an event, `placing` makes who gives GPUs away, `counted` is called when there are more or fewer of
    them than before, `note` writes words into the journal.
    """

    def __init__(  # noqa: PLR0913 - by name, each one thing that the daemon lends
        self,
        state_dir: Path,
        *,
        spec: Callable[[], GpusSpec],
        wanted: Callable[[], bool],
        replicas: Callable[[], Mapping[str, Replica]],
        put: Callable[[str, Event], None],
        placing: Callable[[Callable[[], Sequence[Card]], Callable[[], str]], Placer],
        counted: Callable[[], object],
        note: Callable[[str], Awaitable[None]],
    ) -> None:
        """Prepare; nothing is read yet."""
        self._spec, self._wanted, self._replicas, self._put = spec, wanted, replicas, put
        self._placing, self._counted, self._count, self._note = placing, counted, 0, note
        self.inventory = Inventory(spec)
        self.quarantine = Quarantine(state_dir)
        self._runs: dict[str, _Run] = {}
        self._accounts: Sequence[Account] = ()
        self._ledger = ledger.Ledger()
        self._placer: Placer | None = None
        self._wake = asyncio.Event()
        self._same_pids = False
        self._fatal: dict[str, str] = {}

    def pids(self) -> frozenset[int]:
        """Return the pids of processes that are waited for here."""
        return self.inventory.pids()

    @property
    def host_reserve_bytes(self) -> int:
        """Return how much of the host's memory engines that sleep have to leave free."""
        return self._spec().host_reserve_bytes

    async def open(self) -> None:
        """Take a first look, where anybody is interested; call it before replicas are introduced."""
        if self._wanted():
            await self.inventory.read()
        self._count = self.count()
        self._placer = self._placing(self.cards, lambda: "; ".join(self._unread()))

    async def close(self) -> None:
        """Place nothing any more, and end the process that reads."""
        if self._placer is not None:
            self._placer.close()
        await self.inventory.close()

    async def go(self) -> None:
        """Look for ever; one look that fails does not end the others."""
        while True:
            waits = self._placer is not None and self._placer.waiting
            pause_s = WAITING_S if waits else self._spec().interval_s
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                if self._wanted() or self.inventory.last.gpus:
                    await self.look()
            except Exception:
                log.exception("looking after GPUs failed")

    def changed(self, before: Replica | None, after: Replica) -> None:
        """Take note of a published change: it may make room, or want some."""
        if after.hold is not None and after.process is not None:
            # Its first process is known before any look has seen it, which may come too late for one that dies early.
            self._seen_of(after).pids.add(after.process.pid)
            if isinstance(after.phase, Starting | Ready) and type(before and before.phase) is not type(after.phase):
                self._wake.set()
        if self._placer is None or (before is not None and alike(before, after)):
            return
        self._placer.look_soon()
        moved = type(before and before.phase) is not type(after.phase)
        if (isinstance(after.phase, Asleep) and self._placer.waiting) or (moved and isinstance(after.phase, Waiting)):
            # Of one that ends nothing is back before `memory_back` has looked: to look as well would hold that up.
            self._wake.set()

    async def look(self) -> Look:
        """Look now, and do what follows from it."""
        look = await self.inventory.read()
        self._reckon()
        self._take_note()
        self._release_proven()
        await self._write_down()
        if self._placer is not None:
            self._placer.look_soon()
        if self.count() != self._count:
            self._count = self.count()
            self._counted()
        return look

    async def _write_down(self) -> None:
        """Write down what has changed of the quarantine, in its list and in the journal."""
        await self.quarantine.save()
        while self.quarantine.changes:
            await self._note(self.quarantine.changes.popleft())

    # Keeping account

    def _reckon(self) -> None:
        """Draw up the account of what was read last, as things are now."""
        replicas = self._replicas()
        self._accounts = self._ledger.accounts(self.inventory.last.gpus, replicas)
        for name in [name for name in self._runs if name not in replicas]:
            del self._runs[name]
        for account in self._accounts:
            for name, pids in account.pids.items():
                replica = replicas[name]
                known = self._seen_of(replica)
                known.pids |= set(pids)
                self._same_pids = True
                uuid = account.seen.uuid
                known.most[uuid] = max(known.most.get(uuid, 0), account.used.get(name, 0))

    def _seen_of(self, replica: Replica) -> _Run:
        """Return what is kept of the replica's last run."""
        known = self._runs.get(replica.name)
        if known is None or known.run != replica.last_run:
            known = self._runs[replica.name] = _Run(replica.last_run)
        return known

    def cards(self) -> Sequence[Card]:
        """Return the GPUs as placement sees them, by what was read last and by who is there now."""
        self._reckon()
        reserve_bytes, at = self._spec().reserve_bytes, self.inventory.last.at
        return [ledger.card(each, reserve_bytes, self._trouble(each.seen), at) for each in self._accounts]

    def _trouble(self, seen: Seen) -> str:
        """Return why nothing may be placed on a GPU, "" where something may."""
        entry = self.quarantine.entries.get(seen.uuid)
        if entry is not None:
            return f"in quarantine: {entry.why}"
        if seen.mode == PROHIBITED:
            return "its compute mode lets no process use it"
        return "it is lost" if seen.lost else self.inventory.last.trouble

    def count_for(self, model: str, spec: ModelSpec, present: Sequence[str]) -> int:
        """Return for how many GPUs a model has replicas.

        Where they could not be read yet, it is those that it has: `present` is the model of each replica there is.
        """
        if isinstance(spec.replicas, int) or self.inventory.last.at is not None:
            return self.count()
        return gpu_count(spec) * present.count(model)

    def count(self) -> int:
        """Return how many GPUs the host has, lost ones and those in quarantine included."""
        return len(self.inventory.last.gpus)

    # What follows from a look

    def _take_note(self) -> None:
        replicas = self._replicas()
        for account in self._accounts:
            seen = account.seen
            fatal = [xid for xid in seen.xids if xid in FATAL_XIDS]
            if seen.lost:
                self._put_away(seen.uuid, Kind.LOST, f"it is lost: {'; '.join(seen.notes) or 'it does not answer'}")
            elif fatal:
                self._put_away(seen.uuid, Kind.HARDWARE, f"Xid {', '.join(map(str, fatal))}")
                self._fatal[seen.uuid] = f"GPU {seen.index}: Xid {fatal[0]}"
            for xid in set(seen.xids) - FATAL_XIDS:
                log.warning("GPU error", gpu=seen.uuid, xid=xid)
            # At each look: a run that is only being spawned there now can be told when it has a process.
            words = f"GPU {seen.index} ({seen.uuid}) is lost" if seen.lost else self._fatal.get(seen.uuid, "")
            if words:
                self._tell_of_loss(seen.uuid, words)
        for name, known in self._runs.items():
            self._tell_measured(replicas[name], known)

    def _tell_of_loss(self, uuid: str, words: str) -> None:
        for name, replica in list(self._replicas().items()):
            if replica.hold is not None and uuid in replica.hold.gpus and isinstance(replica.phase, _AT_WORK):
                self._put(name, GpuLost(replica.last_run, words))

    def _tell_measured(self, replica: Replica, known: _Run) -> None:
        """Tell what a ready run uses, once, and again when it has come to use more."""
        if replica.hold is None or known.run != replica.last_run or not isinstance(replica.phase, Ready):
            return
        used = tuple(known.most.get(uuid, 0) for uuid in replica.hold.gpus)
        if any(used) and max(used) > max(known.measured, default=0):
            known.measured = used
            self._put(replica.name, Measured(known.run, used))

    def _put_away(self, uuid: str, kind: Kind, why: str, pids: Collection[int] = (), size: int = 0) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.quarantine.put(uuid, Entry(kind=kind, why=why, since=since, pids=tuple(pids), bytes=size))

    def _release_proven(self) -> None:
        """End the quarantine of GPUs whose memory has come back, or whose process is gone after all."""
        by_uuid = {account.seen.uuid: account for account in self._accounts}
        for uuid, entry in list(self.quarantine.entries.items()):
            account = by_uuid.get(uuid)
            if account is None or account.seen.lost or self.inventory.last.trouble:
                continue
            listed = {pid for pid, _size in account.seen.processes or ()}
            if entry.kind is Kind.MEMORY and not listed & set(entry.pids) and self._fits(account, entry):
                self.quarantine.release(uuid, "its memory has come back")
            elif entry.kind is Kind.STUCK and all(ledger.is_gone(pid) for pid in entry.pids):
                self.quarantine.release(uuid, "the processes that could not be killed are gone")

    def _fits(self, account: Account, entry: Entry) -> bool:
        """Tell whether no more is in use by nobody than before the run whose memory was missing."""
        return account.idle_bytes <= entry.bytes + self._spec().memory_tolerance_bytes

    # For the end of a run

    async def memory_back(self, replica: Replica, run: int) -> tuple[str, tuple[str, ...]] | None:
        """Wait until the memory of a run of which nothing is left is back; return None then.

        Else, after `memory_timeout_s`, its GPUs are in quarantine: return why, in words, and which.
        """
        hold, spec = replica.hold, self._spec()
        if hold is None:
            return None
        loop = asyncio.get_running_loop()
        until = loop.time() + spec.memory_timeout_s
        known = self._runs.get(replica.name)
        pids = known.pids if known is not None and known.run == run else set()
        while True:
            asked_at = loop.time()
            look = await self.look()
            read = look.at is not None and look.at >= asked_at
            by_uuid = {account.seen.uuid: account for account in self._accounts}
            suspects = frozenset(pids | self._dead_ones(hold.gpus))
            left = ledger.missing(hold, suspects, replica.name, by_uuid, spec.memory_tolerance_bytes)
            if read and not left:
                return None
            if loop.time() >= until:
                kept = self._keep_back(replica, run, left, look.trouble)
                await self._write_down()
                return kept
            await asyncio.sleep(MEMORY_LOOK_S)

    def _dead_ones(self, uuids: Collection[str]) -> set[int]:
        """Return processes that the driver tells of on these GPUs and that are no more.

        That says something only where the driver counts processes as we do, as it does not in every container: once it
        has told of one of ours.
        """
        if not self._same_pids:
            return set()
        listed = {
            pid
            for account in self._accounts
            if account.seen.uuid in uuids
            for pid, _size in account.seen.processes or ()
        }
        return {pid for pid in listed if ledger.is_gone(pid)}

    def _keep_back(
        self, replica: Replica, run: int, left: Sequence[Missing], trouble: str
    ) -> tuple[str, tuple[str, ...]]:
        """Put the GPUs into quarantine whose memory has not come back, or of which that cannot be told."""
        hold = replica.hold
        assert hold is not None  # noqa: S101 - it is what was waited for
        before = dict(zip(hold.gpus, hold.idle_bytes, strict=False))
        if not left:
            why = f"whether the memory of {replica.name}#{run} is back cannot be told: {trouble}"
            for uuid in hold.gpus:
                self._put_away(uuid, Kind.MEMORY, why, size=before.get(uuid, 0))
            return why, hold.gpus
        told = []
        for each in left:
            who = f", held by {processes(each.pids)}" if each.pids else ", held by no process that the driver tells of"
            why = f"{each.bytes / _GIB:.1f} GiB of {replica.name}#{run} have not come back{who}"
            self._put_away(each.uuid, Kind.MEMORY, why, each.pids, before.get(each.uuid, 0))
            told.append(f"GPU {each.index}: {why}")
        return "; ".join(told), tuple(each.uuid for each in left)

    async def stuck(self, replica: Replica, run: int, pids: Sequence[int]) -> None:
        """Put the GPUs of a run into quarantine of which something withstands SIGKILL."""
        for uuid in replica.hold.gpus if replica.hold is not None else ():
            why = f"{processes(pids)} of {replica.name}#{run} cannot be killed, and may hold its memory"
            self._put_away(uuid, Kind.STUCK, why, pids)
        await self._write_down()

    async def blame(self, replica: Replica, words: str) -> None:
        """Put the GPU into quarantine of which an engine said with its last words that it is broken.

        Of several, those that the driver does not call lost are blamed too only if it calls none so.
        """
        if replica.hold is None:
            return
        look = await self.look()
        lost = {gpu.uuid for gpu in look.gpus if gpu.lost or set(gpu.xids) & FATAL_XIDS}
        held = set(replica.hold.gpus)
        for uuid in sorted(held & (lost | set(self.quarantine.entries)) or held):
            self._put_away(uuid, Kind.HARDWARE, f"{replica.name}: {words}")
        await self._write_down()

    # For people

    def rows(self) -> list[dict[str, Any]]:
        """Return what `status` tells of each GPU."""
        accounts = self._accounts or self._ledger.accounts(self.inventory.last.gpus, self._replicas())
        return [
            row(
                account,
                self._replicas(),
                self.quarantine.entries.get(account.seen.uuid),
                self._trouble(account.seen),
            )
            for account in accounts
        ]

    async def told(self) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Look now; return the rows, and why they are old or a vendor's are missing, in words."""
        await self.look()
        return self.rows(), self._unread()

    def _unread(self) -> tuple[str, ...]:
        last = self.inventory.last
        return tuple(text for text in (last.trouble, *last.notes) if text)

    async def command(self, verb: str, target: str, by: str, why: str = "") -> str:
        """Put a GPU into quarantine or release it; return its UUID. Raises Refused."""
        await self.look()
        known = {gpu.uuid: gpu.index for gpu in self.inventory.last.gpus}
        known |= {uuid: -1 for uuid in self.quarantine.entries if uuid not in known}
        uuid = meant(verb, target, known, self.inventory.last)
        if verb == "quarantine":
            self._put_away(uuid, Kind.OPERATOR, f"put there by {by}{f': {why}' if why else ''}")
        elif any(gpu.uuid == uuid and gpu.lost for gpu in self.inventory.last.gpus):
            raise Refused(f"cannot release '{target}': it is still lost")
        elif self.quarantine.release(uuid, f"released by {by}"):
            self._fatal.pop(uuid, None)
        else:
            raise Refused(f"cannot release '{target}': it is not in quarantine")
        await self._write_down()
        if self._placer is not None:
            self._placer.look_soon()
        return uuid
