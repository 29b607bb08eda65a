"""Times, sizes and lists in the words of the people who read them."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from modelsupd.weights.base import Progress
from modelsupd.weights.base import size_words as size

__all__ = [
    "Timeline", "ago", "clock", "count", "duration", "either", "parsed", "printable", "progress_words", "rfc3339",
    "signal_name", "size",
]  # fmt: skip

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
_EXACT_BELOW_S = 10


@dataclass(frozen=True, slots=True)
class Timeline:
    """Puts instants of the core's clock on the wall clock: `anchor_at` and `anchor_wall` are the same moment.

    `now` is the present. All wall times are UTC.
    """

    anchor_at: float
    anchor_wall: datetime
    now: datetime

    def wall(self, at: float) -> datetime:
        """Return the wall time of an instant."""
        return self.anchor_wall + timedelta(seconds=at - self.anchor_at)


def rfc3339(moment: datetime) -> str:
    """Return a moment as `2026-01-31T12:00:00.000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clock(moment: datetime) -> str:
    """Return a moment as people read it: `2026-01-31 12:00:00 UTC`."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def parsed(text: object) -> datetime | None:
    """Return the moment that RFC 3339 text names, None for anything else."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


def duration(seconds: float) -> str:
    """Return a length of time with two units at most: `3.2 s`, `42 s`, `4 min 10 s`, `2 d 3 h`."""
    if seconds < _EXACT_BELOW_S:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    for unit_s, unit, part_s, part in ((_DAY_S, "d", _HOUR_S, "h"), (_HOUR_S, "h", _MINUTE_S, "min")):
        if whole >= unit_s:
            rest = whole % unit_s // part_s
            return f"{whole // unit_s} {unit}" + (f" {rest} {part}" if rest else "")
    if whole >= _MINUTE_S:
        rest = whole % _MINUTE_S
        return f"{whole // _MINUTE_S} min" + (f" {rest} s" if rest else "")
    return f"{whole} s"


def ago(moment: datetime, now: datetime) -> str:
    """Return how long ago a moment was: `12 s ago`."""
    return f"{duration((now - moment).total_seconds())} ago"


def progress_words(progress: Progress) -> str:
    """Return how far a fetch has come: `fetching a.gguf: 1.2 GiB of 4.8 GiB (25 %), 92.1 MiB/s, 40 s left`."""
    if not progress.total_bytes:
        return progress.doing
    part = f"{size(progress.done_bytes)} of {size(progress.total_bytes)}"
    words = f"{progress.doing}: {part} ({100 * progress.done_bytes // progress.total_bytes} %)"
    if progress.rate is None:
        return words
    left = f", {duration(progress.left_s)} left" if progress.left_s is not None else ""
    return f"{words}, {size(progress.rate)}/s{left}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 record`, `2 records`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def either(words: Sequence[str], last: str = "and") -> str:
    """Return words as a list in a sentence: `a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def printable(text: str) -> str:
    """Return text without control characters, which a terminal would obey: an engine's own line may hold any."""
    return "".join(character if character.isprintable() else " " for character in text)


def signal_name(number: int) -> str:
    """Return a signal as people know it: `signal 9 (SIGKILL)`."""
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
