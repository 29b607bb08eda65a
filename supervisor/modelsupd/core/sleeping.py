"""Engines that sleep instead of being ended: fewer bytes of GPUs, no requests, and a process all the same.

Two rules:

1. Who sleeps gets no request, not even a probe: what it would answer with is not in its memory.
2. Who wakes proves that it generates, as after any start. One that cannot is replaced by a fresh run.
"""

from __future__ import annotations

from dataclasses import replace

from modelsupd.core import health
from modelsupd.core.actions import Wake
from modelsupd.core.events import FailureClass, Placed
from modelsupd.core.moves import NOTHING, Step, condemn, terminate
from modelsupd.core.phases import Asleep, Ready, Reason, Replica, Resting, Starting
from modelsupd.core.placement import Hold
from modelsupd.core.sleep_events import Slept, Woke

#: The level of sleep from which an engine is woken where it is not known at which it sleeps: it makes sure of all.
DEEPEST = 2


def slept(replica: Replica, event: Slept, now: float) -> Step:
    """Rest, and hold no more than what a sleeping engine keeps; or be ended, where it could not."""
    phase = replica.phase
    if not isinstance(phase, Asleep) or phase.state is not Resting.FALLING:
        return replica, NOTHING  # it was ended meanwhile, or was told again
    if event.failure:
        return terminate(replica, Reason.EVICTED, f"cannot sleep: {event.failure}; stopped instead", now)
    resting = replace(phase, since=now, state=Resting.ASLEEP)
    words = f"asleep at level {phase.level}; {replica.reason}"
    return replace(replica, phase=resting, hold=kept_asleep(phase.before, replica), reason=words), NOTHING


def kept_asleep(before: Hold | None, replica: Replica) -> Hold | None:
    """Return what is reckoned with of GPUs for a replica that sleeps."""
    if before is None:
        return None
    most = replica.spec.demand.asleep_vram_bytes
    return replace(before, bytes=tuple(min(size, most) for size in before.bytes), exclusive=False)


def rouse(replica: Replica, event: Placed, _now: float) -> Step:
    """Wake on the GPUs where it lies, which are its own again."""
    phase = replica.phase
    assert isinstance(phase, Asleep)  # noqa: S101 - the caller has looked
    if not rests(replica) or not replica.runs_wanted:
        return replica, NOTHING
    waking = replace(phase, state=Resting.WAKING)
    action = Wake(event.run, phase.level, replica.spec.demand.sleep_timeout_s)
    return replace(replica, phase=waking, hold=event.hold or phase.before, reason="wakes up"), (action,)


def woke(replica: Replica, event: Woke, now: float) -> Step:
    """Prove that it generates; or be replaced, where it could not wake."""
    phase = replica.phase
    if not isinstance(phase, Asleep) or phase.state is not Resting.WAKING:
        return replica, NOTHING
    if event.failure:
        return condemn(replica, FailureClass.CRASH, f"cannot wake: {event.failure}", now)
    starting = Starting(now, phase.process, health.begin(now), woken=True)
    return replace(replica, phase=starting, reason="is awake, and has yet to prove it"), NOTHING


def found_asleep(replica: Replica, now: float) -> Step:
    """Let an engine sleep that does so though nothing of it is on record; it is woken as from the deepest level."""
    phase = replica.phase
    assert isinstance(phase, Starting | Ready)  # noqa: S101 - the caller has looked
    asleep = Asleep(now, phase.process, DEEPEST, replica.hold, Resting.ASLEEP)
    words = "asleep, of which nothing was on record"
    return replace(replica, phase=asleep, hold=kept_asleep(replica.hold, replica), reason=words), NOTHING


def rests(replica: Replica) -> bool:
    """Tell whether a replica sleeps, and neither falls asleep nor wakes up."""
    return isinstance(replica.phase, Asleep) and replica.phase.state is Resting.ASLEEP
