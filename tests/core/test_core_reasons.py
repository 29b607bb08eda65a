"""The reason of a replica: every change brings its own, and what changes nothing leaves the last one standing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.samples import BAD_WEIGHTS, CRASH, DIGEST, OTHER_DIGEST, SPEC, exited, process, replica, resolved, spawned
from core.script import DOWN, at, drained, play, probe, ready_at
from modelsupd.core.actions import Abandon, Clear, Kill, Resolve, Spawn, Terminate, Watch
from modelsupd.core.events import (
    Event,
    Exit,
    Exited,
    Failure,
    FailureClass,
    Halted,
    Hurried,
    ProbeKind,
    Removed,
    Respecified,
    RestartAsked,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Ticked,
)
from modelsupd.core.fleet import Declared, fresh
from modelsupd.core.health import begin
from modelsupd.core.phases import Backoff, Clearing, Failed, Fault, Phase, Reason, Resolving, Spawning, Starting, Want
from modelsupd.core.replica import step
from modelsupd.core.spec import Start

SPAWNING = replica(Spawning(0, 1, DIGEST), last_run=1)
SAYS_STOPPED = "stop asked for by anna"


def test_asked_for_the_second_time_the_first_who_asked_is_named() -> None:
    play(
        SPAWNING,
        at(1, StopAsked("anna"), "spawning", reason=SAYS_STOPPED),
        at(2, StopAsked("bert"), "spawning", reason=SAYS_STOPPED),
        at(3, StartAsked("cleo"), "spawning", reason="start asked for by cleo"),
        at(4, StartAsked("dora"), "spawning", reason="start asked for by cleo"),
    )


def test_start_of_what_is_up_changes_no_reason() -> None:
    play(ready_at(2), at(3, StartAsked("anna"), "ready", reason="generates"))


@pytest.mark.parametrize(
    ("event", "reason"), [(Removed(), "no longer in the configuration"), (Halted(), "the daemon stops")]
)
def test_told_for_the_second_time_what_came_between_stays(event: Event, reason: str) -> None:
    play(
        SPAWNING,
        at(1, event, "spawning", reason=reason),
        at(2, StopAsked("anna"), "spawning", reason=SAYS_STOPPED),
        at(3, event, "spawning", reason=SAYS_STOPPED),
    )


def test_hurry_is_no_reason_where_there_is_nothing_to_hurry() -> None:
    play(
        SPAWNING,
        at(1, Halted(), "spawning", reason="the daemon stops"),
        at(1, Hurried(), "spawning", reason="the daemon stops"),
    )


@pytest.mark.parametrize(
    "phase", [Resolving(0, 1), Backoff(0, 1, CRASH, 9), Failed(0, 1, BAD_WEIGHTS, None, "", 9)], ids=str
)
def test_stop_of_what_waits_says_so(phase: Phase) -> None:
    abandoned = (Abandon(1),) if isinstance(phase, Resolving) else ()
    play(replica(phase, last_run=1), at(1, StopAsked("anna"), "stopped", *abandoned, reason=SAYS_STOPPED))


def test_a_start_tells_what_it_does() -> None:
    play(
        DOWN,
        at(0, StartAsked("anna"), "resolving", Resolve(1), reason="start asked for by anna"),
        at(1, resolved(), "spawning", Spawn(1), reason="starting run 1"),
        at(2, spawned(), "starting", Watch(1), reason="run 1 started as pid 1001"),
    )
    play(DOWN, at(0, RestartAsked("anna"), "resolving", Resolve(1), reason="restart asked for by anna"))


def test_new_replica_that_is_not_started_at_once_says_when_it_is() -> None:
    on_demand, actions = fresh("m/0", "m", Declared(replace(SPEC, start=Start.ON_DEMAND), DIGEST), 5.0)
    assert (on_demand.reason, actions) == ("starts when a client asks for it (start = 'on-demand')", ())
    manual, _ = fresh("m/0", "m", Declared(replace(SPEC, start=Start.MANUAL), DIGEST), 5.0)
    assert manual.reason == "starts when asked to (start = 'manual')"
    wanted, _ = fresh("m/0", "m", Declared(SPEC, DIGEST), 5.0)
    assert wanted.reason == "new in the configuration"


def test_the_end_of_a_run_tells_why() -> None:
    play(
        ready_at(2),
        at(3, RestartAsked("anna"), "draining", probe(ProbeKind.DRAIN), reason="restart asked for by anna"),
        at(4, drained(0), "stopping", Terminate(1), reason="drained"),
        at(12, Ticked(), "killing", Kill(1), reason="still there 8.0 s after SIGTERM"),
        at(23, Ticked(), "killing", Kill(1), reason="stuck: still there 11.0 s after SIGKILL"),
        at(24, exited(cleared=False), "clearing", Clear(1, 11), reason="run 1 ended: exit code 1"),
    )
    play(
        ready_at(2),
        at(9, exited(1, BAD_WEIGHTS, cleared=False), "clearing", Clear(1, 11), reason="run 1 ended: tensor 'x'"),
    )
    play(ready_at(2), at(3, Halted(), "draining", probe(ProbeKind.DRAIN)), at(4, Hurried(), "stopping", Terminate(1)))


def test_an_end_that_somebody_else_asked_for_is_a_restart_and_no_failure() -> None:
    """By a daemon whose record of it was lost, or by `modelsupd reap`."""
    asked = Exited(1, Exit(code=0), CRASH, cleared=True, asked=True)
    words = "run 1 ended as it was told to: exit code 0"
    after = play(ready_at(2), at(3, asked, "resolving", Resolve(2), reason=words))
    assert after.history.failed_at == ()
    left = play(ready_at(2), at(3, replace(asked, cleared=False), "clearing", Clear(1, 11), reason=words))
    assert isinstance(left.phase, Clearing)
    assert left.phase.cause is Reason.RESTART


def test_a_spawn_that_failed_and_left_something_is_cleared_first() -> None:
    failure = Failure(FailureClass.SPAWN, "no report in time")
    failed = SpawnFailed(1, failure, cleared=False)
    cleared = play(SPAWNING, at(1, failed, "clearing", Clear(1, 11), reason="no report in time"))
    assert isinstance(cleared.phase, Clearing)
    assert cleared.phase.cause == Fault(failure)
    otherwise = replace(SPAWNING, digest=OTHER_DIGEST)
    replaced = play(otherwise, at(1, failed, "clearing", Clear(1, 11), reason="no report in time"))
    assert isinstance(replaced.phase, Clearing)
    assert replaced.phase.cause is Reason.REPLACED
    play(
        otherwise, at(1, replace(failed, cleared=True), "resolving", Resolve(2), reason="no report in time; a new run")
    )


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (StopAsked(), Reason.OPERATOR),
        (RestartAsked(), Reason.RESTART),
        (Respecified(SPEC, OTHER_DIGEST), Reason.REPLACED),
        (Removed(), Reason.REMOVED),
        (Halted(), Reason.SHUTDOWN),
        (Hurried(), Reason.SHUTDOWN),
        (Hurried(kill=True), Reason.SHUTDOWN),
    ],
)
def test_who_ends_a_run_is_its_cause(event: Event, cause: Reason) -> None:
    for before in (ready_at(2), replica(Starting(0, process(), begin(0)), last_run=1)):
        after, _ = step(before, event, 3)
        assert getattr(after.phase, "cause", None) is cause


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"want": Want.DOWN}, Reason.OPERATOR),
        ({"removed": True}, Reason.REMOVED),
        ({"digest": OTHER_DIGEST}, Reason.REPLACED),
    ],
)
def test_why_a_process_that_comes_too_late_is_ended(changes: dict[str, object], cause: Reason) -> None:
    after, _ = step(replace(SPAWNING, **changes), spawned(), 3)  # type: ignore[arg-type]  # by name
    assert getattr(after.phase, "cause", None) is cause
    going, _ = step(SPAWNING, Halted(), 3)
    assert getattr(step(going, spawned(), 4)[0].phase, "cause", None) is Reason.SHUTDOWN
