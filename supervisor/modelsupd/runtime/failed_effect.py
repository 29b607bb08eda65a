"""How an effect ends that raised: by the event of its own run that says so, whatever it was."""

from __future__ import annotations

from modelsupd.core.actions import (
    Abandon,
    Action,
    Clear,
    Kill,
    Probe,
    Recheck,
    Resolve,
    Sleep,
    Spawn,
    Terminate,
    Wake,
    Watch,
)
from modelsupd.core.events import (
    Event,
    Exit,
    Exited,
    Failure,
    FailureClass,
    Outcome,
    Probed,
    Rechecked,
    SpawnFailed,
    Stuck,
    Unresolved,
    Vitals,
)
from modelsupd.core.phases import Replica
from modelsupd.core.sleep_events import Slept, Woke


def failed_effect(action: Action, error: Exception, replica: Replica) -> Event | None:  # noqa: PLR0911 - one case an action
    """Return the event by which an effect ends that raised."""
    failure = Failure(FailureClass.INTERNAL, f"{type(action).__name__.lower()}: {error!r}")
    match action:
        case Resolve(run=run):
            return Unresolved(run, failure, "")
        case Recheck(run=run):
            return Rechecked(run, replica.inputs)
        case Spawn(run=run):
            return SpawnFailed(run, failure, cleared=False)
        case Watch(run=run):
            return Exited(run, Exit(), failure, cleared=False)
        case Probe(run=run, kind=kind):
            return Probed(run, kind, Outcome.VOID, failure.detail, Vitals(), Vitals())
        case Clear(run=run):
            return Stuck(run, (), f"run {run} cannot be cleared: {error}")
        case Sleep(run=run):
            return Slept(run, failure.detail)
        case Wake(run=run):
            return Woke(run, failure.detail)
        case Abandon() | Terminate() | Kill():
            return None
