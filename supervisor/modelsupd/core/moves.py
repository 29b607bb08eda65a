"""The moves between phases, each in one place: what it leaves behind, and what is to be done."""

from __future__ import annotations

from dataclasses import replace

from modelsupd.core import restart
from modelsupd.core.actions import Abandon, Action, Clear, Kill, Probe, Resolve, Sleep, Terminate
from modelsupd.core.events import Failure, FailureClass, ProbeKind
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Cause,
    Clearing,
    Draining,
    Failed,
    Fault,
    Halt,
    Killing,
    Live,
    Ready,
    Reason,
    Replica,
    Resolving,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Want,
)
from modelsupd.core.restart import History, Retry

Step = tuple[Replica, tuple[Action, ...]]

NOTHING: tuple[Action, ...] = ()

#: Pause between two looks at what is still in flight while draining, in seconds.
DRAIN_PAUSE_S = 0.1


def begin(replica: Replica, words: str, now: float) -> Step:
    """Enter the next run: its weights are looked for first."""
    run = replica.last_run + 1
    return replace(replica, phase=Resolving(now, run), last_run=run, reason=words), (Resolve(run),)


def end(replica: Replica, cause: Cause, words: str, now: float) -> Step:
    """End a process on purpose, as gently as its phase allows."""
    phase = replica.phase
    if isinstance(phase, Ready) and replica.spec.stop.drain_timeout_s > 0 and replica.halt < Halt.TERM:
        until = now + replica.spec.stop.drain_timeout_s
        draining = Draining(now, phase.process, cause, until, next_at=now, probing=True)
        return replace(replica, phase=draining, reason=words), (probe(replica, ProbeKind.DRAIN),)
    if isinstance(phase, Starting | Ready | Asleep):
        return part(replica, cause, words, now)
    return replica, NOTHING


def part(replica: Replica, cause: Cause, words: str, now: float) -> Step:
    """End what has nothing to finish any more, or have it sleep, unless it has to wait for a load on its GPU."""
    phase, limit_s = replica.phase, replica.spec.stop.beside_load_timeout_s
    waits = replica.beside and limit_s > 0 and replica.halt is Halt.NO and isinstance(cause, Reason)
    # Two that load on one GPU are found by a daemon whose journal is behind: one of them may be ready for long.
    if waits and isinstance(phase, Starting | Ready | Asleep | Draining):
        until = now + limit_s
        since = phase.since if isinstance(phase, Draining) else now
        draining = Draining(since, phase.process, cause, until, next_at=until, held=True)
        words = f"{words}; waits while {replica.beside} loads beside it"
        return replace(replica, phase=draining, reason=words), NOTHING
    return leave(replica, cause, words, now)


def leave(replica: Replica, cause: Cause, words: str, now: float) -> Step:
    """Have what is drained fall asleep if that is what it was drained for, and is still what is wanted; else end it."""
    phase, demand = replica.phase, replica.spec.demand
    stays = replica.want is Want.UP and replica.halt is Halt.NO and not replica.removed
    sleeps = cause is Reason.SLEEP and stays and demand.sleep > 0
    if sleeps and isinstance(phase, Ready | Draining) and phase.process.digest == replica.digest:
        asleep = Asleep(now, phase.process, demand.sleep, replica.hold)
        action = Sleep(replica.last_run, demand.sleep, demand.sleep_timeout_s)
        return replace(replica, phase=asleep, reason=words), (action,)
    return terminate(replica, cause, words, now)


def terminate(replica: Replica, cause: Cause, words: str, now: float) -> Step:
    """Send SIGTERM; an engine that still loads gets the shorter grace, because vLLM swallows the signal there."""
    phase, stop = replica.phase, replica.spec.stop
    assert isinstance(phase, Live)  # noqa: S101 - every caller holds a running process
    grace_s = stop.load_term_timeout_s if isinstance(phase, Starting) else stop.term_timeout_s
    stopping = Stopping(now, phase.process, cause, now + grace_s)
    return replace(replica, phase=stopping, reason=words), (Terminate(replica.last_run),)


def kill(replica: Replica, cause: Cause, words: str, now: float) -> Step:
    """Send SIGKILL to everything of the run."""
    phase = replica.phase
    assert isinstance(phase, Live)  # noqa: S101 - every caller holds a running process
    killing = Killing(now, phase.process, cause, now + replica.spec.stop.kill_timeout_s)
    return replace(replica, phase=killing, reason=words), (Kill(replica.last_run),)


def condemn(replica: Replica, kind: FailureClass, words: str, now: float) -> Step:
    """End a run for its own fault; SIGTERM is spared, because what does not answer does not clean up either."""
    phase = replica.phase
    ready_s = now - phase.since if isinstance(phase, Ready) else None
    return kill(replica, Fault(Failure(kind, words), ready_s), f"{kind}: {words}", now)


def settle(replica: Replica, cause: Cause, now: float) -> Step:
    """Decide what follows a run of which nothing is left."""
    if not replica.runs_wanted:
        return replace(replica, phase=Stopped(now)), NOTHING
    if isinstance(cause, Fault):
        return after_fault(replica, cause, now)
    return begin(replica, f"{replica.reason}; a new run follows", now)


def after_fault(replica: Replica, fault: Fault, now: float) -> Step:
    """Decide by the kind of the failure and by the history whether, and when, there is another run."""
    policy, failure = replica.spec.restart, fault.failure
    key = f"{replica.name}#{replica.last_run}"
    decision = restart.after_failure(replica.history, failure, fault.ready_s, policy, key, now)
    replica = replace(replica, history=decision.history)
    words = f"{failure.kind}: {failure.detail}"
    if isinstance(decision, Retry):
        replica = replace(replica, restarts=replica.restarts + 1)
        if decision.at <= now:
            return begin(replica, f"{words}; started again at once", now)
        backoff = Backoff(now, replica.last_run, failure, decision.at)
        return replace(replica, phase=backoff, reason=f"{words}; next start in {decision.at - now:.1f} s"), NOTHING
    failed = Failed(now, replica.last_run, failure, decision.retry_at, replica.inputs, now + policy.recheck_s)
    return replace(replica, phase=failed, reason=f"{words}; {decision.why}"), NOTHING


def fail_internally(replica: Replica, words: str, now: float) -> Step:
    """Return the replica after the supervisor itself could not follow: the run is ended, this replica alone fails."""
    fault = Fault(Failure(FailureClass.INTERNAL, words))
    if isinstance(replica.phase, Live):
        return kill(replica, fault, f"{FailureClass.INTERNAL}: {words}", now)
    if isinstance(replica.phase, Spawning | Clearing):
        # An effect is about to tell of a process, or of the last of one: another run before that would be one too many.
        return replace(replica, reason=f"{FailureClass.INTERNAL}: {words}"), NOTHING
    if isinstance(replica.phase, Resolving):
        return settle(replica, fault, now)[0], (Abandon(replica.last_run),)
    return settle(replica, fault, now)


def probe(replica: Replica, kind: ProbeKind) -> Probe:
    """Return the action for one probe of the current run."""
    return Probe(replica.last_run, kind, replica.spec.health.probe_timeout_s)


def clear(replica: Replica) -> Clear:
    """Return the action that makes sure that nothing of the current run is left."""
    return Clear(replica.last_run, replica.spec.stop.kill_timeout_s)


def forgiven(replica: Replica) -> Replica:
    """Return the replica without its history: an operator or a new configuration starts with a clean sheet."""
    return replace(replica, history=History())
