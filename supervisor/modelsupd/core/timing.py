"""When the next `Ticked` is due. There are no other timers."""

from __future__ import annotations

from modelsupd.core import health
from modelsupd.core.learning import Learned, stall_after_s
from modelsupd.core.phases import Backoff, Clearing, Draining, Failed, Killing, Ready, Replica, Starting, Stopping


def known_start(replica: Replica) -> Learned | None:
    """Return what is known of starts of the same as this replica's present run, None if nothing is."""
    learned = replica.learned
    return learned if learned is not None and learned.of(replica.digest, replica.inputs) else None


def start_left_s(replica: Replica, now: float) -> float | None:
    """Return how long the present start will still take, by the last one of the same; None where nothing tells."""
    learned = known_start(replica)
    if learned is None or not isinstance(replica.phase, Starting) or replica.phase.woken:
        return None
    return max(0.0, learned.start_s - (now - replica.phase.since))


def stall_s(replica: Replica) -> float:
    """Return after how long without progress the present start of a replica has stalled, in seconds."""
    return stall_after_s(replica.spec.health, known_start(replica))


def deadline(replica: Replica) -> float | None:  # noqa: PLR0911 - one case a phase: a table reads better whole
    """Return the instant from which `Ticked` would change something, or None where only an event can.

    It may lie in the past; then the tick is due now.
    """
    phase, limits = replica.phase, replica.spec.health
    match phase:
        case Starting(pulse=pulse):
            # `alive_at` is when the start began, less the time in which the daemon itself got no CPU.
            verdict_at = min(pulse.moved_at + stall_s(replica), pulse.alive_at + limits.start_limit_s)
            return verdict_at if pulse.probe else min(verdict_at, pulse.next_at)
        case Ready(pulse=pulse):
            hung_at = health.hung_at(pulse, limits)
            if pulse.probe:
                return hung_at
            return pulse.next_at if hung_at is None else min(hung_at, pulse.next_at)
        case Draining():
            return phase.until if phase.probing else min(phase.until, phase.next_at)
        case Stopping() | Killing() | Backoff():
            return phase.until
        case Clearing():
            return phase.again_at
        case Failed():
            return min((at for at in (phase.recheck_at, phase.retry_at) if at is not None), default=None)
        case _:
            return None
