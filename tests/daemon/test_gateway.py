"""The gateway in front of a daemon's models: what clients get while engines, daemon and gateway come and go."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway_client import Client, behind, events_of, limits
from hosts import QUICK, Host, alive, fake, fake_model, host
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons, or kills a process many times


@contextmanager
def gateway(place: Path, *models: str, more: str = "") -> Iterator[tuple[Host, Client]]:
    with host(place, behind(*(models or (fake_model() + limits(),)), more=more)) as daemon:
        client = Client(daemon)
        try:
            yield daemon, client
        finally:
            client.close()


def gateway_run(daemon: Host) -> dict[str, Any]:
    """Return the gateway that takes connections; without one, one that nobody is."""
    runs = (run for run in daemon.client.status()["gateway"]["runs"] if run["accepts"])
    return next(runs, {"pid": None})


def test_it_streams_and_does_not_stream(place: Path) -> None:
    with gateway(place) as (daemon, client):
        daemon.until_phase("ready")
        assert json.loads(client.text(tokens=3))["usage"]["completion_tokens"] == 3
        answer = client.ask(stream=True, tokens=3)
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert answer.headers["X-Modelsupd-Run"] == "m/0#1"
        assert answer.headers["X-Request-Id"]
        events = events_of(answer.read().decode())
        assert events[-1] == "[DONE]"
        assert len(events) >= 4
        status, models = client.get("/v1/models")
        assert status == 200
        assert [model["id"] for model in models["data"]] == ["m"]
        assert client.get("/health")[0] == 200
        assert client.get("/ready")[0] == 200
        pid = gateway_run(daemon)["pid"]
        assert daemon.stop() == 0
        assert not alive(pid)


def test_a_client_that_waits_for_a_load_is_kept_warm_as_declared(place: Path) -> None:
    slow = fake_model("m", "--load-s", "60") + limits(start_wait_s=30)
    with gateway(place, slow, more="warm_after_s = 0.2\n") as (daemon, client):
        answer = client.ask(stream=True, tokens=2)
        assert answer.read(9) == b": loading"
        until(lambda: "Loading model" in daemon.replica()["reason"], what=daemon.said)
        fake(daemon.replica()["endpoint"], load_s=0)
        said = answer.read().decode()
        assert "error" not in said
        assert events_of(said)[-1] == "[DONE]"


def test_an_unknown_model_is_told_what_there_is(place: Path) -> None:
    with gateway(place) as (_, client):
        answer = client.ask(model="n")
        assert answer.status == 404
        assert "m" in json.loads(answer.read())["error"]["message"]


def test_the_managers_restart_that_lost_its_models(place: Path) -> None:
    """The daemon is killed while a stream runs, and comes back: same engine, same gateway, same stream."""
    with gateway(place) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], token_s=0.05)
        stream = client.ask(stream=True, tokens=60)
        stream.read(20)
        before = gateway_run(daemon)
        daemon.stop(signal.SIGKILL)
        # Without any daemon it goes on serving, and takes new requests.
        assert "[DONE]" in client.text(stream=True, tokens=2)
        daemon.start()
        assert daemon.until_phase("ready")["pid"] == first["pid"]
        until(lambda: gateway_run(daemon)["pid"] == before["pid"], what="the gateway is adopted")
        assert events_of(stream.read().decode())[-1] == "[DONE]"
        assert client.ask().status == 200
        assert daemon.client.status()["gateway"]["listen"] == [f"{client.host}:{client.port}"]


def test_the_answer_of_zero_tokens(place: Path) -> None:
    """An engine that answers 200 with nothing is never ready, so that clients are told the truth."""
    with gateway(place, fake_model("m", "--zero-tokens") + limits(start_wait_s=0.5)) as (daemon, client):
        until(lambda: "zero tokens" in daemon.replica()["reason"])
        answer = client.ask()
        assert answer.status == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert "loading" in json.loads(answer.read())["error"]["message"]


def test_the_health_check_that_lied(place: Path) -> None:
    """/health says ok while completions hang: a client's stall is evidence, and the engine is replaced."""
    with gateway(place, fake_model() + limits(first_byte_timeout_s=1)) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], hang="completions")
        # Nothing was sent yet, so it is asked again of the engine that follows.
        assert client.ask().status in (200, 503, 504)
        daemon.until_phase("ready", run=2)
        assert client.ask().status == 200
        assert not alive(first["pid"])


def test_the_upstream_closed_too_early(place: Path) -> None:
    """A stream is relayed to its last byte, however slowly the client reads it."""
    with gateway(place) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], token_s=0.01)
        answers = [client.ask(stream=True, tokens=30) for _ in range(5)]
        for answer in answers:
            text = b""
            while piece := answer.read(7):
                text += piece
            assert events_of(text.decode())[-1] == "[DONE]"
            assert len(events_of(text.decode())) >= 31


def test_the_record_lost_when_the_stream_outlived_its_request(place: Path) -> None:
    """One line of record for each request, written after the last byte, also for a client that went away."""
    with gateway(place) as (daemon, client):
        first = daemon.until_phase("ready")
        client.text(stream=True, tokens=3)
        fake(first["endpoint"], token_s=0.05)
        gone = client.ask(stream=True, tokens=1000)
        gone.read(10)
        client.close()
        log = daemon.state / "gateway" / "access.log"
        until(lambda: log.exists() and len(log.read_text().splitlines()) >= 2, what=daemon.said)
        whole, left = (json.loads(line) for line in log.read_text().splitlines()[:2])
        assert whole["ended_by"] == "engine"
        assert left["ended_by"] == "client"
        assert whole["run"] == left["run"] == "m/0#1"
        until(lambda: fake(first["endpoint"]).get("in_flight", 0) == 0, what="the engine's work is cancelled")


def test_killed_before_the_first_byte_the_client_sees_a_normal_answer(place: Path) -> None:
    with gateway(place) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], delay_s=30)
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(client.ask().status))
        asking.start()
        until(lambda: fake(first["endpoint"]).get("in_flight", 0) >= 1, what="the engine works on it")
        os.kill(first["pid"], signal.SIGKILL)
        asking.join(60)
        assert answers == [200]
        assert daemon.replica()["run"] == 2


def test_killed_in_the_middle_the_client_sees_one_error(place: Path) -> None:
    with gateway(place) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], token_s=0.05)
        stream = client.ask(stream=True, tokens=1000)
        stream.read(20)
        os.kill(first["pid"], signal.SIGKILL)
        events = events_of(stream.read().decode())
        assert events[-1] == "[DONE]"
        assert "error" in json.loads(events[-2])
        assert sum('"error"' in event for event in events) == 1


def test_stopped_in_the_middle_it_is_a_stall_and_the_run_is_judged_hung(place: Path) -> None:
    with gateway(place, fake_model() + limits(stream_stall_s=2)) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], token_s=0.05)
        stream = client.ask(stream=True, tokens=1000)
        stream.read(20)
        os.kill(first["pid"], signal.SIGSTOP)
        events = events_of(stream.read().decode())
        assert "error" in json.loads(events[-2])
        daemon.until_phase("ready", run=2)
        assert not alive(first["pid"])


def test_a_stop_lets_streams_finish(place: Path) -> None:
    with gateway(place, fake_model(limits=QUICK.replace("drain_timeout_s = 2", "drain_timeout_s = 20"))) as (
        daemon,
        client,
    ):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], token_s=0.05)
        streams = [client.ask(stream=True, tokens=20) for _ in range(20)]
        daemon.client.command("stop", "m")
        for stream in streams:
            assert events_of(stream.read().decode())[-1] == "[DONE]"
        daemon.until_phase("stopped")
        assert client.ask().status == 503


PATIENT = QUICK.replace("drain_timeout_s = 2", "drain_timeout_s = 60")


def test_a_daemon_that_is_told_to_go_lets_streams_finish_and_tells_the_others_why(place: Path) -> None:
    with gateway(place, fake_model(limits=PATIENT) + limits(start_wait_s=0.2)) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], stream_fault="freeze")
        streams = [client.ask(stream=True, tokens=40) for _ in range(5)]
        daemon.send(signal.SIGTERM)
        daemon.until_phase("draining")
        until(lambda: client.state() != "ready")
        late = client.ask()
        assert (late.status, int(late.headers["Retry-After"]) >= 1) == (503, True)
        fake(first["endpoint"], stream_fault="")
        for stream in streams:
            assert events_of(stream.read().decode())[-1] == "[DONE]"
        assert daemon.daemon is not None
        assert daemon.daemon.wait(60) == 0


def test_an_engine_that_is_replaced_finishes_its_streams_and_requests_wait_for_the_next(place: Path) -> None:
    with gateway(place, fake_model(limits=PATIENT) + limits()) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], stream_fault="freeze")
        stream = client.ask(stream=True, tokens=40)
        daemon.declare(behind(fake_model("m", "--load-s", "0.1", limits=PATIENT) + limits()))
        assert daemon.run("reload").returncode == 0
        until(lambda: client.state() != "ready")
        fake(first["endpoint"], stream_fault="")
        answer = client.ask()
        assert (answer.status, answer.headers["X-Modelsupd-Run"]) == (200, "m/0#2")
        assert events_of(stream.read().decode())[-1] == "[DONE]"


def test_a_gateway_that_is_killed_is_replaced_and_nobody_is_refused(place: Path) -> None:
    with gateway(place) as (daemon, client):
        daemon.until_phase("ready")
        before = gateway_run(daemon)
        os.kill(before["pid"], signal.SIGKILL)
        # The listening socket is the daemon's too: this connection waits in its queue.
        assert client.ask().status == 200
        assert gateway_run(daemon)["pid"] != before["pid"]


def test_a_changed_gateway_takes_over_without_breaking_a_stream(place: Path) -> None:
    with gateway(place) as (daemon, client):
        first = daemon.until_phase("ready")
        fake(first["endpoint"], token_s=0.05)
        before = gateway_run(daemon)
        streams = [client.ask(stream=True, tokens=60) for _ in range(10)]
        daemon.config.write_text(daemon.config.read_text().replace("[gateway]\n", "[gateway]\ncors_origins = ['*']\n"))
        assert daemon.run("reload").returncode == 0
        until(lambda: gateway_run(daemon)["pid"] != before["pid"], what=lambda: f"{daemon.client.status()['gateway']}")
        assert client.ask().status == 200
        for stream in streams:
            assert events_of(stream.read().decode())[-1] == "[DONE]"
        until(lambda: not alive(before["pid"]), what="the old one ends")
        until(lambda: len(daemon.client.status()["gateway"]["runs"]) == 1, what="the old one is forgotten")


def test_an_address_that_is_taken_is_told_and_had_when_it_is_free(place: Path) -> None:
    import socket  # noqa: PLC0415 - for this test alone

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        models = behind(fake_model()).replace("127.0.0.1:0", f"127.0.0.1:{port}")
        with host(place, models) as daemon:
            until(lambda: "cannot listen" in daemon.client.status()["gateway"]["reason"])
            daemon.until_phase("ready")
            taken.close()
            client = Client(daemon)
            assert client.ask().status == 200
            client.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_it_goes_with_the_daemon_or_stays_as_the_engines_do(place: Path, number: signal.Signals) -> None:
    with gateway(place) as (daemon, client):
        daemon.until_phase("ready")
        pid = gateway_run(daemon)["pid"]
        assert daemon.stop(number) == 0
        assert alive(pid) is (number == signal.SIGUSR1)
        if number == signal.SIGUSR1:
            assert client.ask().status == 200
            daemon.reap()
            assert not alive(pid)


def test_its_metrics_are_scraped_with_the_daemons(place: Path) -> None:
    with host(place, behind(fake_model() + limits()), start=False) as daemon:
        daemon.config.write_text(
            daemon.config.read_text().replace("metrics_listen = ''", "metrics_listen = '127.0.0.1:0'")
        )
        daemon.start()
        client = Client(daemon)
        daemon.until_phase("ready")
        client.text(tokens=3)
        client.close()
        at = re.findall(r"http://127\.0\.0\.1:[0-9]+/metrics", daemon.said())[-1]
        texts = [""]

        def counted() -> bool:
            # Without the gateway's part where that is not told within a second.
            with urllib.request.urlopen(at, timeout=60) as answer:  # noqa: S310 - an address of our own
                texts.append(answer.read().decode())
            return bool(re.search(r'modelsupd_gateway_requests_total\{.*code="200".*model="m".*\} 1\.0', texts[-1]))

        until(counted, what=lambda: texts[-1])
        assert "modelsupd_replica_phase" in texts[-1]


def test_a_gateway_that_is_taken_out_refuses_at_once_and_comes_back(place: Path) -> None:
    with gateway(place) as (daemon, client):
        daemon.until_phase("ready")
        pid = gateway_run(daemon)["pid"]
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace("[gateway]\n", "[gateway]\nenabled = false\n"))
        assert daemon.run("reload").returncode == 0
        until(lambda: not alive(pid), what=daemon.said)
        with pytest.raises(ConnectionRefusedError):
            client.ask()
        daemon.config.write_text(text)
        assert daemon.run("reload").returncode == 0
        again = Client(daemon)
        assert again.ask().status == 200
        again.close()


def test_daemon_and_gateway_killed_together_both_come_back(place: Path) -> None:
    with gateway(place) as (daemon, _):
        first = daemon.until_phase("ready")
        pid = gateway_run(daemon)["pid"]
        daemon.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        daemon.start()
        again = Client(daemon)
        assert again.ask().status == 200
        again.close()
        assert daemon.replica()["pid"] == first["pid"]
