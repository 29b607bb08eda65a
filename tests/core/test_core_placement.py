"""Placement: what no answer may ever do, checked on random cases and against a search through all answers there are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupd.core import placement
from modelsupd.core.placement import Claim, Gpu, Held, Placement, place

GIB = 1024**3
NONE: frozenset[str] = frozenset()


def gpus(*sizes: int, **more: object) -> list[Gpu]:
    return [
        Gpu(uuid=f"GPU-{index}", index=index, total_bytes=size * GIB, **more)  # type: ignore[arg-type]  # fields by name
        for index, size in enumerate(sizes)
    ]


def claim(name: str = "a/0", size: int = 1, **more: object) -> Claim:
    return Claim(name=name, model=name.partition("/")[0], bytes=size * GIB, **more)  # type: ignore[arg-type]  # by name


def held(name: str, *on: int, size: int = 1, **more: object) -> Held:
    uuids = tuple(f"GPU-{index}" for index in on)
    return Held(
        name=name,
        model=name.partition("/")[0],
        gpus=uuids,
        bytes=(size * GIB,) * len(on),
        **more,  # type: ignore[arg-type]  # by name
    )


def where(found: Placement) -> dict[str, list[int]]:
    return {name: [int(uuid.removeprefix("GPU-")) for uuid in on] for name, on in found.placed.items()}


# Examples


def test_spreads_to_where_most_is_left_and_packs_to_where_least_is() -> None:
    two = [claim("a/0"), claim("b/0")]
    assert where(place(gpus(8, 8), [], two)) == {"a/0": [0], "b/0": [1]}
    assert where(place(gpus(8, 8), [], [replace(each, pack=True) for each in two])) == {"a/0": [1], "b/0": [1]}
    assert where(place(gpus(8, 10, 9), [], [claim()])) == {"a/0": [1]}
    assert where(place(gpus(8, 10, 9), [], [claim(pack=True)])) == {"a/0": [0]}
    assert where(place(gpus(8, 10, 9), [], [claim(size=9, pack=True)])) == {"a/0": [2]}


def test_where_taking_one_after_another_leaves_something_other_ways_are_tried() -> None:
    """Also for one that has to be on a certain GPU; and what was tried and taken back there keeps nobody off."""
    apart = [claim("a/0", 3, uuids=("GPU-0",)), claim("b/0", 4, apart=frozenset({"a"})), claim("c/0", 7, pack=True)]
    assert where(place(gpus(12, 8), [], apart)) == {"a/0": [0], "b/0": [1], "c/0": [0]}
    packed = [
        claim("a/0", 6, pack=True, apart=frozenset({"d"})),
        claim("b/0", 2, pack=True, apart=frozenset({"a"})),
        claim("c/0", 7, pack=True),
    ]
    assert where(place(gpus(8, 10), [], packed)) == {"a/0": [0], "b/0": [1], "c/0": [1]}


def test_a_claim_of_which_nothing_is_said_takes_nothing() -> None:
    full = [held("b/0", 0, size=8)]
    assert where(place(gpus(8), full, [Claim(name="a/0", model="a")])) == {"a/0": [0]}


def test_what_runs_stays_and_counts() -> None:
    running = [held("a/0", 0, size=6)]
    assert where(place(gpus(8, 4), running, [claim("b/0", 3)])) == {"b/0": [1]}
    assert where(place(gpus(8, 4), running, [claim("b/0", 2, pack=True)])) == {"b/0": [0]}
    waiting = place(gpus(8, 4), running, [claim("b/0", 5)]).waiting["b/0"]
    assert waiting == (
        "GPU 0: needs 5.0 GiB, 2.0 GiB of 8.0 GiB left (6.0 GiB claimed by a/0); "
        "GPU 1: needs 5.0 GiB, 4.0 GiB of 4.0 GiB left"
    )


def test_foreign_memory_and_the_reserve_are_not_given_away() -> None:
    busy = gpus(8, foreign_bytes=5 * GIB, reserve_bytes=GIB)
    assert where(place(busy, [], [claim(size=2)])) == {"a/0": [0]}
    assert place(busy, [], [claim(size=3)]).waiting == {
        "a/0": "GPU 0: needs 3.0 GiB, 2.0 GiB of 8.0 GiB left (5.0 GiB used by others, 1.0 GiB kept in reserve)"
    }
    over = gpus(8, foreign_bytes=9 * GIB)
    assert "0.0 GiB of 8.0 GiB left" in place(over, [], [claim()]).waiting["a/0"]


def test_a_share_is_of_each_gpu() -> None:
    assert claim(size=1, share=0.5).on(gpus(8)[0]) == 4 * GIB
    assert claim(size=5, share=0.5).on(gpus(8)[0]) == 5 * GIB
    both = gpus(10, 20)
    assert where(place(both, [held("b/0", 1, size=11)], [claim(share=0.5)])) == {"a/0": [0]}
    assert claim(size=0, share=1 / 3).on(Gpu(uuid="u", index=0, total_bytes=10)) == 4


def test_nobody_runs_beside_an_exclusive_run() -> None:
    alone = claim("a/0", exclusive=True)
    assert where(place(gpus(8, 8), [], [alone, claim("b/0")])) == {"a/0": [0], "b/0": [1]}
    found = place(gpus(8), [held("b/0", 0)], [alone])
    assert found.waiting == {"a/0": "GPU 0: wanted for itself, and b/0 runs there"}
    found = place(gpus(8), [held("b/0", 0, exclusive=True)], [claim("a/0")])
    assert found.waiting == {"a/0": "GPU 0: b/0 has it for itself"}


def test_where_the_driver_lets_one_process_in_there_is_one_run() -> None:
    one = gpus(8, exclusive=True)
    found = place(one, [], [claim("a/0"), claim("b/0")])
    assert where(found) == {"a/0": [0]}
    assert found.waiting == {"b/0": "GPU 0: its compute mode lets one process use it, and a/0 runs there"}
    assert place(one, [held("x/0", 0)], [claim()]).placed == {}


def test_a_replica_on_several_gpus_gets_no_mig_devices() -> None:
    parts = gpus(8, 8, part=True)
    assert where(place(parts, [], [claim()])) == {"a/0": [0]}
    words = "needs 2 GPUs, 0 of 2 fit: GPU 0 and GPU 1: it is a MIG device, and no process sees two of them"
    assert place(parts, [], [claim(count=2)]).waiting == {"a/0": words}
    assert place(parts, [], [claim(uuids=("GPU-0", "GPU-1"))]).placed == {}


def test_models_are_kept_apart_whichever_of_them_asks_for_it() -> None:
    apart = frozenset({"a"})
    assert where(place(gpus(9, 8), [held("a/0", 0)], [claim("a/1", apart=apart)])) == {"a/1": [1]}
    assert where(place(gpus(9, 8), [held("b/0", 0, apart=apart)], [claim("a/0")])) == {"a/0": [1]}
    found = place(gpus(8), [held("a/0", 0)], [claim("a/1", apart=apart)])
    assert found.waiting == {"a/1": "GPU 0: to be kept apart from a/0"}
    assert where(place(gpus(8), [held("c/0", 0)], [claim("a/1", apart=apart)])) == {"a/1": [0]}


def test_several_gpus_are_of_one_vendor_and_told_in_order() -> None:
    mixed = [*gpus(8, 9), *(replace(gpu, vendor="amd", uuid=f"GPU-{gpu.index}") for gpu in gpus(0, 0, 8, 8)[2:])]
    found = place(mixed, [], [claim(count=2, size=8), claim("b/0", count=2)])
    assert where(found) == {"a/0": [0, 1], "b/0": [2, 3]}
    found = place(gpus(8, 8), [held("b/0", 0, size=8)], [claim(count=2)])
    assert found.waiting == {
        "a/0": "needs 2 GPUs, 1 of 2 fit: GPU 0: needs 1.0 GiB, 0.0 GiB of 8.0 GiB left (8.0 GiB claimed by b/0); "
        "GPU 1: fits"
    }
    alone = [gpus(8)[0], replace(gpus(8, 8)[1], vendor="amd")]
    assert place(alone, [], [claim(count=2)]).placed == {}


def test_named_gpus_are_taken_or_waited_for() -> None:
    pinned = claim(uuids=("GPU-1",))
    assert where(place(gpus(8, 4), [], [pinned])) == {"a/0": [1]}
    assert where(place(gpus(8, 4, 4), [], [replace(pinned, uuids=("GPU-2", "GPU-1"))])) == {"a/0": [1, 2]}
    found = place(gpus(8, 4), [held("b/0", 1, size=4)], [pinned])
    assert found.waiting["a/0"].startswith("GPU 1: needs 1.0 GiB, 0.0 GiB of 4.0 GiB left")
    gone = place(gpus(8), [], [replace(pinned, uuids=("GPU-0", "GPU-x"))])
    assert gone.waiting == {"a/0": "needs 2 GPUs, 1 of 1 fit: GPU 0: fits; GPU-x: there is no such GPU"}
    # One that could go anywhere does not take the only place of one that cannot.
    assert where(place(gpus(4, 4), [], [claim("0/0", 4), claim(size=4, uuids=("GPU-0",))])) == {"a/0": [0], "0/0": [1]}


def test_trouble_and_the_lack_of_any_gpu_are_told() -> None:
    sick = [replace(gpus(8)[0], trouble="quarantined: Xid 79")]
    assert place(sick, [], [claim()]).waiting == {"a/0": "GPU 0: quarantined: Xid 79"}
    assert place([], [], [claim()]).waiting == {"a/0": "needs a GPU, and there is none"}
    assert place([], [], [claim(count=2)]).waiting == {"a/0": "needs 2 GPUs, and there is none"}
    # A run on a GPU that is no longer there holds nothing.
    assert where(place(gpus(8), [held("b/0", 5)], [claim(size=8)])) == {"a/0": [0]}


def test_many_gpus_are_told_in_few_words() -> None:
    words = place(gpus(*[1] * 512), [], [claim(size=2)]).waiting["a/0"]
    assert words.startswith("GPU 0, GPU 1, ")
    assert words.endswith("GPU 14 and GPU 15: needs 2.0 GiB, 1.0 GiB of 1.0 GiB left; 496 more have less left")


def test_a_better_way_is_looked_for_where_the_first_leaves_one_waiting() -> None:
    """By size 4, 3, 3, 2, 2, 2 go onto 8 + 8 only as 4+2+2 and 3+3+2."""
    sizes = [4, 3, 3, 2, 2, 2]
    claims = [claim(f"m{number}/0", size, pack=True) for number, size in enumerate(sizes)]
    found = place(gpus(8, 8), [], claims)
    assert found.waiting == {}
    assert len(found.placed) == 6
    many = [claim(f"n{number:02}/0", 8) for number in range(20)]
    assert len(place(gpus(8, 8), [], many).waiting) == 18


def test_another_way_gives_back_what_the_first_took() -> None:
    """The one that shares with nobody takes the larger GPU first, which the other cannot do without."""
    claims = [claim("a/0", 1, exclusive=True), claim("b/0", 8)]
    assert where(place(gpus(8, 4), [], claims)) == {"a/0": [1], "b/0": [0]}


def test_what_needs_several_gpus_goes_before_what_needs_one() -> None:
    claims = [claim("z/0", 8, count=2), *(claim(f"m{number}/0", 8) for number in range(12))]
    assert where(place(gpus(8, 8), [], claims)) == {"z/0": [0, 1]}


def test_the_search_gives_up_after_so_many_steps() -> None:
    claims = [claim(f"m{number}/0", size) for number, size in enumerate([4, 3, 3, 2, 2, 2])]
    search = placement._Search(placement._rooms(gpus(8, 8), []))
    search._steps = 3
    assert search.place(claims) is None


# Any case


@st.composite
def cases(draw: st.DrawFn, most_gpus: int = 3, most_claims: int = 4) -> tuple[list[Gpu], list[Held], list[Claim]]:
    """Return a small case: GPUs of a few sizes, runs that are there by a placement of their own, and claims."""
    sizes = draw(st.lists(st.integers(1, 8), min_size=0, max_size=most_gpus))
    cards = [
        replace(
            gpu,
            foreign_bytes=draw(st.sampled_from([0, 0, 1, 2])) * GIB,
            reserve_bytes=draw(st.sampled_from([0, 0, 1])) * GIB,
            vendor=draw(st.sampled_from(["nvidia", "nvidia", "amd"])),
            exclusive=draw(st.sampled_from([False, False, False, True])),
            part=draw(st.sampled_from([False, False, False, True])),
        )
        for gpu in gpus(*sizes)
    ]
    present = place(cards, [], draw(claims("r", 2)))
    wanted = {each.name: each for each in draw(claims("r", 2))}
    runs = [
        Held(
            name=name,
            model=name.partition("/")[0],
            gpus=on,
            bytes=tuple(GIB for _uuid in on),
            exclusive=name in wanted and wanted[name].exclusive and len(present.placed) == 1,
        )
        for name, on in present.placed.items()
    ]
    cards = [replace(gpu, trouble=draw(st.sampled_from(["", "", "", "quarantined"]))) for gpu in cards]
    return cards, runs, draw(claims("m", most_claims))


@st.composite
def claims(draw: st.DrawFn, prefix: str, most: int) -> list[Claim]:
    found = []
    for number in range(draw(st.integers(0, most))):
        pinned = draw(st.sampled_from([(), (), (), ("GPU-0",), ("GPU-0", "GPU-1"), ("GPU-9",)]))
        found.append(
            claim(
                f"{prefix}{draw(st.integers(0, 2))}/{number}",
                draw(st.integers(0, 6)),
                count=draw(st.sampled_from([1, 1, 1, 2])),
                uuids=pinned,
                share=draw(st.sampled_from([0.0, 0.0, 0.3])),
                exclusive=draw(st.sampled_from([False, False, True])),
                pack=draw(st.booleans()),
                apart=draw(st.sampled_from([NONE, NONE, frozenset({f"{prefix}0"})])),
            )
        )
    return found


def wrong(  # noqa: C901, PLR0911, PLR0912 - every rule once, in one place, so that none is forgotten
    cards: list[Gpu], runs: list[Held], wanted: Iterable[Claim], placed: dict[str, tuple[str, ...]]
) -> str:
    """Return what is wrong with an answer, told without any of the code that gives it."""
    by_uuid = {gpu.uuid: gpu for gpu in cards}
    on: dict[str, list[tuple[str, str, int, bool, frozenset[str]]]] = {gpu.uuid: [] for gpu in cards}
    for run in runs:
        for uuid, size in zip(run.gpus, run.bytes, strict=True):
            on[uuid].append((run.name, run.model, size, run.exclusive, run.apart))
    fresh = set()
    for each in wanted:
        if each.name not in placed:
            continue
        chosen = placed[each.name]
        fresh |= set(chosen)
        if len(set(chosen)) != (len(each.uuids) or each.count) or (each.uuids and set(chosen) != set(each.uuids)):
            return f"{each.name} on {chosen}"
        if len({by_uuid[uuid].vendor for uuid in chosen}) != 1 and not each.uuids:
            return f"{each.name} on two vendors"
        if len(chosen) > 1 and any(by_uuid[uuid].part for uuid in chosen):
            return f"{each.name} on MIG devices"
        for uuid in chosen:
            size = max(each.bytes, -int(-each.share * by_uuid[uuid].total_bytes // 1))
            on[uuid].append((each.name, each.model, size, each.exclusive, each.apart))
    for uuid in fresh:
        gpu, there = by_uuid[uuid], on[uuid]
        if gpu.trouble:
            return f"{uuid} is in trouble"
        if sum(size for _, _, size, _, _ in there) > gpu.total_bytes - gpu.reserve_bytes - gpu.foreign_bytes:
            return f"{uuid} is over-committed"
        if len(there) > 1 and (gpu.exclusive or any(exclusive for _, _, _, exclusive, _ in there)):
            return f"{uuid} is shared"
        for (one, model, *_), (other, _, _, _, apart) in itertools.permutations(there, 2):
            if model in apart and {one, other} & set(placed):
                return f"{one} beside {other}"
    return ""


def every_way(cards: list[Gpu], claim_: Claim) -> Iterable[tuple[str, ...]]:
    uuids = [gpu.uuid for gpu in cards]
    if claim_.uuids:
        return [claim_.uuids] if set(claim_.uuids) <= set(uuids) else []
    return itertools.combinations(uuids, claim_.count)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(cases())
def test_no_answer_breaks_a_rule_and_all_are_placed_whenever_all_can_be(
    case: tuple[list[Gpu], list[Held], list[Claim]],
) -> None:
    cards, runs, wanted = case
    found = place(cards, runs, wanted)
    assert wrong(cards, runs, wanted, dict(found.placed)) == ""
    assert {*found.placed, *found.waiting} == {each.name for each in wanted}
    assert not set(found.placed) & set(found.waiting)
    assert all(found.waiting.values())
    assert place(list(reversed(cards)), list(reversed(runs)), list(reversed(wanted))) == found
    if found.waiting:
        ways = itertools.product(*(every_way(cards, each) for each in wanted))
        names = [each.name for each in wanted]
        for way in ways:
            answer = dict(zip(names, way, strict=True))
            assert wrong(cards, runs, wanted, answer), f"all fit so: {answer}"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases(most_gpus=4, most_claims=6))
def test_what_waits_fits_nowhere_in_what_is_left(case: tuple[list[Gpu], list[Held], list[Claim]]) -> None:
    cards, runs, wanted = case
    found = place(cards, runs, wanted)
    for each in wanted:
        if each.name in found.waiting:
            for way in every_way(cards, each):
                assert wrong(cards, runs, wanted, {**found.placed, each.name: way})


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_what_was_placed_stays_when_it_is_asked_again(case: tuple[list[Gpu], list[Held], list[Claim]]) -> None:
    """What was given is held from then on: asked again, nothing else is given, and what waited still does."""
    cards, runs, wanted = case
    by_uuid = {gpu.uuid: gpu for gpu in cards}
    first = place(cards, runs, wanted)
    now_held = [
        Held(
            name=each.name,
            model=each.model,
            gpus=first.placed[each.name],
            bytes=tuple(each.on(by_uuid[uuid]) for uuid in first.placed[each.name]),
            exclusive=each.exclusive,
            apart=each.apart,
        )
        for each in wanted
        if each.name in first.placed
    ]
    rest = [each for each in wanted if each.name in first.waiting]
    again = place(cards, [*runs, *now_held], rest)
    assert again.placed == {}
    assert set(again.waiting) == set(first.waiting)
