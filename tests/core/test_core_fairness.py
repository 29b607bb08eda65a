"""Models that take turns on one place: no more swaps than first-come-first-served, and nobody waits beyond a bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from core.one_place import Ask, OnePlace, Pace, first_come_first_served

REQUESTS = 100


def served(pace: Pace, asks: list[Ask], *, on_gpu: bool = False) -> OnePlace:
    """Serve all, and check what holds for whatever comes."""
    models = sorted({ask.model for ask in asks})
    place = OnePlace(pace, models, on_gpu)
    place.serve(asks)
    longest_s = max(ask.takes_s for ask in asks)
    assert len(place.waits_s) == len(asks)
    assert len(place.starts) <= first_come_first_served(asks)
    assert max(place.waits_s) <= pace.bound_s(len(models), longest_s) + 1e-6
    return place


@st.composite
def arrivals(draw: st.DrawFn, models: str, *, alternating: bool) -> list[Ask]:
    gaps = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0, 60.0]), min_size=REQUESTS, max_size=REQUESTS))
    takes_s = st.sampled_from([0.1, 2.0, 15.0])
    turns = itertools.cycle(models)
    return [
        Ask(at, next(turns) if alternating else draw(st.sampled_from(models)), draw(takes_s))
        for at in itertools.accumulate(gaps)
    ]


paces = st.builds(
    Pace,
    start_s=st.sampled_from([0.0, 0.0, 3.0, 40.0]),
    stop_s=st.sampled_from([0.0, 0.0, 2.0]),
    residence_s=st.sampled_from([0.0, 10.0]),
    turn_s=st.sampled_from([0.0, 5.0, 30.0]),
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(arrivals("ab", alternating=True), paces, st.booleans())
def test_a_hundred_requests_that_alternate(asks: list[Ask], pace: Pace, on_gpu: bool) -> None:
    note(str(asks))
    served(pace, asks, on_gpu=on_gpu)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.sampled_from(["abc", "abcd"]).flatmap(lambda models: arrivals(models, alternating=False)), paces)
def test_more_models_in_any_order(asks: list[Ask], pace: Pace) -> None:
    note(str(asks))
    served(pace, asks)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_those_that_come_together_are_served_together(on_gpu: bool) -> None:
    """A hundred within ten seconds, in turn: first come, first served would swap a hundred times."""
    asks = [Ask(number / 10, "ab"[number % 2], 1.0) for number in range(REQUESTS)]
    place = served(Pace(), asks, on_gpu=on_gpu)
    assert first_come_first_served(asks) == REQUESTS
    assert place.starts == ["a", "b"]
    assert max(place.waits_s) == pytest.approx(11.02, abs=0.5)


def test_far_apart_each_finds_its_model_and_both_swap_as_often() -> None:
    asks = [Ask(number * 60.0, "ab"[number % 2]) for number in range(20)]
    place = served(Pace(), asks)
    assert len(place.starts) == first_come_first_served(asks) == 20
    assert max(place.waits_s) == pytest.approx(0.02)


def test_without_residence_and_turns_of_nothing_everybody_is_served_all_the_same() -> None:
    """Two that give way to one another at once, before anybody has reached them, would go on so for ever."""
    asks = [Ask(number / 100, "ab"[number % 2], 0.5) for number in range(REQUESTS)]
    place = served(Pace(residence_s=0.0, turn_s=0.0, start_s=1.0), asks)
    assert len(place.starts) < 10


def test_a_stream_of_requests_for_one_does_not_keep_the_other_out() -> None:
    asks = [Ask(number / 2, "a", 3.0) for number in range(400)]
    place = served(Pace(start_s=2.0, stop_s=1.0), [*asks, Ask(50.0, "b")])
    assert place.starts[:3] == ["a", "b", "a"]
    assert max(place.waits_s) > 30, "b's turn was waited for"
