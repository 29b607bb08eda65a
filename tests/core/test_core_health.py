"""Evidence to verdict: what counts as life, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.samples import HEALTH, probed
from modelsupd.core.events import Outcome, ProbeKind, Vitals
from modelsupd.core.health import (
    CPU_SHARE_OF_WORK,
    Pulse,
    begin,
    failures_needed,
    hung_at,
    next_kind,
    observe,
    observe_start,
    start_moved,
    without,
)
from modelsupd.core.spec import HealthLimits

FRESH = begin(0)
_FAILING = (Outcome.TIMED_OUT, Outcome.FAILED, Outcome.REFUSED, Outcome.LOADING, Outcome.NO_TOKENS)


def life(*seen: tuple[float, Outcome, ProbeKind], vitals: Vitals | None = None) -> Pulse:
    """Return the pulse after a row of probes, each at its second, with nothing moving."""
    pulse = FRESH
    for second, outcome, kind in seen:
        pulse = observe(pulse, probed(outcome, kind, vitals=vitals, took_s=1), HEALTH, second)
    return pulse


@pytest.mark.parametrize("outcome", _FAILING)
def test_failures_must_be_consecutive(outcome: Outcome) -> None:
    alive = ProbeKind.ALIVE
    apart = life((1, outcome, alive), (2, Outcome.ANSWERED, alive), (3, outcome, alive))
    assert hung_at(apart, HEALTH) is None
    in_a_row = life((1, outcome, alive), (2, outcome, alive))
    assert hung_at(in_a_row, HEALTH) == 60


def test_answer_without_tokens_does_not_end_the_doubt_of_a_failed_generation() -> None:
    """The hang that politeness hides: `/health` answers, completions never come."""
    generation, alive = ProbeKind.GENERATION, ProbeKind.ALIVE
    pulse = life(
        (61, Outcome.TIMED_OUT, generation), (62, Outcome.ANSWERED, alive), (73, Outcome.TIMED_OUT, generation)
    )
    assert pulse.doubted
    assert hung_at(pulse, HEALTH) == 60
    assert next_kind(pulse, HEALTH, 73) is ProbeKind.ALIVE
    answered = observe(pulse, probed(Outcome.ANSWERED, alive), HEALTH, 74)
    assert next_kind(answered, HEALTH, 74) is ProbeKind.GENERATION
    assert hung_at(answered, HEALTH) == 60


def test_delivery_ends_every_doubt() -> None:
    doubted = life((1, Outcome.TIMED_OUT, ProbeKind.GENERATION), (2, Outcome.TIMED_OUT, ProbeKind.GENERATION))
    tokens = observe(doubted, probed(Outcome.TOKENS, ProbeKind.GENERATION), HEALTH, 9)
    assert (tokens.failures, tokens.doubted, tokens.alive_at, tokens.complaint) == (0, False, 9, "")


def test_counters_that_moved_are_delivery_whatever_the_probe_says() -> None:
    pulse = life((1, Outcome.ANSWERED, ProbeKind.ALIVE), vitals=Vitals(delivered=5))
    for delivered in (6, 0):
        seen = probed(Outcome.TIMED_OUT, vitals=Vitals(delivered=delivered))
        assert observe(pulse, seen, HEALTH, 9).proven_at == 9
    unread = observe(pulse, probed(Outcome.TIMED_OUT), HEALTH, 9)
    assert unread.failures == 1
    assert unread.vitals is not None
    assert unread.vitals.delivered == 5


def test_busy_is_no_failure_and_void_is_nothing() -> None:
    for outcome in (Outcome.BUSY, Outcome.VOID):
        pulse = life((1, outcome, ProbeKind.GENERATION), (2, outcome, ProbeKind.GENERATION))
        assert (pulse.failures, pulse.doubted, pulse.alive_at) == (0, False, 0)


def test_quiet_engine_is_asked_for_a_token_in_the_end() -> None:
    assert next_kind(FRESH, HEALTH, 60) is ProbeKind.ALIVE
    assert next_kind(FRESH, HEALTH, 61) is ProbeKind.GENERATION


def test_requests_in_flight_and_nothing_delivered_ask_for_a_token() -> None:
    working = Vitals(delivered=7, in_flight=2)
    once = life((5, Outcome.ANSWERED, ProbeKind.ALIVE), vitals=working)
    assert once.alive_at == 5
    assert next_kind(once, HEALTH, 5) is ProbeKind.GENERATION
    twice = observe(once, probed(Outcome.ANSWERED, vitals=working), HEALTH, 10)
    assert twice.alive_at == 5


def test_cpu_puts_the_verdict_off_up_to_its_limit() -> None:
    pulse, vitals = FRESH, Vitals()
    for second in range(10, 700, 10):
        worked = Vitals(cpu_s=float(second))
        pulse = observe(pulse, probed(Outcome.TIMED_OUT, before=vitals, vitals=worked, took_s=10), HEALTH, second)
        vitals = worked
    assert hung_at(pulse, HEALTH) == HEALTH.busy_limit_s + HEALTH.hang_after_s


def test_work_before_the_probe_is_no_life() -> None:
    """What an engine burnt before it froze says nothing about now."""
    burnt = Vitals(cpu_s=100)
    pulse = observe(FRESH, probed(Outcome.TIMED_OUT, before=burnt, vitals=burnt, took_s=10), HEALTH, 10)
    assert pulse.moved_at == 0


@pytest.mark.parametrize(("hang_after_s", "needed"), [(60, 2), (15, 2), (14.9, 1), (1, 1)])
def test_one_failure_is_enough_where_two_do_not_fit(hang_after_s: float, needed: int) -> None:
    assert failures_needed(replace(HEALTH, hang_after_s=hang_after_s)) == needed


def test_verdict_comes_in_time() -> None:
    """From the freeze, `hang_after_s` and one probe's timeout suffice, whatever the limits."""
    for interval_s, timeout_s, hang_after_s in (
        (5, 10, 60),
        (5, 10, 15),
        (1, 2, 3),
        (5, 10, 5),
        (0.2, 0.5, 30),
        (5, 2, 7),
    ):
        limits = HealthLimits(probe_interval_s=interval_s, probe_timeout_s=timeout_s, hang_after_s=hang_after_s)
        pulse, now = replace(FRESH, next_at=float(interval_s)), 0.0
        while (due := hung_at(pulse, limits)) is None or due > now:
            ends_at = max(now, pulse.next_at) + timeout_s
            if due is not None and due <= ends_at:
                now = due
                break
            now = ends_at
            pulse = observe(pulse, probed(Outcome.TIMED_OUT, took_s=timeout_s), limits, now)
        bound = max(hang_after_s, interval_s) + timeout_s
        assert now <= bound, (limits, now, bound)


@given(st.lists(st.tuples(st.sampled_from(Outcome), st.sampled_from(ProbeKind), st.floats(0, 20)), max_size=30))
def test_only_failures_condemn(seen: list[tuple[Outcome, ProbeKind, float]]) -> None:
    pulse, now, last_life, failed = FRESH, 0.0, 0.0, 0
    for outcome, kind, took_s in seen:
        now += took_s
        pulse = observe(pulse, probed(outcome, kind, took_s=took_s), HEALTH, now)
        failed += outcome in _FAILING
        last_life = now if outcome is Outcome.TOKENS else last_life
        assert pulse.probe is None
        assert pulse.next_at >= now
    due = hung_at(pulse, HEALTH)
    assert due is None or (failed >= 2 and due >= last_life + HEALTH.hang_after_s)


def test_slow_progress_of_a_start_adds_up() -> None:
    pulse, since = begin(0), 0.0
    seconds = [0.5 * n for n in range(1, 600)]
    for second in seconds:
        seen = probed(Outcome.LOADING, ProbeKind.START, vitals=Vitals(cpu_s=0.03 * second))
        pulse = observe_start(pulse, seen, HEALTH, since, second)
    assert seconds[-1] - pulse.moved_at < 5


def test_start_that_burns_next_to_nothing_stands_still() -> None:
    pulse = begin(0)
    for second in range(1, 300):
        seen = probed(Outcome.LOADING, ProbeKind.START, vitals=Vitals(cpu_s=0.01 * second))
        pulse = observe_start(pulse, seen, HEALTH, 0, second)
    assert pulse.moved_at == 0


def test_log_of_our_own_probes_is_no_progress() -> None:
    more = Vitals(log_bytes=1, cpu_s=100, read_bytes=1)
    for outcome in (Outcome.NO_TOKENS, Outcome.FAILED):
        assert not start_moved(Vitals(), probed(outcome, ProbeKind.START, vitals=more), 1)
    assert not start_moved(Vitals(), probed(Outcome.TIMED_OUT, vitals=Vitals(log_bytes=1)), 1)
    assert start_moved(Vitals(), probed(Outcome.LOADING, vitals=Vitals(log_bytes=1)), 1)
    assert start_moved(Vitals(), probed(Outcome.TIMED_OUT, vitals=Vitals(read_bytes=1)), 1)
    assert not start_moved(Vitals(), probed(Outcome.LOADING, vitals=Vitals(cpu_s=CPU_SHARE_OF_WORK)), 1)


def test_pause_between_start_probes_grows_with_the_start() -> None:
    pauses = [
        observe_start(FRESH, probed(Outcome.LOADING), HEALTH, 0, now).next_at - now
        for now in (0.0, 0.04, 0.1, 0.5, 1.0, 100.0)
    ]
    assert pauses == pytest.approx([0.004, 0.01, 0.02, 0.02, 0.04, 0.25])
    later = observe_start(FRESH, probed(Outcome.LOADING), HEALTH, 1000, 1000.04).next_at - 1000.04
    assert later == pytest.approx(0.01), "with the start, and not with the machine"


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_lag_moves_every_instant_and_none_into_the_future(at: float, gap_s: float, later_s: float) -> None:
    pulse, now = begin(at), at + later_s
    after = without(pulse, gap_s, now)
    for before, moved in ((pulse.alive_at, after.alive_at), (pulse.moved_at, after.moved_at)):
        assert before <= moved <= now
