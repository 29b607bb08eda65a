"""Models that start when clients ask for them, take turns, and go when nobody does: real daemons, gateways, engines."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from fake_gpus import Cards
from gateway_client import Client, behind, events_of, limits
from hosts import Host, alive, fake, fake_model, host, whys
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons

ON_DEMAND = 'start = "on-demand"'
QUICK_TURNS = "residence_s = 0.2\nturn_s = 1\n"


def model(name: str, *flags: str, demand: str = QUICK_TURNS) -> str:
    """Return a model that starts on demand."""
    return fake_model(name, *flags, extra=ON_DEMAND) + f"[models.{name}.demand]\n{demand}" + limits(name)


@contextmanager
def serving(place: Path, *models: str, more: str = "") -> Iterator[tuple[Host, Client]]:
    with host(place, behind(*models, more=more)) as daemon:
        client = Client(daemon)
        try:
            yield daemon, client
        finally:
            client.close()


def one_at_a_time(*names: str, demand: str = QUICK_TURNS) -> list[str]:
    return [model(name, demand=f"{demand}group = 'g'\nexcludes = ['g']\n") for name in names]


def test_a_request_starts_it_and_idleness_ends_it(place: Path) -> None:
    with serving(place, model("m", demand="idle_timeout_s = 600\n")) as (daemon, client):
        idle = daemon.until_phase("stopped")
        assert idle["run"] is None
        assert "starts when a client asks for it" in idle["reason"]
        assert client.get("/ready")[0] == 200
        assert client.get("/v1/models")[1]["data"][0]["id"] == "m"
        assert daemon.replica()["phase"] == "stopped", "a look at it is no request for it"
        events = events_of(client.text(stream=True, tokens=3))
        assert events[-1] == "[DONE]"
        ready = daemon.replica()
        assert (ready["phase"], ready["run"]) == ("ready", 1)
        # By what is declared now it has been idle for too long soon; it might have been before anybody looked at it.
        daemon.config.write_text(daemon.config.read_text().replace("idle_timeout_s = 600", "idle_timeout_s = 0.5"))
        daemon.client.reload()
        daemon.until_phase("stopped")
        assert not alive(ready["pid"])
        assert "no request for 0.5 s" in daemon.run("why", "m").stdout
        client.text()
        assert daemon.replica()["run"] == 2
        assert daemon.replica()["restarts"] == 0, "to go for lack of requests is no failure"


def test_an_operators_stop_is_stronger_than_demand_and_start_ends_it(place: Path) -> None:
    with serving(place, model("m")) as (daemon, client):
        assert daemon.run("stop", "m").returncode == 0
        assert client.ask().status == 503
        assert daemon.replica()["run"] is None
        assert daemon.run("start", "m").returncode == 0
        daemon.until_phase("ready")
        until(lambda: client.state() == "ready")
        client.text()
        assert daemon.replica()["run"] == 1


def test_two_that_exclude_each_other_take_turns_and_none_is_cut(place: Path) -> None:
    with serving(place, *one_at_a_time("a", "b")) as (daemon, client), ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(client.text, model="ab"[number % 2], stream=True, tokens=5) for number in range(20)]
        assert all(events_of(each.result())[-1] == "[DONE]" for each in asked)
        # Requests for the same model are served together: not a swap each.
        assert daemon.replica("a/0")["run"] + daemon.replica("b/0")["run"] <= 6
        phases = {daemon.replica(f"{name}/0")["phase"] for name in "ab"}
        assert "ready" in phases
        assert len(phases) == 2
        assert "gives way to" in daemon.run("events").stdout


def test_a_stream_goes_on_to_its_end_before_its_model_gives_way(place: Path) -> None:
    slow = model("a", "--stream-fault", "freeze", demand=QUICK_TURNS + "group = 'g'\nexcludes = ['g']\n")
    with serving(place, slow, *one_at_a_time("b")) as (daemon, client), ThreadPoolExecutor(4) as pool:
        long = pool.submit(client.text, model="a", stream=True, tokens=20)
        until(lambda: daemon.replica("a/0")["phase"] == "ready")
        first = daemon.replica("a/0")
        other = pool.submit(client.text, model="b", tokens=1)
        # b's turn has come: a takes nothing new, and this one waits for a's next turn.
        until(lambda: "takes nothing new" in daemon.replica("b/0")["reason"])
        until(lambda: client.state("a") != "ready")
        late = client.send(model="a", tokens=1)
        assert client.state("a") != "ready"  # and what was sent before has come
        fake(first["endpoint"], stream_fault="")
        assert events_of(long.result())[-1] == "[DONE]"
        assert len(events_of(long.result())) >= 20
        other.result()
        assert late.getresponse().status == 200
        assert not alive(first["pid"])
        assert daemon.replica("a/0")["run"] == 2


def test_a_higher_priority_takes_the_place_of_one_in_use(place: Path) -> None:
    low = model("low", "--token-s", "0.15", demand=QUICK_TURNS + "group = 'g'\nexcludes = ['g']\n")
    high = one_at_a_time("high", demand="priority = 5\n")
    with serving(place, low, *high) as (daemon, client), ThreadPoolExecutor(4) as pool:
        cut = pool.submit(client.text, model="low", stream=True, tokens=200)
        until(lambda: daemon.replica("low/0")["phase"] == "ready")
        until(lambda: "low/0: in use" in daemon.run("plan", "--want", "high").stdout)
        assert daemon.run("plan", "--want", "high").returncode == 0
        client.text(model="high")
        assert daemon.replica("high/0")["phase"] == "ready"
        # It had its drain; then it ended with an error event, and that is no failure of the model's.
        events = events_of(cut.result())
        assert "error" in json.loads(events[-2])
        assert daemon.replica("low/0")["restarts"] == 0
        waits = daemon.run("plan", "--want", "low", "--json")
        assert waits.returncode == 1
        assert "has a higher priority" in json.loads(waits.stdout)[0]["why"]


def test_who_goes_before_it_started_starts_nothing(place: Path) -> None:
    """A client that leaves while its model waits for its turn takes the demand with it."""
    with serving(place, *one_at_a_time("a", demand="pinned = true\n"), *one_at_a_time("b")) as (daemon, client):
        client.text(model="a")
        leaving = client.send(model="b")
        until(lambda: "a/0 is pinned" in daemon.replica("b/0")["reason"])
        leaving.close()
        daemon.until_phase("stopped", name="b/0")
        assert "nobody waits for it any more" in daemon.replica("b/0")["reason"]
        assert daemon.replica("a/0")["phase"] == "ready"


def test_a_killed_daemon_leaves_what_was_asked_for_and_a_stream_unbroken(place: Path) -> None:
    slow = model("m", "--stream-fault", "freeze", demand="idle_timeout_s = 1\n")
    with serving(place, slow) as (daemon, client):
        got: list[str] = []
        reader = threading.Thread(target=lambda: got.append(client.text(stream=True, tokens=25)))
        reader.start()
        ready = daemon.until_phase("ready")
        until(lambda: fake(ready["endpoint"])["in_flight"] == 1)
        assert daemon.stop(signal.SIGKILL) != 0
        daemon.start()
        assert daemon.replica()["pid"] == ready["pid"]
        fake(ready["endpoint"], stream_fault="")
        reader.join()
        assert events_of(got[0])[-1] == "[DONE]"
        # What is in use is known again from the gateway; idle, it goes as ever.
        assert daemon.until_phase("stopped", "draining", "stopping")["run"] == 1


def test_a_crash_is_mended_when_somebody_asks(place: Path) -> None:
    with serving(place, model("m")) as (daemon, client):
        client.text()
        pid = daemon.replica()["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid))
        client.text()
        assert daemon.replica()["run"] >= 2
        assert "signal 9" in whys(daemon)


def test_on_one_gpu_the_idle_one_gives_way_and_a_pinned_one_stays(place: Path) -> None:
    cards = Cards(place / "cards", 8)
    four, names = "vram_bytes = 4294967296", ("a", "b", "c")
    models = [
        cards.model(name, placement=four, extra=ON_DEMAND)
        + f"[models.{name}.demand]\n{QUICK_TURNS}pinned = {'true' if name == 'a' else 'false'}\n"
        + limits(name)
        for name in names
    ]
    with host(place, cards.config(behind(*models))) as daemon:
        client = Client(daemon)
        for name in names:
            client.text(model=name)
        phases = {name: daemon.replica(f"{name}/0")["phase"] for name in names}
        assert phases == {"a": "ready", "b": "stopped", "c": "ready"}
        until(lambda: daemon.run("plan", "--want", "b").returncode == 0, what="c has been ready long enough")
        plan = json.loads(daemon.run("plan", "--want", "b", "--json").stdout)
        assert [victim["name"] for victim in plan[0]["evicts"]] == ["c/0"]
        client.text(model="b")
        assert daemon.replica("c/0")["phase"] == "stopped"
        client.close()
