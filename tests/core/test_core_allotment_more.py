"""Who gets which GPU where some sleep there, or are about to, or no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.demanding import GIB, fleet, ready, starting, told, waits
from core.samples import process
from core.test_core_allotment import cards
from core.test_core_sleeping_turns import asleep, decide
from core.test_core_turns_more import GROUP
from modelsupd.core.allotment import allot, claim_of
from modelsupd.core.events import Beside, Evicted
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.phases import Asleep, Draining, Phase, Reason, Resting
from modelsupd.core.placement import Claim, Hold
from modelsupd.core.spec import Start


def in_state(state: Resting) -> Asleep:
    return Asleep(50.0, process(1), 1, Hold(gpus=("GPU-0",), bytes=(6 * GIB,)), state)


# Nothing loads beside what changes


@pytest.mark.parametrize(
    ("phase", "how"),
    [
        (in_state(Resting.WAKING), "loads"),
        (in_state(Resting.FALLING), "ends"),
        (Draining(99.0, process(1), Reason.SLEEP, 130.0, 130.0), "ends"),
    ],
    ids=["wakes", "falls asleep", "is drained for it"],
)
def test_nothing_loads_beside_one_that_falls_asleep_or_wakes(phase: Phase, how: str) -> None:
    moving = replace(asleep("a/0", by="ada"), phase=phase)
    answer = decide(moving, waits("w/0", 99, 2, 1), on=(8,))
    assert answer.placed == {}
    assert answer.waiting == {"w/0": f"there is room, and a/0 {how} on GPU 0: nothing loads beside that"}


def test_what_a_sleeper_keeps_is_not_known_before_its_gpu_is_read_again() -> None:
    replicas = fleet(asleep("a/0"), waits("w/0", 99, 2, 1))
    for read_at in (49.9, 50.0):
        answer = allot(replicas, {}, cards(8, read_at=read_at), told(), 100)
        words = {"w/0": "there is room, and a/0 ends on GPU 0: nothing loads beside that"} if read_at < 50 else {}
        assert answer.waiting == words
        assert set(answer.beside) == (set() if read_at < 50 else {"a/0"})
    elsewhere = allot(replicas, {}, [*cards(8, read_at=0.0), *cards(0, 8)[1:]], told(), 100)
    assert list(elsewhere.placed) == ["w/0"]
    assert allot(fleet(asleep("a/0", 5), waits("w/0", 99, 2, 1)), {}, cards(8, read_at=0.0), told(), 100).waiting == {}


def test_one_that_does_not_sleep_holds_what_it_holds_whenever_its_gpu_was_read() -> None:
    answer = allot(fleet(ready("a/0", 95, 0), waits("w/0", 99, 2, 1)), {}, cards(8, read_at=50.0), told(), 100)
    assert answer.beside.keys() == {"a/0"}
    assert answer.waiting == {}


def test_one_that_sleeps_without_a_gpu_is_in_nobodys_way() -> None:
    bare = replace(asleep("a/0"), phase=Asleep(50.0, process(1), 1, None, Resting.ASLEEP), hold=None)
    assert list(decide(bare, waits("w/0", 99, 8, 1), on=(8,)).placed) == ["w/0"]


def test_one_that_has_woken_is_told_that_the_load_beside_it_is_over() -> None:
    woken = replace(starting("a/0", 0), beside="x/0")
    assert decide(woken, on=(8,)).beside == {"a/0": Beside("")}


def test_one_that_was_told_to_wake_counts_as_awake_before_that_is_published() -> None:
    sleeper = asleep("a/0", by="ada", **GROUP)
    answer = allot(fleet(sleeper, waits("b/0", 99, **GROUP)), {"a/0": sleeper.hold}, cards(8), told(), 100)
    assert (answer.placed, answer.evicted) == ({}, {})
    assert answer.waiting == {"b/0": "never beside a/0: a/0 is not ready yet"}


# What a sleeper wants


def test_one_that_wakes_wants_what_it_had_where_it_lies() -> None:
    before = Hold(gpus=("GPU-2", "GPU-1"), bytes=(GIB, 3 * GIB), exclusive=True)
    sleeper = replace(asleep("a/0"), phase=Asleep(50.0, process(1), 1, before, Resting.ASLEEP))
    apart = replace(sleeper, spec=replace(sleeper.spec, placement=PlacementSpec(apart_from=("z",))))
    wants = Claim(
        name="a/0",
        model="a",
        count=2,
        uuids=("GPU-2", "GPU-1"),
        bytes=3 * GIB,
        exclusive=True,
        apart=frozenset({"z"}),
    )
    assert claim_of(apart) == wants
    assert claim_of(replace(sleeper, phase=replace(sleeper.phase, before=Hold(gpus=(), bytes=())))).bytes == 0  # type: ignore[arg-type]  # the phase is Asleep


def test_one_that_sleeps_without_a_gpu_and_is_declared_with_one_wants_that() -> None:
    sleeper = asleep("a/0")
    bare = replace(sleeper, phase=Asleep(50.0, process(1), 1, None, Resting.ASLEEP), hold=None)
    assert claim_of(bare) == Claim(name="a/0", model="a", count=1, bytes=0, exclusive=True)


# All together, or in turn


@pytest.mark.parametrize("start", [Start.ALWAYS, Start.ON_DEMAND])
def test_where_all_fit_all_go_whoever_waits_longest(start: Start) -> None:
    """In turn, the small one would take the large GPU, where most is left."""
    small, large = waits("a/0", 1, 4, 1, start=start), waits("b/0", 9, 8, 1, start=start)
    answer = decide(small, large, on=(8, 6))
    assert {name: placed.hold and placed.hold.gpus for name, placed in answer.placed.items()} == {
        "a/0": ("GPU-1",),
        "b/0": ("GPU-0",),
    }


def test_where_nobody_starts_on_demand_as_many_go_as_can() -> None:
    always = [waits(f"{name}/0", since, size, 1, start=Start.ALWAYS) for name, since, size in WAITING]
    assert set(decide(*always, on=(8, 6)).placed) == {"a/0", "b/0"}


WAITING = (("a", 1, 4), ("b", 9, 8), ("c", 10, 8))


def test_a_sleeper_is_reckoned_with_as_one_also_where_others_wait_that_are_none() -> None:
    sleeper = asleep("a/0", size=8)
    always = replace(sleeper, spec=replace(sleeper.spec, start=Start.ALWAYS))
    assert set(decide(always, waits("w/0", 99, start=Start.ALWAYS), on=(8,)).placed) == {"a/0", "w/0"}


# Who is needed by nobody


def test_one_that_nobody_needs_sleeps_where_it_can_and_ends_where_it_has_slept_for_too_long() -> None:
    idle = ready("a/0", 0, 0, idle_timeout_s=50, sleep=1)
    assert decide(idle, on=(8,)).evicted == {"a/0": Evicted(1, "no request for 50 s", sleep=True)}
    ends = ready("a/0", 0, 0, idle_timeout_s=50)
    assert decide(ends, on=(8,)).evicted == {"a/0": Evicted(1, "no request for 50 s")}
    over = asleep("a/0", asleep_timeout_s=10)
    assert decide(over, on=(8,)).evicted == {"a/0": Evicted(1, "slept for 10 s")}
    left = asleep("a/0", by="clients")
    assert decide(left, on=(8,)).evicted == {"a/0": Evicted(1, "nobody waits for it any more", sleep=True)}


def test_the_instant_at_which_one_has_slept_for_long_enough_is_not_forgotten() -> None:
    assert decide(asleep("a/0", asleep_timeout_s=60), on=(8,)).again_at == 110


def test_one_that_goes_on_sleeping_keeps_what_it_kept() -> None:
    """Its clients have left, and it is told so; another that takes nearly all comes to lie beside it."""
    left = asleep("a/0", size=6, keeps=1, by="clients", asleep_vram_bytes=GIB, priority=1)
    answer = decide(left, waits("w/0", 99, 8, 1), ready("v/0", 0, 0, size=7), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "nobody waits for it any more", sleep=True)}
    assert "GPU 0: needs 8.0 GiB" in answer.waiting["w/0"]
    fits = decide(left, waits("w/0", 99, 7, 1), ready("v/0", 0, 0, size=7), on=(8,))
    assert set(fits.evicted) == {"a/0", "v/0"}


def test_one_that_was_told_to_give_way_keeps_nothing_as_far_as_others_are_concerned() -> None:
    """Whether it sleeps or ends is not known any more; who was promised its room gets no less of it."""
    told_to = ready("a/0", 0, 0, size=8, sleep=1, asleep_vram_bytes=2 * GIB)
    for leaves in (told_to, asleep("a/0", size=8, keeps=2, asleep_vram_bytes=2 * GIB)):
        answer = allot(fleet(leaves, waits("w/0", 99, 8, 1)), {}, cards(8), told(), 100, ["a/0"])
        assert (answer.evicted, answer.waiting) == ({}, {"w/0": "a/0 gives way"})


def test_one_that_nobody_needs_and_that_does_not_sleep_keeps_nothing() -> None:
    ends = ready("a/0", 0, 0, size=8, idle_timeout_s=50, asleep_vram_bytes=2 * GIB)
    answer = decide(ends, waits("w/0", 99, 8, 1), on=(8,))
    assert answer.evicted == {"a/0": Evicted(1, "no request for 50 s")}
    assert answer.waiting == {"w/0": "a/0 gives way"}


def test_one_that_is_drained_in_order_to_end_keeps_nothing() -> None:
    drained = Draining(99.0, process(1), Reason.EVICTED, 130.0, 130.0)
    ends = replace(asleep("a/0", size=8, keeps=8, asleep_vram_bytes=2 * GIB), phase=drained)
    assert decide(ends, waits("w/0", 99, 8, 1), on=(8,)).waiting == {"w/0": "a/0 gives way"}


def test_one_that_has_a_gpu_for_itself_shares_it_in_its_sleep() -> None:
    alone = ready("a/0", 0, 0, size=6, idle_timeout_s=50, sleep=1, asleep_vram_bytes=GIB, priority=1)
    assert alone.hold is not None
    alone = replace(alone, hold=replace(alone.hold, exclusive=True))
    answer = decide(alone, waits("w/0", 99, 7, 1), on=(8,))
    assert answer.waiting == {"w/0": "a/0 gives way"}
