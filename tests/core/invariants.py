"""What holds at every step of every replica, whatever happens. Scripts, properties and simulator all check it."""

from __future__ import annotations

import json

from modelsupd.core.actions import Abandon, Action, Probe, Spawn
from modelsupd.core.events import (
    Cleared,
    Demanded,
    Event,
    Evicted,
    Exited,
    Removed,
    Respecified,
    RestartAsked,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Stuck,
    Ticked,
)
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Failed,
    Live,
    Replica,
    Resolving,
    Spawning,
    Stopped,
    Stopping,
    Waiting,
    phase_name,
)
from modelsupd.core.record import durable, restore
from modelsupd.core.replica import deadline, step
from modelsupd.core.sleeping import rests

_OF_OPERATORS = StartAsked | StopAsked | RestartAsked


def check_step(before: Replica, event: Event, after: Replica, actions: tuple[Action, ...], now: float) -> None:
    """Fail with words where a step broke a rule that knows no exception."""
    assert after.last_run >= before.last_run, f"the run number went back: {before.last_run} to {after.last_run}"
    for action in actions:
        meant = before.last_run if isinstance(action, Abandon) else after.last_run
        assert action.run == meant, f"{action} is about another run than {meant}"
    if isinstance(before.phase, Resolving) and after.phase is not before.phase:
        reported = getattr(event, "run", None) == before.last_run
        assert reported or Abandon(before.last_run) in actions, f"weights are fetched on although {event}"
    _check_wishes(before, event, after)
    if isinstance(before.phase, Live) and not isinstance(after.phase, Live):
        assert isinstance(event, Exited), f"a running process was let go of by {event}"
    if isinstance(after.phase, Live):
        known = isinstance(before.phase, Live | Spawning)
        assert known, f"a process appeared out of {phase_name(before.phase)}"
    if isinstance(before.phase, Spawning) and not isinstance(after.phase, Spawning):
        assert getattr(event, "run", None) == before.last_run, f"a process about to exist was forgotten by {event}"
    if before.hold is not None and after.hold is None:
        over = isinstance(event, Exited | Cleared | Stuck | SpawnFailed)
        assert over, f"GPUs were let go of by {event}, with something of the run left"
    asked = isinstance(after.phase, Asleep) and Probe in map(type, actions)
    assert not asked, f"{after.phase} and is asked for something"
    assert (Spawn in map(type, actions)) == (isinstance(after.phase, Spawning) and after.phase is not before.phase)
    if type(after.phase) is not type(before.phase):
        assert after.reason, f"{phase_name(before.phase)} to {phase_name(after.phase)} without a reason"
    check_state(after, now)


def _check_wishes(before: Replica, event: Event, after: Replica) -> None:
    """Fail where something else than who may has changed what is wanted."""
    if not isinstance(event, _OF_OPERATORS | Demanded | Evicted | Respecified):
        assert after.demanded_by == before.demanded_by, f"{event} changed who asks for it"
    if not isinstance(event, _OF_OPERATORS):
        assert after.want is before.want, f"{event} changed what is wanted"
    if not isinstance(event, Removed | Respecified):
        assert after.removed is before.removed, f"{event} changed whether the replica is declared"
    assert after.halt >= before.halt, "a daemon that goes does not come back"


def check_state(replica: Replica, now: float) -> None:
    """Fail with words where a replica's state contradicts itself."""
    phase = replica.phase
    if isinstance(phase, Live):
        assert phase.process.run == replica.last_run, f"{phase} is not of the last run, {replica.last_run}"
    elif not isinstance(phase, Stopped | Backoff | Failed):
        assert phase.run == replica.last_run, f"{phase} is not of the last run, {replica.last_run}"
    if isinstance(phase, Resolving | Waiting | Backoff | Failed):
        assert replica.runs_wanted, f"{phase_name(phase)} though no process is wanted"
    if replica.process and not isinstance(phase, Stopping) and phase_name(phase) in {"starting", "ready"}:
        assert replica.runs_wanted, f"{phase_name(phase)} though no process is wanted"
        assert phase.process.digest == replica.digest, "an engine of an older declaration is kept"  # type: ignore[union-attr]  # has a process, as checked above
    if not isinstance(phase, Spawning | Live | Clearing):
        assert replica.hold is None, f"{phase_name(phase)} and still holds {replica.hold}"
        assert not replica.beside, f"{phase_name(phase)} and beside {replica.beside}"
    state = json.loads(json.dumps(durable(replica)))
    again = durable(restore(replica.name, state, replica.spec, now))
    assert json.loads(json.dumps(again)) == state, "the recorded state is not what it was recorded from"
    check_deadline(replica, now)


def check_deadline(replica: Replica, now: float) -> None:
    """Fail where a driver that ticks at the deadline would spin, or would wait for ever."""
    due = deadline(replica)
    if due is None:
        waits = isinstance(replica.phase, Live) and phase_name(replica.phase) not in {"ready", "asleep"}
        assert not waits, f"{replica.phase} has no deadline"
        return
    at = max(now, due)
    ticked, actions = step(replica, Ticked(), at)
    assert (ticked, actions) != (replica, ()), f"Ticked at the deadline changes nothing: {replica.phase}"
    again = deadline(ticked)
    stays = again is not None and again <= at and type(ticked.phase) is type(replica.phase)
    assert not stays or actions, f"Ticked at {at} leaves the deadline at {again} and does nothing: {ticked.phase}"


def wanted_idle(replica: Replica) -> bool:
    """Tell whether a replica that should run does nothing at all: a liveness bug wherever it is seen."""
    return isinstance(replica.phase, Stopped) and replica.runs_wanted


def at_rest(replica: Replica) -> bool:
    """Tell whether a replica is where it is wanted: ready, or stopped."""
    if replica.runs_wanted:
        return phase_name(replica.phase) == "ready"
    return isinstance(replica.phase, Stopped) or rests(replica)
