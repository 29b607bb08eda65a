"""Who sleeps and whose turn it is: `allot` where there are sleepers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.demanding import GIB, fleet, on_demand, told
from core.samples import process
from core.test_core_allotment import cards
from modelsupd.core.allotment import Allotment, allot
from modelsupd.core.demand import Usage
from modelsupd.core.events import Evicted
from modelsupd.core.phases import Asleep, Replica, Resting
from modelsupd.core.placement import Hold
from modelsupd.core.spec import Start


def decide(*replicas: Replica, usage: Usage | None = None, now: float = 100.0, on: tuple[int, ...] = ()) -> Allotment:
    return allot(fleet(*replicas), {}, cards(*on), usage or told(), now)


def asleep(name: str, gpu: int = 0, size: int = 6, keeps: int = 1, by: str = "", **demand: Any) -> Replica:  # noqa: ANN401 - settings of any type
    uuid = f"GPU-{gpu}"
    before = Hold(gpus=(uuid,), bytes=(size * GIB,), idle_bytes=(1,))
    phase = Asleep(50.0, process(1), 1, before, Resting.ASLEEP)
    found = on_demand(name, phase, gpu, size=keeps, **{"sleep": 1, **demand})
    return replace(found, demanded_by=by)


def test_one_that_is_to_run_always_by_now_wakes_where_it_fits_only_once_it_is_awake() -> None:
    """What it keeps while it sleeps is its own, and does not stand in its way."""
    sleeper = asleep("a/0", size=8, asleep_timeout_s=10)
    assert decide(sleeper, on=(8,)).evicted == {"a/0": Evicted(1, "slept for 10 s")}
    always = replace(sleeper, spec=replace(sleeper.spec, start=Start.ALWAYS))
    answer = decide(always, on=(8,))
    assert (answer.waiting, answer.evicted) == ({}, {})
    assert answer.placed["a/0"].hold is not None
