"""vLLM that sleeps instead of being stopped: what looks like it, on GPUs of a fake NVML. No real one sleeps on CPU."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fake_engine
import tiny_llama
from fake_gpus import GIB, Cards
from gateway_client import Client, behind, limits
from hosts import QUICK, Host, alive, fake, host, settled, whys
from modelsupd.engines.base import Request
from modelsupd.runtime.http import fetch
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons

USES_GIB, ASLEEP_GIB = 5, 1


def model(place: Path, name: str, demand: str = "", level: int = 1, sleep_timeout_s: float = 30) -> str:
    return f"""
[models.{name}]
engine = 'vllm'
weights = '{place}/tiny'
start = 'on-demand'
gpus = 1
[models.{name}.args]
max_model_len = 64
[models.{name}.placement]
vram_bytes = {USES_GIB * GIB}
[models.{name}.demand]
sleep = {level}
asleep_vram_bytes = {ASLEEP_GIB * GIB}
sleep_timeout_s = {sleep_timeout_s}
residence_s = 0
{demand}
{QUICK.format(name=name)}
{limits(name)}
"""


@contextmanager
def serving(place: Path, *models: str, gpus: tuple[int, ...] = (8,)) -> Iterator[tuple[Host, Client]]:
    tiny_llama.write(place / "tiny", context_length=64)
    for file in (place / "tiny").iterdir():
        settled(file)
    cards = Cards(place / "cards", *gpus)
    python = fake_engine.install_vllm(place, (place / "cards", USES_GIB * GIB, ASLEEP_GIB * GIB))
    engines = f"[engines.vllm]\npython = '{python}'\n"
    with host(place, cards.config(behind(*models, more=""), engines)) as daemon:
        client = Client(daemon)
        try:
            yield daemon, client
        finally:
            client.close()


def asleep(daemon: Host) -> dict[str, Any]:
    """Wait until `a` sleeps; one that falls asleep has that phase already, and what tells them apart is on record."""

    def there() -> bool:
        *_, last = (record["state"] for record in daemon.records() if record.get("replica") == "a/0")
        return bool(last["phase"]["name"] == last["phase"].get("state") == "asleep")

    until(there, what=daemon.where)
    return daemon.replica("a/0")


def test_one_that_gives_way_sleeps_and_wakes_when_it_is_asked_for(place: Path) -> None:
    with serving(place, model(place, "a"), model(place, "b")) as (daemon, client):
        client.text(model="a")
        first = daemon.replica("a/0")
        assert fake(first["endpoint"])["environ"]["VLLM_SERVER_DEV_MODE"] == "1"
        client.text(model="b")
        sleeper = daemon.replica("a/0")
        assert (sleeper["phase"], sleeper["pid"]) == ("asleep", first["pid"])
        assert "asleep at level 1" in sleeper["reason"]
        assert "gives way to b/0" in whys(daemon)
        states = {model["id"]: model["state"] for model in client.get("/v1/models")[1]["data"]}
        assert states == {"a": "on-demand", "b": "ready"}
        claimed = {row["uuid"]: row["claimed_bytes"] for row in daemon.client.gpus()["gpus"]}
        assert claimed == {"GPU-0": (USES_GIB + ASLEEP_GIB) * GIB}
        client.text(model="a")
        awake = daemon.replica("a/0")
        assert (awake["phase"], awake["pid"], awake["run"]) == ("ready", first["pid"], 1)
        assert fake(awake["endpoint"])["orders"] == ["/sleep?level=1&mode=abort", "/wake_up"]
        assert daemon.replica("b/0")["phase"] == "asleep"
        assert [daemon.replica(f"{name}/0")["restarts"] for name in "ab"] == [0, 0]


def test_from_level_2_the_weights_are_read_again_before_it_is_asked_for_anything(place: Path) -> None:
    with serving(place, model(place, "a", "idle_timeout_s = 0.3", level=2)) as (daemon, client):
        client.text(model="a")
        endpoint = asleep(daemon)["endpoint"]
        client.text(model="a")
        steps = ["/sleep?level=2&mode=abort", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
        assert fake(endpoint)["orders"][:4] == steps
        assert daemon.replica("a/0")["run"] == 1


def test_from_level_2_it_reads_no_weights_that_nobody_has_looked_at(place: Path) -> None:
    with serving(place, model(place, "a", "idle_timeout_s = 0.3", level=2)) as (daemon, client):
        client.text(model="a")
        endpoint = asleep(daemon)["endpoint"]
        (place / "tiny" / "config.json").touch()
        assert fake(endpoint)["orders"] == ["/sleep?level=2&mode=abort"]
        client.text(model="a")
        assert daemon.replica("a/0")["run"] == 2
        assert "cannot wake: what it was started from has changed since" in whys(daemon)


def test_where_there_is_no_room_for_what_it_keeps_it_is_stopped(place: Path) -> None:
    wide = model(place, "b").replace(f"vram_bytes = {USES_GIB * GIB}", f"vram_bytes = {8 * GIB}")
    with serving(place, model(place, "a"), wide) as (daemon, client):
        client.text(model="a")
        pid = daemon.replica("a/0")["pid"]
        client.text(model="b")
        assert daemon.replica("a/0")["phase"] == "stopped"
        assert not alive(pid)


def test_one_that_cannot_sleep_is_stopped_and_one_that_cannot_wake_is_replaced(place: Path) -> None:
    with serving(place, model(place, "a"), model(place, "b")) as (daemon, client):
        client.text(model="a")
        fake(daemon.replica("a/0")["endpoint"], sleep_fails=True)
        client.text(model="b")
        assert daemon.replica("a/0")["phase"] == "stopped"
        assert "cannot sleep: POST /sleep?level=1&mode=abort was answered 500: " in whys(daemon)
        client.text(model="a")
        until(lambda: daemon.replica("b/0")["phase"] == "asleep")
        fake(daemon.replica("b/0")["endpoint"], sleep_fails=True)
        client.text(model="b")
        assert daemon.replica("b/0")["run"] == 2
        assert "crash: cannot wake: POST /wake_up was answered 500" in whys(daemon)


def test_one_that_hangs_in_its_sleep_is_replaced_when_it_is_asked_for(place: Path) -> None:
    with serving(place, model(place, "a", "idle_timeout_s = 0.3", sleep_timeout_s=2)) as (daemon, client):
        client.text(model="a")
        pid = asleep(daemon)["pid"]
        os.kill(pid, signal.SIGSTOP)
        client.text(model="a")
        assert daemon.replica("a/0")["run"] == 2
        assert not alive(pid)


def test_a_killed_daemon_finds_a_sleeper_asleep_and_an_operator_ends_it(place: Path) -> None:
    with serving(place, model(place, "a", "idle_timeout_s = 0.3")) as (daemon, client):
        client.text(model="a")
        sleeper = asleep(daemon)
        assert daemon.stop(signal.SIGKILL) != 0
        daemon.start()
        again = asleep(daemon)
        assert (again["pid"], again["gpus"]) == (sleeper["pid"], ["GPU-0"])
        until(lambda: client.address() is not None)
        client.text(model="a")
        assert daemon.replica("a/0")["pid"] == sleeper["pid"]
        asleep(daemon)
        assert daemon.run("stop", "a").returncode == 0
        daemon.until_phase("stopped", name="a/0")
        assert not alive(sleeper["pid"])


def test_one_that_somebody_else_had_sleep_is_found_asleep_and_woken(place: Path) -> None:
    with serving(place, model(place, "a")) as (daemon, client):
        client.text(model="a")
        before = daemon.replica("a/0")
        order = Request(method="POST", path="/sleep?level=1&mode=abort")
        assert asyncio.run(fetch(before["endpoint"], order, 5))[0] == 200
        until(lambda: "of which nothing was on record" in whys(daemon))
        until(lambda: client.state("a") != "ready")
        client.text(model="a")
        after = daemon.replica("a/0")
        assert (after["pid"], after["run"], after["restarts"]) == (before["pid"], 1, 0)


def test_a_daemon_killed_while_one_falls_asleep_and_while_it_wakes_up_leaves_that_to_the_next(place: Path) -> None:
    with serving(place, model(place, "a", "idle_timeout_s = 0.3")) as (daemon, client):
        client.text(model="a")
        before = daemon.replica("a/0")
        for order, phase in (("/sleep?level=1&mode=abort", "asleep"), ("/wake_up", "ready")):
            fake(before["endpoint"], sleep_s=0.7)
            waiting = threading.Thread(target=lambda: client.text(model="a"))
            if phase == "ready":
                waiting.start()
            until(lambda order=order: order in fake(before["endpoint"])["orders"])  # type: ignore[misc]  # a default is how a loop's own value is kept
            assert daemon.stop(signal.SIGKILL) != 0
            fake(before["endpoint"], sleep_s=0.0)
            daemon.start()
            if phase == "ready":
                waiting.join(60)
                assert "is awake, and has yet to prove it" in whys(daemon)
            else:
                until(lambda: "asleep at level 1" in whys(daemon))
            after = daemon.replica("a/0")
            assert (after["pid"], after["run"], after["restarts"]) == (before["pid"], 1, 0)


def test_it_is_stopped_when_it_has_slept_for_too_long(place: Path) -> None:
    with serving(place, model(place, "a", "idle_timeout_s = 0.2\nasleep_timeout_s = 0.3")) as (daemon, client):
        client.text(model="a")
        daemon.until_phase("stopped", name="a/0")
        assert "slept for 0.3 s" in whys(daemon)


def test_clients_do_not_reach_its_paths_for_developers(place: Path) -> None:
    with serving(place, model(place, "a")) as (daemon, client):
        client.text(model="a")
        for path in ("/sleep", "/wake_up", "/collective_rpc", "/is_sleeping"):
            connection = client.connect()
            connection.request("POST", path, json.dumps({"model": "a"}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status in (404, 405), path
            answer.read()
        assert fake(daemon.replica("a/0")["endpoint"])["orders"] == []


def test_a_gateway_that_lags_sends_nothing_to_one_that_falls_asleep(place: Path) -> None:
    patient = model(place, "a", "idle_timeout_s = 600").replace("probe_timeout_s = 1", "probe_timeout_s = 4")
    with serving(place, patient) as (daemon, client):
        connection = client.connect()
        connection.request("GET", "/v1/models")
        connection.getresponse().read()
        assert daemon.run("start", "a").returncode == 0
        pid = daemon.until_phase("ready", name="a/0")["pid"]
        (gateway,) = daemon.client.status()["gateway"]["runs"]
        os.kill(gateway["pid"], signal.SIGSTOP)
        try:
            asked = {"model": "a", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
            connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
            # By what is declared now it has been idle for too long.
            daemon.config.write_text(daemon.config.read_text().replace("idle_timeout_s = 600", "idle_timeout_s = 0.1"))
            assert daemon.run("reload").returncode == 0
            until(lambda: daemon.replica("a/0")["phase"] != "ready")
        finally:
            os.kill(gateway["pid"], signal.SIGCONT)
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
        sleeper = asleep(daemon)
        assert (sleeper["pid"], sleeper["run"], sleeper["restarts"]) == (pid, 1, 0)
