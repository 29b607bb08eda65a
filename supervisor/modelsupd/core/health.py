"""Evidence in, verdict out.

Two rules:

1. Politeness is not life. An answer without tokens never clears the doubt that a failed generation probe raised; only
   delivered tokens do.
2. A verdict needs failed probes in a row *and* nothing delivered *and* no progress, for `hang_after_s`. Use of CPU
   alone is progress only up to `busy_limit_s`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from modelsupd.core.events import Outcome, Probed, ProbeKind, Vitals
from modelsupd.core.spec import HealthLimits

#: Less CPU than this part of one core is what an idle server's housekeeping takes, and no sign of work.
CPU_SHARE_OF_WORK = 0.02

#: Pauses between the first probes of a starting engine, so that a fast one is found ready without delay: at least the
#: first, and up to the other a quarter of the time that the start has taken.
FIRST_START_PAUSE_S = 0.004
EARLY_START_PAUSE_S = 0.02
EARLY_PAUSE_SHARE = 0.25

#: The pause grows with the time that the start has taken, so that readiness is seen late by at most this part of it.
START_PAUSE_SHARE = 0.04

#: A probe that says nothing is repeated after this part of the interval: soon, and not in a hot loop where the prober
#: itself is short of something.
VOID_SHARE = 0.1

_FAILURES = frozenset(
    {Outcome.FAILED, Outcome.TIMED_OUT, Outcome.REFUSED, Outcome.NO_TOKENS, Outcome.LOADING},
)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What is known of the life of a run; all instants are on the core's clock.

    `failures` in a row; `doubted` when one of them asked for a token; `answered` when the last probe got an answer;
    `complaint` is the words of the last failure, empty while all is well; `probe` is in flight, or the next one is
    due at `next_at`. `still_s` is the longest time without progress so far, None where not all was seen.
    """

    alive_at: float
    proven_at: float
    moved_at: float
    next_at: float
    failures: int = 0
    doubted: bool = False
    answered: bool = True
    complaint: str = ""
    probe: ProbeKind | None = None
    vitals: Vitals | None = None
    still_s: float | None = 0.0


def begin(now: float) -> Pulse:
    """Return the pulse of a run that has just been spawned or adopted: nothing held against it, first probe now."""
    return Pulse(alive_at=now, proven_at=now, moved_at=now, next_at=now)


def taken_over(now: float) -> Pulse:
    """Return the pulse of a run that was found running: of what came before nothing is known."""
    return replace(begin(now), still_s=None)


def failures_needed(limits: HealthLimits) -> int:
    """Return how many failed probes in a row a verdict needs: two, or one where two take too long.

    The first is sent an interval after the last sign of life at most, the second when the first has timed out and an
    interval has passed; it must have timed out one probe's timeout after `hang_after_s`.
    """
    second_sent_s = limits.probe_interval_s + max(limits.probe_interval_s, limits.probe_timeout_s)
    return 2 if second_sent_s <= limits.hang_after_s else 1


def next_kind(pulse: Pulse, limits: HealthLimits, now: float) -> ProbeKind:
    """Return which probe a ready engine gets next: the cheapest that can tell something new.

    While in doubt the two kinds alternate: only a delivery ends the doubt, and on a loaded engine the counters show
    one where a probe of ours would wait in the queue.
    """
    if pulse.doubted:
        return ProbeKind.GENERATION if pulse.answered else ProbeKind.ALIVE
    if now - pulse.proven_at >= limits.prove_every_s or _stands_still(pulse):
        return ProbeKind.GENERATION
    return ProbeKind.ALIVE


def _stands_still(pulse: Pulse) -> bool:
    return bool(pulse.vitals and pulse.vitals.in_flight) and pulse.proven_at < pulse.alive_at


def observe(pulse: Pulse, seen: Probed, limits: HealthLimits, now: float) -> Pulse:
    """Return the pulse of a ready engine after a probe."""
    delivered = _delivered(pulse, seen)
    after = replace(pulse, probe=None, next_at=now + limits.probe_interval_s, vitals=_merged(pulse, seen))
    if _moved(seen):
        after = replace(after, moved_at=now)
    if seen.outcome is Outcome.TOKENS or delivered:
        return replace(after, alive_at=now, proven_at=now, failures=0, doubted=False, answered=True, complaint="")
    if seen.outcome in (Outcome.VOID, Outcome.ASLEEP):
        # An engine that sleeps is no longer judged, unless it is on its way out by then.
        return replace(after, next_at=max(now, now - seen.took_s + limits.probe_interval_s * VOID_SHARE))
    if seen.outcome is Outcome.BUSY:
        return after
    if seen.outcome is Outcome.ANSWERED:
        if pulse.doubted:
            return replace(after, answered=True, next_at=now)
        # Requests in flight and nothing delivered: the first such answer counts as life, those after it do not, and
        # `next_kind` asks for a token of our own.
        alive_at = pulse.alive_at if seen.vitals.in_flight and _stands_still(pulse) else now
        return replace(after, alive_at=alive_at, failures=0, answered=True, complaint="")
    return replace(
        after,
        failures=pulse.failures + 1,
        doubted=pulse.doubted or seen.kind is ProbeKind.GENERATION,
        answered=False,
        complaint=seen.evidence or seen.outcome.value,
        # A probe that took its full time is followed at once; one that failed at once is not repeated in a hot loop.
        next_at=max(now, now - seen.took_s + limits.probe_interval_s),
    )


def delivered(pulse: Pulse, now: float) -> Pulse:
    """Return the pulse of a ready engine of which a client has got something: no better proof of life is needed."""
    return replace(pulse, alive_at=now, proven_at=now, failures=0, doubted=False, answered=True, complaint="")


def failed_client(pulse: Pulse, words: str, now: float) -> Pulse:
    """Return the pulse of a ready engine that failed a client: in doubt, until it generates when we ask it to."""
    return replace(pulse, doubted=True, answered=True, complaint=words, next_at=now)


def _delivered(pulse: Pulse, seen: Probed) -> bool:
    if pulse.vitals is None or pulse.vitals.delivered is None or seen.vitals.delivered is None:
        return False
    # The counter starts again at zero when the engine was replaced behind its socket; that is a change too.
    return seen.vitals.delivered != pulse.vitals.delivered


def _merged(pulse: Pulse, seen: Probed) -> Vitals:
    """Return the newest vitals; a probe that could not read the engine's counters leaves the last ones known."""
    if seen.vitals.delivered is None and pulse.vitals is not None:
        return replace(seen.vitals, delivered=pulse.vitals.delivered, in_flight=pulse.vitals.in_flight)
    return seen.vitals


def _moved(seen: Probed) -> bool:
    worked_s = seen.vitals.cpu_s - seen.before.cpu_s
    return worked_s > CPU_SHARE_OF_WORK * max(seen.took_s, 0.1) or seen.vitals.read_bytes > seen.before.read_bytes


def hung_at(pulse: Pulse, limits: HealthLimits) -> float | None:
    """Return the instant from which the engine counts as hung if nothing changes, or None while no verdict is due."""
    if pulse.failures < failures_needed(limits):
        return None
    return max(pulse.alive_at, min(pulse.moved_at, pulse.alive_at + limits.busy_limit_s)) + limits.hang_after_s


def observe_start(pulse: Pulse, seen: Probed, limits: HealthLimits, since: float, now: float) -> Pulse:
    """Return the pulse of a starting engine after a probe that did not end the start."""
    early_s = max(FIRST_START_PAUSE_S, min(EARLY_START_PAUSE_S, EARLY_PAUSE_SHARE * (now - since)))
    pause_s = min(limits.start_interval_s, max(early_s, START_PAUSE_SHARE * (now - since)))
    moved = start_moved(pulse.vitals or seen.before, seen, now - pulse.moved_at)
    failed = seen.outcome in _FAILURES
    return replace(
        pulse,
        probe=None,
        next_at=now + pause_s,
        moved_at=now if moved else pulse.moved_at,
        still_s=stood_still_s(pulse, now),
        # The baseline stays where movement was last seen, so that slow progress adds up and is not lost in a threshold.
        vitals=seen.vitals if moved or pulse.vitals is None else pulse.vitals,
        failures=pulse.failures + 1 if failed else 0,
        complaint=seen.evidence if failed else "",
    )


def stood_still_s(pulse: Pulse, now: float) -> float | None:
    """Return the longest time without progress that has been seen until now."""
    return None if pulse.still_s is None else max(pulse.still_s, now - pulse.moved_at)


def start_moved(baseline: Vitals, seen: Probed, for_s: float) -> bool:
    """Tell whether a start makes progress: since `baseline`, read `for_s` seconds ago.

    Once the server answers requests, what it logs and computes is about our own probes and no progress of the load;
    a probe that timed out may have been logged as well, so then only work counts.
    """
    if seen.outcome in (Outcome.NO_TOKENS, Outcome.FAILED):
        return False
    worked = seen.vitals.cpu_s - baseline.cpu_s > CPU_SHARE_OF_WORK * max(for_s, 0.1)
    read = seen.vitals.read_bytes > baseline.read_bytes
    logged = seen.vitals.log_bytes > baseline.log_bytes and seen.outcome is not Outcome.TIMED_OUT
    return worked or read or logged


def without(pulse: Pulse, gap_s: float, now: float) -> Pulse:
    """Return the pulse as if the last `gap_s` seconds, in which the daemon itself got no CPU, had not been."""
    return replace(
        pulse,
        alive_at=min(now, pulse.alive_at + gap_s),
        proven_at=min(now, pulse.proven_at + gap_s),
        moved_at=min(now, pulse.moved_at + gap_s),
    )
