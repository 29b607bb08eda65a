"""The Prometheus metrics of the daemon, and the loopback server that a scrape asks.

Two rules:

1. A scrape reads what is published and counted already. It asks no engine anything, so that none is woken or kept
   awake by being watched, and the text is made in a thread, so that nothing waits for it.
2. Labels are names of models, replicas, engines and classes, never the text of a request, an error or a log.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from modelsupd.control.port import Port
from modelsupd.core.events import Event, Exited, FailureClass, Probed, SpawnFailed, Unresolved
from modelsupd.core.fleet import is_gone
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Draining,
    Failed,
    Fault,
    Killing,
    Phase,
    Ready,
    Replica,
    Resolving,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
)
from modelsupd.errors import ModelsupdError
from modelsupd.gpu_metrics import of_gpus
from modelsupd.weights.base import FETCHED, MOVED_ASIDE, VERIFIED, FileDone, Progress

log = structlog.get_logger("metrics")

#: Every phase is a series of its own, so that an alert on `phase="failed" == 1` never has to guess at absence.
PHASES: tuple[type[Phase], ...] = (
    Stopped, Resolving, Waiting, Spawning, Starting, Ready, Asleep,
    Draining, Stopping, Killing, Clearing, Backoff, Failed,
)  # fmt: skip

_START_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_PROBE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SYNC_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)

_REPLICA = ("model", "replica", "engine")
_PAGE = """<!doctype html><title>modelsupd</title><h1>modelsupd {version}</h1>
<p>What Prometheus reads is at <a href="/metrics">/metrics</a>. What runs, and why: <code>modelsupd status</code>,
<code>modelsupd why MODEL</code>.
"""


class Use(Protocol):
    """What the processes of a run have used."""

    @property
    def cpu_s(self) -> float:
        """Return seconds of CPU, of the whole process tree."""
        ...

    @property
    def rss_bytes(self) -> int:
        """Return resident memory in bytes, of the whole process tree."""
        ...


class Uses(Protocol):
    """Knows what runs use; `runtime.process.Processes` is it."""

    def vitals(self, replica: str, run: int) -> Use:
        """Return what a run has used so far, cheaply."""
        ...


class Metrics:
    """Counts what the daemon tells it, and reads the rest from the published state when it is scraped."""

    def __init__(self, port: Port, uses: Uses) -> None:
        """Take the daemon to read from, and who knows what engines use."""
        # Without a series more for each counter that says since when it counts.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has left it untyped
        self.registry = CollectorRegistry(auto_describe=False)
        self._port = port
        self._seen: set[str] = set()
        self.version = port.version
        self._restarts = Counter(
            "modelsupd_replica_restarts",
            "Runs that followed a failure, by the class of the failure.",
            (*_REPLICA, "class"),
            registry=self.registry,
        )
        self._starts = Histogram(
            "modelsupd_start_seconds",
            "From the spawn of a process to the first token that it generated.",
            _REPLICA,
            buckets=_START_BUCKETS_S,
            registry=self.registry,
        )
        self._probe_seconds = Histogram(
            "modelsupd_probe_seconds",
            "How long probes took.",
            ("model", "replica", "kind"),
            buckets=_PROBE_BUCKETS_S,
            registry=self.registry,
        )
        self._probes = Counter(
            "modelsupd_probes",
            "Probes, by what they found.",
            ("model", "replica", "kind", "outcome"),
            registry=self.registry,
        )
        self._syncs = Histogram(
            "modelsupd_journal_sync_seconds",
            "How long writing a batch of records to the journal and syncing it took.",
            buckets=_SYNC_BUCKETS_S,
            registry=self.registry,
        )
        self._records = Counter("modelsupd_journal_records", "Records synced to the journal.", registry=self.registry)
        self._files = Counter(
            "modelsupd_weights_files",
            "Files of weights, by what became of them: fetched, verified, or found wrong and moved aside.",
            ("model", "replica", "outcome"),
            registry=self.registry,
        )
        self._file_bytes = Counter(
            "modelsupd_weights_bytes",
            "Bytes of weights that were fetched, verified, or moved aside.",
            ("model", "replica", "outcome"),
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)  # the daemon's own process, under the names that are usual: process_*
        self._published = _Published(port, uses)
        self.registry.register(self._published)

    def changed(self, before: Replica | None, after: Replica, event: Event | str) -> None:
        """Take note of a published change; `event` led there, or is a word where none did."""
        if isinstance(event, Probed) and event.run == after.last_run:
            self.probed(after, event)
        labels = (after.model, after.name, str(after.spec.engine))
        if after.name not in self._seen:
            self._seen.add(after.name)
            # At zero from the beginning, because the first increase of a series that begins with 1 is not seen.
            for kind in FailureClass:
                self._restarts.labels(*labels, str(kind))
            if after.spec.weights is not None:
                for outcome in (FETCHED, VERIFIED, MOVED_ASIDE):
                    self._files.labels(after.model, after.name, _label(outcome))
        started = before is not None and isinstance(before.phase, Starting) and not before.phase.woken
        if before is not None and started and isinstance(after.phase, Ready):
            self._starts.labels(*labels).observe(max(0.0, after.phase.since - before.phase.since))
        if before is not None and after.restarts > before.restarts:
            failure = failure_class(before, after, event)
            self._restarts.labels(*labels, failure).inc(after.restarts - before.restarts)
        if is_gone(after):
            self._forget(after.name)

    def probed(self, replica: Replica, seen: Probed) -> None:
        """Count one probe of a replica."""
        labels = (replica.model, replica.name, str(seen.kind))
        self._probes.labels(*labels, str(seen.outcome)).inc()
        self._probe_seconds.labels(*labels).observe(seen.took_s)

    def file_done(self, replicas: frozenset[str], done: FileDone) -> None:
        """Count one file of weights, for the first of the replicas that wait for it: it is fetched once."""
        known = self._published.models(replicas)
        if known:
            labels = (*known[0], _label(done.outcome))
            self._files.labels(*labels).inc()
            self._file_bytes.labels(*labels).inc(done.size_bytes)

    def synced(self, latency_s: float, records: int) -> None:
        """Count one batch of the journal, which took `latency_s` seconds to be on disk."""
        self._syncs.observe(latency_s)
        self._records.inc(records)

    async def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that `accept` asks for."""
        self._published.look()
        of_gateway = await self._port.gateway_metrics()
        # The gateway tells the plain format, and the two formats cannot be mixed.
        encode, content_type = choose_encoder("" if of_gateway else accept)
        return await asyncio.to_thread(encode, self.registry) + of_gateway, content_type

    def _forget(self, name: str) -> None:
        self._seen.discard(name)
        for metric in (
            self._restarts, self._starts, self._probe_seconds, self._probes, self._files, self._file_bytes,
        ):  # fmt: skip
            metric.remove_by_labels({"replica": name})


class _Published(Collector):
    """Makes metrics of published state. `look` runs on the event loop, `collect` may run in a thread after it."""

    def __init__(self, port: Port, uses: Uses) -> None:
        self._port = port
        self._uses = uses
        self._replicas: list[tuple[Replica, Use | None]] = []
        self._read_only = False
        self._fetching: dict[str, Progress] = {}
        self._changed: set[str] = set()
        self._gpus: Sequence[Mapping[str, Any]] = ()

    def look(self) -> None:
        """Take hold of the present state."""
        self._replicas = [
            (replica, self._uses.vitals(replica.name, replica.last_run) if replica.process else None)
            for replica in self._port.replicas().values()
        ]
        self._read_only = self._port.journal()[1] is not None
        self._fetching = dict(self._port.fetching())
        self._changed = set(self._port.changes())
        self._gpus = self._port.gpus()

    def models(self, replicas: frozenset[str]) -> list[tuple[str, str]]:
        """Return model and name of those replicas that are published, in order."""
        known = self._port.replicas()
        return sorted((known[name].model, name) for name in replicas if name in known)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        yield GaugeMetricFamily("modelsupd_up", "1 while the daemon runs.", 1)
        build = InfoMetricFamily("modelsupd_build", "What runs here.")
        build.add_metric([], {"version": self._port.version, "python": platform.python_version()})
        yield build
        yield GaugeMetricFamily(
            "modelsupd_journal_read_only",
            "1 while operators' commands are refused because the journal cannot be written.",
            float(self._read_only),
        )
        yield from self._of_replicas()
        yield from self._of_weights()
        yield from of_gpus(self._gpus)

    def _of_weights(self) -> Iterator[Metric]:
        def gauge(name: str, doc: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"modelsupd_weights_{name}", doc, labels=("model", "replica"))

        done = gauge("done_bytes", "Bytes of weights fetched or verified so far, while a start waits.")
        total = gauge("total_bytes", "Bytes of weights to be fetched or verified, while a start waits.")
        changed = gauge("changed", "1 if weights or program changed on disk since the engine was started.")
        for replica, _use in self._replicas:
            labels = (replica.model, replica.name)
            changed.add_metric(labels, float(replica.name in self._changed))
            if (progress := self._fetching.get(replica.name)) is not None:
                done.add_metric(labels, progress.done_bytes)
                total.add_metric(labels, progress.total_bytes)
        yield from (done, total, changed)

    def _of_replicas(self) -> Iterator[Metric]:
        phase = GaugeMetricFamily("modelsupd_replica_phase", "1 for the present phase.", labels=(*_REPLICA, "phase"))
        want = GaugeMetricFamily("modelsupd_replica_want", "1 if the replica is wanted up.", labels=_REPLICA)
        idle = GaugeMetricFamily(
            "modelsupd_replica_idle", "1 while it starts on demand and nobody asks for it.", labels=_REPLICA
        )
        memory = GaugeMetricFamily(
            "modelsupd_engine_memory_bytes", "Resident memory of the run's processes.", labels=_REPLICA
        )
        cpu = CounterMetricFamily("modelsupd_engine_cpu_seconds", "CPU time of the run's processes.", labels=_REPLICA)
        for replica, use in self._replicas:
            labels = (replica.model, replica.name, str(replica.spec.engine))
            for kind in PHASES:
                phase.add_metric((*labels, kind.__name__.lower()), float(isinstance(replica.phase, kind)))
            want.add_metric(labels, float(replica.want is Want.UP and not replica.removed))
            idle.add_metric(labels, float(replica.idle))
            if use is not None:
                memory.add_metric(labels, use.rss_bytes)
                cpu.add_metric(labels, use.cpu_s)
        yield from (phase, want, idle, memory, cpu)


def _label(outcome: str) -> str:
    return outcome.replace(" ", "-")


def failure_class(before: Replica, after: Replica, event: Event | str) -> str:
    """Return the class of the failure that a restart follows."""
    for phase in (after.phase, before.phase):
        if isinstance(phase, Backoff | Failed):
            return str(phase.failure.kind)
    if isinstance(before.phase, Draining | Stopping | Killing | Clearing) and isinstance(before.phase.cause, Fault):
        return str(before.phase.cause.failure.kind)
    if isinstance(event, Exited | SpawnFailed | Unresolved):
        return str(event.failure.kind)
    return str(FailureClass.INTERNAL)


async def serve(metrics: Metrics, listen: tuple[str, int]) -> Callable[[], Awaitable[None]]:
    """Serve `/metrics` at a loopback address; return what ends that. Raises ModelsupdError where it cannot listen."""
    app = web.Application()
    app.add_routes([web.get("/metrics", _answer_with(metrics)), web.get("/", _page_of(metrics))])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    host, port = listen
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ModelsupdError(
            f"cannot serve metrics at '{host}:{port}': {(error.strerror or str(error)).lower()}; "
            "set daemon.metrics_listen to another address, or to '' for none"
        ) from error
    bound_host, bound_port = runner.addresses[0][:2]  # a declared port of 0 is any free one
    shown_host = f"[{bound_host}]" if ":" in bound_host else bound_host
    log.info("serving metrics", at=f"http://{shown_host}:{bound_port}/metrics")
    return runner.cleanup


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _answer_with(metrics: Metrics) -> _Handler:
    async def answer(request: web.Request) -> web.Response:
        body, content_type = await metrics.render(request.headers.get("Accept", ""))
        headers: Mapping[str, str] = {"Content-Type": content_type}
        return web.Response(body=body, headers=headers)

    return answer


def _page_of(metrics: Metrics) -> _Handler:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=_PAGE.format(version=metrics.version), content_type="text/html")

    return answer
