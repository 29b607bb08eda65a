"""What `modelsupd plan --want` answers: what would be decided, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.demanding import GIB, fleet, on_demand, ready, starting, told, waits
from core.samples import CRASH, process
from core.test_core_allotment import cards
from modelsupd.core.phases import Asleep, Backoff, Failed, Phase, Replica, Resting, Stopped, Want
from modelsupd.core.placement import Hold, Size
from modelsupd.core.preview import Preview, Victim, preview

NOW = 100.0


def asked(*replicas: Replica, want: str = "b/0", size: int = 6, on: tuple[int, ...] = (8,), **usage: object) -> Preview:
    wanted = {want: Size(size * GIB) if on else None}
    (found,) = preview(fleet(*replicas), cards(*on), told(**usage), NOW, wanted)  # type: ignore[arg-type]  # by name
    return found


STOPPED = on_demand("b/0", Stopped(0.0), count=1)


def test_one_that_has_a_process_runs() -> None:
    loading = replace(starting("b/0", 0), reason="loads")
    assert asked(loading) == Preview("b/0", "runs", why="is starting: loads")


@pytest.mark.parametrize("phase", [Stopped(0.0), Backoff(0.0, 1, CRASH, 999.0), Failed(0.0, 1, CRASH, None)], ids=str)
def test_one_that_rests_starts_where_there_is_room(phase: Phase) -> None:
    assert asked(on_demand("b/0", phase, count=1)) == Preview("b/0", "starts", ("GPU-0",))
    assert asked(on_demand("b/0", phase), on=()) == Preview("b/0", "starts")
    assert asked(replace(on_demand("b/0", phase, count=1), want=Want.DOWN)).verdict == "starts"


def test_one_starts_beside_those_that_have_yet_to_be_told_of_it() -> None:
    assert asked(STOPPED, ready("a/0", 0, 0)) == Preview("b/0", "starts", ("GPU-0",))


def test_who_would_give_way_and_how_idle_and_dear_it_is() -> None:
    found = asked(STOPPED, ready("a/0", 20, 0, size=6))
    assert found == Preview("b/0", "evicts", evicts=(Victim("a/0", 80.0, 30.0),), why="a/0 gives way")
    unknown = replace(ready("a/0", 20, 0, size=6), learned=None)
    assert asked(STOPPED, unknown, a=90.0).evicts == (Victim("a/0", 10.0, None),)
    urgent = on_demand("b/0", Stopped(0.0), count=1, priority=1)
    assert asked(urgent, ready("a/0", 20, 0, size=6), busy={"a": 1}).evicts == (Victim("a/0", None, 30.0),)


def test_why_it_would_wait() -> None:
    found = asked(STOPPED, ready("a/0", 20, 0, size=6), busy={"a": 1})
    assert (found.verdict, found.evicts, found.closes) == ("waits", (), ())
    assert found.why.endswith("; a/0 is in use")
    told_to_end = "b/0 goes first, and they never run beside one another"
    group: dict[str, Any] = {"group": "g", "excludes": ("g",)}
    behind = asked(on_demand("a/0", Stopped(0.0), **group), waits("b/0", 0, **group), want="a/0", on=())
    assert (behind.verdict, behind.why) == ("waits", told_to_end)


def test_who_would_take_nothing_new_and_only_who_would() -> None:
    impatient = on_demand("b/0", Stopped(0.0), count=1, turn_s=0)
    found = asked(impatient, ready("a/10", 20, 0, size=3), ready("a/1", 20, 0, size=3), on=(6,), busy={})
    assert {victim.name for victim in found.evicts} == {"a/1", "a/10"}
    # The others that are closed are so for somebody else.
    other = waits("c/0", 0, 6, 1, turn_s=0)
    theirs, ours = ready("m/0", 20, 0, size=6), ready("am/0", 20, 1, size=8)
    found = asked(impatient, other, theirs, ours, size=8, on=(6, 8), busy={"m": 1, "am": 1})
    assert found.closes == ("am/0",)
    assert found.why == "am/0 takes nothing new, and gives way when it is idle"


def test_one_that_waits_already_waits_as_long_as_it_has() -> None:
    before = waits("b/0", 60, 6, 1, turn_s=30)
    found = asked(before, ready("a/0", 20, 0, size=6), busy={"a": 1})
    assert found.closes == ("a/0",)
    assert asked(before, ready("a/0", 20, 0, size=6), size=99).verdict == "evicts", "what it takes is known already"


def test_what_is_waited_for_already_counts_from_then() -> None:
    patient = on_demand("b/0", Stopped(0.0), count=1, turn_s=30)
    other = ready("a/0", 20, 0, size=6)
    assert asked(patient, other, busy={"a": 1}, wanted={"b": 70.0}).closes == ("a/0",)
    assert asked(patient, other, busy={"a": 1}, wanted={"b": 70.5}).closes == ()


def test_all_replicas_of_a_model_are_told_of_in_their_order() -> None:
    replicas = fleet(on_demand("b/0", Stopped(0.0), count=1), on_demand("b/1", Stopped(0.0), count=1), ready("a/0"))
    found = preview(replicas, cards(8, 8), told(), NOW, dict.fromkeys(("b/1", "b/0"), Size(6 * GIB)))
    assert [(each.name, each.verdict, each.gpus) for each in found] == [
        ("b/1", "starts", ("GPU-1",)),
        ("b/0", "starts", ("GPU-0",)),
    ]
    assert preview(replicas, cards(8), told(), NOW, {}) == ()


def test_one_that_sleeps_wakes_where_it_lies() -> None:
    phase = Asleep(50.0, process(), 1, Hold(gpus=("GPU-1",), bytes=(6 * GIB,)), Resting.ASLEEP)
    sleeper = replace(on_demand("b/0", phase, 1, size=1, sleep=1), demanded_by="")
    assert asked(sleeper, on=(8, 8)) == Preview("b/0", "starts", ("GPU-1",))


def test_who_goes_for_lack_of_requests_goes_for_nobody_else() -> None:
    idle = ready("c/0", 0, 1, size=1, idle_timeout_s=60)
    found = asked(STOPPED, ready("a/0", 20, 0, size=6), idle, on=(8, 1))
    assert [victim.name for victim in found.evicts] == ["a/0"]


def test_others_are_waited_for_as_they_are() -> None:
    patient = on_demand("b/0", Stopped(0.0), count=1, turn_s=30)
    found = asked(patient, ready("a/0", 20, 0, size=6), wanted={"a": 90.0})
    assert (found.verdict, found.evicts) == ("waits", ())
    assert found.why.endswith("; a/0 is in use")


def test_nothing_is_changed_by_it() -> None:
    replicas = fleet(STOPPED, ready("a/0", 20, 0, size=6))
    before = dict(replicas)
    preview(replicas, cards(8), told(), NOW, {"b/0": Size(6 * GIB)})
    assert replicas == before
