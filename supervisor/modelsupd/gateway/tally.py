"""Counts the requests that have ended, by the replica that served them.

Counting is adding to a number, since it happens for every request; what it costs to tell falls on the scrape (metrics).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from modelsupd.gateway.base import EndedBy
from modelsupd.gateway.record import Entry

_WAITS_S: Final[tuple[float, ...]] = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
_TOKENS_S: Final[tuple[float, ...]] = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_STALLED: Final = "stalled"
_CLIENT: Final = str(EndedBy.CLIENT)


class Distribution:
    """Counts how often a value fell into which bucket."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """Begin with nothing in the buckets that end at these bounds, and one beyond."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that was seen so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus wants them: each with all that is below it."""
        found, below = [], 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            below += count
            found.append((bound, float(below)))
        return found


class Series:
    """The numbers of one replica; of a model's requests that reached none, under the replica ''."""

    __slots__ = (
        "aborts",
        "bytes_in",
        "bytes_out",
        "codes",
        "failures",
        "first_token",
        "inter_token",
        "retries",
        "stalls",
        "tokens_in",
        "tokens_out",
    )

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.codes: dict[int, int] = {}
        self.failures: dict[str, int] = {}
        self.tokens_in = 0
        self.tokens_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.retries = 0
        self.stalls = 0
        self.aborts = 0
        self.first_token = Distribution(_WAITS_S)
        self.inter_token = Distribution(_TOKENS_S)


class Tally:
    """All of them: `series` by model and replica, `queues` (seconds that requests waited) by model."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self.series: dict[tuple[str, str], Series] = {}
        self.queues: dict[str, Distribution] = {}

    def count(self, entry: Entry) -> None:
        """Count a request that has ended."""
        series = self._of(entry.model, replica_of(entry.run))
        series.codes[entry.status] = series.codes.get(entry.status, 0) + 1
        series.bytes_in += entry.bytes_in
        series.bytes_out += entry.bytes_out
        series.retries += entry.retries
        if entry.ended_by == _CLIENT:
            series.aborts += 1
        if entry.error == _STALLED:
            series.stalls += 1
        if entry.model:
            queue = self.queues.get(entry.model)
            if queue is None:
                queue = self.queues[entry.model] = Distribution(_WAITS_S)
            queue.observe(entry.queue_s)
        series.tokens_in += entry.tokens_in or 0
        tokens_out = entry.events if entry.tokens_out is None else entry.tokens_out
        series.tokens_out += tokens_out
        if entry.ttft_s is not None:
            series.first_token.observe(entry.ttft_s)
            if entry.stream and tokens_out > 1:
                pauses = tokens_out - 1
                series.inter_token.observe(max(0.0, entry.duration_s - entry.ttft_s) / pauses, pauses)

    def failed(self, run: str, kind: str) -> None:
        """Count a failure of a run, of which evidence was sent."""
        replica = replica_of(run)
        failures = self._of(replica.rpartition("/")[0], replica).failures
        failures[kind] = failures.get(kind, 0) + 1

    def _of(self, model: str, replica: str) -> Series:
        found = self.series.get((model, replica))
        if found is None:
            found = self.series[model, replica] = Series()
        return found


def replica_of(run: str) -> str:
    """Return the replica of a run's key: `qwen/0` of `qwen/0#7`. Its model is what stands before the last `/`."""
    return run.rpartition("#")[0]
