"""One replica: what an event changes, and what is to be done about it.

Two rules:

1. `step` is total. Every event in every phase is legal, stale (an older run's report, which changes nothing) or
   impossible (`InvalidTransition`); `tests/core/transitions.txt` holds the whole table.
2. A process is left in one direction only: Draining, Stopping, Killing, Clearing. What comes after is decided once,
   in `moves.settle`, when nothing of the run is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from modelsupd.core import asked, health, moves, on_gpus, sleeping
from modelsupd.core.actions import Kill, Recheck, Watch
from modelsupd.core.events import (
    Beside,
    Cleared,
    Delivered,
    Demanded,
    Event,
    Evicted,
    Exited,
    FailedClient,
    FailureClass,
    GpuLost,
    Halted,
    Hurried,
    Lagged,
    Measured,
    Outcome,
    Placed,
    Probed,
    ProbeKind,
    Rechecked,
    Removed,
    Resolved,
    Respecified,
    RestartAsked,
    Spawned,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Stuck,
    Ticked,
    Unresolved,
    Waits,
)
from modelsupd.core.learning import Learned
from modelsupd.core.moves import (
    DRAIN_PAUSE_S,
    NOTHING,
    Step,
    after_fault,
    begin,
    clear,
    condemn,
    end,
    forgiven,
    kill,
    leave,
    part,
    probe,
    settle,
)
from modelsupd.core.phases import (
    Cause,
    Clearing,
    Draining,
    Failed,
    Fault,
    Halt,
    Killing,
    Live,
    Phase,
    Ready,
    Reason,
    Replica,
    Resolving,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
    phase_name,
)
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.core.timing import deadline, known_start, stall_s

__all__ = ["InvalidTransition", "Step", "deadline", "fail_internally", "step"]


class InvalidTransition(Exception):  # noqa: N818 - named for what happened, as DESIGN and the field do
    """An event that cannot happen in this phase. Nothing was changed; the text is the story so far."""

    def __init__(self, replica: Replica, event: Event) -> None:
        """Tell the story: who, in what phase and since when, and what came."""
        super().__init__(
            f"cannot apply {event} to {replica.name}: it is {phase_name(replica.phase)} ({replica.phase}), "
            f"last run {replica.last_run}, wanted {replica.want}; before that: {replica.reason or 'nothing'}"
        )


def step(replica: Replica, event: Event, now: float) -> Step:
    """Return the replica after the event, and what is to be done, in order.

    Raises `InvalidTransition` for an event that cannot happen; an older run's report returns the replica unchanged.
    """
    run = getattr(event, "run", None)
    if run is not None:
        if run > replica.last_run:
            raise InvalidTransition(replica, event)
        if run < replica.last_run:
            return replica, NOTHING
    try:
        after, actions = _HANDLERS[type(event)](replica, event, now)
    except on_gpus.Impossible as error:
        raise InvalidTransition(replica, event) from error
    return on_gpus.let_go(after), actions


def fail_internally(replica: Replica, words: str, now: float) -> Step:
    """Return the replica after the supervisor itself could not follow: the run is ended, this replica alone fails."""
    after, actions = moves.fail_internally(replica, words, now)
    return on_gpus.let_go(after), actions


# Time


def _ticked(replica: Replica, _event: Ticked, now: float) -> Step:  # noqa: C901, PLR0911 - one case a phase: a table reads better whole
    due = deadline(replica)
    if due is None or now < due:
        return replica, NOTHING
    phase = replica.phase
    match phase:
        case Starting():
            return _tick_starting(replica, phase, now)
        case Ready():
            return _tick_ready(replica, phase, now)
        case Draining() if now >= phase.until and phase.held:
            words = f"{replica.reason}; it still does after {replica.spec.stop.beside_load_timeout_s:g} s"
            return leave(replica, phase.cause, words, now)
        case Draining() if now >= phase.until:
            words = f"requests were still in flight after {replica.spec.stop.drain_timeout_s:g} s"
            return part(replica, phase.cause, words, now)
        case Draining():
            return replace(replica, phase=replace(phase, probing=True)), (probe(replica, ProbeKind.DRAIN),)
        case Stopping():
            return kill(replica, phase.cause, f"still there {now - phase.since:.1f} s after SIGTERM", now)
        case Killing():
            words = f"stuck: still there {now - phase.since:.1f} s after SIGKILL"
            until = now + replica.spec.stop.kill_timeout_s
            stuck = replace(replica, phase=replace(phase, until=until, stuck=True), reason=words)
            return stuck, (Kill(replica.last_run),)
        case Clearing():
            looking = replace(phase, again_at=None)
            return replace(replica, phase=looking), (clear(replica),)
        case Failed() if phase.retry_at is None or now < phase.retry_at:
            return replace(replica, phase=replace(phase, recheck_at=None)), (Recheck(replica.last_run),)
        case Failed():
            again = replace(replica, restarts=replica.restarts + 1)
            return begin(again, "one more try after the cool-down", now)
        case _:
            return begin(replica, "the pause is over", now)


def _tick_starting(replica: Replica, phase: Starting, now: float) -> Step:
    limits, pulse = replica.spec.health, phase.pulse
    if now >= pulse.alive_at + limits.start_limit_s:
        return condemn(replica, FailureClass.START_STALLED, f"not ready after {limits.start_limit_s:g} s", now)
    if now >= pulse.moved_at + stall_s(replica):
        last = f"; last: {pulse.complaint}" if pulse.complaint else ""
        words = f"no progress for {stall_s(replica):g} s{last}"
        return condemn(replica, FailureClass.START_STALLED, words, now)
    probing = replace(phase, pulse=replace(pulse, probe=ProbeKind.START))
    return replace(replica, phase=probing), (probe(replica, ProbeKind.START),)


def _tick_ready(replica: Replica, phase: Ready, now: float) -> Step:
    limits, pulse = replica.spec.health, phase.pulse
    hung_at = health.hung_at(pulse, limits)
    if hung_at is not None and now >= hung_at:
        words = (
            f"no answer, no delivery and no progress for {now - pulse.alive_at:.1f} s, "
            f"{pulse.failures} probes failed in a row; last: {pulse.complaint}"
        )
        return condemn(replica, FailureClass.HUNG, words, now)
    kind = health.next_kind(pulse, limits, now)
    return replace(replica, phase=replace(phase, pulse=replace(pulse, probe=kind))), (probe(replica, kind),)


def _lagged(replica: Replica, event: Lagged, now: float) -> Step:
    if not isinstance(replica.phase, Starting | Ready):
        return replica, NOTHING
    pulse = health.without(replica.phase.pulse, event.gap_s, now)
    return replace(replica, phase=replace(replica.phase, pulse=pulse)), NOTHING


# Weights and spawning


def _given_up(phase: Phase) -> bool:
    """Tell whether a look for weights may have been let go of, so that its end says nothing any more."""
    return isinstance(phase, Stopped) or (isinstance(phase, Failed) and phase.failure.kind is FailureClass.INTERNAL)


def _resolved(replica: Replica, event: Resolved, now: float) -> Step:
    phase = replica.phase
    if _given_up(phase):
        return replica, NOTHING
    if not isinstance(phase, Resolving):
        raise InvalidTransition(replica, event)
    return on_gpus.has_what_it_needs(replica, event, now)


def _unresolved(replica: Replica, event: Unresolved, now: float) -> Step:
    if _given_up(replica.phase):
        return replica, NOTHING
    if not isinstance(replica.phase, Resolving):
        raise InvalidTransition(replica, event)
    return after_fault(replace(replica, inputs=event.inputs), Fault(event.failure), now)


def _rechecked(replica: Replica, event: Rechecked, now: float) -> Step:
    phase = replica.phase
    if isinstance(phase, Stopped):
        return replica, NOTHING
    if not isinstance(phase, Failed):
        raise InvalidTransition(replica, event)
    if event.inputs == phase.inputs:
        again = replace(phase, recheck_at=now + replica.spec.restart.recheck_s)
        return replace(replica, phase=again), NOTHING
    return begin(forgiven(replica), "the weights or the binary changed", now)


def _spawned(replica: Replica, event: Spawned, now: float) -> Step:
    phase = replica.phase
    if not isinstance(phase, Spawning):
        raise InvalidTransition(replica, event)
    words = f"run {event.run} started as pid {event.process.pid}"
    replica = replace(replica, phase=Starting(now, event.process, health.begin(now)), reason=words)
    watch = (Watch(event.run),)
    if replica.halt is Halt.KILL:
        after, actions = kill(replica, Reason.SHUTDOWN, "told to kill", now)
        return after, watch + actions
    if not replica.runs_wanted:
        after, actions = end(replica, _why_unwanted(replica), "no longer wanted", now)
        return after, watch + actions
    if event.process.digest != replica.digest:
        after, actions = end(replica, Reason.REPLACED, "the configuration changed meanwhile", now)
        return after, watch + actions
    return replica, watch


def _why_unwanted(replica: Replica) -> Reason:
    if replica.removed:
        return Reason.REMOVED
    if replica.halt is not Halt.NO:
        return Reason.SHUTDOWN
    return Reason.EVICTED if replica.want is Want.UP else Reason.OPERATOR


def _spawn_failed(replica: Replica, event: SpawnFailed, now: float) -> Step:
    phase = replica.phase
    if not isinstance(phase, Spawning):
        raise InvalidTransition(replica, event)
    # What an older declaration failed of says nothing about the present one.
    cause = Fault(event.failure) if phase.digest == replica.digest else Reason.REPLACED
    replica = replace(replica, reason=event.failure.detail)
    if event.cleared:
        return settle(replica, cause, now)
    return replace(replica, phase=Clearing(now, event.run, cause)), (clear(replica),)


# A running engine


def _probed(replica: Replica, event: Probed, now: float) -> Step:  # noqa: PLR0911 - one case a phase: a table reads better whole
    phase, limits = replica.phase, replica.spec.health
    match phase:
        case Resolving() | Waiting() | Spawning():
            raise InvalidTransition(replica, event)
        case Starting() | Ready() if event.outcome is Outcome.ASLEEP:
            return sleeping.found_asleep(replica, now)
        case Starting() if event.outcome is Outcome.TOKENS:
            known = known_start(replica)
            still_s = health.stood_still_s(phase.pulse, now)
            used = known.bytes if known else None
            start = Learned(replica.digest, replica.inputs, now - phase.since, still_s, used)
            learned = replica.learned if phase.woken else start  # of a start nothing is learned by waking
            pulse = replace(health.begin(now), next_at=now + limits.probe_interval_s, vitals=event.vitals)
            words = f"generates: {event.evidence}"
            history = replace(replica.history, addresses=0)
            ready = Ready(now, phase.process, pulse)
            return replace(replica, phase=ready, history=history, reason=words, learned=learned), NOTHING
        case Starting():
            pulse = health.observe_start(phase.pulse, event, limits, phase.since, now)
            return replace(replica, phase=replace(phase, pulse=pulse)), NOTHING
        case Ready():
            pulse = health.observe(phase.pulse, event, limits, now)
            return replace(replica, phase=replace(phase, pulse=pulse)), NOTHING
        case Draining(held=False) if event.kind is ProbeKind.DRAIN:
            if event.vitals.in_flight == 0 and event.outcome is Outcome.ANSWERED:
                return part(replica, phase.cause, "drained", now)
            return replace(replica, phase=replace(phase, probing=False, next_at=now + DRAIN_PAUSE_S)), NOTHING
        case _:
            return replica, NOTHING


def _delivered(replica: Replica, _event: Delivered, now: float) -> Step:
    # What a gateway tells may be late: of a process that is gone, or on its way out, it says nothing any more.
    if not isinstance(replica.phase, Ready):
        return replica, NOTHING
    return replace(replica, phase=replace(replica.phase, pulse=health.delivered(replica.phase.pulse, now))), NOTHING


def _failed_client(replica: Replica, event: FailedClient, now: float) -> Step:
    if not isinstance(replica.phase, Ready):
        return replica, NOTHING
    pulse = health.failed_client(replica.phase.pulse, event.words, now)
    return replace(replica, phase=replace(replica.phase, pulse=pulse)), NOTHING


def _exited(replica: Replica, event: Exited, now: float) -> Step:
    phase = replica.phase
    if not isinstance(phase, Live):
        raise InvalidTransition(replica, event)
    cause: Cause
    if isinstance(phase, Draining | Stopping | Killing):
        cause = phase.cause
    elif event.asked:
        cause = Reason.RESTART
    else:
        cause = Fault(event.failure, now - phase.since if isinstance(phase, Ready) else None)
    words = f"run {event.run} ended{' as it was told to' if event.asked else ''}: {event.exit}"
    if isinstance(cause, Fault):
        words = f"run {event.run} ended: {cause.failure.detail}"
    replica = replace(replica, reason=words)
    # Nothing of the run is left; but of GPUs, only a look at their memory tells that.
    if event.cleared and replica.hold is None:
        return settle(replica, cause, now)
    return replace(replica, phase=Clearing(now, event.run, cause)), (clear(replica),)


def _cleared(replica: Replica, event: Cleared, now: float) -> Step:
    if not isinstance(replica.phase, Clearing):
        raise InvalidTransition(replica, event)
    return settle(replica, replica.phase.cause, now)


def _stuck(replica: Replica, event: Stuck, now: float) -> Step:
    if not isinstance(replica.phase, Clearing):
        raise InvalidTransition(replica, event)
    if event.gpus:
        return settle(replace(replica, reason=event.why), on_gpus.with_words(replica.phase.cause, event.why), now)
    again_at = now + replica.spec.stop.kill_timeout_s
    phase = replace(replica.phase, again_at=again_at, stuck=event.pids)
    pids = ", ".join(map(str, event.pids))
    words = f"stuck: {event.why or f'processes {pids} of run {event.run} withstand SIGKILL'}"
    return replace(replica, phase=phase, reason=words), NOTHING


_HANDLERS: dict[type[Any], Callable[[Replica, Any, float], Step]] = {
    StartAsked: asked.start_asked,
    StopAsked: asked.stop_asked,
    RestartAsked: asked.restart_asked,
    Respecified: asked.respecified,
    Removed: asked.removed,
    Halted: asked.halted,
    Hurried: asked.hurried,
    Demanded: asked.demanded,
    Evicted: asked.evicted,
    Ticked: _ticked,
    Lagged: _lagged,
    Resolved: _resolved,
    Unresolved: _unresolved,
    Rechecked: _rechecked,
    Placed: on_gpus.placed,
    Waits: on_gpus.waits,
    Beside: on_gpus.beside,
    Measured: on_gpus.measured,
    GpuLost: on_gpus.gpu_lost,
    Spawned: _spawned,
    SpawnFailed: _spawn_failed,
    Probed: _probed,
    Delivered: _delivered,
    FailedClient: _failed_client,
    Exited: _exited,
    Cleared: _cleared,
    Stuck: _stuck,
    Slept: sleeping.slept,
    Woke: sleeping.woke,
}
