"""The gateway's Prometheus metrics, made of a tally.

Two rules: a scrape asks no engine anything and counts as nobody's use. And a label is the name of a model, a replica or
a class, never anything that a client made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from modelsupd import __version__
from modelsupd.gateway import relay
from modelsupd.gateway.own_process import OwnProcess
from modelsupd.gateway.tally import Tally, replica_of

#: What the text of `text` is.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SERIES = ("model", "replica")
_OWN_PROCESS = OwnProcess()


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
    accepted: int = 0
    refused: Mapping[int, int] = field(default_factory=dict)
    """By status: what never became a request, so that no record tells of it."""


def text(tally: Tally, now: Now) -> bytes:
    """Return all of it in Prometheus' text format. Meant for a thread: it takes milliseconds, and only reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Scrape(tally, now))
    registry.register(_OWN_PROCESS)
    return generate_latest(registry)


class _Scrape(Collector):
    """One look at the numbers."""

    def __init__(self, tally: Tally, now: Now) -> None:
        self._tally = tally
        self._now = now

    def collect(self) -> Iterator[Metric]:
        build = {"version": __version__, "compiled": "false" if str(relay.__file__).endswith(".py") else "true"}
        yield InfoMetricFamily("modelsupd_gateway_build", "The gateway's version, and whether it is compiled.", build)
        yield from _gauges(self._now)
        yield from _counters(self._tally)
        yield from _distributions(self._tally)


def _counters(tally: Tally) -> Iterator[Metric]:
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
    for labels, series in list(tally.series.items()):
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


def _distributions(tally: Tally) -> Iterator[Metric]:
    waits = HistogramMetricFamily(
        "modelsupd_gateway_queue_seconds",
        "How long requests waited for their turn or their model.",
        labels=("model",),
    )
    for model, seen in list(tally.queues.items()):
        waits.add_metric((model,), seen.buckets(), seen.total)
    first = HistogramMetricFamily(
        "modelsupd_gateway_first_token_seconds", "From a request's end to its answer's first byte.", labels=_SERIES
    )
    inter = HistogramMetricFamily(
        "modelsupd_gateway_inter_token_seconds", "Between two tokens of a stream, on its average.", labels=_SERIES
    )
    for labels, series in list(tally.series.items()):
        first.add_metric(labels, series.first_token.buckets(), series.first_token.total)
        inter.add_metric(labels, series.inter_token.buckets(), series.inter_token.total)
    yield from (waits, first, inter)


def _gauges(now: Now) -> Iterator[Metric]:
    flying = GaugeMetricFamily(
        "modelsupd_gateway_requests_in_flight",
        "Requests with an engine, but for those to its own pages.",
        labels=_SERIES,
    )
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
    yield CounterMetricFamily("modelsupd_gateway_accepted", "Connections of clients that were taken.", now.accepted)
    refused = CounterMetricFamily(
        "modelsupd_gateway_refused",
        "Connections closed for what came on them, or for being too many: unreadable, too large, too slow.",
        labels=("code",),
    )
    for code, count in now.refused.items():
        refused.add_metric((str(code),), count)
    yield refused
    yield CounterMetricFamily(
        "modelsupd_gateway_records_dropped", "Lines of the record of requests that were lost.", now.records_dropped
    )
