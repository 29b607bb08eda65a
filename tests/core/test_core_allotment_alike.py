"""What happens to a replica and is none of the business of whoever gives out turns and GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core.demanding import on_demand, waits
from core.samples import LEARNED, OTHER_DIGEST, OTHER_INPUTS
from core.situations import NOW, RUN, situations
from core.table import events
from modelsupd.core.allotment import Allotment, Card, alike, allot
from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.core.events import Placed, ProbeKind
from modelsupd.core.phases import (
    Asleep,
    Clearing,
    Draining,
    Halt,
    Killing,
    Ready,
    Reason,
    Replica,
    Resting,
    Stopping,
    Waiting,
    Want,
)
from modelsupd.core.placement import Gpu, Hold, Size
from modelsupd.core.replica import InvalidTransition, step

CARDS = [Card(gpu=Gpu(uuid=f"GPU-{index}", index=index, total_bytes=4), read_at=NOW - 1) for index in range(2)]
SITUATIONS = dict(situations())
AT_ONCE: dict[str, Any] = {"turn_s": 1.0, "residence_s": 0.0}


def answers(of: Replica) -> Iterator[Allotment]:
    """Yield what is decided with this replica there: beside nobody, beside one that loads, beside those that want."""
    wants = replace(waits("x/0", NOW - 30, **AT_ONCE), spec=replace(waits("x/0", **AT_ONCE).spec, gpus=2))
    wants = replace(wants, phase=Waiting(NOW - 30, 1, wants.digest, Size(8)))
    away = replace(wants, spec=replace(wants.spec, gpus=0, demand=replace(wants.spec.demand, excludes=("m",))))
    idle = Usage({f"m/0#{RUN}": Use(0, NOW - 10)}, {"x": Wanted(1, NOW - 30)}, known=True)
    asked = Usage({f"m/0#{RUN}": Use(1)}, {"x": Wanted(1, NOW - 30), "m": Wanted(2, NOW - 5)}, known=True)
    loading = replace(on_demand("x/0", wants.phase), spec=replace(wants.spec, gpus=1))
    granted = {"x/0": Hold(gpus=("GPU-0",), bytes=(1,))}
    yield allot({"m/0": of}, {}, CARDS, asked, NOW)
    yield allot({"m/0": of, "x/0": loading}, granted, CARDS, idle, NOW)
    for other in (wants, away):
        for usage in (Usage(), idle, asked):
            yield allot({"m/0": of, "x/0": other}, {}, CARDS, usage, NOW)


def test_where_two_are_alike_everything_is_decided_alike() -> None:
    changed = told = 0
    for words, before in SITUATIONS.items():
        was = list(answers(before))
        for name, variant, event in events(RUN, tuple(ProbeKind)):
            try:
                after, _actions = step(before, event, NOW)
            except InvalidTransition:
                continue
            if alike(before, after):
                changed += after != before
                assert list(answers(after)) == was, (words, name, variant)
            else:
                told += 1
    assert changed > 100
    assert told > 300


def test_a_probe_and_other_words_are_nobody_s_business() -> None:
    ready = SITUATIONS["ready"]
    assert isinstance(ready.phase, Ready)
    assert alike(ready, replace(ready, phase=replace(ready.phase, pulse=replace(ready.phase.pulse, failures=1))))
    assert alike(ready, replace(ready, reason="because", restarts=1))
    waiting = SITUATIONS["waiting for a GPU"]
    assert isinstance(waiting.phase, Waiting)
    assert alike(waiting, replace(waiting, phase=replace(waiting.phase, why="GPU 0 is full of others")))


@pytest.mark.parametrize(
    "change",
    [
        {"last_run": RUN + 1},
        {"hold": Hold(gpus=("GPU-1",), bytes=(1,))},
        {"beside": "other/0"},
        {"demanded_by": "clients"},
        {"want": Want.DOWN},
        {"halt": Halt.DRAIN},
        {"removed": True},
        {"digest": OTHER_DIGEST},
        {"inputs": OTHER_INPUTS},
        {"learned": replace(LEARNED, bytes=9)},
        {"spec": replace(SITUATIONS["ready"].spec, aliases=("other",))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_decided_by_is_looked_at(change: dict[str, object]) -> None:
    ready = SITUATIONS["ready"]
    assert not alike(ready, replace(ready, **change))  # type: ignore[arg-type]  # fields of any type


def test_of_a_phase_what_is_decided_by_is_looked_at() -> None:
    ready, waiting = SITUATIONS["ready"], SITUATIONS["waiting for a GPU"]
    assert isinstance(ready.phase, Ready)
    process = ready.phase.process
    draining = Draining(NOW, process, Reason.OPERATOR, NOW + 30, NOW)
    resting = Asleep(NOW, process, 1, None, Resting.ASLEEP)
    clearing = Clearing(NOW, RUN, Reason.OPERATOR)
    stopping, killing = (kind(NOW, process, Reason.OPERATOR, NOW + 30) for kind in (Stopping, Killing))
    for one, other in (
        (ready.phase, draining),
        (stopping, killing),
        (stopping, replace(stopping, cause=Reason.EVICTED)),
        (stopping, replace(stopping, since=NOW + 1)),
        (killing, replace(killing, cause=Reason.EVICTED)),
        (killing, replace(killing, since=NOW + 1)),
        (ready.phase, replace(ready.phase, since=NOW)),
        (draining, replace(draining, held=True)),
        (draining, replace(draining, cause=Reason.EVICTED)),
        (draining, replace(draining, since=NOW + 1)),
        (resting, replace(resting, state=Resting.WAKING)),
        (resting, replace(resting, since=NOW + 1)),
        (clearing, replace(clearing, cause=Reason.EVICTED)),
        (clearing, replace(clearing, since=NOW + 1)),
    ):
        assert not alike(replace(ready, phase=one), replace(ready, phase=other))
    assert isinstance(waiting.phase, Waiting)
    for changes in ({"size": Size(9)}, {"since": NOW + 1}):
        assert not alike(waiting, replace(waiting, phase=replace(waiting.phase, **changes)))
    given, _actions = step(waiting, Placed(RUN, Hold(gpus=("GPU-0",), bytes=(3,))), NOW)
    assert not alike(waiting, given)
