"""Moves between phases, where a failure is reckoned and where the supervisor itself fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.samples import (
    ADDRESS,
    BAD_WEIGHTS,
    CRASH,
    DIGEST,
    INPUTS,
    OTHER_INPUTS,
    SPEC,
    exited,
    probed,
    process,
    replica,
    resolved,
)
from core.script import at, play, probe, tokens
from modelsupd.core.actions import Abandon, Kill, Recheck, Resolve, Terminate
from modelsupd.core.events import (
    Event,
    Outcome,
    ProbeKind,
    Rechecked,
    Respecified,
    RestartAsked,
    StartAsked,
    StopAsked,
    Ticked,
    Unresolved,
    Vitals,
)
from modelsupd.core.health import begin
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Draining,
    Failed,
    Fault,
    Killing,
    Phase,
    Ready,
    Reason,
    Replica,
    Resolving,
    Resting,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Want,
)
from modelsupd.core.replica import InvalidTransition, deadline, fail_internally, step
from modelsupd.core.restart import History
from modelsupd.core.spec import RestartPolicy, StopLimits

FAULT = Fault(CRASH, None)
LIVE: tuple[Phase, ...] = (
    Starting(990, process(), begin(990)),
    Ready(990, process(), begin(990)),
    Asleep(990, process(), 1, None, Resting.ASLEEP),
    Draining(990, process(), Reason.OPERATOR, 1030, 990),
    Stopping(990, process(), Reason.OPERATOR, 1030),
    Killing(990, process(), FAULT, 1030),
)
OTHERS: tuple[Phase, ...] = (
    Stopped(990),
    Resolving(990, 1),
    Spawning(990, 1, DIGEST),
    Clearing(990, 1, FAULT),
    Backoff(990, 1, CRASH, 1030),
    Failed(990, 1, CRASH, 1030, INPUTS, 1030),
)


def named(phase: object) -> str:
    return type(phase).__name__


@pytest.mark.parametrize("phase", [*LIVE, *OTHERS], ids=named)
def test_there_is_a_process_in_six_phases(phase: Phase) -> None:
    assert replica(phase, last_run=1).process == (process() if phase in LIVE else None)


def test_a_replica_of_which_nothing_is_known_has_never_run() -> None:
    bare = Replica(name="m/0", model="m", spec=SPEC, digest=DIGEST, want=Want.UP)
    assert (bare.phase, bare.restarts, bare.history) == (Stopped(0.0), 0, History())
    assert step(bare, StartAsked(), 1)[1] == (Resolve(1),)


# How long it had been ready


def test_a_crash_long_after_ready_is_no_repeated_one() -> None:
    ready = replica(Ready(990, process(), begin(990)), last_run=1)
    play(ready, at(999, exited(), "backoff", reason="next start in 1.0 s"))
    play(ready, at(1000, exited(), "resolving", Resolve(2)))


@pytest.mark.parametrize(("since", "phase"), [(900, "backoff"), (850, "resolving")])
def test_a_hang_counts_from_ready_too(since: float, phase: str) -> None:
    spec = replace(SPEC, restart=RestartPolicy(healthy_after_s=120, jitter=0))
    hung = replace(begin(900), failures=2)
    killing = play(
        replica(Ready(since, process(), hung), last_run=1, spec=spec), at(1000, Ticked(), "killing", Kill(1))
    )
    play(killing, at(1001, exited(), phase, *([Resolve(2)] if phase == "resolving" else [])))


# What is forgotten, and what is not


@pytest.mark.parametrize("event", [StartAsked(), RestartAsked(), Respecified(SPEC, "d9")])
@pytest.mark.parametrize("phase", [OTHERS[0], *OTHERS[4:]], ids=named)
def test_whoever_asks_for_a_process_forgives_what_failed_before(phase: Phase, event: Event) -> None:
    failed = replace(replica(phase, last_run=1), history=History((980.0, 985.0), 2, 1, 2), restarts=5)
    after = play(failed, at(1000, event, "resolving", Resolve(2)))
    assert (after.history, after.restarts) == (History(), 5)


@pytest.mark.parametrize(
    ("event", "reason"),
    [(StartAsked(), Reason.RESTART), (RestartAsked(), Reason.RESTART), (Respecified(SPEC, "d9"), Reason.REPLACED)],
)
@pytest.mark.parametrize(
    "phase",
    [Stopping(990, process(), FAULT, 1030), Killing(990, process(), FAULT, 1030), Clearing(990, 1, FAULT)],
    ids=named,
)
def test_whoever_asks_for_a_process_forgives_the_run_that_is_being_ended(
    phase: Phase, event: Event, reason: Reason
) -> None:
    after, actions = step(replica(phase, last_run=1), event, 1000)
    assert getattr(after.phase, "cause", None) is reason
    assert actions == ()


def test_changed_inputs_forgive_what_failed_for_good() -> None:
    failed = replace(
        replica(Failed(990, 1, BAD_WEIGHTS, None, INPUTS, 1000), last_run=1),
        history=History((980.0,), 1),
        inputs=INPUTS,
    )
    looked = play(failed, at(1000, Ticked(), "failed", Recheck(1)))
    assert play(looked, at(1001, Rechecked(1, OTHER_INPUTS), "resolving", Resolve(2))).history == History()


def test_ready_forgives_the_addresses_that_were_taken_and_nothing_else() -> None:
    starting = replica(Starting(990, process(), replace(begin(990), probe=ProbeKind.START)), last_run=1)
    before = replace(starting, history=History((980.0,), 2, 1, 3))
    ready = play(before, at(1000, tokens(), "ready"))
    assert ready.history == History((980.0,), 2, 1, 0)
    play(ready, at(1001, exited(1, ADDRESS), "resolving", Resolve(2)))


def test_the_one_more_try_is_a_restart_and_what_an_operator_asks_for_is_none() -> None:
    failed = replace(replica(Failed(990, 1, CRASH, 1000, INPUTS), last_run=1), restarts=5)
    assert play(failed, at(1000, Ticked(), "resolving", Resolve(2))).restarts == 6
    assert play(failed, at(999, RestartAsked(), "resolving", Resolve(2))).restarts == 5


def test_what_is_missing_is_looked_for_again_by_what_it_was_then() -> None:
    missing = Unresolved(1, BAD_WEIGHTS, "none")
    failed = play(replica(Resolving(990, 1), last_run=1), at(1000, missing, "failed"))
    assert deadline(failed) == 1005
    looked = play(failed, at(1005, Ticked(), "failed", Recheck(1)))
    assert deadline(play(looked, at(1006, Rechecked(1, "none"), "failed"))) == 1011


# Drains


def test_even_half_a_second_is_time_to_drain() -> None:
    spec = replace(SPEC, stop=StopLimits(drain_timeout_s=0.5))
    draining = play(replica(LIVE[1], last_run=1, spec=spec), at(1000, StopAsked(), "draining", probe(ProbeKind.DRAIN)))
    play(draining, at(1000.5, Ticked(), "stopping", Terminate(1), reason="still in flight after 0.5 s"))


def test_only_an_answer_shows_that_a_drain_is_over() -> None:
    draining = replica(Draining(990, process(), Reason.OPERATOR, 1030, 990, probing=True), want=Want.DOWN, last_run=1)
    for outcome in Outcome:
        seen = probed(outcome, ProbeKind.DRAIN, vitals=Vitals(in_flight=0))
        phase = "stopping" if outcome is Outcome.ANSWERED else "draining"
        play(draining, at(1000, seen, phase, *([Terminate(1)] if phase == "stopping" else [])))
    unread = probed(Outcome.ANSWERED, ProbeKind.DRAIN, vitals=Vitals(in_flight=None))
    play(draining, at(1000, unread, "draining"))


# The supervisor itself


@pytest.mark.parametrize("phase", LIVE, ids=named)
def test_supervisors_own_failure_kills_whatever_runs(phase: Phase) -> None:
    after, actions = fail_internally(replica(phase, last_run=1), "words", 1000)
    assert isinstance(after.phase, Killing)
    assert isinstance(after.phase.cause, Fault)
    assert (actions, after.reason) == ((Kill(1),), "internal: words")


@pytest.mark.parametrize("phase", [OTHERS[2], OTHERS[3]], ids=named)
def test_supervisors_own_failure_waits_for_what_is_about_to_be_told(phase: Phase) -> None:
    after, actions = fail_internally(replica(phase, last_run=1), "words", 1000)
    assert (after.phase, actions, after.reason) == (phase, (), "internal: words")


@pytest.mark.parametrize("phase", [OTHERS[1], *OTHERS[4:]], ids=named)
def test_supervisors_own_failure_without_a_process_is_a_failure(phase: Phase) -> None:
    after, _ = fail_internally(replica(phase, last_run=1), "words", 1000)
    assert isinstance(after.phase, Failed)
    assert after.phase.retry_at == 1300
    assert after.reason == "internal: words; the supervisor could not follow this run"


def test_the_supervisors_own_failure_gives_up_the_fetch_and_its_end_says_nothing_any_more() -> None:
    failed, actions = fail_internally(replace(replica(Resolving(0, 1)), last_run=1), "cannot apply this", 10)
    assert isinstance(failed.phase, Failed)
    assert actions == (Abandon(1),)
    for late in (resolved(1), Unresolved(1, BAD_WEIGHTS, INPUTS)):
        assert step(failed, late, 11) == (failed, ())
    with pytest.raises(InvalidTransition):
        step(replica(Failed(0, 1, CRASH, 300), last_run=1), resolved(1), 11)
