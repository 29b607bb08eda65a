"""What Prometheus reads."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.error import HTTPError

import pytest
import structlog.testing
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from control_world import SPEC, MemoryPort, Tape
from modelsupd.control.port import Port
from modelsupd.core.events import (
    Cleared,
    Demanded,
    Event,
    Exit,
    Exited,
    Failure,
    FailureClass,
    Outcome,
    Probed,
    ProbeKind,
    Removed,
    SpawnFailed,
    Ticked,
    Vitals,
)
from modelsupd.core.phases import Ready, Starting
from modelsupd.core.spec import Start
from modelsupd.errors import ModelsupdError
from modelsupd.metrics import Metrics, serve
from modelsupd.weights.base import FETCHED, MOVED_ASIDE, FileDone, Progress


@dataclass
class Use:
    cpu_s: float = 1.25
    rss_bytes: int = 4096


class Uses:
    """Knows what runs use, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def vitals(self, replica: str, run: int) -> Use:
        self.asked.append((replica, run))
        return Use()


class Watched(Tape):
    """A tape that tells the metrics of each change, as the driver does."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: Metrics | None = None

    def now(self, event: Event, at: float) -> object:  # type: ignore[override]  # nobody here uses what it returns
        before = self.replica
        super().now(event, at)
        if self.metrics is not None and self.replica is not before:
            self.metrics.changed(before, self.replica, event)
        return None


def world(place: Path) -> tuple[Watched, Metrics, Uses]:
    tape, uses = Watched(), Uses()
    tape.metrics = Metrics(port_of(place, tape), uses)
    tape.metrics.changed(None, tape.replica, "Declared")
    return tape, tape.metrics, uses


def port_of(place: Path, tape: Tape) -> Port:
    return MemoryPort(place, tape)


def scraped(metrics: Metrics) -> Callable[..., float | None]:
    body, content_type = asyncio.run(metrics.render())
    assert content_type.startswith("text/plain")
    samples = [sample for family in text_string_to_metric_families(body.decode()) for sample in family.samples]

    def value(name: str, **labels: str) -> float | None:
        found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    return value


def test_phases_and_wants(place: Path) -> None:
    tape, metrics, uses = world(place)
    value = scraped(metrics)
    labels = {"model": "tiny", "replica": "tiny/0", "engine": "command"}
    assert value("modelsupd_up") == 1
    assert value("modelsupd_build_info", version="1.2.3") == 1
    assert value("modelsupd_replica_phase", phase="resolving", **labels) == 1
    assert value("modelsupd_replica_phase", phase="ready", **labels) == 0
    assert value("modelsupd_replica_phase", **labels) == 1
    assert value("modelsupd_replica_want", **labels) == 1
    assert value("modelsupd_journal_read_only") == 0
    assert value("modelsupd_engine_memory_bytes") is None
    assert uses.asked == []
    assert (value("process_resident_memory_bytes") or 0) > 1e6
    tape.up(0)
    value = scraped(metrics)
    assert value("modelsupd_replica_phase", phase="ready", **labels) == 1
    assert value("modelsupd_engine_memory_bytes", **labels) == 4096
    assert value("modelsupd_engine_cpu_seconds_total", **labels) == 1.25
    assert uses.asked == [("tiny/0", 1)]


def test_one_on_demand_that_nobody_asks_for_is_wanted_and_idle(place: Path) -> None:
    tape = Tape(spec=replace(SPEC, start=Start.ON_DEMAND))
    metrics = Metrics(port_of(place, tape), Uses())
    value = scraped(metrics)
    assert (value("modelsupd_replica_want"), value("modelsupd_replica_idle", replica="tiny/0")) == (1, 1)
    tape.now(Demanded("clients"), 1)
    assert scraped(metrics)("modelsupd_replica_idle") == 0
    always = Metrics(port_of(place, Tape()), Uses())
    assert scraped(always)("modelsupd_replica_idle") == 0


def test_one_that_wakes_up_has_not_started(place: Path) -> None:
    tape, metrics, _ = world(place)
    tape.up(0)
    awake = tape.replica
    assert isinstance(awake.phase, Ready)
    woken = replace(awake, phase=Starting(50, awake.phase.process, awake.phase.pulse, woken=True))
    metrics.changed(woken, awake, "as it was")
    assert scraped(metrics)("modelsupd_start_seconds_count", replica="tiny/0") == 1


def test_starts_and_probes(place: Path) -> None:
    tape, metrics, _ = world(place)
    tape.up(0)
    tape.now(Ticked(), 10)
    tape.probed(Outcome.ANSWERED, "200", 10.1, ProbeKind.ALIVE)
    value = scraped(metrics)
    assert value("modelsupd_start_seconds_count", replica="tiny/0") == 1
    assert value("modelsupd_start_seconds_sum", replica="tiny/0") == pytest.approx(1.8)
    assert value("modelsupd_probes_total", kind="start", outcome="tokens") == 1
    assert value("modelsupd_probes_total", kind="alive", outcome="answered", model="tiny") == 1
    assert value("modelsupd_probe_seconds_sum", kind="alive") == pytest.approx(0.02)
    vitals = Vitals()
    tape.now(Probed(0, ProbeKind.ALIVE, Outcome.FAILED, "stale", vitals, vitals), 10.2)
    assert scraped(metrics)("modelsupd_probes_total", outcome="failed") is None


def test_restarts_by_class(place: Path) -> None:
    tape, metrics, _ = world(place)

    def restarts(kind: str) -> float | None:
        return scraped(metrics)("modelsupd_replica_restarts_total", **{"class": kind})

    assert restarts("crash") == 0  # at zero from the beginning
    tape.up(0)
    tape.died(100)
    assert restarts("crash") == 1
    tape.spawned_first(101)
    end = Exited(2, Exit(signal=9), Failure(FailureClass.OUT_OF_MEMORY, "likely"), cleared=False)
    tape.now(end, 102)
    tape.now(Cleared(2), 103)
    assert restarts("out-of-memory") == 1
    tape.now(Ticked(), 200)
    tape.up(201)
    at = 210.0
    while tape.replica.last_run == 3:
        tape.now(Ticked(), at)
        tape.probed(Outcome.TIMED_OUT, "no answer", at + 10, ProbeKind.ALIVE)
        if type(tape.replica.phase).__name__ == "Killing":
            tape.died(at + 11)
        at += 15
    assert restarts("hung") == 1
    tape.spawned_first(at)
    tape.died(at + 1, FailureClass.BAD_FLAG, "no such flag")
    assert restarts("bad-flag") == 0
    assert scraped(metrics)("modelsupd_replica_phase", phase="failed") == 1


def test_a_spawn_that_fails_has_its_class(place: Path) -> None:
    tape, metrics, _ = world(place)
    tape.spawned_first(1)
    tape.died(2)
    tape.now(Ticked(), 10)
    run = tape.replica.last_run
    tape.resolved_first(10)
    tape.now(SpawnFailed(run, Failure(FailureClass.SPAWN, "EAGAIN")), 11)
    value = scraped(metrics)
    assert value("modelsupd_replica_restarts_total", **{"class": "spawn"}) == 1
    assert value("modelsupd_replica_restarts_total", **{"class": "crash"}) == 1


def test_what_is_gone_leaves_no_series(place: Path) -> None:
    tape, metrics, _ = world(place)
    tape.up(0)
    tape.now(Removed(), 5)
    tape.now(Ticked(), 40)
    tape.died(41)
    value = scraped(metrics)
    assert value("modelsupd_probes_total") is None
    assert value("modelsupd_replica_restarts_total") is None
    assert value("modelsupd_start_seconds_count") is None


def test_the_journal(place: Path) -> None:
    tape, metrics, _ = world(place)
    metrics.synced(0.002, 3)
    metrics.synced(0.004, 1)
    assert tape.metrics is metrics
    value = scraped(metrics)
    assert value("modelsupd_journal_records_total") == 4
    assert value("modelsupd_journal_sync_seconds_count") == 2
    assert value("modelsupd_journal_sync_seconds_sum") == pytest.approx(0.006)


def get(url: str, accept: str = "") -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"Accept": accept})  # noqa: S310 - an address of our own
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - the same
        return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_the_server(place: Path) -> None:
    async def main() -> None:
        _, metrics, uses = world(place)
        with structlog.testing.capture_logs() as said:
            close = await serve(metrics, ("127.0.0.1", 0))
        url = said[0]["at"]
        try:
            status, kind, body = await asyncio.to_thread(get, url)
            assert (status, kind.split(";")[0]) == (200, "text/plain")
            assert "modelsupd_up 1.0" in body
            _, kind, body = await asyncio.to_thread(get, url, "application/openmetrics-text; version=1.0.0")
            assert kind.startswith("application/openmetrics-text")
            assert body.endswith("# EOF\n")
            _, kind, body = await asyncio.to_thread(get, url.removesuffix("metrics"))
            assert kind.startswith("text/html")
            assert "1.2.3" in body
            with pytest.raises(HTTPError, match="404"):
                await asyncio.to_thread(get, f"{url}x")
            assert uses.asked == []
        finally:
            await close()

    uvloop.run(main())


def test_a_taken_address_is_told(place: Path) -> None:
    async def main() -> None:
        _, metrics, _ = world(place)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            with pytest.raises(ModelsupdError, match=f"cannot serve metrics at '127.0.0.1:{port}': .*in use"):
                await serve(metrics, ("127.0.0.1", port))

    uvloop.run(main())


def test_gpus_are_told_where_there_are_any(place: Path) -> None:
    tape = Watched()
    port = MemoryPort(place, tape)
    metrics = Metrics(port, Uses())
    assert scraped(metrics)("modelsupd_gpu_total_bytes") is None
    sizes = {f"{name}_bytes": number for number, name in enumerate(("total", "used", "claimed", "foreign"), 1)}
    port.cards = [
        {"uuid": "GPU-0", "index": 0, "name": "x", "state": "ok", "temperature_c": 40, "ecc_errors": None, **sizes},
        {"uuid": "GPU-1", "index": 1, "name": "x", "state": "lost", "temperature_c": None, "ecc_errors": 2, **sizes},
    ]
    value = scraped(metrics)
    labels = {"uuid": "GPU-0", "index": "0"}
    told = [value(f"modelsupd_gpu_{name}_bytes", **labels) for name in ("total", "used", "claimed", "foreign")]
    assert told == [1, 2, 3, 4]
    assert value("modelsupd_gpu_temperature_celsius") == 40
    assert value("modelsupd_gpu_ecc_errors") == 2
    assert value("modelsupd_gpu_state", state="lost", uuid="GPU-1") == 1
    assert value("modelsupd_gpu_state", state="ok", uuid="GPU-1") == 0
    assert value("modelsupd_gpu_state", state="ok", **labels) == 1


def test_weights_on_their_way_and_what_became_of_each_file(place: Path) -> None:
    tape = Watched()
    port = MemoryPort(place, tape)
    tape.metrics = metrics = Metrics(port, Uses())
    metrics.changed(None, tape.replica, "Declared")
    labels = {"model": "tiny", "replica": "tiny/0"}
    assert scraped(metrics)("modelsupd_weights_total_bytes", **labels) is None
    port.progress["tiny/0"] = Progress("fetching", 3, 10)
    metrics.file_done(frozenset({"tiny/0"}), FileDone("a", FETCHED, 3))
    metrics.file_done(frozenset({"tiny/0"}), FileDone("b", FETCHED, 4))
    metrics.file_done(frozenset({"tiny/0"}), FileDone("b", MOVED_ASIDE, 4))
    metrics.file_done(frozenset({"gone/0"}), FileDone("c", FETCHED, 5))
    value = scraped(metrics)
    assert value("modelsupd_weights_done_bytes", **labels) == 3
    assert value("modelsupd_weights_total_bytes", **labels) == 10
    assert value("modelsupd_weights_files_total", outcome="fetched") == 2
    assert value("modelsupd_weights_bytes_total", outcome="fetched", **labels) == 7
    assert value("modelsupd_weights_bytes_total", outcome="moved-aside", **labels) == 4
