"""When the next `Ticked` is due. There are no other timers."""

from __future__ import annotations

from modelsupd.core import health
from modelsupd.core.phases import Backoff, Clearing, Draining, Failed, Killing, Ready, Replica, Starting, Stopping


def deadline(replica: Replica) -> float | None:  # noqa: PLR0911 - one case a phase: a table reads better whole
    """Return the instant from which `Ticked` would change something, or None where only an event can.

    It may lie in the past; then the tick is due now.
    """
    phase, limits = replica.phase, replica.spec.health
    match phase:
        case Starting(pulse=pulse):
            # `alive_at` is when the start began, less the time in which the daemon itself got no CPU.
            verdict_at = min(pulse.moved_at + limits.start_stall_s, pulse.alive_at + limits.start_limit_s)
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
