"""What operators and the configuration ask of a replica.

A rule: whoever asks for a process, or changes how it is started, starts with a clean sheet. Also a run that is still
being ended for its own fault is then ended on purpose: its failure says nothing about the next one.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupd.core.actions import Abandon
from modelsupd.core.demand import CONFIGURATION
from modelsupd.core.events import (
    Demanded,
    Evicted,
    Halted,
    Hurried,
    Removed,
    Respecified,
    RestartAsked,
    StartAsked,
    StopAsked,
)
from modelsupd.core.moves import NOTHING, Step, begin, end, forgiven, kill, terminate
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Draining,
    Failed,
    Fault,
    Halt,
    Killing,
    Ready,
    Reason,
    Replica,
    Resolving,
    Resting,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
)
from modelsupd.core.sleeping import rests
from modelsupd.core.spec import Start


def start_asked(replica: Replica, event: StartAsked, now: float) -> Step:
    """Want a process, and start over whatever failed before."""
    changed = replica.want is not Want.UP
    replica = _demanded(replace(replica, want=Want.UP), event.by)
    if isinstance(replica.phase, Stopped | Backoff | Failed) and replica.runs_wanted:
        return begin(forgiven(replica), f"start asked for by {event.by}", now)
    replica = _pardoned(replica, Reason.RESTART)
    return (replace(replica, reason=f"start asked for by {event.by}") if changed else replica), NOTHING


def stop_asked(replica: Replica, event: StopAsked, now: float) -> Step:
    """Want no process, across reboots."""
    changed = replica.want is not Want.DOWN
    replica = _not_to_sleep(replace(replica, want=Want.DOWN, demanded_by=""), Reason.OPERATOR)
    return _unwanted(replica, Reason.OPERATOR, f"stop asked for by {event.by}", now, changed)


def restart_asked(replica: Replica, event: RestartAsked, now: float) -> Step:
    """Want a new run."""
    replica = _pardoned(_demanded(replace(replica, want=Want.UP), event.by), Reason.RESTART)
    words = f"restart asked for by {event.by}"
    if not replica.runs_wanted:
        return replica, NOTHING
    if isinstance(replica.phase, Stopped | Backoff | Failed):
        return begin(replica, words, now)
    return end(_not_to_sleep(replica, Reason.RESTART), Reason.RESTART, words, now)


def respecified(replica: Replica, event: Respecified, now: float) -> Step:
    """Take over what is declared now; an engine that would be started differently is replaced."""
    changed = event.digest != replica.digest
    ran = replica.runs_wanted and not isinstance(replica.phase, Stopped)
    claims = event.spec.placement != replica.spec.placement
    replica = replace(replica, spec=event.spec, digest=event.digest, removed=False)
    # What ran without being asked for, and now starts on demand, goes on until that is seen to be too long.
    by = replica.demanded_by or (CONFIGURATION if ran else "")
    replica = replace(replica, demanded_by=by if event.spec.start is Start.ON_DEMAND else "")
    words = "the configuration changed"
    if not changed:
        # A replica that was on its way out of the configuration and is in it again starts from where it is.
        # What a run takes of GPUs was looked for as it was declared then, and not at all where the declaration said it.
        again = isinstance(replica.phase, Stopped) or (isinstance(replica.phase, Waiting) and claims)
        return begin(replica, words, now) if again and replica.runs_wanted else (replica, NOTHING)
    replica = _pardoned(replica, Reason.REPLACED)
    if isinstance(replica.phase, Resolving):
        after, actions = begin(replica, words, now)
        return after, (Abandon(replica.last_run), *actions)
    if isinstance(replica.phase, Waiting | Backoff | Failed | Stopped) and replica.runs_wanted:
        return begin(replica, words, now)
    return end(replica, Reason.REPLACED, words, now)


def removed(replica: Replica, _event: Removed, now: float) -> Step:
    """End what the configuration no longer has."""
    words = "no longer in the configuration"
    return _unwanted(replace(replica, removed=True), Reason.REMOVED, words, now, not replica.removed)


def halted(replica: Replica, _event: Halted, now: float) -> Step:
    """End the process without changing what is wanted."""
    changed = replica.halt is Halt.NO
    replica = replace(replica, halt=max(replica.halt, Halt.DRAIN))
    return _unwanted(replica, Reason.SHUTDOWN, "the daemon stops", now, changed)


def hurried(replica: Replica, event: Hurried, now: float) -> Step:
    """Skip the drain, or the grace as well."""
    replica = replace(replica, halt=Halt.KILL if event.kill else max(replica.halt, Halt.TERM))
    phase = replica.phase
    if isinstance(phase, Starting | Ready | Asleep | Draining | Stopping) and replica.halt is Halt.KILL:
        return kill(replica, getattr(phase, "cause", Reason.SHUTDOWN), "told to kill", now)
    if isinstance(phase, Draining):
        return terminate(replica, phase.cause, "told to hurry", now)
    return _unwanted(replica, Reason.SHUTDOWN, "told to hurry", now, changed=False)


def demanded(replica: Replica, event: Demanded, now: float) -> Step:
    """Take note that somebody waits; one that is being ended to give way starts anew when it is gone."""
    if replica.demanded_by or replica.spec.start is not Start.ON_DEMAND or replica.want is not Want.UP:
        return replica, NOTHING
    replica = replace(replica, demanded_by=event.by)
    if isinstance(replica.phase, Stopped) and replica.runs_wanted:
        return begin(replica, f"asked for by {event.by}", now)
    return replica, NOTHING


def evicted(replica: Replica, event: Evicted, now: float) -> Step:
    """Give way, until somebody asks for it again; one that sleeps and waits to wake up gives up its place alone."""
    if replica.spec.start is not Start.ON_DEMAND:
        return replica, NOTHING
    changed, phase = bool(replica.demanded_by), replica.phase
    if event.sleep and isinstance(phase, Asleep):
        # It sleeps already, and is asked for no more; while it wakes up it is not held up.
        rest = replace(replica, demanded_by="", reason=event.words)
        return (rest if phase.state is Resting.ASLEEP and changed else replica), NOTHING
    cause = Reason.SLEEP if event.sleep and isinstance(phase, Ready) else Reason.EVICTED
    if not rests(replica):
        replica = replace(replica, demanded_by="")  # one that waits to wake up still waits: it starts anew
    return _unwanted(replica, cause, event.words, now, changed)


def _demanded(replica: Replica, by: str) -> Replica:
    return replace(replica, demanded_by=by) if replica.spec.start is Start.ON_DEMAND else replica


def _unwanted(replica: Replica, reason: Reason, words: str, now: float, changed: bool) -> Step:
    """No process is wanted any more: end one that runs, and leave every phase that waits for another."""
    if isinstance(replica.phase, Resolving):
        return replace(replica, phase=Stopped(now), reason=words), (Abandon(replica.last_run),)
    if isinstance(replica.phase, Waiting | Backoff | Failed):
        return replace(replica, phase=Stopped(now), reason=words), NOTHING
    if isinstance(replica.phase, Starting | Ready | Asleep):
        return end(replica, reason, words, now)
    return (replace(replica, reason=words) if changed else replica), NOTHING


def _not_to_sleep(replica: Replica, reason: Reason) -> Replica:
    """Return the replica with the run that is drained in order to sleep drained in order to be ended."""
    phase = replica.phase
    if isinstance(phase, Draining) and phase.cause is Reason.SLEEP:
        return replace(replica, phase=replace(phase, cause=reason))
    return replica


def _pardoned(replica: Replica, reason: Reason) -> Replica:
    """Return the replica with no history, and with the run that is being ended for a fault ended for `reason`."""
    phase = replica.phase
    if isinstance(phase, Stopping | Killing | Clearing) and isinstance(phase.cause, Fault):
        replica = replace(replica, phase=replace(phase, cause=reason))
    return forgiven(replica)
