"""A hundred requests in turn for two models with one place: swaps and waits, against first come, first served.

Virtual time and the daemon's own decisions, with engines that start at once: `tests/core/one_place.py`. The same in
every run, whatever the machine; only the time that a decision takes is measured.
"""

from __future__ import annotations

import itertools
import random

import measure
from core.demanding import GIB, fleet, ready, told, waits
from core.one_place import Ask, OnePlace, Pace, first_come_first_served
from modelsupd.core.allotment import Card, allot
from modelsupd.core.placement import Gpu

RUNS = 200
REQUESTS = 100
#: Mean seconds between two requests: from a crowd to one now and then.
GAPS_S = (0.1, 1.0, 5.0, 20.0, 60.0)
TAKES_S = (0.5, 2.0, 10.0)
#: Of ten models on demand on each of eight cards, all of which could give way.
CARDS, MODELS = 8, 10


def arrivals(gap_s: float, seed: int) -> list[Ask]:
    """Return requests for one and the other in turn, at random times."""
    rng = random.Random(seed)  # noqa: S311 - the same arrivals in every run are the point
    at = itertools.accumulate(rng.expovariate(1 / gap_s) for _ in range(REQUESTS))
    return [Ask(when, "ab"[number % 2], rng.choice(TAKES_S)) for number, when in enumerate(at)]


def decision() -> float:
    """Return how long it takes to decide who gives way for one that needs half of a card."""
    replicas = fleet(
        waits("w/0", 90.0, 5, 1),
        *(ready(f"v{number}/0", 0.0, number % CARDS, size=1) for number in range(CARDS * MODELS)),
    )
    cards = [Card(gpu=Gpu(uuid=f"GPU-{index}", index=index, total_bytes=MODELS * GIB)) for index in range(CARDS)]
    usage = told(wanted={"w": 90.0})
    return measure.timed(lambda: allot(replicas, {}, cards, usage, 100.0))


def main(runs: int = 0) -> None:
    """Play, measure and print."""
    measure.heading(f"fairness: {REQUESTS} requests, in turn for two models that exclude each other")
    runs = runs or RUNS
    pace = Pace()
    bound_s = pace.bound_s(2, max(TAKES_S))
    print(
        f"  residence_s {pace.residence_s:g}, turn_s {pace.turn_s:g}; no request may wait longer than {bound_s:.1f} s"
    )
    for gap_s in GAPS_S:
        ours, theirs, longest_s, more = 0, 0, 0.0, 0
        for seed in range(runs):
            asks = arrivals(gap_s, seed)
            place = OnePlace(pace, "ab")
            place.serve(asks)
            swaps, first_come = len(place.starts) - 1, first_come_first_served(asks) - 1
            ours, theirs, more = ours + swaps, theirs + first_come, more + (swaps > first_come)
            longest_s = max(longest_s, *place.waits_s)
        print(
            f"  one every {gap_s:5g} s: {ours / runs:5.1f} swaps, first come, first served {theirs / runs:5.1f}; "
            f"more than that in {more} of {runs}; longest wait {longest_s:5.1f} s"
        )
    print(f"  a decision, {MODELS} that could give way on each of {CARDS} GPUs: ", end="")
    print(measure.milliseconds([decision() for _ in range(runs)]))
