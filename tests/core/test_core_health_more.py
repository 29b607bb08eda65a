"""The details of evidence: where exactly each line between life and no life runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.samples import HEALTH, probed, process, replica
from core.script import at, play, probe
from modelsupd.core.actions import Kill
from modelsupd.core.events import Outcome, Probed, ProbeKind, Ticked, Vitals
from modelsupd.core.health import (
    CPU_SHARE_OF_WORK,
    VOID_SHARE,
    Pulse,
    begin,
    next_kind,
    observe,
    observe_start,
    start_moved,
)
from modelsupd.core.phases import Draining, Ready, Reason, Starting
from modelsupd.core.replica import deadline

FRESH = begin(0)

# The next probe


@pytest.mark.parametrize(("took_s", "next_at"), [(0, 10.5), (0.2, 10.3), (3, 10)])
def test_a_probe_that_says_nothing_is_repeated_soon_but_in_no_hot_loop(took_s: float, next_at: float) -> None:
    assert observe(FRESH, probed(Outcome.VOID, took_s=took_s), HEALTH, 10).next_at == pytest.approx(next_at)
    assert HEALTH.probe_interval_s * VOID_SHARE == 0.5


def test_a_probe_that_broke_on_our_side_took_no_time_and_saw_nothing_move() -> None:
    broken = Probed(1, ProbeKind.ALIVE, Outcome.VOID, "the prober broke", Vitals(), Vitals())
    assert broken.vitals == Vitals(cpu_s=0, read_bytes=0, log_bytes=0, delivered=None, in_flight=None)
    after = observe(FRESH, broken, HEALTH, 10)
    assert (after.next_at, after.moved_at, after.failures) == (10.5, 0, 0)


def test_only_requests_in_flight_since_the_last_token_ask_for_one_early() -> None:
    waits = replace(FRESH, proven_at=0, alive_at=5)
    assert next_kind(replace(waits, vitals=Vitals(in_flight=1)), HEALTH, 6) is ProbeKind.GENERATION
    assert next_kind(replace(waits, vitals=Vitals(in_flight=0)), HEALTH, 6) is ProbeKind.ALIVE
    assert next_kind(replace(waits, vitals=None), HEALTH, 6) is ProbeKind.ALIVE
    assert next_kind(replace(FRESH, vitals=Vitals(in_flight=1)), HEALTH, 6) is ProbeKind.ALIVE


# Answers and counters


def test_an_answer_leaves_nothing_of_a_failure_that_raised_no_doubt() -> None:
    failed = observe(FRESH, probed(Outcome.TIMED_OUT), HEALTH, 5)
    assert (failed.failures, failed.doubted, failed.answered, failed.complaint) == (1, False, False, "it was timed-out")
    answered = observe(failed, probed(Outcome.ANSWERED), HEALTH, 10)
    assert (answered.failures, answered.answered, answered.complaint) == (0, True, "")
    assert (answered.alive_at, answered.next_at) == (10, 15)


def test_an_answer_is_life_again_once_the_requests_in_flight_are_gone() -> None:
    waits = replace(FRESH, alive_at=5, vitals=Vitals(delivered=7, in_flight=2))
    still = observe(waits, probed(Outcome.ANSWERED, vitals=Vitals(delivered=7, in_flight=1)), HEALTH, 10)
    assert still.alive_at == 5
    gone = observe(waits, probed(Outcome.ANSWERED, vitals=Vitals(delivered=7, in_flight=0)), HEALTH, 10)
    assert gone.alive_at == 10


def test_a_counter_read_for_the_first_time_is_no_delivery() -> None:
    unread = replace(FRESH, vitals=Vitals(delivered=None))
    assert observe(unread, probed(Outcome.TIMED_OUT, vitals=Vitals(delivered=5)), HEALTH, 9).failures == 1


def test_a_counter_that_moved_once_has_moved_once() -> None:
    pulse = replace(FRESH, vitals=Vitals(delivered=5, in_flight=2))
    moved = observe(pulse, probed(Outcome.TIMED_OUT, vitals=Vitals(delivered=6, in_flight=1)), HEALTH, 9)
    assert (moved.proven_at, moved.vitals) == (9, Vitals(delivered=6, in_flight=1))
    stands = observe(moved, probed(Outcome.TIMED_OUT, vitals=Vitals(delivered=6, in_flight=1)), HEALTH, 19)
    assert (stands.proven_at, stands.failures) == (9, 1)


def test_a_probe_that_could_not_read_the_counters_leaves_both_as_they_were() -> None:
    pulse = replace(FRESH, vitals=Vitals(cpu_s=1, delivered=5, in_flight=2))
    after = observe(pulse, probed(Outcome.TIMED_OUT, vitals=Vitals(cpu_s=3)), HEALTH, 9)
    assert after.vitals == Vitals(cpu_s=3, delivered=5, in_flight=2)


def test_what_was_delivered_since_the_first_token_counts_for_the_first_probe() -> None:
    starting = replica(Starting(0, process(), replace(begin(0), probe=ProbeKind.START)), last_run=1)
    first = probed(Outcome.TOKENS, ProbeKind.START, vitals=Vitals(delivered=4))
    ready = play(starting, at(1, first, "ready"))
    asked = play(ready, at(6, Ticked(), "ready", probe(ProbeKind.ALIVE)))
    after = play(asked, at(7, probed(Outcome.TIMED_OUT, vitals=Vitals(delivered=5)), "ready"))
    assert isinstance(after.phase, Ready)
    assert (after.phase.pulse.failures, after.phase.pulse.proven_at) == (0, 7)


# Work


@pytest.mark.parametrize(
    ("worked_s", "took_s", "moves"),
    [
        (10 * CPU_SHARE_OF_WORK, 10, False),
        (10 * CPU_SHARE_OF_WORK + 0.001, 10, True),
        (0.015, 0.5, True),
        # A probe that was answered at once is too short a time to judge by: a tenth of a second counts at least.
        (0.0015, 0.05, False),
        (0.0025, 0.05, True),
    ],
)
def test_work_is_more_than_its_share_of_the_time_that_it_took(worked_s: float, took_s: float, moves: bool) -> None:
    seen = probed(Outcome.BUSY, before=Vitals(), vitals=Vitals(cpu_s=worked_s), took_s=took_s)
    assert (observe(FRESH, seen, HEALTH, 10).moved_at == 10) is moves
    assert start_moved(Vitals(), seen, took_s) is moves


def test_bytes_that_were_read_are_progress() -> None:
    read = probed(Outcome.TIMED_OUT, before=Vitals(read_bytes=5), vitals=Vitals(read_bytes=6), took_s=10)
    assert observe(FRESH, read, HEALTH, 10).moved_at == 10
    unread = probed(Outcome.TIMED_OUT, before=Vitals(read_bytes=6), vitals=Vitals(read_bytes=6), took_s=10)
    assert observe(FRESH, unread, HEALTH, 10).moved_at == 0


# Starts


def test_a_start_is_measured_from_where_movement_was_last_seen() -> None:
    """A burst and then nothing is a start that stands still, however much the burst took."""
    pulse = observe_start(FRESH, probed(Outcome.LOADING, vitals=Vitals(cpu_s=50)), HEALTH, 0, 1)
    assert pulse.moved_at == 0
    burst = probed(Outcome.LOADING, before=Vitals(cpu_s=50), vitals=Vitals(cpu_s=100))
    pulse = observe_start(pulse, burst, HEALTH, 0, 10)
    assert pulse.moved_at == 10
    for second in range(11, 400):
        pulse = observe_start(pulse, probed(Outcome.LOADING, vitals=Vitals(cpu_s=100)), HEALTH, 0, second)
    assert pulse.moved_at == 10


def test_the_pause_of_a_start_grows_from_its_beginning() -> None:
    pulse = begin(100)
    assert observe_start(pulse, probed(Outcome.LOADING), HEALTH, 100, 101).next_at == pytest.approx(101.04)


# What is due


def _starting(moved_at: float, alive_at: float, next_at: float, probing: ProbeKind | None) -> float | None:
    pulse = Pulse(alive_at=alive_at, proven_at=0, moved_at=moved_at, next_at=next_at, probe=probing)
    return deadline(replica(Starting(0, process(), pulse), last_run=1))


def test_of_the_two_limits_of_a_start_the_first_is_due() -> None:
    assert _starting(3500, 0, 3501, ProbeKind.START) == 3600
    assert _starting(100, 0, 101, ProbeKind.START) == 400
    assert _starting(100, 0, 101, None) == 101
    assert _starting(100, 0, 400.2, None) == 400


def test_a_verdict_does_not_wait_for_the_next_probe() -> None:
    hung = replace(FRESH, alive_at=0, moved_at=0, failures=2, next_at=65)
    assert deadline(replica(Ready(0, process(), hung), last_run=1)) == 60
    early = replace(hung, next_at=50)
    assert deadline(replica(Ready(0, process(), early), last_run=1)) == 50
    assert deadline(replica(Ready(0, process(), replace(early, failures=1)), last_run=1)) == 50


def test_a_drain_ends_by_its_timeout_even_if_the_next_look_comes_later() -> None:
    draining = Draining(0, process(), Reason.OPERATOR, until=10, next_at=10.05)
    assert deadline(replica(draining, last_run=1)) == 10
    play(replica(replace(draining, next_at=9.95), last_run=1), at(9.95, Ticked(), "draining", probe(ProbeKind.DRAIN)))


def test_the_hard_cap_of_a_start_names_itself() -> None:
    starting = replica(Starting(0, process(), replace(begin(0), moved_at=3500)), last_run=1)
    play(starting, at(3600, Ticked(), "killing", Kill(1), reason="start-stalled: not ready after 3600 s"))


def test_how_long_a_start_took_is_counted_from_its_process() -> None:
    """And how long it stood still, from when anything was seen of it."""
    starting = replica(Starting(100, process(), begin(100)), last_run=1)
    after = play(starting, at(107, probed(Outcome.TOKENS), "ready"))
    assert after.learned is not None
    assert (after.learned.start_s, after.learned.still_s) == (7, 7)
    assert begin(100).still_s == 0
