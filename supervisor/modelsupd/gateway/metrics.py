"""The gateway's Prometheus metrics.

Two rules: counting is adding to a number, since it happens for every request; what a scrape costs falls on the scrape,
which asks no engine anything and counts as nobody's use. And a label is the name of a model, a replica or a class,
never anything that a client made up.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from modelsupd import __version__
from modelsupd.gateway.base import EndedBy
from modelsupd.gateway.record import Entry

#: What the text of `Metrics.text` is.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SERIES = ("model", "replica")
_WAITS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_STALLED = "stalled"


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


@dataclass(slots=True)
class _Series:
    """The numbers of one replica; of a model's requests that reached none, under the replica ''."""

    codes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    failures: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    tokens_in: int = 0
    tokens_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    retries: int = 0
    stalls: int = 0
    aborts: int = 0
    first_token: Distribution = field(default_factory=lambda: Distribution(_WAITS_S))
    inter_token: Distribution = field(default_factory=lambda: Distribution(_TOKENS_S))


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """What a scrape finds at its moment. Requests in flight by `Run.key`, waiting ones by model."""

    in_flight: Mapping[str, int] = field(default_factory=dict)
    queued: Mapping[str, int] = field(default_factory=dict)
    connections: int = 0
    accepting: bool = False
    daemon_connected: bool = False
    table_seq: int = 0
    records_dropped: int = 0


class Metrics:
    """Counts requests that have ended."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._series: dict[tuple[str, str], _Series] = defaultdict(_Series)
        self._queues: dict[str, Distribution] = defaultdict(lambda: Distribution(_WAITS_S))

    def count(self, entry: Entry) -> None:
        """Count a request that has ended."""
        series = self._series[entry.model, replica_of(entry.run)]
        series.codes[entry.status] += 1
        series.bytes_in += entry.bytes_in
        series.bytes_out += entry.bytes_out
        series.retries += entry.retries
        if entry.ended_by == EndedBy.CLIENT:
            series.aborts += 1
        if entry.error == _STALLED:
            series.stalls += 1
        if entry.model:
            self._queues[entry.model].observe(entry.queue_s)
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
        self._series[replica.rpartition("/")[0], replica].failures[kind] += 1

    def text(self, now: Now) -> bytes:
        """Return all of it in Prometheus' text format. Meant for a thread: it takes milliseconds, and only reads."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Scrape(self, now))
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def collect(self, now: Now) -> Iterator[Metric]:
        """Yield what is scraped."""
        yield InfoMetricFamily("modelsupd_gateway_build", "Version of the gateway.", {"version": __version__})
        yield from _gauges(now)
        yield from self._counters()
        yield from self._distributions()

    def _counters(self) -> Iterator[Metric]:
        families = {
            "requests": ("Requests that have ended, by the status that the client got.", "code"),
            "failures": ("Clients that a run failed, by how.", "kind"),
            "tokens": ("Tokens, as engines report them, else events counted.", "direction"),
            "bytes": ("Bytes of bodies.", "direction"),
            "retries": ("Requests that were sent to another run before anything was answered.", ""),
            "stalls": ("Streams that were ended because nothing came any more.", ""),
            "client_aborts": ("Requests that the client gave up.", ""),
        }
        made = {
            name: CounterMetricFamily(f"modelsupd_gateway_{name}", doc, labels=(*_SERIES, *filter(None, (label,))))
            for name, (doc, label) in families.items()
        }
        for labels, series in list(self._series.items()):
            for code, count in list(series.codes.items()):
                made["requests"].add_metric((*labels, str(code)), count)
            for kind, count in list(series.failures.items()):
                made["failures"].add_metric((*labels, kind), count)
            made["tokens"].add_metric((*labels, "in"), series.tokens_in)
            made["tokens"].add_metric((*labels, "out"), series.tokens_out)
            made["bytes"].add_metric((*labels, "in"), series.bytes_in)
            made["bytes"].add_metric((*labels, "out"), series.bytes_out)
            made["retries"].add_metric(labels, series.retries)
            made["stalls"].add_metric(labels, series.stalls)
            made["client_aborts"].add_metric(labels, series.aborts)
        yield from made.values()

    def _distributions(self) -> Iterator[Metric]:
        waits = HistogramMetricFamily(
            "modelsupd_gateway_queue_seconds",
            "How long requests waited for their turn or their model.",
            labels=("model",),
        )
        for model, seen in list(self._queues.items()):
            waits.add_metric((model,), seen.buckets(), seen.total)
        first = HistogramMetricFamily(
            "modelsupd_gateway_first_token_seconds", "From a request's end to its answer's first byte.", labels=_SERIES
        )
        inter = HistogramMetricFamily(
            "modelsupd_gateway_inter_token_seconds", "Between two tokens of a stream, on its average.", labels=_SERIES
        )
        for labels, series in list(self._series.items()):
            first.add_metric(labels, series.first_token.buckets(), series.first_token.total)
            inter.add_metric(labels, series.inter_token.buckets(), series.inter_token.total)
        yield from (waits, first, inter)


class _Scrape(Collector):
    """One look at the numbers."""

    def __init__(self, metrics: Metrics, now: Now) -> None:
        self._metrics = metrics
        self._now = now

    def collect(self) -> Iterator[Metric]:
        return self._metrics.collect(self._now)


def replica_of(run: str) -> str:
    """Return the replica of a run's key: `qwen/0` of `qwen/0#7`. Its model is what stands before the last `/`."""
    return run.rpartition("#")[0]


def _gauges(now: Now) -> Iterator[Metric]:
    flying = GaugeMetricFamily("modelsupd_gateway_requests_in_flight", "Requests with an engine.", labels=_SERIES)
    by_replica: dict[str, int] = defaultdict(int)
    for run, count in now.in_flight.items():
        by_replica[replica_of(run)] += count
    for replica, count in by_replica.items():
        flying.add_metric((replica.rpartition("/")[0], replica), count)
    queued = GaugeMetricFamily(
        "modelsupd_gateway_requests_queued", "Requests that wait for their turn or their model.", labels=("model",)
    )
    for model, count in now.queued.items():
        queued.add_metric((model,), count)
    yield from (flying, queued)
    plain = {
        "connections": ("Connections of clients.", now.connections),
        "accepting": ("1 while new connections are taken.", int(now.accepting)),
        "daemon_connected": (
            "1 while the daemon is there; without it the last table serves.",
            int(now.daemon_connected),
        ),
        "table_seq": ("Number of the table of models that is worked from.", now.table_seq),
    }
    for name, (doc, value) in plain.items():
        yield GaugeMetricFamily(f"modelsupd_gateway_{name}", doc, value)
    yield CounterMetricFamily(
        "modelsupd_gateway_records_dropped", "Lines of the record of requests that were lost.", now.records_dropped
    )
