"""The cheapest set of runs that makes room for one more. Pure arithmetic, as `placement`.

For one GPU the answer is the cheapest there is, among up to `EXACT` runs on it; for several, GPU after GPU, the one
that is cheapest to clear first, and whoever is ended for one of them is gone from all.

Cheaper is: runs of a lower priority, then fewer that are in use, then less time to start them all again, weighed by how
long they have been idle.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from modelsupd.core.placement import Claim, Gpu, Held

#: Of more runs on one GPU that may give way, not every set is tried: from the dearest on, those without whom it fits as
#: well are left.
EXACT = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that may give way, and what that costs."""

    priority: int
    busy: bool
    cost: float


@dataclass(frozen=True, slots=True)
class Room:
    """GPUs for a claim, and who has to give way for it, by name."""

    gpus: tuple[str, ...]
    victims: frozenset[str]


_Price = tuple[float, int, float]
_FREE: _Price = (-math.inf, 0, 0.0)


class Floor:
    """What is left of each GPU, and who is there; changed by what is decided."""

    def __init__(self, gpus: Iterable[Gpu], held: Iterable[Held]) -> None:
        """Begin with what is held."""
        self._gpus = sorted(gpus, key=lambda gpu: (gpu.index, gpu.uuid))
        self._on: dict[str, dict[str, tuple[Held, int]]] = {gpu.uuid: {} for gpu in self._gpus}
        self._free = {gpu.uuid: gpu.total_bytes - gpu.reserve_bytes - gpu.foreign_bytes for gpu in self._gpus}
        for run in held:
            self.take(run)

    def sizes(self, claim: Claim, gpus: Sequence[str]) -> tuple[int, ...]:
        """Return what a claim takes of each of these GPUs, in bytes."""
        by_uuid = {gpu.uuid: gpu for gpu in self._gpus}
        return tuple(claim.on(by_uuid[uuid]) for uuid in gpus)

    def take(self, run: Held) -> None:
        """Put a run there."""
        for uuid, size in zip(run.gpus, run.bytes, strict=True):
            if uuid in self._on and run.name not in self._on[uuid]:
                self._on[uuid][run.name] = run, size
                self._free[uuid] -= size

    def holds(self, run: Held) -> bool:
        """Tell whether there is room for a run that sleeps, beside whoever is there."""
        return all(
            size <= self._free[uuid] and not any(other.exclusive for other, _size in self._on[uuid].values())
            for uuid, size in zip(run.gpus, run.bytes, strict=True)
            if uuid in self._on
        )

    def names(self, gpus: Iterable[str]) -> set[str]:
        """Return who is on any of these GPUs."""
        return {name for uuid in gpus for name in self._on[uuid]}

    def seat(self, name: str) -> Held | None:
        """Return a run that is there, None where it is not."""
        return next((there[name][0] for there in self._on.values() if name in there), None)

    def leave(self, names: Collection[str]) -> None:
        """Take runs away."""
        for uuid, there in self._on.items():
            for name in [name for name in there if name in names]:
                self._free[uuid] += there.pop(name)[1]

    def room_for(self, claim: Claim, candidates: Mapping[str, Candidate], gone: Collection[str] = ()) -> Room | None:
        """Return where the claim fits and who has to go for it, None where no set of candidates makes room.

        `gone` are candidates who go in any case. Of what costs the same, it is where most is left, or least with
        `pack`.
        """
        first = frozenset(gone)
        if claim.uuids:
            return self._room_on([gpu for gpu in self._gpus if gpu.uuid in claim.uuids], claim, candidates, first)
        if claim.count == 1:
            return self._room_on(self._gpus, claim, candidates, first)
        # Those of one vendor only serve one replica, and where the first is best the others may not be enough.
        vendors = dict.fromkeys(gpu.vendor for gpu in self._gpus)
        alike = ([gpu for gpu in self._gpus if gpu.vendor == vendor] for vendor in vendors)
        rooms = [room for gpus in alike if (room := self._room_on(gpus, claim, candidates, first)) is not None]
        return min(rooms, key=lambda room: _price(room.victims - first, candidates), default=None)

    def _room_on(
        self, gpus: Sequence[Gpu], claim: Claim, candidates: Mapping[str, Candidate], gone: frozenset[str]
    ) -> Room | None:
        """Return the same for some GPUs only."""
        victims = gone
        chosen: list[Gpu] = []
        count = len(claim.uuids) or claim.count
        while len(chosen) < count:
            options = []
            for gpu in gpus:
                if gpu not in chosen and not gpu.trouble:
                    found = self._clear(gpu, claim, candidates, victims)
                    if found is not None:
                        left = self._free[gpu.uuid]
                        options.append((found[0], left if claim.pack else -left, gpu, found[1]))
            if not options:
                return None
            best = min(options, key=lambda option: option[:2])
            chosen.append(best[2])
            victims |= best[3]
        return Room(tuple(gpu.uuid for gpu in sorted(chosen, key=lambda gpu: (gpu.index, gpu.uuid))), victims)

    def _clear(
        self, gpu: Gpu, claim: Claim, candidates: Mapping[str, Candidate], gone: Collection[str]
    ) -> tuple[_Price, frozenset[str]] | None:
        """Return the cheapest set that has to leave one GPU, and its price; None where none is enough."""
        deficit = claim.on(gpu) - self._free[gpu.uuid]
        if deficit > 0 and not candidates and not gone:
            return None
        there = {name: seat for name, seat in self._on[gpu.uuid].items() if name not in gone}
        deficit -= sum(size for name, (_run, size) in self._on[gpu.uuid].items() if name in gone)
        must = {name for name, (run, _size) in there.items() if apart(claim, run)}
        if not must <= candidates.keys():
            return None
        deficit -= sum(there[name][1] for name in must)
        rest = {name: size for name, (_run, size) in there.items() if name in candidates and name not in must}
        best = _cheapest(deficit, rest, candidates, must)
        return None if best is None else (_price(best, candidates), best)


def apart(claim: Claim, run: Held) -> bool:
    """Tell whether a claim shares no GPU with a run, however much room there is."""
    return claim.exclusive or run.exclusive or run.model in claim.apart or claim.model in run.apart


def _price(names: Collection[str], candidates: Mapping[str, Candidate]) -> _Price:
    if not names:
        return _FREE
    each = [candidates[name] for name in names]
    return max(one.priority for one in each), sum(one.busy for one in each), math.fsum(one.cost for one in each)


def _cheapest(
    deficit: int, sizes: Mapping[str, int], candidates: Mapping[str, Candidate], must: Collection[str]
) -> frozenset[str] | None:
    """Return `must` and the cheapest set beside it that gives so many bytes; None where all are not enough."""
    if deficit <= 0:
        return frozenset(must)
    ordered = sorted(sizes, key=lambda name: (_price((name,), candidates), name))
    if sum(sizes.values()) < deficit:
        return None
    if len(ordered) <= EXACT:
        return frozenset(must).union(_exactly(deficit, ordered, sizes, candidates, _price(must, candidates)))
    taken, spare = set(ordered), sum(sizes.values()) - deficit
    for name in reversed(ordered):
        if sizes[name] <= spare:
            taken.remove(name)
            spare -= sizes[name]
    return frozenset(must) | taken


def _exactly(
    deficit: int, ordered: Sequence[str], sizes: Mapping[str, int], candidates: Mapping[str, Candidate], base: _Price
) -> tuple[str, ...]:
    """Return the cheapest of all sets, of those that cost the same the smallest; all together are enough."""
    # A set that is enough is not added to: whoever is ended beside it only costs more. Of sets that are not, and give
    # as many bytes at the same priority, only the cheapest can become part of the answer.
    short: dict[tuple[int, float], tuple[int, float, int, tuple[str, ...]]] = {(0, base[0]): (base[1], base[2], 0, ())}
    all_of_them = _price(ordered, candidates)
    whole = max(base[0], all_of_them[0]), base[1] + all_of_them[1], base[2] + all_of_them[2]
    best: tuple[_Price, int, tuple[str, ...]] = whole, len(ordered), tuple(ordered)
    left = sum(sizes.values())
    for name in ordered:
        one, size = candidates[name], sizes[name]
        left -= size
        for (given, before), (busy, cost, count, chosen) in tuple(short.items()):
            price = max(before, one.priority), busy + one.busy, cost + one.cost
            if price > best[0]:
                continue
            if given + size >= deficit:
                best = min(best, (price, count + 1, (*chosen, name)))
            elif given + size + left >= deficit:
                key, entry = (given + size, price[0]), (price[1], price[2], count + 1, (*chosen, name))
                short[key] = min(short.get(key, entry), entry)
        short = {key: entry for key, entry in short.items() if key[0] + left >= deficit}
    return best[2]
