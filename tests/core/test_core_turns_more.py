"""What one turn leaves for the next of the same decision, and sleepers among those whose turn it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.demanding import GIB, fleet, ready, told, waits
from core.samples import process
from core.test_core_allotment import cards
from core.test_core_sleeping_turns import asleep
from modelsupd.core.allotment import Allotment, allot
from modelsupd.core.demand import Usage
from modelsupd.core.events import Evicted
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.phases import Cause, Clearing, Draining, Killing, Phase, Reason, Replica, Stopping
from modelsupd.core.spec import Start

GROUP: dict[str, Any] = {"group": "g", "excludes": ("g",)}


def decide(*replicas: Replica, usage: Usage | None = None, now: float = 100.0, on: tuple[int, ...] = ()) -> Allotment:
    return allot(fleet(*replicas), {}, cards(*on), usage or told(), now)


# What one turn leaves for the next


def test_two_share_the_room_that_one_makes() -> None:
    answer = decide(waits("b/0", 98, 2, 1), waits("c/0", 99, 6, 1), ready("a/0", 0, 0, size=8), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}
    assert answer.waiting == {"b/0": "a/0 gives way", "c/0": "a/0 gives way"}


def test_nobody_behind_is_promised_the_room_that_is_made_for_the_first() -> None:
    answer = decide(waits("b/0", 98, 8, 1), waits("c/0", 99, 8, 1), ready("a/0", 0, 0, size=8), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}
    assert answer.waiting["b/0"] == "a/0 gives way"
    assert answer.waiting["c/0"] == "GPU 0: needs 8.0 GiB, 0.0 GiB of 8.0 GiB left (8.0 GiB claimed by a/0)"


def test_one_for_whom_room_is_being_made_excludes_those_behind_it() -> None:
    answer = decide(waits("b/0", 98, 8, 1, **GROUP), waits("c/0", 99, **GROUP), ready("a/0", 0, 0, size=8), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}
    assert answer.waiting["c/0"] == "b/0 goes first, and they never run beside one another"


def test_what_fits_and_is_kept_for_those_ahead_is_said_to_be() -> None:
    """As things are, there is room for the small one; it is the big one's, who needs the other GPU too."""
    big, small = waits("big/0", 0, 8, 2, turn_s=30), waits("s/0", 90, 8, 1)
    answer = decide(big, small, ready("a/0", 95, 1, size=8), on=(8, 8))
    assert answer.waiting["s/0"] == "those that go first leave no room"


BIG, SMALL = waits("big/0", 0, 8, 2, turn_s=30), waits("s/0", 90, 6, 1)
YOUNG = ready("a/0", 95, 1, size=8)


def test_nothing_is_kept_for_one_whose_way_is_barred_by_another_that_stays() -> None:
    answer = decide(BIG, SMALL, YOUNG, ready("p/0", 0, 0, size=2, pinned=True), on=(8, 8))
    assert answer.beside["p/0"].loading == "s/0"
    assert "s/0" not in answer.waiting


def test_nor_where_it_is_one_that_it_never_runs_beside() -> None:
    alone, other = waits("x/0", 0, excludes=("a", "p"), turn_s=30), waits("s/0", 90, excludes=("a",))
    answer = decide(alone, other, ready("a/0", 95), ready("p/0", 0, pinned=True))
    assert answer.waiting["s/0"] == "never beside a/0: a/0 has only just become ready"


def test_those_who_would_give_way_at_once_are_kept_for_it_as_well_as_those_who_will() -> None:
    answer = decide(BIG, SMALL, YOUNG, ready("v/0", 0, 0, size=8), on=(8, 8))
    assert (answer.placed, answer.evicted, answer.closed) == ({}, {}, frozenset())


OLD = ready("v/0", 0, 0, size=8)


def test_nobody_behind_has_them_go_for_itself() -> None:
    answer = decide(BIG, YOUNG, OLD, waits("s/0", 90, excludes=("v",)), on=(8, 8))
    assert answer.evicted == {}


def test_what_they_leave_beside_what_it_needs_is_for_those_behind() -> None:
    answer = decide(BIG, YOUNG, OLD, waits("s/0", 90, 4, 1), on=(12, 12))
    assert (answer.waiting["s/0"], answer.evicted) == ("v/0 gives way", {})


EXCLUSIVE, APART = PlacementSpec(exclusive=True), PlacementSpec(apart_from=("c",))


@pytest.mark.parametrize("placement", [EXCLUSIVE, APART], ids=["alone", "apart from it"])
def test_nobody_behind_is_promised_room_beside_one_that_wants_the_gpu_without_it(placement: PlacementSpec) -> None:
    first, second = waits("b/0", 98, 2, 1), waits("c/0", 99, 2, 1)
    alone = replace(first, spec=replace(first.spec, placement=placement))
    beside, elsewhere = (decide(alone, second, ready("a/0", 0, gpu, size=8), on=(8, 8)[: gpu + 1]) for gpu in (0, 1))
    assert beside.waiting["c/0"].startswith("GPU 0: needs 2.0 GiB, ")
    assert elsewhere.evicted == {"a/0": Evicted(1, "gives way to c/0")}


def test_one_goes_for_the_first_of_those_it_is_in_the_way_of() -> None:
    answer = decide(waits("b/0", 98, 8, 1), waits("c/0", 99, excludes=("a",)), ready("a/0", 0, 0, size=8), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}


def test_only_those_of_its_own_priority_take_nothing_new() -> None:
    """A lower one serves until it goes, and a sleeper serves nobody."""
    first, busy = waits("b/0", 0, 8, 1, priority=1), ready("a/0", 0, 0, size=4, priority=1)
    lower, sleeper = ready("o/0", 0, 0, size=4), asleep("o/0", size=4, keeps=4, priority=1)
    for other in (lower, sleeper):
        answer = decide(first, busy, other, usage=told(busy={"a": 1}), on=(8,))
        assert (set(answer.closed), answer.evicted) == ({"a/0"}, {})


def ending_by(cause: Cause) -> list[Phase]:
    return [
        Draining(99, process(1), cause, 109, 109),
        Stopping(99, process(1), cause, 109),
        Killing(99, process(1), cause, 109),
        Clearing(99, 1, cause),
    ]


@pytest.mark.parametrize("which", range(4))
def test_one_that_ends_for_another_reason_is_not_said_to_give_way(which: int) -> None:
    for cause, words in ((Reason.RESTART, "a/0 ends"), (Reason.EVICTED, "a/0 gives way")):
        ending = replace(ready("a/0", **GROUP), phase=ending_by(cause)[which], demanded_by="")
        assert decide(waits("b/0", 99, **GROUP), ending).waiting == {"b/0": words}


# Sleepers


def test_one_that_gives_way_sleeps_where_there_is_room_for_what_it_keeps() -> None:
    first, gives_way = waits("b/0", 0, 6, 1), ready("v/0", 0, 0, size=8, sleep=1, asleep_vram_bytes=GIB)
    assert decide(first, gives_way, on=(8,)).evicted == {"v/0": Evicted(1, "gives way to b/0", sleep=True)}
    assert decide(first, gives_way, on=(6,)).evicted == {"v/0": Evicted(1, "gives way to b/0")}


def test_what_sleeps_already_ends_where_even_that_is_in_the_way() -> None:
    answer = decide(waits("b/0", 0, 8, 1), asleep("a/0", size=6, keeps=1), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}


@pytest.mark.parametrize("gpus", [(), (0,)], ids=["without a GPU", "on one"])
def test_one_that_gives_way_to_one_that_needs_no_gpu_sleeps(gpus: tuple[int, ...]) -> None:
    gives_way = ready("a/0", 0, *gpus, size=6, sleep=1, asleep_vram_bytes=GIB, **GROUP)
    answer = decide(waits("b/0", 99, **GROUP), gives_way, on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0", sleep=True)}


def test_nobody_sleeps_beside_one_that_wants_the_gpu_for_itself() -> None:
    first, gives_way = waits("b/0", 0, 6, 1), ready("v/0", 0, 0, size=8, sleep=1, asleep_vram_bytes=GIB)
    alone = replace(first, spec=replace(first.spec, placement=EXCLUSIVE))
    assert decide(alone, gives_way, on=(8,)).evicted == {"v/0": Evicted(1, "gives way to b/0")}


def test_nobody_sleeps_beside_one_that_it_is_kept_apart_from() -> None:
    gives_way = ready("v/0", 0, 0, size=6, sleep=1, asleep_vram_bytes=GIB)
    for other, sleeps in (("b", False), ("c", True)):
        shy = replace(gives_way, spec=replace(gives_way.spec, placement=PlacementSpec(apart_from=(other,))))
        answer = decide(waits("b/0", 0, 6, 1), shy, on=(8,))
        assert answer.evicted == {"v/0": Evicted(1, "gives way to b/0", sleeps)}


def test_as_many_sleep_as_there_is_room_for() -> None:
    two = [ready(name, 0, 0, size=3, sleep=1, asleep_vram_bytes=GIB) for name in ("v/0", "w/0")]
    answer = decide(waits("b/0", 0, 6, 1), *two, on=(7,))
    assert {name: event.sleep for name, event in answer.evicted.items()} == {"v/0": True, "w/0": False}


def test_one_that_wakes_is_not_ended_for_the_next_whose_turn_it_is() -> None:
    answer = decide(asleep("a/0", size=6, by="ada"), waits("b/0", 99, 8, 1), on=(8,))
    assert list(answer.placed) == ["a/0"]
    assert answer.evicted == {}


def test_one_that_sleeps_excludes_nobody_and_goes_for_nobody_who_needs_no_room() -> None:
    answer = decide(waits("b/0", 99, **GROUP), asleep("a/0", **GROUP), on=(8,))
    assert (list(answer.placed), answer.evicted) == (["b/0"], {})


STAYS = ready("v/0", 0, 0, size=5, start=Start.ALWAYS)


def test_one_that_cannot_wake_where_it_lies_ends_and_starts_elsewhere() -> None:
    answer = decide(STAYS, asleep("a/0", size=6, by="ada"), on=(8, 8))
    assert answer.evicted == {"a/0": Evicted(1, "cannot wake where it lies, and starts elsewhere")}
    assert answer.waiting == {"a/0": "it lies where it cannot wake, and starts anew elsewhere"}


def test_but_not_where_that_is_none_of_the_gpus_it_is_to_run_on() -> None:
    sleeper = asleep("a/0", size=6, by="ada")
    pinned = replace(sleeper, spec=replace(sleeper.spec, gpus=("GPU-0",)))
    answer = decide(STAYS, pinned, on=(8, 8))
    assert answer.evicted == {}
    assert answer.waiting["a/0"].startswith("GPU 0: needs 6.0 GiB, ")


def test_nor_where_others_give_way_to_it() -> None:
    idle = ready("v/0", 0, 0, size=5)
    answer = decide(idle, asleep("a/0", size=6, by="ada"), on=(8, 8))
    assert answer.evicted == {"v/0": Evicted(1, "gives way to a/0")}
    assert answer.waiting == {"a/0": "v/0 gives way"}


def test_nor_where_there_is_no_room_elsewhere_either() -> None:
    other = ready("w/0", 0, 1, size=5, start=Start.ALWAYS)
    answer = decide(STAYS, other, asleep("a/0", size=6, by="ada"), on=(8, 8))
    assert answer.evicted == {}
    assert answer.waiting["a/0"].startswith("GPU 0: needs 6.0 GiB, ")


def test_one_that_does_not_sleep_has_nowhere_to_end() -> None:
    """It waits for GPU 0 alone; that there is room on the other is no reason to be told to go."""
    waiting = waits("a/0", 99, 6, 1)
    pinned = replace(waiting, spec=replace(waiting.spec, gpus=("GPU-0",)))
    answer = decide(STAYS, pinned, on=(8, 8))
    assert answer.evicted == {}
    assert answer.waiting["a/0"].startswith("GPU 0: needs 6.0 GiB, ")
