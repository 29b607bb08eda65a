"""One decision about a model on demand that requests wait for and that nothing has room for: who gives way, and where.

Pure arithmetic; no peer. It is taken anew whenever something that matters has changed, by the daemon's one thread.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import measure
from core.samples import DIGEST, process
from modelsupd.core.allotment import Card, allot
from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.health import begin
from modelsupd.core.phases import Ready, Replica, Stopped, Waiting, Want
from modelsupd.core.placement import Gpu, Hold
from modelsupd.core.spec import Engine, ModelSpec, Start

RUNS = 400
GIB = 1 << 30
NOW = 10_000.0

Question = tuple[Mapping[str, Replica], Sequence[Card], Usage]


def question(models: int, gpus: int, per_gpu: int, seed: int) -> Question:
    """Return so many models, as many of them ready as GPUs of 80 GiB have places, and one that waits for one."""
    rng = random.Random(seed)  # noqa: S311 - the same question in every run is the point
    size = 78 // per_gpu * GIB
    cards = [Card(gpu=Gpu(uuid=f"GPU-{number}", index=number, total_bytes=80 * GIB)) for number in range(gpus)]
    places = [card.gpu.uuid for card in cards for _ in range(per_gpu)]
    replicas, uses = {}, {}
    for number in range(models):
        name = f"m{number}"
        spec = ModelSpec(
            engine=Engine.COMMAND,
            command=("x",),
            gpus=1,
            start=Start.ON_DEMAND,
            placement=PlacementSpec(vram_bytes=size),
            demand=DemandSpec(priority=rng.choice([0, 0, 0, 1])),
        )
        each = Replica(name=f"{name}/0", model=name, spec=spec, digest=DIGEST, want=Want.UP, phase=Stopped(0.0))
        if number == 0:
            each = replace(each, phase=Waiting(NOW - 1, 1, DIGEST), last_run=1, demanded_by="clients")
        elif number <= len(places):
            hold = Hold(gpus=(places[number - 1],), bytes=(size,), idle_bytes=(0,))
            phase = Ready(rng.uniform(0, NOW - 100), process(1), begin(0.0))
            each = replace(each, phase=phase, last_run=1, hold=hold, demanded_by="clients")
            # Idle since minutes at most, or one that nobody needs any more would go for that.
            uses[f"{name}/0#1"] = Use(rng.choice([0, 0, 3]), NOW - rng.uniform(0, 500))
        replicas[each.name] = each
    return replicas, cards, Usage(uses, {"m0": Wanted(2, NOW - 1)}, known=True)


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading("demand: who gives way to a model that requests wait for")
    hosts = {
        "10 models, 3 on one GPU": (10, 1, 3),
        "64 models, 24 on 8 GPUs": (64, 8, 3),
        "1,000 models, all on 512 GPUs": (1000, 512, 2),
        "1,025 models, 1,024 on 512 GPUs": (1025, 512, 2),
    }
    for name, (models, gpus, per_gpu) in hosts.items():
        seconds, outcomes = [], set()
        for run in range(runs or RUNS):
            replicas, cards, usage = question(models, gpus, per_gpu, run % 20)
            found: list[object] = []
            seconds.append(
                measure.timed(lambda asked=(replicas, cards, usage), found=found: found.append(_decide(*asked)))  # type: ignore[misc]  # defaults bind the loop's variables
            )
            outcomes.add(found[0])
        print(f"  {name:32} {measure.milliseconds(seconds)}   {', '.join(sorted(map(str, outcomes)))}")


def _decide(replicas: Mapping[str, Replica], cards: Sequence[Card], usage: Usage) -> str:
    answer = allot(replicas, {}, cards, usage, NOW)
    return "placed" if answer.placed else "somebody gives way" if answer.evicted else "waits"
