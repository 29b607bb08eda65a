"""One replica from start to end, as scripts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core import invariants
from core.samples import (
    ADDRESS,
    BAD_WEIGHTS,
    CRASH,
    DIGEST,
    INPUTS,
    NO_MEMORY,
    OTHER_DIGEST,
    OTHER_INPUTS,
    OTHER_SPEC,
    SPEC,
    exited,
    probed,
    process,
    replica,
    resolved,
    spawned,
)
from core.script import at, impossible, play
from modelsupd.core.actions import Clear, Kill, Probe, Recheck, Resolve, Spawn, Terminate, Watch
from modelsupd.core.events import (
    Cleared,
    Event,
    Failure,
    FailureClass,
    Halted,
    Hurried,
    Lagged,
    Outcome,
    ProbeKind,
    Rechecked,
    Removed,
    Respecified,
    RestartAsked,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Stuck,
    Ticked,
    Unresolved,
    Vitals,
)
from modelsupd.core.health import begin
from modelsupd.core.phases import Failed, Halt, Killing, Reason, Replica, Spawning, Starting, Stopped, Stopping, Want
from modelsupd.core.replica import deadline, fail_internally, step
from modelsupd.core.spec import HealthLimits, StopLimits

DOWN = replica(want=Want.DOWN)
NO_TERM = StopLimits(drain_timeout_s=0)


def probe(kind: ProbeKind, run: int = 1) -> Probe:
    return Probe(run, kind, 10)


def tokens(run: int = 1) -> Event:
    return probed(Outcome.TOKENS, ProbeKind.START, run=run)


def drained(in_flight: int) -> Event:
    return probed(Outcome.ANSWERED, ProbeKind.DRAIN, vitals=Vitals(in_flight=in_flight))


def ready_at(second: float = 2, run: int = 1, before: Replica | None = None) -> Replica:
    """Return a replica whose run became ready at `second`."""
    before = before or DOWN
    return play(
        replace(before, last_run=run - 1),
        at(0, StartAsked(), "resolving", Resolve(run)),
        at(0.1, resolved(run), "spawning", Spawn(run)),
        at(0.2, spawned(run), "starting", Watch(run)),
        at(0.2, Ticked(), "starting", probe(ProbeKind.START, run)),
        at(second, tokens(run), "ready", reason="generates: it was tokens"),
    )


def test_start_to_ready_to_stop() -> None:
    stopped = play(
        ready_at(2),
        at(7, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(7.1, probed(Outcome.ANSWERED), "ready"),
        at(8, StopAsked("anna"), "draining", probe(ProbeKind.DRAIN), reason="stop asked for by anna"),
        at(8.1, drained(1), "draining"),
        at(8.2, Ticked(), "draining", probe(ProbeKind.DRAIN)),
        at(8.3, drained(0), "stopping", Terminate(1), reason="drained"),
        at(9, exited(), "stopped"),
    )
    assert stopped.want is Want.DOWN
    assert stopped.history.failed_at == ()
    assert stopped.restarts == 0
    assert deadline(stopped) is None


def test_drain_ends_by_its_timeout_then_term_then_kill_again_and_again() -> None:
    play(
        ready_at(2),
        at(10, StopAsked(), "draining", probe(ProbeKind.DRAIN)),
        at(40, Ticked(), "stopping", Terminate(1), reason="still in flight after 30 s"),
        at(47.9, Ticked(), "stopping"),
        at(48, Ticked(), "killing", Kill(1), reason="8.0 s after SIGTERM"),
        at(59, Ticked(), "killing", Kill(1), reason="stuck"),
        at(70, Ticked(), "killing", Kill(1)),
        at(71, exited(cleared=False), "clearing", Clear(1, 11)),
        at(82, Stuck(1, (5,)), "clearing", reason="processes 5 of run 1 withstand SIGKILL"),
        at(93, Ticked(), "clearing", Clear(1, 11)),
        at(94, Cleared(1), "stopped"),
    )


def test_without_drain_timeout_sigterm_goes_at_once() -> None:
    at_once = replace(ready_at(), spec=replace(SPEC, stop=NO_TERM))
    play(at_once, at(3, StopAsked(), "stopping", Terminate(1)))


def test_loading_engine_gets_the_short_grace() -> None:
    starting = replica(Starting(0, process(), begin(0)), last_run=1)
    stopping = play(starting, at(1, StopAsked(), "stopping", Terminate(1)))
    assert deadline(stopping) == 3


@pytest.mark.parametrize("second", [StopAsked(), RestartAsked(), StartAsked()])
def test_operator_acts_twice_before_anything_else_happens(second: Event) -> None:
    """Whatever comes first, the last word counts."""
    for first in (StartAsked(), StopAsked(), RestartAsked()):
        for before in (DOWN, ready_at()):
            once, _ = step(before, first, 10)
            twice, actions = step(once, second, 10)
            invariants.check_step(once, second, twice, actions, 10)
            assert twice.want is (Want.DOWN if isinstance(second, StopAsked) else Want.UP)
            assert not invariants.wanted_idle(twice)


def test_stop_while_spawning_ends_the_process_that_comes() -> None:
    play(
        replica(Spawning(0, 1, DIGEST), last_run=1),
        at(1, StopAsked(), "spawning"),
        at(2, spawned(), "stopping", Watch(1), Terminate(1)),
        at(3, exited(), "stopped"),
    )


def test_stop_and_start_while_spawning_keeps_the_process() -> None:
    play(
        replica(Spawning(0, 1, DIGEST), last_run=1),
        at(1, StopAsked(), "spawning"),
        at(1, StartAsked(), "spawning"),
        at(2, spawned(), "starting", Watch(1)),
    )


def test_stop_while_resolving_and_start_again_leaves_the_old_look_stale() -> None:
    play(
        replica(),
        at(0, RestartAsked(), "resolving", Resolve(1)),
        at(1, StopAsked(), "stopped"),
        at(1, resolved(1), "stopped"),
        at(2, StartAsked(), "resolving", Resolve(2)),
        at(3, resolved(1, DIGEST, OTHER_INPUTS), "resolving"),
        at(3, resolved(2), "spawning", Spawn(2)),
    )


def test_operators_restart_is_no_failure() -> None:
    again = play(
        ready_at(2),
        at(3, RestartAsked("anna"), "draining", probe(ProbeKind.DRAIN)),
        at(4, drained(0), "stopping", Terminate(1)),
        at(5, exited(), "resolving", Resolve(2), reason="a new run after restart"),
    )
    assert again.history.failed_at == ()
    assert again.restarts == 0


def test_crash_after_a_healthy_period_restarts_at_once() -> None:
    after = play(
        ready_at(2), at(12, exited(), "resolving", Resolve(2), reason="crash: exit code 1; started again at once")
    )
    assert after.restarts == 1
    assert after.history.failed_at == (12,)


def test_early_crashes_back_off_and_then_fail_and_get_one_more_try() -> None:
    now, run, pauses = 100.0, 1, []
    current = play(DOWN, at(now, StartAsked(), "resolving", Resolve(1)))
    while not isinstance(current.phase, Failed):
        current = play(
            current,
            at(now, resolved(run), "spawning", Spawn(run)),
            at(now, spawned(run), "starting", Watch(run)),
        )
        current, actions = step(current, exited(run), now)
        assert actions == ()
        due = deadline(current)
        assert due is not None
        pauses.append(due - now)
        if isinstance(current.phase, Failed):
            break
        now, run = due, run + 1
        current = play(current, at(now, Ticked(), "resolving", Resolve(run)))
    assert pauses == [1, 2, 4, 8, 16, 300]
    assert "6 failures within 600 s, more than 5" in current.reason
    run += 1
    once_more = play(
        current,
        at(now + 300, Ticked(), "resolving", Resolve(run), reason="one more try after the cool-down"),
        at(now + 300, resolved(run), "spawning", Spawn(run)),
        at(now + 300, spawned(run), "starting", Watch(run)),
        at(now + 301, exited(run), "failed", reason="the one more try after the cool-down failed too"),
    )
    assert deadline(once_more) == now + 301 + 600


def test_permanent_failure_waits_for_a_change_and_for_nothing_else() -> None:
    failed = play(
        ready_at(2),
        at(20, exited(1, BAD_WEIGHTS), "failed", reason="tensor 'x' is not within the file bounds"),
        at(25, Ticked(), "failed", Recheck(1)),
        at(25, Rechecked(1, INPUTS), "failed"),
        at(30, Ticked(), "failed", Recheck(1)),
        at(31, Rechecked(1, OTHER_INPUTS), "resolving", Resolve(2), reason="the weights or the binary changed"),
    )
    assert failed.history.failed_at == ()


@pytest.mark.parametrize("event", [StartAsked(), RestartAsked(), Respecified(OTHER_SPEC, OTHER_DIGEST)])
def test_operator_or_config_revives_what_failed_for_good(event: Event) -> None:
    failed = play(ready_at(2), at(20, exited(1, BAD_WEIGHTS), "failed"))
    play(failed, at(21, event, "resolving", Resolve(2)))


def test_unresolved_fails_for_good_until_inputs_change() -> None:
    missing = Unresolved(1, Failure(FailureClass.BAD_WEIGHTS, "no such file '/w'"), "none")
    failed = play(DOWN, at(0, StartAsked(), "resolving", Resolve(1)), at(1, missing, "failed", reason="no such file"))
    play(failed, at(6, Ticked(), "failed", Recheck(1)), at(6, Rechecked(1, INPUTS), "resolving", Resolve(2)))


def test_taken_address_costs_nothing_three_times() -> None:
    current, now = replace(ready_at(2), history=replace(ready_at(2).history)), 3.0
    for run in (1, 2, 3):
        current = play(
            current,
            at(now, exited(run, ADDRESS), "resolving", Resolve(run + 1)),
            at(now, resolved(run + 1), "spawning", Spawn(run + 1)),
            at(now, spawned(run + 1), "starting", Watch(run + 1)),
        )
        assert current.history.failed_at == ()
    play(current, at(now, exited(4, ADDRESS), "backoff"))


def test_scarce_memory_backs_off_even_after_a_healthy_period() -> None:
    play(ready_at(2), at(50, exited(1, NO_MEMORY), "backoff", reason="next start in 1.0 s"))


def test_spawn_that_fails_backs_off() -> None:
    failure = Failure(FailureClass.SPAWN, "fork: resource temporarily unavailable")
    play(replica(Spawning(0, 1, DIGEST), last_run=1), at(1, SpawnFailed(1, failure), "backoff", reason="resource"))


def test_exit_while_stopping_for_an_operator_is_no_failure_whatever_the_code() -> None:
    stopped = play(
        ready_at(2), at(3, StopAsked(), "draining", probe(ProbeKind.DRAIN)), at(3, exited(1, BAD_WEIGHTS), "stopped")
    )
    assert stopped.history.failed_at == ()
    assert stopped.restarts == 0


def test_descendants_are_cleared_before_anything_follows() -> None:
    play(
        ready_at(2),
        at(20, exited(cleared=False), "clearing", Clear(1, 11)),
        at(21, StopAsked(), "clearing"),
        at(21, StartAsked(), "clearing"),
        at(22, Stuck(1, (7, 8)), "clearing", reason="processes 7, 8 of run 1 withstand SIGKILL"),
        at(32, Ticked(), "clearing"),
        at(33, Ticked(), "clearing", Clear(1, 11)),
        at(33, Ticked(), "clearing"),
        at(34, Cleared(1), "resolving", Resolve(2)),
    )


# Configuration


def test_changed_launch_replaces_a_ready_engine() -> None:
    changed = Respecified(replace(SPEC, args={"a": 1}), OTHER_DIGEST)
    current = play(
        ready_at(2),
        at(3, changed, "draining", probe(ProbeKind.DRAIN), reason="the configuration changed"),
        at(4, drained(0), "stopping", Terminate(1)),
        at(5, exited(), "resolving", Resolve(2)),
        at(5, resolved(2, OTHER_DIGEST), "spawning", Spawn(2)),
        at(5, spawned(2, OTHER_DIGEST), "starting", Watch(2)),
    )
    assert current.history.failed_at == ()
    assert current.digest == OTHER_DIGEST


def test_changed_limits_leave_the_engine_alone_and_count_at_once() -> None:
    limits = replace(SPEC, health=HealthLimits(probe_interval_s=1))
    current = play(
        ready_at(2),
        at(3, Respecified(limits, DIGEST), "ready"),
        at(7, Ticked(), "ready", Probe(1, ProbeKind.ALIVE, 10)),
    )
    current = play(current, at(7, probed(Outcome.ANSWERED), "ready"))
    assert deadline(current) == 8


def test_config_changed_while_spawning_replaces_what_comes() -> None:
    play(
        replica(Spawning(0, 1, DIGEST), last_run=1),
        at(1, Respecified(SPEC, OTHER_DIGEST), "spawning"),
        at(2, spawned(), "stopping", Watch(1), Terminate(1), reason="the configuration changed meanwhile"),
        at(3, exited(), "resolving", Resolve(2)),
    )


def test_config_changed_and_changed_back_while_spawning_keeps_what_comes() -> None:
    play(
        replica(Spawning(0, 1, DIGEST), last_run=1),
        at(1, Respecified(SPEC, OTHER_DIGEST), "spawning"),
        at(1, Respecified(SPEC, DIGEST), "spawning"),
        at(2, spawned(), "starting", Watch(1)),
    )


def test_removed_and_declared_again_before_it_was_gone() -> None:
    play(
        ready_at(2),
        at(3, Removed(), "draining", probe(ProbeKind.DRAIN)),
        at(4, Respecified(SPEC, DIGEST), "draining"),
        at(5, drained(0), "stopping", Terminate(1)),
        at(6, exited(), "resolving", Resolve(2)),
    )


def test_removed_while_stopped_comes_back_as_it_was_wanted() -> None:
    up = replica(Stopped(0), want=Want.UP)
    play(replace(up, removed=True), at(1, Respecified(SPEC, DIGEST), "resolving", Resolve(1)))
    play(replace(up, removed=True, want=Want.DOWN), at(1, Respecified(SPEC, DIGEST), "stopped"))


# The daemon goes


def test_halted_drains_and_what_is_wanted_stays() -> None:
    stopped = play(
        ready_at(2),
        at(3, Halted(), "draining", probe(ProbeKind.DRAIN), reason="the daemon stops"),
        at(4, drained(0), "stopping", Terminate(1)),
        at(5, exited(), "stopped"),
    )
    assert stopped.want is Want.UP
    assert stopped.history.failed_at == ()


def test_hurried_skips_the_drain_and_then_the_grace() -> None:
    play(
        ready_at(2),
        at(3, Halted(), "draining", probe(ProbeKind.DRAIN)),
        at(4, Hurried(), "stopping", Terminate(1)),
        at(5, Hurried(kill=True), "killing", Kill(1)),
        at(6, Hurried(kill=True), "killing"),
        at(6, exited(), "stopped"),
    )


@pytest.mark.parametrize(("kill", "phase"), [(False, "stopping"), (True, "killing")])
def test_what_spawns_while_the_daemon_hurries_is_ended(kill: bool, phase: str) -> None:
    spawning = replica(Spawning(0, 1, DIGEST), last_run=1)
    play(
        spawning,
        at(1, Halted(), "spawning"),
        at(1, Hurried(kill=kill), "spawning"),
        at(2, spawned(), phase, Watch(1), Kill(1) if kill else Terminate(1)),
    )


def test_start_asked_while_the_daemon_goes_is_remembered() -> None:
    going = play(DOWN, at(1, Halted(), "stopped"), at(2, StartAsked(), "stopped"))
    assert going.want is Want.UP
    assert going.halt is Halt.DRAIN


# Starts and hangs


def test_start_without_progress_stalls() -> None:
    current = play(
        replica(Spawning(0, 1, DIGEST), last_run=1),
        at(0, spawned(), "starting", Watch(1)),
        at(0, Ticked(), "starting", probe(ProbeKind.START)),
        at(1, probed(Outcome.LOADING, ProbeKind.START, vitals=Vitals(log_bytes=10)), "starting"),
        at(2, Ticked(), "starting", probe(ProbeKind.START)),
        at(100, probed(Outcome.LOADING, ProbeKind.START, vitals=Vitals(log_bytes=11)), "starting"),
        at(101, Ticked(), "starting", probe(ProbeKind.START)),
        at(399.9, Ticked(), "starting"),
        at(400, Ticked(), "killing", Kill(1), reason="start-stalled: no progress for 300 s; last: it was loading"),
    )
    play(current, at(401, exited(), "backoff", reason="start-stalled"))


def test_start_with_progress_ends_at_the_hard_cap() -> None:
    current = play(replica(Spawning(0, 1, DIGEST), last_run=1), at(0, spawned(), "starting", Watch(1)))
    for second in range(1, 3600, 200):
        moving = probed(Outcome.LOADING, ProbeKind.START, vitals=Vitals(read_bytes=second))
        current = play(
            current, at(second, Ticked(), "starting", probe(ProbeKind.START)), at(second, moving, "starting")
        )
    play(current, at(3600, Ticked(), "killing", Kill(1), reason="not ready after 3600 s"))


def test_zero_tokens_are_not_ready_and_say_so() -> None:
    current = play(
        replica(Spawning(0, 1, DIGEST), last_run=1),
        at(0, spawned(), "starting", Watch(1)),
        at(0, Ticked(), "starting", probe(ProbeKind.START)),
        at(1, probed(Outcome.NO_TOKENS, ProbeKind.START), "starting"),
    )
    assert isinstance(current.phase, Starting)
    assert current.phase.pulse.complaint == "it was no-tokens"


def test_hang_is_killed_with_its_evidence_and_counts() -> None:
    frozen = Vitals(cpu_s=3)
    current = play(
        ready_at(2),
        at(7, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(17, probed(Outcome.TIMED_OUT, vitals=frozen, took_s=10), "ready"),
        at(17, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(27, probed(Outcome.TIMED_OUT, vitals=frozen, took_s=10), "ready"),
        at(27, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(37, probed(Outcome.TIMED_OUT, vitals=frozen, took_s=10), "ready"),
        at(61.9, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(62, Ticked(), "killing", Kill(1), reason="3 probes failed in a row; last: it was timed-out"),
        at(63, exited(), "resolving", Resolve(2), reason="hung"),
    )
    assert current.history.failed_at == (63,)


def test_lag_of_the_daemon_is_no_evidence() -> None:
    current = play(
        ready_at(2),
        at(7, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(17, probed(Outcome.TIMED_OUT, took_s=10), "ready"),
        at(17, Ticked(), "ready", probe(ProbeKind.ALIVE)),
        at(27, probed(Outcome.TIMED_OUT, took_s=10), "ready"),
        at(100, Lagged(70), "ready"),
        at(100, Ticked(), "ready", probe(ProbeKind.ALIVE)),
    )
    assert deadline(current) == 132


# What cannot happen


def test_impossible_events_tell_the_story_and_change_nothing() -> None:
    story = impossible(ready_at(2), spawned(1), 3)
    assert "cannot apply Spawned" in story
    assert "m/0: it is ready" in story
    assert "generates: it was tokens" in story
    impossible(ready_at(2), exited(2), 3)


def test_supervisors_own_failure_ends_the_run_and_fails_the_replica() -> None:
    killing, actions = fail_internally(ready_at(2), "cannot apply this", 10)
    assert isinstance(killing.phase, Killing)
    assert actions == (Kill(1),)
    failed = play(killing, at(11, exited(), "failed", reason="the supervisor could not follow"))
    assert deadline(failed) == 311


def test_supervisors_own_failure_waits_for_a_process_about_to_exist() -> None:
    """Another run before the spawn has reported would put two processes side by side."""
    spawning = replica(Spawning(0, 1, DIGEST), last_run=1)
    after, actions = fail_internally(spawning, "words", 1)
    assert (after.phase, actions) == (spawning.phase, ())
    assert "words" in after.reason


def test_supervisors_own_failure_starts_nothing_that_is_not_wanted() -> None:
    after, actions = fail_internally(DOWN, "words", 1)
    assert isinstance(after.phase, Stopped)
    assert actions == ()
    assert deadline(after) is None


def test_ticked_early_or_twice_is_harmless() -> None:
    stopping = replica(Stopping(0, process(), Reason.RESTART, 8), last_run=1)
    play(stopping, at(7.9, Ticked(), "stopping"), at(8, Ticked(), "killing", Kill(1)), at(8, Ticked(), "killing"))


def test_crash_names_its_class_in_the_reason() -> None:
    assert "crash: exit code 1" in play(ready_at(2), at(3, exited(1, CRASH), "backoff")).reason
