"""What a replica does about GPUs: waits for some, holds them while anything of its run is left, keeps out of loads.

Two rules:

1. A run holds its GPUs from before its process exists until nothing of it is left and their memory is back.
2. No run is ended on purpose beside one that loads on the same GPU, for as long as `stop.beside_load_timeout_s`: what
   is given back there while an engine measures spoils what it measures. The end of the daemon does not wait.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupd.core import sleeping
from modelsupd.core.actions import Spawn
from modelsupd.core.events import Beside, FailureClass, GpuLost, Measured, Placed, Resolved, Waits
from modelsupd.core.moves import NOTHING, Step, condemn, leave
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Cause,
    Clearing,
    Draining,
    Failed,
    Fault,
    Killing,
    Live,
    Ready,
    Replica,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
)
from modelsupd.core.spec import Start, gpu_count


class Impossible(Exception):  # noqa: N818 - named for what it is, as `replica.InvalidTransition`
    """The event cannot happen in this phase."""


def has_what_it_needs(replica: Replica, event: Resolved, now: float) -> Step:
    """Go on to the process or wait, for GPUs where some are needed, for its turn where it starts on demand."""
    evidence = f"; {event.evidence}" if event.evidence else ""
    replica = replace(replica, inputs=event.inputs)
    if gpu_count(replica.spec) > 0 or replica.spec.start is Start.ON_DEMAND:
        waiting = Waiting(now, event.run, event.digest, event.size)
        return replace(replica, phase=waiting, reason=f"waits for {_awaited(replica)}{evidence}"), NOTHING
    spawning = Spawning(now, event.run, event.digest)
    return replace(replica, phase=spawning, reason=f"starting run {event.run}{evidence}"), (Spawn(event.run),)


def placed(replica: Replica, event: Placed, now: float) -> Step:
    """Take the turn, and the GPUs; what was given to a replica that no longer waits is free again."""
    phase = replica.phase
    if isinstance(phase, Asleep):
        return sleeping.rouse(replica, event, now)
    if not isinstance(phase, Waiting):
        return _too_late(replica)
    on = f" on {' and '.join(event.hold.gpus)}" if event.hold is not None else ""
    words = f"starting run {event.run}{on}"
    spawning = Spawning(now, event.run, phase.digest)
    return replace(replica, phase=spawning, hold=event.hold, reason=words), (Spawn(event.run),)


def waits(replica: Replica, event: Waits, _now: float) -> Step:
    """Take note of why there are none yet."""
    phase = replica.phase
    if sleeping.rests(replica):
        if not replica.runs_wanted:
            return replica, NOTHING  # whoever waited for it has left meanwhile
        return replace(replica, reason=f"asleep, and waits for its turn: {event.why}"), NOTHING
    if not isinstance(phase, Waiting):
        return _too_late(replica)
    return replace(
        replica, phase=replace(phase, why=event.why), reason=f"waits for {_awaited(replica)}: {event.why}"
    ), NOTHING


def _awaited(replica: Replica) -> str:
    return "GPUs" if gpu_count(replica.spec) > 0 else "its turn"


def _too_late(replica: Replica) -> Step:
    # Another run would have another number; of this one the end of the wait was decided here meanwhile. Of one that
    # waited in its sleep a process was there, which has to end first.
    if isinstance(replica.phase, Stopped | Failed | Draining | Stopping | Killing | Clearing | Backoff):
        return replica, NOTHING
    raise Impossible


def beside(replica: Replica, event: Beside, now: float) -> Step:
    """Take note of who loads on the same GPU; what was held back for that is done when nobody does any more."""
    replica = replace(replica, beside=event.loading)
    phase = replica.phase
    if isinstance(phase, Draining) and phase.held and not event.loading:
        return leave(replica, phase.cause, f"{replica.reason}; it no longer does", now)
    return replica, NOTHING


def measured(replica: Replica, event: Measured, _now: float) -> Step:
    """Remember the most that a run of this was seen to use of one GPU."""
    if not isinstance(replica.phase, Ready) or replica.learned is None or not event.bytes:
        return replica, NOTHING
    return replace(replica, learned=replace(replica.learned, bytes=max(event.bytes))), NOTHING


def gpu_lost(replica: Replica, event: GpuLost, now: float) -> Step:
    """End a run whose GPU is gone, whatever its engine still says; the next one is placed elsewhere."""
    if isinstance(replica.phase, Starting | Ready | Asleep):
        return condemn(replica, FailureClass.GPU_LOST, event.words, now)
    return replica, NOTHING


def with_words(cause: Cause, words: str) -> Cause:
    """Return a cause with more to be said of it, so that the record of what follows says it too."""
    if not isinstance(cause, Fault):
        return cause
    return replace(cause, failure=replace(cause.failure, detail=f"{cause.failure.detail}; {words}"))


def let_go(replica: Replica) -> Replica:
    """Return the replica without GPUs where nothing of a run is left that could hold any."""
    if isinstance(replica.phase, Spawning | Live | Clearing):
        return replica
    return replace(replica, hold=None, beside="") if replica.hold is not None or replica.beside else replica
