"""The GPUs of a simulated machine: memory that comes back late or not at all, cards that get lost, other people's use.

All is drawn from a generator of its own, so that a world without GPUs goes as it did before there were any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from modelsupd.core.allotment import Card
from modelsupd.core.gpu_spec import PlacementSpec, Strategy
from modelsupd.core.phases import Replica
from modelsupd.core.placement import Gpu, Hold, Size
from modelsupd.core.spec import ModelSpec
from sim.world import Run, World

#: How long after the end of a run its memory may take to come back before its GPUs are put in quarantine, in seconds.
MEMORY_TIMEOUT_S = 5.0

_UNIT = 1024**3


@dataclass
class Cards:
    """What is there, and what is wrong with it: `lost` cards, and `quarantined` ones with why."""

    rng: random.Random
    tell: Callable[[str], None]
    world: World
    gpus: tuple[Gpu, ...] = ()
    lost: set[str] = field(default_factory=set)
    quarantined: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, Size | None] = field(default_factory=dict)
    late: float = 0.0

    def draw(self) -> None:
        """Decide how many there are and how kind they are."""
        self.late = self.rng.choice([0.0, 0.1, 0.5])
        self.gpus = tuple(
            Gpu(
                uuid=f"GPU-{index}",
                index=index,
                total_bytes=self.rng.choice([8, 8, 16]) * _UNIT,
                foreign_bytes=self.rng.choice([0, 0, 2]) * _UNIT,
            )
            for index in range(self.rng.randint(1, 3))
        )

    def onto(self, spec: ModelSpec, version: int) -> ModelSpec:
        """Return a declaration with a claim on GPUs, or without one."""
        if not self.gpus or self.rng.random() < 0.2:
            return spec
        rng, most = self.rng, min(2, len(self.gpus))
        placement = PlacementSpec(
            vram_bytes=rng.choice([None, None, 3 * _UNIT]),
            margin_bytes=rng.choice([0, _UNIT]),
            exclusive=rng.choice([None, None, True, False]),
            strategy=rng.choice(list(Strategy)),
            apart_from=rng.choice([(), (), ("m0",)]),
        )
        size = rng.choice([None, Size(2 * _UNIT, estimated=True), Size(5 * _UNIT), Size(share=0.6)])
        self.sizes[f"v{version}"] = size
        gpus: int | tuple[str, ...] = rng.choice([1, 1, rng.randint(1, most)])
        if rng.random() < 0.15:
            gpus = ("GPU-0",)
        return replace(spec, gpus=gpus, placement=placement)

    # Memory

    def uses(self, run: Run, uuid: str) -> int:
        """Return what a run has of a GPU by now, its memory that is not back included."""
        if run.hold is None or uuid not in run.hold.gpus or run.process is None:
            return 0
        gone = not self.world.remains(run) and self.world.now >= run.memory_until
        return 0 if gone else run.hold.bytes[run.hold.gpus.index(uuid)]

    def started(self, run: Run, hold: Hold | None) -> None:
        """See that a run begins where it may, and let it take its memory."""
        run.hold = hold
        if hold is None:
            return
        run.memory_late_s = self.rng.choice([0.3, 2.0, 60.0]) if self.rng.random() < self.late else 0.0
        by_uuid = {gpu.uuid: gpu for gpu in self.gpus}
        for uuid, size in zip(hold.gpus, hold.bytes, strict=True):
            others = [
                other for other in self.world.runs.values() if other is not run and self.uses(other, uuid) > 0
            ] + [other for other in self.world.runs.values() if other is not run and self._on(other, uuid)]
            gpu = by_uuid[uuid]
            taken = sum(self.uses(other, uuid) for other in {id(other): other for other in others}.values())
            if taken + size > gpu.total_bytes - gpu.foreign_bytes:
                raise self.world.violated(f"{run.name}#{run.run} over-commits {uuid}: {taken} + {size} of {gpu}")
            for other in others:
                if other.hold is not None and (hold.exclusive or other.hold.exclusive) and self.world.remains(other):
                    raise self.world.violated(f"{run.name}#{run.run} shares {uuid} with {other.name}#{other.run}")
                if other.alive and self.world.now < other.loads_until:
                    raise self.world.violated(f"{run.name}#{run.run} loads beside {other.name}#{other.run} on {uuid}")

    @staticmethod
    def _on(run: Run, uuid: str) -> bool:
        return run.alive and run.hold is not None and uuid in run.hold.gpus

    def ends_beside_a_load(self, run: Run) -> str:
        """Return which run loads on a GPU of this one's, "" for none."""
        for other in self.world.runs.values():
            shared = run.hold and other.hold and set(run.hold.gpus) & set(other.hold.gpus)
            going = other.asked_to_end or other.killed
            if other is not run and shared and other.alive and not going and self.world.now < other.loads_until:
                return f"{other.name}#{other.run}"
        return ""

    def placed(self, name: str, hold: Hold) -> None:
        """See that nothing is given that may not be, at the moment at which it is given."""
        for uuid in hold.gpus:
            if uuid in self.quarantined or uuid in self.lost:
                raise self.world.violated(f"{name} is placed on {uuid}, which is in quarantine")

    def memory_is_back(self, run: Run | None) -> bool:
        """Tell whether nothing of a run's memory is missing."""
        return run is None or run.hold is None or not any(self.uses(run, uuid) for uuid in run.hold.gpus)

    # What the daemon sees

    def seen(self, replicas: Mapping[str, Replica]) -> list[Card]:
        """Return the GPUs as an inventory tells of them; a run that no replica holds is a stranger's."""
        self._release()
        cards = []
        for gpu in self.gpus:
            used, foreign = {}, gpu.foreign_bytes
            for (name, number), run in self.world.runs.items():
                replica = replicas.get(name)
                size = self.uses(run, gpu.uuid)
                if replica is not None and replica.hold is not None and replica.last_run == number:
                    used[name] = size
                else:
                    foreign += size
            trouble = "lost" if gpu.uuid in self.lost else self.quarantined.get(gpu.uuid, "")
            cards.append(Card(gpu=replace(gpu, foreign_bytes=foreign, trouble=trouble), used=used))
        return cards

    def _release(self) -> None:
        for uuid, why in list(self.quarantined.items()):
            holders = [run for run in self.world.runs.values() if not run.alive and self.uses(run, uuid)]
            if why.startswith("memory") and not holders:
                self.tell(f"{uuid}: its memory is back")
                del self.quarantined[uuid]

    # What goes wrong

    def chaos(self) -> None:
        """Lose a card or find it again, put one in quarantine or release it."""
        if not self.gpus:
            return
        uuid = self.rng.choice(self.gpus).uuid
        if self.rng.random() < 0.5:
            if uuid in self.quarantined:
                del self.quarantined[uuid]
            else:
                self.quarantined[uuid] = "quarantined by an operator"
        elif uuid in self.lost:
            self.lost.discard(uuid)
        else:
            self.lost.add(uuid)
        self.tell(f"{uuid}: lost={uuid in self.lost} {self.quarantined.get(uuid, '')}")

    def heal(self) -> None:
        """From now on all cards are there and usable, once their memory is back."""
        self.late = 0.0
        self.lost.clear()
        self.quarantined = {uuid: why for uuid, why in self.quarantined.items() if why.startswith("memory")}
