"""Who sleeps and whose turn it is: `allot` where there are sleepers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.demanding import GIB, fleet, on_demand, ready, told, waits
from core.samples import process
from core.test_core_allotment import cards
from modelsupd.core.allotment import Allotment, allot
from modelsupd.core.demand import Usage
from modelsupd.core.events import Evicted
from modelsupd.core.phases import Asleep, Draining, Phase, Reason, Replica, Resting
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


FALLING = Asleep(99.0, process(1), 1, None)
TO_SLEEP = Draining(99.0, process(1), Reason.SLEEP, 130.0, 130.0)


@pytest.mark.parametrize("phase", [FALLING, TO_SLEEP], ids=["falls asleep", "is drained for it"])
def test_nobody_gives_way_for_room_that_one_keeps_who_is_about_to_sleep(phase: Phase) -> None:
    """It has the higher priority, and does not go for the one that waits."""
    falls = replace(asleep("a/0", size=4, keeps=4, priority=1, asleep_vram_bytes=2 * GIB), phase=phase)
    answer = decide(falls, ready("v/0", 0, 0, size=2), waits("w/0", 0, 8, 1), on=(8,))
    assert (answer.evicted, answer.placed) == ({}, {})
    fits = decide(falls, ready("v/0", 0, 0, size=2), waits("w/0", 0, 6, 1), on=(8,))
    assert fits.evicted == {"v/0": Evicted(1, "gives way to w/0")}


def test_nor_for_what_one_keeps_that_is_told_to_sleep_now_for_lack_of_requests() -> None:
    idle = ready("a/0", 0, 0, size=4, priority=1, idle_timeout_s=50, sleep=1, asleep_vram_bytes=2 * GIB)
    answer = decide(idle, ready("v/0", 0, 0, size=2), waits("w/0", 0, 8, 1), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "no request for 50 s", sleep=True)}


def test_one_that_cannot_wake_lies_where_it_is_and_nobody_takes_that_from_it() -> None:
    stays = ready("v/0", 0, 0, size=5, start=Start.ALWAYS)
    sleeper = asleep("a/0", size=6, keeps=1, by="ada", priority=1)
    fits, does_not = (decide(sleeper, stays, waits("w/0", 60, size, 1), on=(8,)) for size in (2, 3))
    assert fits.beside.keys() == {"a/0", "v/0"}, "they are told of w, and then it loads"
    assert "w/0" not in fits.waiting
    assert does_not.beside == {}
    assert does_not.waiting["w/0"].endswith("; a/0 has a higher priority")
    assert "a/0" in fits.waiting.keys() & does_not.waiting.keys()
