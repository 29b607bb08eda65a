"""One replica from start to end: starts, stops, failures and what follows, as scripts."""

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
from core.script import DOWN, at, drained, play, probe, ready_at
from modelsupd.core.actions import Abandon, Clear, Kill, Recheck, Resolve, Spawn, Terminate, Watch
from modelsupd.core.events import (
    Cleared,
    Event,
    Failure,
    FailureClass,
    Outcome,
    ProbeKind,
    Rechecked,
    Respecified,
    RestartAsked,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Stuck,
    Ticked,
    Unresolved,
)
from modelsupd.core.health import begin
from modelsupd.core.phases import Failed, Resolving, Spawning, Starting, Want
from modelsupd.core.replica import deadline, step
from modelsupd.core.restart import History
from modelsupd.core.spec import StopLimits

NO_TERM = StopLimits(drain_timeout_s=0)


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
        at(1, StopAsked(), "stopped", Abandon(1)),
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
        at(5, exited(), "resolving", Resolve(2), reason="run 1 ended: exit code 1; a new run follows"),
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
    now, run = 100.0, 1
    pauses: list[float] = []
    current = play(DOWN, at(now, StartAsked(), "resolving", Resolve(1)))
    while not isinstance(current.phase, Failed):
        assert len(pauses) < 20, "a crash loop goes on for ever"
        current = play(
            current,
            at(now, resolved(run), "spawning", Spawn(run)),
            at(now, spawned(run), "starting", Watch(run)),
        )
        current, actions = step(current, exited(run), now)
        assert actions == ()
        due = current.phase.retry_at if isinstance(current.phase, Failed) else deadline(current)
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
    assert isinstance(once_more.phase, Failed)
    assert once_more.phase.retry_at == now + 301 + 600


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


def test_a_new_declaration_while_resolving_lets_go_of_the_old_fetch() -> None:
    play(
        replica(),
        at(0, StartAsked(), "resolving", Resolve(1)),
        at(1, Respecified(replica().spec, OTHER_DIGEST), "resolving", Abandon(1), Resolve(2)),
    )


def test_what_the_hub_does_not_have_is_asked_for_again_without_a_count_against_the_engine() -> None:
    failure = Failure(FailureClass.WEIGHTS_UNAVAILABLE, "no such repository")
    failed = play(
        replace(replica(Resolving(0, 1), last_run=1), history=History((), 0, 0, 2)),
        at(1, Unresolved(1, failure, INPUTS), "failed", reason="asked for again after the cool-down"),
    )
    assert isinstance(failed.phase, Failed)
    assert failed.phase.retry_at == 301
    assert failed.history == History((), 0, 0, 2)


def test_what_waits_for_its_cool_down_starts_when_its_inputs_change() -> None:
    failed = replace(replica(Failed(0, 1, CRASH, 300, INPUTS, 5), last_run=1), inputs=INPUTS)
    looking = play(failed, at(5, Ticked(), "failed", Recheck(1)))
    assert deadline(looking) == 300
    as_it_was = play(looking, at(6, Rechecked(1, INPUTS), "failed"))
    assert deadline(as_it_was) == 11
    play(looking, at(6, Rechecked(1, OTHER_INPUTS), "resolving", Resolve(2), reason="changed"))
