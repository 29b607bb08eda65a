"""Eviction: who gives way for room, compared with a search through all sets there are, by arithmetic of its own."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.test_core_placement import GIB, NONE, claim, gpus, held
from modelsupd.core import eviction
from modelsupd.core.eviction import Candidate, Floor, Room
from modelsupd.core.placement import Claim, Gpu, Held, place

IDLE = Candidate(0, busy=False, cost=1.0)


def idle(*names: str, **changes: object) -> dict[str, Candidate]:
    return dict.fromkeys(names, replace(IDLE, **changes))  # type: ignore[arg-type]  # fields by name


def victims(room: Room | None) -> set[str]:
    assert room is not None
    return set(room.victims)


# Examples


def test_where_there_is_room_nobody_gives_way() -> None:
    floor = Floor(gpus(8, 8), [held("v/0", 0, size=6)])
    assert floor.room_for(claim(size=8), idle("v/0")) == Room(("GPU-1",), NONE)
    assert floor.room_for(claim(size=2, pack=True), idle("v/0")) == Room(("GPU-0",), NONE)


def test_of_what_costs_the_same_it_goes_where_most_is_left_or_least_with_pack() -> None:
    floor = Floor(gpus(8, 10, 9), [])
    assert floor.room_for(claim(), {}) == Room(("GPU-1",), NONE)
    assert floor.room_for(claim(pack=True), {}) == Room(("GPU-0",), NONE)
    assert Floor(gpus(8, 8), []).room_for(claim(), {}) == Room(("GPU-0",), NONE)


def test_it_goes_where_most_is_left_also_where_that_is_of_another_vendor() -> None:
    mixed = [gpus(8)[0], replace(gpus(0, 10)[1], vendor="amd")]
    assert Floor(mixed, []).room_for(claim(), {}) == Room(("GPU-1",), NONE)


def test_it_goes_where_it_is_cheapest_and_nobody_is_cheaper_than_nobody() -> None:
    floor = Floor(gpus(8, 8), [held("a/0", 0, size=8), held("b/0", 1, size=8)])
    two = {"a/0": replace(IDLE, cost=9.0), "b/0": IDLE}
    assert floor.room_for(claim("w/0", 4), two) == Room(("GPU-1",), frozenset({"b/0"}))
    half = Floor(gpus(8, 8), [held("a/0", 0, size=8)])
    least = {"a/0": Candidate(-(2**40), busy=False, cost=0.0)}
    assert half.room_for(claim("w/0", 4), least) == Room(("GPU-1",), NONE)


def test_a_byte_that_is_missing_is_missing() -> None:
    floor, wants = Floor(gpus(8), [held("a/0", 0, size=4)]), claim("w/0", 4)
    assert victims(floor.room_for(wants, idle("a/0"))) == set()
    assert victims(floor.room_for(replace(wants, bytes=wants.bytes + 1), idle("a/0"))) == {"a/0"}
    assert floor.room_for(replace(wants, bytes=wants.bytes + 1), {}) is None


def test_nor_is_what_is_a_byte_too_small_enough() -> None:
    floor, wants = Floor(gpus(8), [held("a/0", 0, size=2), held("b/0", 0, size=4)]), claim("w/0", 4)
    both = {"a/0": IDLE, "b/0": replace(IDLE, cost=9.0)}
    assert victims(floor.room_for(wants, both)) == {"a/0"}
    assert victims(floor.room_for(replace(wants, bytes=wants.bytes + 1), both)) == {"b/0"}


@pytest.mark.parametrize(
    "must",
    [
        [Candidate(5, busy=False, cost=0.5)],
        [Candidate(-3, busy=True, cost=5.0)],
        [Candidate(0, busy=True, cost=0.0)] * 3,
    ],
)
def test_whoever_has_to_go_makes_nobody_else_go_who_need_not(must: list[Candidate]) -> None:
    off = {f"m{number}/0": candidate for number, candidate in enumerate(must)}
    runs = [held("a/0", 0, size=4), held("b/0", 0, size=4), *(held(name, 0, size=0) for name in off)]
    shy = claim("w/0", 4, apart=frozenset(name.removesuffix("/0") for name in off))
    found = victims(Floor(gpus(8), runs).room_for(shy, {**idle("a/0", "b/0"), **off}))
    assert found == {"a/0", *off}


@pytest.mark.parametrize(
    "one",
    [
        Candidate(5, busy=False, cost=0.5),
        Candidate(-3, busy=True, cost=5.0),
        Candidate(0, busy=True, cost=0.0),
    ],
)
def test_where_one_is_enough_not_all_go(one: Candidate) -> None:
    runs = [held("a/0", 0, size=4), held("b/0", 0, size=4)]
    assert victims(Floor(gpus(8), runs).room_for(claim("w/0", 4), {"a/0": one, "b/0": one})) == {"a/0"}


def test_beside_one_of_a_high_priority_that_has_to_go_anyway_priorities_below_it_do_not_count() -> None:
    runs = [held("a/0", 0, size=4), held("b/0", 0, size=4), held("m/0", 0, size=0)]
    candidates = {"m/0": replace(IDLE, priority=5), "a/0": replace(IDLE, cost=9.0), "b/0": replace(IDLE, priority=1)}
    shy = claim("w/0", 4, apart=frozenset({"m"}))
    assert victims(Floor(gpus(8), runs).room_for(shy, candidates)) == {"b/0", "m/0"}
    four = [*runs, held("c/0", 0, size=4), held("d/0", 0, size=4)]
    candidates |= {"c/0": replace(IDLE, priority=1), "d/0": replace(IDLE, cost=9.0)}
    assert victims(Floor(gpus(16), four).room_for(replace(shy, bytes=8 * GIB), candidates)) == {"b/0", "c/0", "m/0"}


def test_of_what_gives_as_much_the_cheapest_becomes_part_of_the_answer() -> None:
    """Whether it was seen first or last, and of however many it consists."""

    def gone(deficit: int, **runs: tuple[int, float]) -> set[str]:
        there = [held(f"{name}/0", 0, size=size) for name, (size, _) in runs.items()]
        prices = {f"{name}/0": replace(IDLE, cost=cost) for name, (_, cost) in runs.items()}
        floor = Floor(gpus(sum(size for size, _ in runs.values())), there)
        return victims(floor.room_for(claim("w/0", deficit), prices))

    assert gone(6, a=(2, 5.0), b=(2, 1.0), c=(4, 9.0)) == {"b/0", "c/0"}
    assert gone(9, b=(2, 1.0), c=(2, 1.5), d=(4, 2.0), e=(5, 9.0)) == {"d/0", "e/0"}


def test_of_sets_that_cost_nothing_it_is_the_smallest() -> None:
    runs = [held("a/0", 0, size=1), held("b/0", 0, size=2), held("c/0", 0, size=2)]
    free = idle("a/0", "b/0", "c/0", cost=0.0)
    assert victims(Floor(gpus(5), runs).room_for(claim("w/0", 4), free)) == {"b/0", "c/0"}


def test_the_cheapest_set_gives_way_by_priority_then_use_then_cost() -> None:
    runs = [held("a/0", 0, size=4), held("b/0", 0, size=4)]
    floor, wants = Floor(gpus(8), runs), claim("w/0", 4)
    other = {"b/0": IDLE}
    assert victims(floor.room_for(wants, {"a/0": Candidate(-1, busy=True, cost=99.0), **other})) == {"a/0"}
    assert victims(floor.room_for(wants, {"a/0": Candidate(0, busy=True, cost=0.1), **other})) == {"b/0"}
    assert victims(floor.room_for(wants, {"a/0": Candidate(0, busy=False, cost=0.9), **other})) == {"a/0"}
    assert victims(floor.room_for(wants, {"a/0": IDLE, **other})) == {"a/0"}, "of two alike the first by name"


def test_one_large_one_rather_than_two_small_ones_where_that_costs_less() -> None:
    runs = [held("big/0", 0, size=4), held("one/0", 0, size=2), held("two/0", 0, size=2)]
    floor, wants = Floor(gpus(8), runs), claim("w/0", 4)
    assert victims(floor.room_for(wants, idle("big/0", "one/0", "two/0"))) == {"big/0"}
    dear = {**idle("one/0", "two/0"), "big/0": replace(IDLE, cost=3.0)}
    assert victims(floor.room_for(wants, dear)) == {"one/0", "two/0"}
    even = {**idle("one/0", "two/0"), "big/0": replace(IDLE, cost=2.0)}
    assert victims(floor.room_for(wants, even)) == {"big/0"}, "of two sets that cost the same the smaller"
    last = Floor(gpus(8), [held("z/0", 0, size=4), *runs[1:]])
    assert victims(last.room_for(wants, {**idle("one/0", "two/0"), "z/0": replace(IDLE, cost=2.0)})) == {"z/0"}


def test_who_has_to_leave_is_not_chosen_and_counts() -> None:
    apart = claim("w/0", 4, apart=frozenset({"a"}))
    floor = Floor(gpus(8), [held("a/0", 0, size=2), held("b/0", 0, size=2), held("c/0", 0, size=2)])
    assert victims(floor.room_for(apart, idle("a/0", "b/0"))) == {"a/0"}
    assert floor.room_for(apart, idle("b/0", "c/0")) is None
    assert victims(floor.room_for(replace(apart, bytes=6 * GIB), idle("a/0", "b/0", "c/0"))) == {"a/0", "b/0"}
    alone = claim("w/0", 1, exclusive=True)
    assert victims(floor.room_for(alone, idle("a/0", "b/0", "c/0"))) == {"a/0", "b/0", "c/0"}
    shy = Floor(gpus(8), [held("a/0", 0, apart=frozenset({"w"})), held("b/0", 0, exclusive=True)])
    assert victims(shy.room_for(claim("w/0"), idle("a/0", "b/0"))) == {"a/0", "b/0"}
    assert shy.room_for(claim("w/0"), idle("a/0")) is None


def test_those_who_go_in_any_case_are_not_paid_for() -> None:
    """The second GPU is full of one that goes anyway, so nobody else has to."""
    floor = Floor(gpus(4, 4), [held("a/0", 0, size=4), held("b/0", 1, size=4)])
    dear = {"b/0": replace(IDLE, cost=99.0), "a/0": IDLE}
    assert floor.room_for(claim("w/0", 4), dear) == Room(("GPU-0",), frozenset({"a/0"}))
    assert floor.room_for(claim("w/0", 4), dear, {"b/0"}) == Room(("GPU-1",), frozenset({"b/0"}))
    assert floor.room_for(claim("w/0", 5), dear, {"b/0"}) is None


def test_one_that_goes_from_one_gpu_is_gone_from_all() -> None:
    runs = [held("two/0", 0, 1, size=4), held("one/0", 1, size=4)]
    floor = Floor(gpus(8, 8), runs)
    room = floor.room_for(claim("w/0", 8, count=2), idle("two/0", "one/0"))
    assert room == Room(("GPU-0", "GPU-1"), frozenset({"two/0", "one/0"}))
    room = floor.room_for(claim("w/0", 4, count=2), {"two/0": IDLE, "one/0": replace(IDLE, priority=-1)})
    assert room == Room(("GPU-0", "GPU-1"), frozenset({"one/0"}))


def test_named_gpus_and_no_others() -> None:
    floor = Floor(gpus(8, 8, 8), [held("a/0", 1, size=8), held("b/0", 2, size=8)])
    room = floor.room_for(claim("w/0", 8, uuids=("GPU-2", "GPU-1")), idle("a/0", "b/0"))
    assert room == Room(("GPU-1", "GPU-2"), frozenset({"a/0", "b/0"}))
    assert floor.room_for(claim("w/0", 8, uuids=("GPU-2", "GPU-1")), idle("a/0")) is None
    assert floor.room_for(claim("w/0", 1, uuids=("GPU-0", "GPU-9")), idle("a/0")) is None


def test_several_gpus_are_of_one_vendor_also_where_the_best_one_is_of_another() -> None:
    mixed = [replace(gpus(9)[0], vendor="amd"), *gpus(0, 8, 8)[1:]]
    floor = Floor(mixed, [held("a/0", 2, size=8)])
    assert floor.room_for(claim("w/0", 8, count=2), idle("a/0")) == Room(("GPU-1", "GPU-2"), frozenset({"a/0"}))
    assert floor.room_for(claim("w/0", 8, count=3), idle("a/0")) is None
    two = [*mixed, replace(gpus(0, 0, 0, 8)[3], vendor="amd")]
    busy = [held("a/0", 2, size=8), held("b/0", 3, size=8)]
    cheap = {"a/0": IDLE, "b/0": replace(IDLE, cost=0.5)}
    assert Floor(two, busy).room_for(claim("w/0", 8, count=2), cheap) == Room(("GPU-0", "GPU-3"), frozenset({"b/0"}))
    dear = {"a/0": IDLE, "b/0": replace(IDLE, cost=1.5)}
    assert Floor(two, busy).room_for(claim("w/0", 8, count=2), dear) == Room(("GPU-1", "GPU-2"), frozenset({"a/0"}))
    # Who goes in any case is no reason to prefer one vendor to another.
    assert victims(Floor(two, busy).room_for(claim("w/0", 8, count=2), dear, {"b/0"})) == {"b/0"}
    high = {"a/0": replace(IDLE, cost=9.0), "b/0": replace(IDLE, priority=1), "x/0": replace(IDLE, priority=2)}
    beside = Floor(two, [*busy, held("x/0", 1)])
    assert victims(beside.room_for(claim("w/0", 8, count=2), high, {"x/0"})) == {"a/0", "x/0"}


def test_a_gpu_in_trouble_is_not_cleared() -> None:
    sick = [replace(gpus(8)[0], trouble="quarantined")]
    assert Floor(sick, [held("a/0", 0)]).room_for(claim(), idle("a/0")) is None
    assert Floor([], []).room_for(claim(), {}) is None


def test_reserve_foreign_memory_and_what_uses_more_than_there_is_count() -> None:
    floor = Floor(gpus(8, foreign_bytes=2 * GIB, reserve_bytes=GIB), [held("a/0", 0, size=3)])
    assert victims(floor.room_for(claim("w/0", 2), idle("a/0"))) == set()
    assert victims(floor.room_for(claim("w/0", 3), idle("a/0"))) == {"a/0"}
    assert floor.room_for(claim("w/0", 6), idle("a/0")) is None
    over = Floor(gpus(8), [held("a/0", 0, size=9)])
    assert victims(over.room_for(claim("w/0", 0), idle("a/0"))) == {"a/0"}


def test_a_floor_is_changed_by_what_is_decided() -> None:
    floor = Floor(gpus(8, 4), [held("a/0", 0, 5, size=8)])
    assert floor.sizes(claim(size=1, share=0.5), ("GPU-1", "GPU-0")) == (2 * GIB, 4 * GIB)
    floor.leave({"a/0", "nobody/0"})
    assert floor.room_for(claim(size=8), {}) == Room(("GPU-0",), NONE)
    floor.take(held("b/0", 0, size=8))
    floor.take(held("b/0", 0, size=8))
    assert floor.room_for(claim(size=8), {}) is None
    floor.leave({"b/0"})
    assert floor.room_for(claim(size=8), {}) == Room(("GPU-0",), NONE), "what is taken twice was there once"


def test_one_that_sleeps_stays_where_what_it_keeps_fits_beside_all_others() -> None:
    floor = Floor(gpus(8, 8), [held("a/0", 0, size=6), held("b/0", 1, size=7)])
    assert floor.holds(held("s/0", 0, size=2))
    assert not floor.holds(held("s/0", 0, size=3))
    assert floor.holds(held("s/0", 0, 1, size=1))
    assert not floor.holds(held("s/0", 0, 1, size=2)), "on all of its GPUs, and not on one of them"
    assert floor.holds(held("s/0", 0, 5, size=2)), "of a GPU that is not there any more it keeps nothing"
    floor.take(held("x/0", 0, size=0, exclusive=True))
    assert not floor.holds(held("s/0", 0, size=0))
    assert floor.holds(held("s/0", 1, size=0))


def test_a_floor_tells_who_is_where() -> None:
    runs = [held("a/0", 0, 1), held("b/0", 1)]
    floor = Floor(gpus(8, 8, 8), runs)
    assert [floor.names([uuid]) for uuid in ("GPU-0", "GPU-1", "GPU-2")] == [{"a/0"}, {"a/0", "b/0"}, set()]
    assert floor.names(["GPU-0", "GPU-1"]) == {"a/0", "b/0"}
    assert [floor.seat(name) for name in ("a/0", "b/0", "c/0")] == [*runs, None]


def test_of_very_many_the_cheapest_go_and_none_who_is_not_needed() -> None:
    names = [f"v{number:02}/0" for number in range(eviction.EXACT + 1)]
    runs = [held(name, 0, size=1 if number else 5) for number, name in enumerate(names)]
    total = len(names) + 4
    candidates = {name: Candidate(0, busy=False, cost=float(number + 1)) for number, name in enumerate(names)}
    candidates[names[0]] = replace(IDLE, cost=3.5)
    floor = Floor(gpus(total), runs)
    # v01 and v02 are cheaper and go first, but with v00 it fits without them.
    assert victims(floor.room_for(claim("w/0", 5), candidates)) == {names[0]}
    assert victims(floor.room_for(claim("w/0", 2), candidates)) == {names[1], names[2]}
    assert victims(floor.room_for(claim("w/0", total), candidates)) == set(names)
    assert floor.room_for(claim("w/0", total + 1), candidates) is None
    beside = Floor(gpus(total + 1), [*runs, held("x/0", 0)])
    shy = claim("w/0", 5, apart=frozenset({"x"}))
    assert victims(beside.room_for(shy, {**candidates, "x/0": IDLE})) == {"x/0", names[0]}


# Any case


def fits(cards: Sequence[Gpu], runs: Iterable[Held], wants: Claim, gone: Collection[str]) -> bool:
    """Ask `placement`, which knows nothing of giving way."""
    return wants.name in place(cards, [run for run in runs if run.name not in gone], [wants]).placed


def price(names: Collection[str], candidates: Mapping[str, Candidate]) -> tuple[object, ...]:
    each = [candidates[name] for name in sorted(names)]
    if not each:
        return ()
    return max(one.priority for one in each), sum(one.busy for one in each), sum(one.cost for one in each)


@st.composite
def cases(
    draw: st.DrawFn, most_gpus: int, most_runs: int
) -> tuple[list[Gpu], list[Held], Claim, dict[str, Candidate], set[str]]:
    """Return GPUs, runs on them, a claim, who may give way, and of those who goes in any case."""
    cards = [
        replace(gpu, vendor=draw(st.sampled_from(["nvidia", "nvidia", "amd"])), trouble=draw(troubles))
        for gpu in gpus(*draw(st.lists(st.integers(2, 9), min_size=1, max_size=most_gpus)))
    ]
    runs, candidates = [], {}
    for number in range(draw(st.integers(0, most_runs))):
        name = f"v{number}/0"
        on = draw(st.sets(st.integers(0, len(cards) - 1), min_size=1, max_size=2))
        apart = draw(st.sampled_from([NONE, NONE, NONE, frozenset({"w"})]))
        alone = draw(st.integers(0, 9)) == 0
        runs.append(held(name, *on, size=draw(st.integers(0, 4)), exclusive=alone, apart=apart))
        if draw(st.integers(0, 4)):
            # Halves, so that sums are exact in whatever order.
            cost = draw(st.integers(0, 6)) / 2
            candidates[name] = Candidate(draw(st.integers(-1, 1)), draw(st.booleans()), cost)
    wants = claim(
        "w/0",
        draw(st.integers(0, 9)),
        count=draw(st.sampled_from([1, 1, 2, 3])),
        uuids=draw(st.sampled_from([(), (), (), ("GPU-0",), ("GPU-0", "GPU-1")])),
        share=draw(st.sampled_from([0.0, 0.0, 0.5])),
        exclusive=draw(st.sampled_from([False, False, False, True])),
        pack=draw(st.booleans()),
        apart=draw(st.sampled_from([NONE, NONE, frozenset({"v0", "v1"})])),
    )
    gone = set(draw(st.sets(st.sampled_from(sorted(candidates)), max_size=2))) if candidates else set()
    return cards, runs, wants, candidates, gone


troubles = st.sampled_from(["", "", "", "", "lost"])


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases(1, 6))
def test_on_one_gpu_it_is_the_cheapest_set_of_all(
    case: tuple[list[Gpu], list[Held], Claim, dict[str, Candidate], set[str]],
) -> None:
    cards, runs, wants, candidates, gone = case
    assume(wants.count == 1)
    assume(len(wants.uuids) < 2)
    room = Floor(cards, runs).room_for(wants, candidates, gone)
    more = sorted(candidates.keys() - gone)
    enough = [
        chosen
        for count in range(len(more) + 1)
        for chosen in itertools.combinations(more, count)
        if fits(cards, runs, wants, {*gone, *chosen})
    ]
    if room is None:
        assert enough == []
    else:
        assert room.victims >= gone
        best = min(price(chosen, candidates) for chosen in enough)
        assert price(room.victims - gone, candidates) == best
        assert set(room.victims) - gone in [set(chosen) for chosen in enough]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases(4, 7))
def test_on_several_it_fits_when_they_are_gone_and_there_is_an_answer_whenever_there_can_be(
    case: tuple[list[Gpu], list[Held], Claim, dict[str, Candidate], set[str]],
) -> None:
    cards, runs, wants, candidates, gone = case
    room = Floor(cards, runs).room_for(wants, candidates, gone)
    assert Floor(cards[::-1], runs[::-1]).room_for(wants, dict(reversed(candidates.items())), gone) == room
    if room is None:
        assert not fits(cards, runs, wants, candidates.keys()), "with all of them gone it would fit"
        return
    assert gone <= room.victims <= candidates.keys()
    on_those = replace(wants, uuids=room.gpus)
    assert fits(cards, runs, on_those, room.victims)
    assert len(set(room.gpus)) == (len(wants.uuids) or wants.count)
    if fits(cards, runs, wants, gone):
        assert room.victims == gone, "it fits without anybody else"
    elif len(room.gpus) == 1:
        needless = [one for one in room.victims - gone if fits(cards, runs, on_those, room.victims - {one})]
        assert needless == []
