"""What follows a failure: backoff, intensity, and classes instead of guesses. Pure arithmetic over instants.

Two rules:

1. A failure that the engine explained, and that another start cannot cure, is not retried: it waits for a change of
   weights, binary or configuration, or for an operator.
2. Everything else is retried for ever, ever more slowly: a supervisor that gave up for good would need a person.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.spec import RestartPolicy

#: Failures that the next start would repeat.
PERMANENT = frozenset(
    {
        FailureClass.BAD_FLAG,
        FailureClass.BAD_WEIGHTS,
        FailureClass.UNSUPPORTED_MODEL,
        FailureClass.MISSING_LIBRARY,
        FailureClass.MISSING_BINARY,
    }
)

#: Failures by which the machine says that there is too little of something: an immediate retry makes it worse.
_SCARCE = frozenset({FailureClass.OUT_OF_MEMORY, FailureClass.OUT_OF_GPU_MEMORY, FailureClass.SPAWN})

#: Failures of the machine, which say nothing about the engine: retried with growing pauses, never counted against it.
_BLAMELESS = frozenset({FailureClass.NO_SPACE, FailureClass.UNREACHABLE, FailureClass.GPU_LOST})

#: A taken address costs nothing: the next run gets another. So many in a row are no coincidence any more.
FREE_ADDRESS_RETRIES = 3


@dataclass(frozen=True, slots=True)
class History:
    """What earlier runs leave behind for the decision.

    `failed_at`: instants of counted failures, oldest first; `streak`: failures since the last healthy period;
    `cool_downs`: how many in a row ended without one; `addresses`: runs in a row that found their address taken.
    """

    failed_at: tuple[float, ...] = ()
    streak: int = 0
    cool_downs: int = 0
    addresses: int = 0


@dataclass(frozen=True, slots=True)
class Retry:
    """Start again at `at`."""

    at: float
    history: History


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Call it failed; `retry_at` is None where only a change or an operator helps."""

    retry_at: float | None
    history: History
    why: str


def after_failure(  # noqa: PLR0911 - one way out for each kind of decision
    history: History, failure: Failure, ready_s: float | None, policy: RestartPolicy, key: str, now: float
) -> Retry | GiveUp:
    """Return what follows a failure of a run that had been ready for `ready_s` seconds (None: never).

    `key` names replica and run; the jitter is derived from it, so that replicas that died together do not start
    together and a recorded decision can be made again.
    """
    if failure.kind in PERMANENT:
        return GiveUp(None, history, "another start would end the same way")
    if failure.kind is FailureClass.WEIGHTS_UNAVAILABLE:
        return GiveUp(now + policy.cool_down_s, history, "asked for again after the cool-down")
    if failure.kind is FailureClass.ADDRESS_IN_USE and history.addresses < FREE_ADDRESS_RETRIES:
        return Retry(now, History(history.failed_at, history.streak, history.cool_downs, history.addresses + 1))
    if failure.kind in _BLAMELESS:
        streak = history.streak + 1
        asked_s = min(failure.retry_after_s or 0.0, policy.cool_down_max_s)
        again_at = now + max(backoff_s(streak, policy, key), asked_s)
        return Retry(again_at, History(history.failed_at, streak, history.cool_downs, history.addresses))
    healthy = ready_s is not None and ready_s >= policy.healthy_after_s
    failed_at = (*(at for at in history.failed_at if now - at < policy.window_s), now)
    streak = 1 if healthy else history.streak + 1
    cool_downs = 0 if healthy else history.cool_downs
    if failure.kind is FailureClass.INTERNAL:
        return _give_up(cool_downs, policy, now, "the supervisor could not follow this run")
    if len(failed_at) > policy.max_crashes:
        why = f"{len(failed_at)} failures within {policy.window_s:g} s, more than {policy.max_crashes}"
        return _give_up(cool_downs, policy, now, why)
    if cool_downs > 0:
        return _give_up(cool_downs, policy, now, "the one more try after the cool-down failed too")
    delay_s = 0.0 if healthy and failure.kind not in _SCARCE else backoff_s(streak, policy, key)
    return Retry(now + delay_s, History(failed_at, streak))


def _give_up(cool_downs: int, policy: RestartPolicy, now: float, why: str) -> GiveUp:
    pause_s = _grown(policy.cool_down_s, policy.cool_down_factor, cool_downs, policy.cool_down_max_s)
    # The window starts afresh after the cool-down: what counts from then on is the one more try.
    return GiveUp(now + pause_s, History((), 0, cool_downs + 1), why)


def backoff_s(streak: int, policy: RestartPolicy, key: str) -> float:
    """Return the pause before the next start after `streak` failures in a row, in seconds, jitter included."""
    pause_s = _grown(policy.backoff_initial_s, policy.backoff_factor, streak - 1, policy.backoff_max_s)
    return pause_s * (1 + policy.jitter * zlib.crc32(key.encode()) / 0xFFFFFFFF)


def _grown(first_s: float, factor: float, times: int, most_s: float) -> float:
    # Not by a power, which overflows for a replica that fails for months, and no longer than it takes to get there.
    pause_s = first_s
    for _ in range(times):
        if pause_s >= most_s or factor == 1:
            break
        pause_s *= factor
    return min(pause_s, most_s)


def shifted(history: History, by_s: float, now: float) -> History:
    """Return the history moved onto another boot's clock; nothing lies in the future."""
    return History(
        tuple(min(now, at + by_s) for at in history.failed_at),
        history.streak,
        history.cool_downs,
        history.addresses,
    )
