"""A real Prometheus reads a real daemon, and the alerts that come with the package say what an operator needs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, fake_model, held_port, host
from waiting import until

pytestmark = pytest.mark.real

UNITS = Path(__file__).parents[2] / "units"

#: Runbooks name other people's commands too; these are ours, with the words that Prometheus filled in.
_OURS = re.compile(r"`modelsupd ([^`]+)`")


def needs(tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"there is no {tool} (Debian: apt-get install prometheus)")


def promtool(*words: str | Path, text: bytes | None = None) -> None:
    needs("promtool")
    done = subprocess.run(["promtool", *words], input=text, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    # Its linter warns on stderr and ends with 0 in some versions.
    assert text is None or not done.stderr, done.stderr.decode()


@contextmanager
def measured(place: Path, models: str) -> Iterator[tuple[Host, str]]:
    """Run a daemon that serves metrics at a free port; yield it and its host:port."""
    with host(place, models, start=False) as daemon:
        written = daemon.config.read_text().replace("metrics_listen = ''", "metrics_listen = '127.0.0.1:0'")
        daemon.config.write_text(written)
        daemon.start()
        found = re.search(r"http://(127\.0\.0\.1:[0-9]+)/metrics", daemon.said())
        assert found, daemon.said()
        yield daemon, found[1]


class Prometheus:
    """A real one, on loopback, that asks four times a second."""

    def __init__(self, place: Path, target: str, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        config = place / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}\n"
            f"rule_files: ['{UNITS}/modelsupd.rules.yml']\n"
            f"scrape_configs: [{{job_name: modelsupd, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        self.log = place / "prometheus.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={place}/prometheus",
                    f"--web.listen-address={self.address}",
                ],
                stdout=log,
                stderr=log,
                cwd=place,
            )

    def ask(self, what: str, **params: str) -> Any:  # noqa: ANN401 - JSON of any shape
        """Ask its API; None while it does not answer yet."""
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert self.process.poll() is None, self.log.read_text()
            return None

    def value(self, query: str) -> float | None:
        """Return the only value of a query, None where there is none."""
        found = self.ask("query", query=query)
        return float(found["result"][0]["value"][1]) if found and len(found["result"]) == 1 else None

    def until(self, query: str, value: float) -> None:
        """Wait for a value: none is there just after the daemon took longer for its answer than Prometheus waits."""
        until(lambda: self.value(query) == value, what=lambda: f"{query} == {value}: {self.value(query)}")

    def until_alert(self, name: str) -> dict[str, dict[str, Any]]:
        """Wait until an alert fires; return all that do then."""
        seen: dict[str, dict[str, Any]] = {}

        def fires() -> bool:
            seen.clear()
            seen.update(self.alerts())
            return name in seen

        until(fires, what=lambda: f"{name} fires, and not only {list(seen)}")
        return seen

    def alerts(self) -> dict[str, dict[str, Any]]:
        """Return the alerts that fire, by name and replica."""
        found = (self.ask("alerts") or {"alerts": []})["alerts"]
        return {
            f"{alert['labels']['alertname']} {alert['labels'].get('replica', '')}": alert
            for alert in found
            if alert["state"] == "firing"
        }


@contextmanager
def prometheus(place: Path, target: str) -> Iterator[Prometheus]:
    needs("prometheus")
    with held_port() as port:
        server = Prometheus(place, target, port)
        try:
            until(lambda: server.ask("targets"), what="Prometheus answers")
            yield server
        finally:
            server.process.terminate()
            server.process.wait(60)


def test_what_is_exposed_passes_the_linter(place: Path) -> None:
    with measured(place, fake_model()) as (daemon, at):
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("ready", run=2)
        with urllib.request.urlopen(f"http://{at}/metrics", timeout=5) as answer:
            text = answer.read()
        assert b"modelsupd_replica_restarts_total" in text
        promtool("check", "metrics", text=text)


def test_the_alerts_and_the_snippet_are_what_prometheus_takes() -> None:
    promtool("check", "rules", UNITS / "modelsupd.rules.yml")
    promtool("check", "config", UNITS / "prometheus.yml")


def test_the_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", UNITS / "modelsupd.rules.test.yml")


def test_every_alert_names_a_command_and_has_a_test() -> None:
    rules = (UNITS / "modelsupd.rules.yml").read_text()
    tests = (UNITS / "modelsupd.rules.test.yml").read_text()
    alerts = re.split(r"\n      - alert: ", rules)[1:]
    for alert in alerts:
        name = alert.split("\n", 1)[0]
        runbook = re.search(r"^          runbook: .*`.+`", alert, re.MULTILINE)
        assert runbook, f"{name} names no command"
        assert tests.count(f"alertname: {name}\n") >= 1, f"{name} is never seen to fire"
    assert len(alerts) == rules.count("severity: ") == 11


def test_prometheus_reads_the_daemon_and_its_alert_names_a_command_that_works(place: Path) -> None:
    needs("prometheus")
    missing = "[models.gone]\nengine = 'command'\ncommand = ['./no-such-program', '{socket}']\n"
    with measured(place, fake_model() + missing) as (daemon, at), prometheus(place, at) as server:
        first = daemon.until_phase("ready")
        server.until('up{job="modelsupd"}', 1)
        server.until('modelsupd_replica_phase{replica="m/0",phase="ready"}', 1)
        os.kill(first["pid"], signal.SIGKILL)
        server.until('modelsupd_replica_restarts_total{replica="m/0",class="crash"}', 1)
        server.until('modelsupd_start_seconds_count{replica="m/0"}', 2)
        # The increase is seen, because the series was there at zero before.
        server.until('ceil(increase(modelsupd_replica_restarts_total{replica="m/0",class="crash"}[1m]) > bool 0)', 1)
        server.until('modelsupd_engine_memory_bytes{replica="m/0"} > bool 1e6', 1)
        server.until("process_resident_memory_bytes > bool 1e7", 1)

        alerts = server.until_alert("ModelsupdReplicaFailed gone/0")
        assert "ModelsupdReplicaFailed m/0" not in alerts
        commands = _OURS.findall(alerts["ModelsupdReplicaFailed gone/0"]["annotations"]["runbook"])
        assert commands == ["why gone/0", "start gone/0"]
        told = daemon.run(*shlex.split(commands[0]))
        assert told.returncode == 0, told.stderr
        assert "no-such-program" in told.stdout
        rules = server.ask("rules")["groups"][0]["rules"]
        assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []

        assert daemon.stop() == 0
        server.until('up{job="modelsupd"}', 0)
