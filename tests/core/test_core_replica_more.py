"""One replica under a changing configuration, a daemon that goes, hangs, and what cannot happen, as scripts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.samples import (
    CRASH,
    DIGEST,
    OTHER_DIGEST,
    SPEC,
    exited,
    probed,
    process,
    replica,
    resolved,
    spawned,
)
from core.script import DOWN, at, drained, impossible, play, probe, ready_at
from modelsupd.core.actions import Kill, Probe, Resolve, Spawn, Terminate, Watch
from modelsupd.core.events import (
    Halted,
    Hurried,
    Lagged,
    Outcome,
    ProbeKind,
    Removed,
    Respecified,
    StartAsked,
    Ticked,
    Vitals,
)
from modelsupd.core.phases import Failed, Halt, Killing, Reason, Spawning, Starting, Stopped, Stopping, Want
from modelsupd.core.replica import deadline, fail_internally
from modelsupd.core.spec import HealthLimits

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
    assert isinstance(failed.phase, Failed)
    assert failed.phase.retry_at == 311


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
