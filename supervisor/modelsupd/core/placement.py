"""Replicas → GPUs. Pure arithmetic over what each GPU has, what runs on it and what wants to.

Three rules:

1. What runs stays where it is: a claim is fitted around it, nothing is moved to make room.
2. No GPU is given more than it has: total, less what is kept in reserve, less what others use, less every claim on it.
   A GPU of which anything is doubtful (quarantined, lost, its memory not back) is given to nobody.
3. The same question has the same answer: ties are broken by the index of the GPU and the name of the replica.

Claims that are hardest to fit go first: those bound to named GPUs, then those that share with nobody, then by number of
GPUs and by size. Where that leaves some waiting, and there are few, every other way is tried until one fits all.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

#: How many ways are tried, at most, to fit all where the first way does not; a count, so that the answer is the same
#: on every machine.
SEARCH_STEPS = 5000

#: With more claims than this the other ways are not tried: there are too many for the steps to reach far.
SEARCH_CLAIMS = 12

#: Of more GPUs than this, those with most left are told of where a claim does not fit.
TOLD_GPUS = 16

_GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU, or one MIG device. `foreign_bytes` is in use by processes that are not ours.

    `reserve_bytes` is never given away; `trouble` says why nothing may be placed here, "" where something may.
    `vendor` tells whether two can serve one replica. An `exclusive` one takes one process, and so one run. A `part` is
    a MIG device, of which a process sees no second one: it serves a replica by itself or not at all.
    """

    uuid: str
    index: int
    total_bytes: int
    foreign_bytes: int = 0
    reserve_bytes: int = 0
    trouble: str = ""
    vendor: str = "nvidia"
    exclusive: bool = False
    part: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a replica wants: `count` GPUs or those of `uuids`, on each `bytes` or `share` of its total, the larger.

    An `exclusive` one shares its GPUs with no other run. With `pack` it goes where least is left, else where most is.
    It is kept off GPUs that hold a run of a model in `apart`.
    """

    name: str
    model: str
    count: int = 1
    uuids: tuple[str, ...] = ()
    bytes: int = 0
    share: float = 0.0
    exclusive: bool = False
    pack: bool = False
    apart: frozenset[str] = frozenset()

    @property
    def gpus(self) -> int:
        """Return how many GPUs it wants."""
        return len(self.uuids) or self.count

    def on(self, gpu: Gpu) -> int:
        """Return what it takes of that GPU, in bytes."""
        return max(self.bytes, math.ceil(self.share * gpu.total_bytes))


@dataclass(frozen=True, slots=True)
class Size:
    """How much of GPUs a run takes: `bytes` over all of them together, or `share` of the total of each.

    `estimated` where it was reckoned; then what an earlier run of the same was seen to take is better.
    """

    bytes: int = 0
    share: float = 0.0
    estimated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What a run has been given, on each of `gpus` so many `bytes`.

    `idle_bytes` is what of each GPU was in use and by no process that could be named, before the run came: when it is
    gone, no more may be.
    """

    gpus: tuple[str, ...]
    bytes: tuple[int, ...]
    exclusive: bool = False
    idle_bytes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A run that is there, by replica and model; `bytes` are what is reckoned with, claimed or measured."""

    name: str
    model: str
    gpus: tuple[str, ...]
    bytes: tuple[int, ...]
    exclusive: bool = False
    apart: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Placement:
    """Which GPUs each claim is given, in the order of their indices, and why the others wait."""

    placed: Mapping[str, tuple[str, ...]]
    waiting: Mapping[str, str]


@dataclass(slots=True)
class _Room:
    """What is left of one GPU."""

    gpu: Gpu
    free: int
    names: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    aparts: list[frozenset[str]] = field(default_factory=list)
    exclusive: bool = False

    def take(self, name: str, model: str, size: int, apart: frozenset[str], *, exclusive: bool) -> None:
        self.free -= size
        self.names.append(name)
        self.models.append(model)
        self.aparts.append(apart)
        self.exclusive = self.exclusive or exclusive

    def give_back(self, size: int, *, exclusive: bool) -> None:
        self.free += size
        self.names.pop()
        self.models.pop()
        self.aparts.pop()
        self.exclusive = self.exclusive and not exclusive

    def fits(self, claim: Claim) -> bool:
        if self.exclusive or self.free < claim.on(self.gpu):
            return False
        if claim.exclusive and self.names:
            return False
        return not self._unfit(claim) and not self._kept_apart(claim)

    def _kept_apart(self, claim: Claim) -> bool:
        if not self.names:
            return False
        if claim.apart and any(model in claim.apart for model in self.models):
            return True
        return any(claim.model in apart for apart in self.aparts)

    def _unfit(self, claim: Claim) -> str:
        """Return why this GPU is not for the claim however much is left of it, '' where it may be."""
        if self.gpu.exclusive and self.names:
            return f"its compute mode lets one process use it, and {_listed(self.names)} runs there"
        if self.gpu.part and claim.gpus > 1:
            return "it is a MIG device, and no process sees two of them"
        return self.gpu.trouble

    def refusal(self, claim: Claim) -> str:
        """Return why the claim does not fit here, '' where it does."""
        unfit = self._unfit(claim)
        if unfit:
            return unfit
        if self.exclusive:
            return f"{self.names[-1]} has it for itself"
        if claim.exclusive and self.names:
            return f"wanted for itself, and {_listed(self.names)} runs there"
        if self._kept_apart(claim):
            return f"to be kept apart from {_listed(self.names)}"
        need = claim.on(self.gpu)
        if self.free >= need:
            return ""
        gpu = self.gpu
        claimed = gpu.total_bytes - gpu.reserve_bytes - gpu.foreign_bytes - self.free
        parts = [f"{_gib(claimed)} claimed by {_listed(self.names)}"] if self.names else []
        parts += [f"{_gib(gpu.foreign_bytes)} used by others"] if gpu.foreign_bytes else []
        parts += [f"{_gib(gpu.reserve_bytes)} kept in reserve"] if gpu.reserve_bytes else []
        of = f" ({', '.join(parts)})" if parts else ""
        return f"needs {_gib(need)}, {_gib(max(self.free, 0))} of {_gib(gpu.total_bytes)} left{of}"


def place(gpus: Sequence[Gpu], held: Collection[Held], claims: Collection[Claim]) -> Placement:
    """Return GPUs for as many claims as can be fitted around what is held, and for the others why they wait."""
    rooms = _rooms(gpus, held)
    ordered = sorted(claims, key=_hardest_first)
    placed = _greedily(rooms, ordered)
    # Of a single claim the first way finds every way there is.
    if len(placed) < len(ordered) <= SEARCH_CLAIMS and len(ordered) > 1:
        searched = _Search(_rooms(gpus, held)).place(ordered)
        if searched is not None:
            return Placement(searched, {})
    words: dict[tuple[object, ...], str] = {}
    waiting = {}
    roomiest = sorted(rooms, key=lambda room: (bool(room.gpu.trouble), -room.free))
    for claim in ordered:
        if claim.name not in placed:
            shape = (claim.model, claim.count, claim.uuids, claim.bytes, claim.share, claim.exclusive, claim.apart)
            if shape not in words:
                words[shape] = _why(roomiest, claim)
            waiting[claim.name] = words[shape]
    return Placement(placed, waiting)


def _hardest_first(claim: Claim) -> tuple[object, ...]:
    return (not claim.uuids, not claim.exclusive, -claim.gpus, -claim.share, -claim.bytes, claim.name)


def _rooms(gpus: Sequence[Gpu], held: Collection[Held]) -> list[_Room]:
    rooms = [
        _Room(gpu, gpu.total_bytes - gpu.reserve_bytes - gpu.foreign_bytes)
        for gpu in sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid))
    ]
    by_uuid = {room.gpu.uuid: room for room in rooms}
    for run in sorted(held, key=lambda run: run.name):
        for uuid, size in zip(run.gpus, run.bytes, strict=True):
            if uuid in by_uuid:
                by_uuid[uuid].take(run.name, run.model, size, run.apart, exclusive=run.exclusive)
    return rooms


# The first way: each claim to what is best for it


def _greedily(rooms: list[_Room], ordered: Sequence[Claim]) -> dict[str, tuple[str, ...]]:
    # Kept in the order of what is free, so that a claim meets the GPUs that are best for it first.
    order = sorted((room.free, -position) for position, room in enumerate(rooms))
    empty = [entry for entry in order if not rooms[-entry[1]].names]
    placed: dict[str, tuple[str, ...]] = {}
    for claim in ordered:
        chosen = _chosen(rooms, empty if claim.exclusive else order, claim)
        for position in chosen:
            room = rooms[position]
            entry = (room.free, -position)
            if not room.names:
                del empty[bisect_left(empty, entry)]
            del order[bisect_left(order, entry)]
            room.take(claim.name, claim.model, claim.on(room.gpu), claim.apart, exclusive=claim.exclusive)
            if not room.exclusive:
                insort(order, (room.free, -position))
        if chosen:
            placed[claim.name] = tuple(rooms[position].gpu.uuid for position in sorted(chosen))
    return placed


def _chosen(rooms: list[_Room], order: list[tuple[int, int]], claim: Claim) -> list[int]:
    """Return the positions of the GPUs for a claim, none where it does not fit."""
    if claim.uuids:
        known = [position for position, room in enumerate(rooms) if room.gpu.uuid in claim.uuids]
        fits = len(known) == len(claim.uuids) and all(rooms[position].fits(claim) for position in known)
        return known if fits else []
    least = bisect_left(order, (claim.bytes, -len(rooms)))
    indices = range(least, len(order)) if claim.pack else range(len(order) - 1, least - 1, -1)
    found: dict[str, list[int]] = {}
    for index in indices:
        position = -order[index][1]
        room = rooms[position]
        if room.fits(claim):
            same = found.setdefault(room.gpu.vendor, [])
            same.append(position)
            if len(same) == claim.count:
                return same
    return []


# Every other way


class _Search:
    """Tries one way after another, each claim on every set of GPUs that it fits, until all fit."""

    def __init__(self, rooms: list[_Room]) -> None:
        self._rooms = rooms
        self._steps = SEARCH_STEPS

    def place(self, ordered: Sequence[Claim]) -> dict[str, tuple[str, ...]] | None:
        """Return GPUs for all claims, None where there is no way or it was not found."""
        if not ordered:
            return {}
        claim, rest = ordered[0], ordered[1:]
        for chosen in self._ways(claim):
            self._steps -= 1
            if self._steps < 0:
                return None
            for room in chosen:
                room.take(claim.name, claim.model, claim.on(room.gpu), claim.apart, exclusive=claim.exclusive)
            found = self.place(rest)
            if found is not None:
                return {claim.name: tuple(room.gpu.uuid for room in chosen), **found}
            for room in chosen:
                room.give_back(claim.on(room.gpu), exclusive=claim.exclusive)
        return None

    def _ways(self, claim: Claim) -> Iterator[tuple[_Room, ...]]:
        if claim.uuids:
            named = tuple(room for room in self._rooms if room.gpu.uuid in claim.uuids)
            if len(named) == len(claim.uuids) and all(room.fits(claim) for room in named):
                yield named
            return
        fitting = [room for room in self._rooms if room.fits(claim)]
        for chosen in itertools.combinations(fitting, claim.count):
            if len({room.gpu.vendor for room in chosen}) == 1:
                yield chosen


# Words


def _why(roomiest: Sequence[_Room], claim: Claim) -> str:
    """Return why a claim does not fit, GPU by GPU; those of which the same is to be said stand together.

    Of many GPUs those with most left are told of: whoever wants to make room will do it there.
    """
    wanted = [room for room in roomiest if not claim.uuids or room.gpu.uuid in claim.uuids]
    shown = sorted(wanted[:TOLD_GPUS], key=lambda room: room.gpu.index)
    said: dict[str, list[str]] = {}
    fitting = 0
    for room in shown:
        refusal = room.refusal(claim)
        fitting += not refusal
        said.setdefault(refusal or "fits", []).append(f"GPU {room.gpu.index}")
    known = {room.gpu.uuid for room in wanted}
    for uuid in claim.uuids:
        if uuid not in known:
            said.setdefault("there is no such GPU", []).append(uuid)
    if not roomiest:
        return f"needs {_counted(claim.gpus)}, and there is none"
    head = f"needs {_counted(claim.gpus)}, {fitting} of {len(shown)} fit: " if claim.gpus > 1 else ""
    more = f"; {len(wanted) - len(shown)} more have less left" if len(wanted) > len(shown) else ""
    return head + "; ".join(f"{_listed(names)}: {words}" for words, names in said.items()) + more


def _counted(count: int) -> str:
    return "a GPU" if count == 1 else f"{count} GPUs"


def _listed(names: Sequence[str], most: int = TOLD_GPUS) -> str:
    shown = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
