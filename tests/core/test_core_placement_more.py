"""Placement where it is seldom seen: what a search takes back, what is told, and the order where not all fit."""

from __future__ import annotations

import pytest

from core.test_core_placement import GIB, claim, gpus, held, where
from modelsupd.core import placement
from modelsupd.core.placement import Claim, Held, place


def test_what_is_not_said_of_a_claim_is_nothing() -> None:
    plain = Claim(name="a/0", model="a")
    assert (plain.bytes, plain.share) == (0, 0.0)


def test_a_gpu_that_one_run_has_for_itself_stays_its_own_whatever_else_is_found_there() -> None:
    both = [held("a/0", 0, exclusive=True), held("b/0", 0)]
    assert where(place(gpus(8), both, [claim("c/0")])) == {}


def test_another_way_finds_a_gpu_that_was_given_back_as_empty_as_before() -> None:
    """By share a/0 is asked first, and takes the larger GPU, which b/0 cannot do without."""
    small = claim("a/0", 0, share=0.1, exclusive=True)
    assert where(place(gpus(10, 8), [], [small, claim("b/0", 9, exclusive=True)])) == {"a/0": [1], "b/0": [0]}
    shy = claim("a/0", 0, share=0.1, apart=frozenset({"b"}))
    assert where(place(gpus(11, 8), [held("c/0", 0)], [shy, claim("b/0", 9)])) == {"a/0": [1], "b/0": [0]}


def test_no_other_way_leads_to_a_gpu_that_somebody_else_is_on_for_one_that_wants_it_alone() -> None:
    runs = [held("c/0", 0), held("d/0", 1)]
    assert where(place(gpus(8, 8), runs, [claim("a/0", exclusive=True), claim("b/0", 4)])) == {"b/0": [0]}


def test_no_other_way_leads_to_named_gpus_of_which_one_is_full() -> None:
    both = claim("a/0", 8, uuids=("GPU-0", "GPU-1"))
    assert where(place(gpus(16, 8), [held("c/0", 1, size=8)], [both, claim("b/0", 4)])) == {"b/0": [0]}


def test_one_of_several_there_is_enough_to_keep_apart_from() -> None:
    runs = [held("b/0", 0), held("z/0", 0)]
    assert where(place(gpus(8), runs, [claim("a/0", apart=frozenset({"b"}))])) == {}
    shy = [held("b/0", 0, apart=frozenset({"a"})), held("z/0", 0)]
    assert where(place(gpus(8), shy, [claim("a/0")])) == {}


def test_of_several_gpus_that_are_needed_one_that_fits_exactly_is_said_to_fit() -> None:
    waiting = place(gpus(8, 4), [], [claim(size=8, count=2)]).waiting["a/0"]
    assert waiting == "needs 2 GPUs, 1 of 2 fit: GPU 0: fits; GPU 1: needs 8.0 GiB, 4.0 GiB of 4.0 GiB left"


def test_all_that_is_in_the_way_is_told_with_its_size() -> None:
    busy = gpus(2000, foreign_bytes=300 * GIB, reserve_bytes=100 * GIB)
    assert place(busy, [held("b/0", 0, size=1000)], [claim(size=700)]).waiting["a/0"] == (
        "GPU 0: needs 700.0 GiB, 600.0 GiB of 2000.0 GiB left"
        " (1000.0 GiB claimed by b/0, 300.0 GiB used by others, 100.0 GiB kept in reserve)"
    )
    crowd = [held(f"m{number:02}/0", 0) for number in range(18)]
    names = ", ".join(f"m{number:02}/0" for number in range(16))
    assert f"(18.0 GiB claimed by {names} and 2 more)" in place(gpus(18), crowd, [claim()]).waiting["a/0"]


def test_where_not_all_fit_those_for_named_gpus_go_first_and_of_these_those_for_more() -> None:
    named = claim("z/0", 5, uuids=("GPU-0",))
    assert where(place(gpus(8), [], [claim("a/0", 6), named])) == {"z/0": [0]}
    more = claim("z/0", 5, uuids=("GPU-0", "GPU-1"))
    assert where(place(gpus(8, 8), [], [claim("a/0", 6, uuids=("GPU-0",)), more])) == {"z/0": [0, 1]}


def test_a_run_has_a_size_for_each_of_its_gpus() -> None:
    broken = Held(name="a/0", model="a", gpus=("GPU-0", "GPU-1"), bytes=(1,))
    with pytest.raises(ValueError, match="shorter"):
        place(gpus(8, 8), [broken], [])


def test_the_search_takes_as_many_steps_as_it_may_and_no_more() -> None:
    """Of 4, 3, 3, 2, 2, 2 onto 8 + 8 all fit after thirteen ways have been tried."""
    claims = [claim(f"m{number}/0", size) for number, size in enumerate([4, 3, 3, 2, 2, 2])]
    found = []
    for steps in range(20):
        search = placement._Search(placement._rooms(gpus(8, 8), []))
        search._steps = steps
        found.append(search.place(claims) is not None)
    assert found == [False] * 13 + [True] * 7


def test_with_more_claims_than_a_dozen_the_other_ways_are_not_tried() -> None:
    small = [claim(f"n{number:02}/0", 1, uuids=("GPU-2",)) for number in range(11)]
    pair = [claim("a/0", 1, exclusive=True), claim("b/0", 8)]
    assert place(gpus(8, 4, 11), [], [*small[:10], *pair]).waiting == {}
    assert list(place(gpus(8, 4, 11), [], [*small, *pair]).waiting) == ["b/0"]
