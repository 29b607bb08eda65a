"""Whose turn it is, and who gives way for it: `allot` as a whole, where some start on demand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.demanding import fleet, on_demand, ready, starting, told, waits
from core.samples import CRASH, process
from core.test_core_allotment import cards
from modelsupd.core.allotment import Allotment, allot
from modelsupd.core.demand import Usage
from modelsupd.core.events import Evicted, Placed
from modelsupd.core.phases import (
    Backoff,
    Clearing,
    Reason,
    Replica,
    Resolving,
    Stopped,
    Stopping,
)
from modelsupd.core.placement import Hold
from modelsupd.core.spec import Start
from modelsupd.core.turns import Turns

GROUP: dict[str, Any] = {"group": "g", "excludes": ("g",)}
GPU_0 = Hold(gpus=("GPU-0",), bytes=(2 << 30,), idle_bytes=(1,))


def decide(*replicas: Replica, usage: Usage | None = None, now: float = 100.0, on: tuple[int, ...] = ()) -> Allotment:
    return allot(fleet(*replicas), {}, cards(*on), usage or told(), now)


# Who goes


def test_one_that_needs_no_gpu_goes_at_once() -> None:
    answer = decide(waits("a/0"))
    assert (answer.placed, answer.waiting) == ({"a/0": Placed(1, None)}, {})


def test_the_idle_give_way_where_there_is_no_room() -> None:
    answer = decide(waits("b/0", 99, 6, 1), ready("a/0", 0, 0, size=6), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}
    assert answer.waiting == {"b/0": "a/0 gives way"}
    assert (answer.placed, answer.closed, answer.again_at) == ({}, frozenset(), 600)


def test_whoever_was_told_to_give_way_is_not_told_again_and_another_takes_nothing_of_it() -> None:
    replicas = fleet(waits("b/0", 99, 6, 1), waits("c/0", 99.5, 2, 1), ready("a/0", 0, 0, size=6))
    answer = allot(replicas, {}, cards(8), told(), 100, ["a/0"])
    assert answer.evicted == {}
    assert answer.closed == {"a/0"}
    assert answer.placed == {}, "c would fit beside a, and takes the room that a makes for b"
    ending = replace(ready("a/0", 0, 0, size=6), phase=Stopping(99, process(1), Reason.EVICTED, 109))
    gone_soon = decide(waits("b/0", 99, 6, 1), waits("c/0", 99.5, 2, 1), replace(ending, demanded_by=""), on=(8,))
    assert (gone_soon.placed, gone_soon.evicted) == ({}, {})
    assert gone_soon.waiting["b/0"] == "a/0 gives way"
    gone = decide(waits("b/0", 99, 6, 1), waits("c/0", 99.5, 2, 1), on=(8,))
    assert list(gone.placed) == ["b/0"]


def test_the_order_is_priority_then_those_that_always_run_then_the_longest_wait() -> None:
    low, high = waits("a/0", 1, 8, 1), waits("b/0", 9, 8, 1, priority=1)
    assert list(decide(low, high, on=(8,)).placed) == ["b/0"]
    always = waits("b/0", 9, 8, 1, start=Start.ALWAYS)
    assert list(decide(low, always, on=(8,)).placed) == ["b/0"]
    assert list(decide(waits("a/0", 9, 8, 1), waits("b/0", 1, 8, 1), on=(8,)).placed) == ["b/0"]
    asked_long_ago = told(wanted={"a": 0.5})
    assert list(decide(waits("a/0", 9, 8, 1), waits("b/0", 1, 8, 1), usage=asked_long_ago, on=(8,)).placed) == ["a/0"]


def test_where_all_fit_on_one_gpu_they_load_in_the_same_order() -> None:
    answer = decide(waits("a/0", 1, 2, 1), waits("b/0", 9, 2, 1, priority=1), on=(8,))
    assert list(answer.placed) == ["b/0"]
    assert answer.waiting == {"a/0": "there is room, and b/0 loads on GPU 0: nothing loads beside that"}


def test_one_in_use_takes_nothing_new_when_the_others_turn_has_come_and_ends_when_it_is_idle() -> None:
    pair = waits("b/0", 70, 6, 1, turn_s=30), ready("a/0", 0, 0, size=6)
    early = decide(*pair, usage=told(busy={"a": 1}), now=99)
    assert early.again_at == 100
    assert "a/0 is in use" in early.waiting["b/0"]
    then = decide(*pair, usage=told(busy={"a": 1}), on=(8,))
    assert (set(then.closed), then.evicted) == ({"a/0"}, {})
    assert then.waiting == {"b/0": "a/0 takes nothing new, and gives way when it is idle"}
    assert decide(*pair, usage=told(a=100.0), on=(8,)).evicted == {"a/0": Evicted(1, "gives way to b/0")}


def test_of_several_none_ends_before_all_can() -> None:
    """The idle one would be ended for nothing, as long as the other is in use."""
    two = ready("a/0", 0, 0, size=4), ready("c/0", 0, 0, size=4)
    answer = decide(waits("b/0", 0, 8, 1), *two, usage=told(busy={"a": 1}), on=(8,))
    assert answer.evicted == {}
    answer = decide(waits("b/0", 0, 8, 1), *two, on=(8,))
    assert set(answer.evicted) == {"a/0", "c/0"}
    assert answer.waiting == {"b/0": "a/0 and c/0 give way"}


def test_nobody_gives_way_where_it_is_not_enough() -> None:
    pinned = ready("c/0", 0, 0, size=4, pinned=True)
    answer = decide(waits("b/0", 0, 8, 1), ready("a/0", 0, 0, size=4, idle_timeout_s=0), pinned, on=(8,))
    assert (answer.evicted, answer.closed, answer.again_at) == ({}, frozenset(), None)
    assert answer.waiting["b/0"].endswith("(8.0 GiB claimed by a/0 and c/0); c/0 is pinned")


def test_of_many_that_stay_a_few_are_told_of() -> None:
    many = [ready(f"v{number}/0", 0, 0, size=2, pinned=True) for number in range(5)]
    words = decide(waits("b/0", 0, 8, 1), *many, on=(10,)).waiting["b/0"]
    assert words.endswith("; v0/0 is pinned, v1/0 is pinned, v2/0 is pinned, and 2 more stay")
    three = decide(waits("b/0", 0, 8, 1), *many[:3], on=(10,)).waiting["b/0"]
    assert three.endswith("v2/0 is pinned")
    always = ready("a/0", 0, 0, size=8, start=Start.ALWAYS)
    words = decide(waits("b/0", 0, 8, 1), always, on=(8,)).waiting["b/0"]
    assert words == "GPU 0: needs 8.0 GiB, 0.0 GiB of 8.0 GiB left (8.0 GiB claimed by a/0)"


def test_who_has_always_run_makes_those_on_demand_give_way_too() -> None:
    answer = decide(waits("b/0", 99, 6, 1, start=Start.ALWAYS), ready("a/0", 0, 0, size=6), on=(8,))
    assert set(answer.evicted) == {"a/0"}


def test_a_model_never_gives_way_to_its_own_second_replica() -> None:
    answer = decide(waits("a/1", 0, 6, 1), ready("a/0", 0, 0, size=6), on=(8,))
    assert (answer.evicted, answer.closed) == ({}, frozenset())


def test_the_order_in_which_they_are_given_does_not_matter_for_the_words() -> None:
    many = [waits("b/0", 0, 8, 1), *(ready(f"v{number}/0", 0, 0, size=2, pinned=True) for number in range(4))]
    assert decide(*many, on=(8,)) == decide(*reversed(many), on=(8,))


# Those that exclude each other


def test_of_those_that_exclude_each_other_one_goes() -> None:
    answer = decide(waits("a/0", 2, **GROUP), waits("b/0", 1, **GROUP))
    assert list(answer.placed) == ["b/0"]
    assert answer.waiting == {"a/0": "b/0 goes first, and they never run beside one another"}


def test_the_one_that_is_there_gives_way_or_is_told_of() -> None:
    answer = decide(waits("b/0", 99, **GROUP), ready("a/0", **GROUP))
    assert answer.evicted == {"a/0": Evicted(1, "gives way to b/0")}
    assert answer.waiting == {"b/0": "a/0 gives way"}
    answer = decide(waits("b/0", 99, **GROUP), ready("a/0", 95, **GROUP))
    assert answer.evicted == {}
    assert answer.waiting == {"b/0": "never beside a/0: a/0 has only just become ready"}
    assert answer.again_at == 105
    gone = replace(ready("a/0", **GROUP), phase=Clearing(99, 1, Reason.EVICTED), demanded_by="")
    assert decide(waits("b/0", 99, **GROUP), gone).waiting == {"b/0": "a/0 gives way"}


def test_what_was_given_and_is_not_published_yet_excludes_too() -> None:
    replicas = fleet(waits("a/0", 99, **GROUP), waits("b/0", 1, **GROUP))
    answer = allot(replicas, {"a/0": None}, [], told(), 100)
    assert (answer.placed, answer.evicted) == ({}, {})
    assert answer.waiting == {"b/0": "never beside a/0: a/0 is not ready yet"}


def test_those_that_rest_exclude_nobody() -> None:
    for phase in (Stopped(0.0), Resolving(0.0, 1), Backoff(0.0, 1, CRASH, 999.0)):
        answer = decide(waits("b/0", 99, **GROUP), on_demand("a/0", phase, **GROUP), usage=told(wanted={"a": 1.0}))
        assert list(answer.placed) == ["b/0"]


def test_one_that_excludes_on_a_gpu_waits_for_room_as_well() -> None:
    other = ready("a/0", 0, 0, size=4, **GROUP)
    pinned = ready("c/0", 0, 0, size=4, pinned=True)
    answer = decide(waits("b/0", 99, 6, 1, **GROUP), other, pinned, on=(8,))
    assert (answer.evicted, answer.closed) == ({}, frozenset())
    assert "c/0 is pinned" in answer.waiting["b/0"]


# Whose turn has come loses it to nobody


def test_whoever_needs_all_is_not_overtaken_by_those_who_have_only_just_begun() -> None:
    """A small one would start on the free GPU, be young itself when the other no longer is, and so on for ever."""
    big, small = waits("big/0", 0, 8, 2, turn_s=30), waits("s/0", 90, 8, 1)
    young = ready("a/0", 95, 1, size=8)
    answer = decide(big, small, young, on=(8, 8))
    assert (answer.placed, answer.evicted, answer.closed, answer.again_at) == ({}, {}, frozenset(), 105)
    assert "a/0 has only just become ready" in answer.waiting["big/0"]
    assert decide(big, small, young, now=29, usage=told(wanted={"s": 0}), on=(8, 8)).placed != {}, "before its turn"
    loading = starting("a/0", 1, size=8)
    assert decide(big, small, loading, on=(8, 8)).placed == {}
    stays = ready("a/0", 95, 1, size=8, pinned=True)
    assert list(decide(big, small, stays, on=(8, 8)).placed) == ["s/0"], "nothing is kept free for what does not come"


def test_whoever_excludes_several_is_not_overtaken_either() -> None:
    alone = waits("x/0", 0, excludes=("s", "t"), turn_s=30)
    answer = decide(alone, waits("s/0", 90), ready("t/0", 95))
    assert (answer.placed, answer.evicted) == ({}, {})
    assert answer.waiting["s/0"] == "x/0 goes first, and they never run beside one another"
    assert list(decide(alone, waits("s/0", 90), ready("t/0", 95, pinned=True)).placed) == ["s/0"]


def test_a_higher_priority_keeps_the_room_of_one_that_is_still_loading() -> None:
    high, low = waits("h/0", 99, 8, 2, priority=1), waits("l/0", 0, 8, 1)
    answer = decide(high, low, starting("a/0", 1, size=8), on=(8, 8))
    assert (answer.placed, answer.evicted) == ({}, {})


# Who is needed by nobody


def test_whoever_is_idle_for_too_long_goes_and_its_room_is_given_then() -> None:
    answer = decide(ready("a/0", 0, 0, size=6), now=600, on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "no request for 600 s")}
    both = decide(waits("b/0", 599, 6, 1), ready("a/0", 0, 0, size=6), now=600, on=(8,))
    assert both.evicted == {"a/0": Evicted(1, "no request for 600 s")}
    assert both.waiting == {"b/0": "a/0 gives way"}
    replicas = fleet(ready("a/0", 0, 0, size=6))
    again = allot(replicas, {}, cards(8), told(), 600, {"a/0"})
    assert (again.evicted, set(again.closed)) == ({}, {"a/0"})


def test_nothing_loads_beside_one_that_goes() -> None:
    answer = decide(waits("b/0", 599, 2, 1), ready("a/0", 0, 0, size=2), now=600, on=(8,))
    assert answer.placed == {}
    assert answer.waiting == {"b/0": "there is room, and a/0 ends on GPU 0: nothing loads beside that"}


def test_clients_that_leave_end_the_wait_and_those_that_come_begin_it() -> None:
    answer = decide(replace(waits("a/0"), demanded_by="clients"))
    assert answer.placed == {}
    assert answer.evicted == {"a/0": Evicted(1, "nobody waits for it any more")}
    came = decide(on_demand("a/0", Stopped(0.0)), usage=told(wanted={"a": 99.0}))
    assert came.demanded == ("a/0",)


def test_whose_turn_has_come_finds_all_in_its_way_closed_and_not_only_who_is_in_use_just_now() -> None:
    """Else two that are never idle at the same moment take turns in being in use, and it waits for ever."""
    two = ready("a/0", 0, 0, size=4), ready("c/0", 0, 0, size=4)
    for in_use in "ac":
        answer = decide(waits("b/0", 0, 8, 1), *two, usage=told(busy={in_use: 1}), on=(8,))
        assert set(answer.closed) == {"a/0", "c/0"}
        assert answer.waiting == {"b/0": f"{in_use}/0 takes nothing new, and gives way when it is idle"}
    never = [ready(f"{name}/0", 0, **GROUP) for name in "ac"]
    answer = decide(waits("b/0", 0, excludes=("g",)), *never, usage=told(busy={"a": 1}))
    assert set(answer.closed) == {"a/0", "c/0"}


def test_nobody_gives_way_to_one_that_has_been_told_that_nobody_waits_for_it() -> None:
    left = on_demand("b/0", waits("b/0", 0, 6, 1).phase, count=1)
    replicas = fleet(left, ready("a/0", 0, 0, size=6))
    told_to_go = allot(replicas, {}, cards(8), told(), 100)
    assert set(told_to_go.evicted) == {"b/0"}
    until_it_has = allot(replicas, {}, cards(8), told(), 100, ["b/0"])
    assert (until_it_has.evicted, until_it_has.placed, until_it_has.waiting) == ({}, {}, {})


def test_it_is_looked_at_again_at_the_earliest_of_all_instants() -> None:
    turns = Turns()
    for at, earliest in ((None, None), (9.0, 9.0), (5.0, 5.0), (None, 5.0), (7.0, 5.0)):
        turns.look_again(at)
        assert turns.again_at == earliest
