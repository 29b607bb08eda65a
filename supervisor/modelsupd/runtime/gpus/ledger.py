"""Whose is the memory of a GPU? Made of what its driver tells, of what was given, and of who descends from which shim.

Drivers tell of processes by pid, of some not how much they use, and of those in another pid namespace nothing that
could be compared. Where that is so, what a run claimed stands for what it uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelsupd.core.allotment import Card
from modelsupd.core.phases import Replica
from modelsupd.core.placement import Gpu, Hold
from modelsupd.runtime.gpus.reading import EXCLUSIVE, Seen
from modelsupd.runtime.shim import tree

#: No process tree of an engine is deeper than this.
_DEEPEST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One GPU's memory, in bytes: of each replica's run, of strangers, and of no process that could be named.

    `pids` are each replica's on this GPU, `holders` the replicas that it was given to.
    """

    seen: Seen
    used: Mapping[str, int]
    pids: Mapping[str, tuple[int, ...]]
    foreign_bytes: int
    idle_bytes: int
    holders: frozenset[str]


class Ledger:
    """Draws the accounts up anew when the GPUs were read again, or other runs are there; else there is nothing new."""

    def __init__(self) -> None:
        """Begin with none."""
        self._of: tuple[object, object] = None, None
        self._accounts: Sequence[Account] = ()

    def accounts(self, gpus: Sequence[Seen], replicas: Mapping[str, Replica]) -> Sequence[Account]:
        """Return the account of each GPU; the same reading is the same object."""
        runs = [(name, each.process, each.hold) for name, each in replicas.items() if each.hold or each.process]
        if self._of[0] is not gpus or self._of[1] != runs:
            self._of, self._accounts = (gpus, runs), accounts(gpus, replicas)
        return self._accounts


def accounts(gpus: Sequence[Seen], replicas: Mapping[str, Replica]) -> list[Account]:
    """Return the account of each GPU."""
    shims = {replica.process.shim_pid: name for name, replica in replicas.items() if replica.process is not None}
    owners: dict[int, tuple[str | None, bool]] = {}
    claims: dict[str, dict[str, int]] = {}
    for name, replica in replicas.items():
        if replica.hold is not None:
            for uuid, size in zip(replica.hold.gpus, replica.hold.bytes, strict=True):
                claims.setdefault(uuid, {})[name] = size
    return [_account(gpu, claims.get(gpu.uuid, {}), shims, owners) for gpu in gpus]


def _account(
    gpu: Seen, claims: Mapping[str, int], shims: Mapping[int, str], owners: dict[int, tuple[str | None, bool]]
) -> Account:
    used: dict[str, int] = {}
    pids: dict[str, list[int]] = {}
    named, told = 0, gpu.processes is not None
    for pid, size in gpu.processes or ():
        if pid not in owners:
            owners[pid] = owner(pid, shims)
        name, exists = owners[pid]
        told = told and exists and size is not None
        named += size or 0
        if name is not None:
            pids.setdefault(name, []).append(pid)
            used[name] = used.get(name, 0) + (size or 0)
    # Of a run that the driver says nothing of, what it claimed is what it may use.
    silent = 0 if told else sum(size for name, size in claims.items() if not used.get(name))
    ours = sum(size for name, size in used.items() if name in claims)
    return Account(
        seen=gpu,
        used={name: size for name, size in used.items() if name in claims},
        pids={name: tuple(found) for name, found in pids.items()},
        foreign_bytes=max(0, gpu.used_bytes - ours - silent),
        idle_bytes=max(0, gpu.used_bytes - named),
        holders=frozenset(claims),
    )


def owner(pid: int, shims: Mapping[int, str]) -> tuple[str | None, bool]:
    """Return the replica below whose shim a process lives, None if below none; and whether there is such a process."""
    exists = False
    for _ in range(_DEEPEST):
        found = tree.stat(pid)
        if found is None:
            return None, exists
        exists = True
        if pid in shims:
            return shims[pid], True
        pid = found.ppid
        if pid <= 1:
            return None, True
    return None, True


def is_gone(pid: int) -> bool:
    """Tell whether nothing of a process is left that could hold memory."""
    found = tree.stat(pid)
    return found is None or found.dead


def card(account: Account, reserve_bytes: int, trouble: str, read_at: float | None) -> Card:
    """Return a GPU as placement sees it; `read_at` is when it was read."""
    seen = account.seen
    gpu = Gpu(
        uuid=seen.uuid,
        index=seen.index,
        total_bytes=seen.total_bytes,
        foreign_bytes=account.foreign_bytes,
        reserve_bytes=reserve_bytes,
        trouble=trouble,
        vendor=seen.vendor,
        exclusive=seen.mode == EXCLUSIVE,
        part=seen.parent is not None,
    )
    return Card(gpu=gpu, used=account.used, idle_bytes=account.idle_bytes, read_at=read_at or 0.0)


@dataclass(frozen=True, slots=True)
class Missing:
    """What of a run's memory has not come back: on which GPU, how much at least, and whose it is, as far as is told."""

    uuid: str
    index: int
    bytes: int
    pids: tuple[int, ...]


def missing(
    hold: Hold, pids: frozenset[int], name: str, account: Mapping[str, Account], tolerance_bytes: int
) -> list[Missing]:
    """Return what of a run that is gone has not come back; `pids` are those that it was seen with on any GPU.

    A GPU that is lost, or not told of any more, is no longer asked for memory.
    """
    found = []
    before = hold.idle_bytes or (None,) * len(hold.gpus)
    for uuid, idle in zip(hold.gpus, before, strict=True):
        known = account.get(uuid)
        if known is None or known.seen.lost:
            continue
        listed = known.seen.processes or ()
        still = tuple(pid for pid, _size in listed if pid in pids)
        held = sum(size or 0 for pid, size in listed if pid in pids)
        if idle is not None and _tells_of_all(known, name):
            held += max(0, known.idle_bytes - idle)
        if still or held > tolerance_bytes:
            found.append(Missing(uuid, known.seen.index, held, still))
    return found


def _tells_of_all(account: Account, name: str) -> bool:
    """Tell whether memory of no process can only be what this run has left: of all others it is told, or none is there.

    Where the driver does not tell of processes at all, what strangers took meanwhile is held against the run; that is
    no better to be given away.
    """
    if account.seen.processes is None:
        return account.holders <= {name}
    return all(size is not None for _pid, size in account.seen.processes)
