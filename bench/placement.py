"""Placing 1,000 replicas on 512 GPUs at once, and one more among a thousand that run. Pure arithmetic; no peer.

The mixed case is the hard one: a third of it does not fit, and for each of those it is said why, GPU by GPU.
"""

from __future__ import annotations

import random

import measure
from modelsupd.core.placement import Claim, Gpu, Held, place

RUNS = 30
GIB = 1 << 30
GPUS, REPLICAS = 512, 1000


def cards() -> list[Gpu]:
    """Return GPUs of 80 GiB, a third of them with one or two in use by others."""
    return [
        Gpu(
            uuid=f"GPU-{number}",
            index=number,
            total_bytes=80 * GIB,
            foreign_bytes=number % 3 * GIB,
            reserve_bytes=GIB // 4,
        )
        for number in range(GPUS)
    ]


def alike() -> list[Claim]:
    """Return claims of one size, two to a GPU."""
    return [Claim(name=f"m{number}/0", model=f"m{number}", bytes=30 * GIB) for number in range(REPLICAS)]


def mixed(seed: int) -> list[Claim]:
    """Return claims of many sizes, exclusive, apart and tensor parallel ones among them."""
    rng = random.Random(seed)  # noqa: S311 - the same claims in every run are the point
    return [
        Claim(
            name=f"m{number % 100}/{number // 100}",
            model=f"m{number % 100}",
            count=rng.choice([1, 1, 1, 2, 4]),
            bytes=rng.choice([8, 16, 24, 40]) * GIB,
            exclusive=rng.choice([True, *[False] * 9]),
            pack=rng.choice([True, False, False]),
            apart=rng.choice([frozenset({f"m{number % 100}"}), frozenset(), frozenset()]),
        )
        for number in range(REPLICAS)
    ]


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading(f"placement: {REPLICAS} replicas on {GPUS} GPUs")
    gpus, uniform = cards(), alike()
    placed = place(gpus, [], uniform).placed
    held = [Held(name=name, model=name, gpus=on, bytes=(30 * GIB,)) for name, on in placed.items()]
    last = held.pop()
    more = [Claim(name=last.name, model=last.model, bytes=30 * GIB)]
    rows: dict[str, list[float]] = {"alike, all fit": [], "mixed": [], "one more among 999": []}
    counts = []
    for run in range(runs or RUNS):
        claims = mixed(run)
        counts.append(len(place(gpus, [], claims).waiting))
        rows["alike, all fit"].append(measure.timed(lambda: place(gpus, [], uniform)))
        rows["mixed"].append(measure.timed(lambda claims=claims: place(gpus, [], claims)))  # type: ignore[misc]  # a default binds the loop's variable
        rows["one more among 999"].append(measure.timed(lambda: place(gpus, held, more)))
    for name, seconds in rows.items():
        print(f"  {name:26} {measure.milliseconds(seconds)}")
    print(f"  of the mixed ones {min(counts)} to {max(counts)} of {REPLICAS} wait, each with its reason")
