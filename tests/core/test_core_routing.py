"""Which run serves a request, and what `auto` means."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelsupd.core.routing import (
    SUSPECT_MAX_S,
    AutoRule,
    Candidate,
    Need,
    Offer,
    choose,
    choose_model,
    suspect_for_s,
)

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        key=st.sampled_from("abcdef"),
        home=st.sampled_from("xyz"),
        in_flight=st.integers(0, 3),
        last_used_at=st.floats(0, 10),
        draining=st.booleans(),
        suspect_until=st.floats(0, 20),
    ),
    unique_by=lambda each: each.key,
)


def a_run(key: str, home: str = "", **more: Any) -> Candidate:  # noqa: ANN401 - fields of any type
    given = {"in_flight": 0, "last_used_at": 0.0, "draining": False, "suspect_until": 0.0}
    return Candidate(key=key, home=home, **{**given, **more})


def chosen(*candidates: Candidate, now: float = 10.0, session: str | None = None) -> str | None:
    found = choose(candidates, now, session)
    return found.key if found else None


def test_the_fewest_in_flight_then_the_longest_idle() -> None:
    assert chosen(a_run("a", in_flight=2), a_run("b", in_flight=1), a_run("c", in_flight=3)) == "b"
    assert chosen(a_run("a", last_used_at=3), a_run("b", last_used_at=2), a_run("c", last_used_at=4)) == "b"


def test_a_draining_run_gets_nothing_and_a_suspect_one_only_what_nobody_else_can_take() -> None:
    assert chosen(a_run("a", draining=True)) is None
    assert chosen() is None
    assert chosen(a_run("a", suspect_until=11), a_run("b", in_flight=100)) == "b"
    assert chosen(a_run("a", suspect_until=12), a_run("b", suspect_until=11)) == "b"
    assert chosen(a_run("a", suspect_until=10), a_run("b", in_flight=1)) == "a"


@given(CANDIDATES, st.none() | st.text())
def test_whatever_there_is_the_rules_hold(candidates: list[Candidate], session: str | None) -> None:
    found = choose(candidates, 10.0, session)
    usable = [each for each in candidates if not each.draining]
    assert (found is None) == (not usable)
    if found is not None:
        assert not found.draining
        assert found.suspect_until <= 10 or all(each.suspect_until > 10 for each in usable)


@given(st.text(), st.integers(1, 9))
def test_a_session_moves_only_when_its_own_replica_goes(session: str, count: int) -> None:
    here = [a_run(f"m/{index}#1", f"m/{index}", in_flight=index) for index in range(count)]
    home = choose(here, 0.0, session)
    assert home is not None
    for other in here:
        rest = [each for each in here if each is not other]
        moved = choose(rest, 0.0, session)
        assert home in (moved, other)
    # The next run of its replica is its home as well.
    again = [a_run(each.key.replace("#1", "#2"), each.home) for each in here]
    found = choose(again, 0.0, session)
    assert found is not None
    assert found.home == home.home


def test_sessions_spread_over_the_replicas() -> None:
    here = [a_run(f"m/{index}#1", f"m/{index}") for index in range(4)]
    found = [choose(here, 0.0, f"session {number}") for number in range(400)]
    counts = [sum(each is candidate for each in found) for candidate in here]
    assert min(counts) > 60


def test_the_doubt_grows_with_each_failure_and_has_an_end() -> None:
    doubts = [0.0]
    for _ in range(9):
        doubts.append(suspect_for_s(doubts[-1]))
    assert doubts == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert doubts[-1] == SUSPECT_MAX_S


# auto


def needs(prompt_tokens: int = 1, context_tokens: int = 1, **more: bool) -> Need:
    return Need(prompt_tokens=prompt_tokens, context_tokens=context_tokens, **more)


SMALL = Offer(name="small", context_length=1000)
BIG = Offer(name="big", context_length=100_000, capabilities=("tools",))
EYES = Offer(name="eyes", context_length=8000, capabilities=("images", "tools"))
VECTORS = Offer(name="vectors", capabilities=("embedding",))
ALL = (VECTORS, SMALL, BIG, EYES)


def test_auto_takes_the_first_that_can_do_it() -> None:
    assert choose_model(needs(), ALL).name == "small"
    assert choose_model(needs(tools=True), ALL).name == "big"
    assert choose_model(needs(images=True), ALL).name == "eyes"
    assert choose_model(needs(context_tokens=5000), ALL).name == "big"
    assert choose_model(needs(embedding=True), ALL).name == "vectors"


def test_auto_says_what_all_models_lack() -> None:
    assert choose_model(needs(images=True), (SMALL, BIG)).why == "no model takes images"
    assert choose_model(needs(tools=True), (SMALL,)).why == "no model takes tools"
    assert choose_model(needs(context_tokens=10**6), ALL).why == "no model has a context of 1000000 tokens"
    assert choose_model(needs(embedding=True), (SMALL,)).why == "no model makes embeddings"
    assert choose_model(needs(), (VECTORS,)).why == "no model generates"
    assert choose_model(needs(), (Offer(name="x", ready=False),)).why == "no model that can do it is ready"


def test_auto_prefers_what_is_ready_to_what_will_be() -> None:
    loading = Offer(name="first", ready=False, waits=True)
    assert choose_model(needs(), (loading, SMALL)).name == "small"
    assert choose_model(needs(), (loading, Offer(name="down", ready=False))).name == "first"


def test_the_first_rule_that_fits_decides_and_what_it_names_must_be_able() -> None:
    rules = (
        AutoRule(models=("eyes",), images=True),
        AutoRule(models=("small", "eyes"), prompt_over=100, prompt_up_to=1000),
        AutoRule(models=("big",), prompt_over=1000),
    )
    assert choose_model(needs(prompt_tokens=2000), ALL, rules).name == "big"
    assert choose_model(needs(prompt_tokens=500), ALL, rules).name == "small"
    assert choose_model(needs(prompt_tokens=500, context_tokens=5000), ALL, rules).name == "eyes"
    assert choose_model(needs(prompt_tokens=50), (BIG, SMALL), rules).name == "big"
    assert choose_model(needs(prompt_tokens=2000), (SMALL, EYES), rules).name == "small"


def test_a_model_that_makes_vectors_generates_only_if_it_says_so() -> None:
    both = Offer(name="both", capabilities=("embedding", "chat"))
    assert choose_model(needs(), (VECTORS, both)).name == "both"
    assert choose_model(needs(embedding=True), (both,)).name == "both"
    assert choose_model(needs(images=True), (VECTORS,)).why == "no model generates"


def test_a_context_that_is_just_long_enough_is() -> None:
    assert choose_model(needs(context_tokens=1000), (SMALL,)).name == "small"
    assert choose_model(needs(context_tokens=1001), (SMALL,)).name is None


def test_whom_a_rule_fits() -> None:
    sizes = AutoRule(models=(), prompt_over=100, prompt_up_to=200)
    assert [sizes.fits(needs(tokens)) for tokens in (100, 101, 200, 201)] == [False, True, True, False]
    every = AutoRule(models=())
    assert [every.fits(needs(tokens)) for tokens in (0, 1, 10**9)] == [False, True, True]
    tools, no_images = AutoRule(models=(), tools=True), AutoRule(models=(), images=False)
    assert [tools.fits(needs(tools=value)) for value in (True, False)] == [True, False]
    assert [no_images.fits(needs(images=value)) for value in (True, False)] == [False, True]
