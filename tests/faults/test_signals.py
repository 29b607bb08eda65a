"""A daemon that is told to go, or killed, at any moment of its start and its stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from hosts import Host, alive, fake, fake_model, host, streaming
from injecting import strace
from modelsupd.config import load
from modelsupd.gatekeeper import Gatekeeper
from modelsupd.runtime import identity
from waiting import until

#: Several seconds each, so not among the tests that every change runs at once.
pytestmark = pytest.mark.real

#: How much of an orderly start and stop a signal may fall into, in seconds.
START_S = 0.9
STOP_S = 0.3


def begin(daemon: Host) -> subprocess.Popen[bytes]:
    """Start the daemon and wait for nothing."""
    with daemon.log.open("ab") as log:
        daemon.daemon = subprocess.Popen(daemon.command("run"), stdout=log, stderr=log)
    return daemon.daemon


def until_it_is_ours(pid: int) -> None:
    """Wait until a Python that was just started runs our code, by which signals it handles there (proc(5)).

    Until then it handles SIGINT itself: as an error of whatever it is at, or not at all where it ignores exceptions.
    Then nobody does, and when the daemon listens it handles SIGHUP as well.
    """
    by_python = False

    def is_ours() -> bool:
        nonlocal by_python
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        caught = {number for number in signal.Signals if int(fields["SigCgt"], 16) >> (number - 1) & 1}
        before, by_python = by_python, signal.SIGINT in caught
        return signal.SIGHUP in caught or (before and not by_python)

    until(is_ours)


def owned(daemon: Host) -> list[int]:
    """Return the living processes of this installation."""
    installation = identity.installation_id(daemon.state)
    return [] if installation is None else [each.pid for each in identity.owned(installation)]


def pause(rng: random.Random, most_s: float) -> None:
    """Let a random time pass: the one thing that is tested here is that no moment is special."""
    time.sleep(rng.uniform(0, most_s))


@pytest.mark.parametrize("seed", range(4))
def test_told_to_go_at_any_moment_it_leaves_nothing(place: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    with host(place, fake_model("m", "--load-s", "0.2") + fake_model("o", "--orphan", "setsid"), start=False) as daemon:
        for _ in range(2):
            process = begin(daemon)
            until_it_is_ours(process.pid)
            pause(rng, START_S)
            for _ in range(rng.choice((1, 1, 2, 3))):
                process.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT)))
                pause(rng, STOP_S)
            # Before it listens for signals it dies of the first one, and has begun nothing.
            assert process.wait(20) in (0, -signal.SIGTERM, -signal.SIGINT), daemon.said()
            assert owned(daemon) == []
            runs = daemon.runtime / "runs"
            assert not runs.exists() or list(runs.iterdir()) == []
        daemon.start()
        daemon.until_phase("ready", name="m/0")
        daemon.until_phase("ready", name="o/0")
        assert daemon.run("journal", "verify").returncode == 0
        assert daemon.stop() == 0


def test_an_interrupt_that_comes_before_it_listens_is_no_exception(place: Path) -> None:
    """As one it is lost where Python ignores exceptions, and the daemon goes on as if nobody had said anything."""
    config = place / "models.toml"
    os.mkfifo(config)
    with subprocess.Popen([sys.executable, "-m", "modelsupd", "--config", config, "run"]) as process:
        writer: list[int] = []

        def reads() -> bool:
            # Without a reader a pipe cannot be opened for writing; a daemon that waits for it to be written to is one.
            with suppress(OSError):
                writer.append(os.open(config, os.O_WRONLY | os.O_NONBLOCK))
            return bool(writer)

        until(reads, timeout_s=20)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        os.close(writer[0])


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_moment_the_next_one_finds_what_there_is(place: Path, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    with host(place, fake_model("m", "--load-s", "0.2") + fake_model("o"), start=False) as daemon:
        for _ in range(3):
            process = begin(daemon)
            pause(rng, START_S)
            if rng.random() < 0.3:
                process.send_signal(signal.SIGTERM)
                pause(rng, STOP_S)
            process.kill()
            process.wait()
        daemon.start()
        ready = [daemon.until_phase("ready", name=name) for name in ("m/0", "o/0")]
        # One engine and one shim for each, and nothing else.
        expected = {each[who] for each in ready for who in ("pid", "shim_pid")}
        assert set(owned(daemon)) == expected
        assert len(expected) == 4
        assert daemon.run("journal", "verify").returncode == 0
        assert daemon.stop() == 0
        assert not any(alive(pid) for pid in expected)


def test_told_to_stop_while_it_is_told_to_start(place: Path) -> None:
    """Operators who change their minds: the last word counts, and no run overlaps another."""
    rng = random.Random(7)  # noqa: S311 - repeatable, not secret
    with host(place, fake_model("m", "--load-s", "0.1")) as daemon:
        daemon.until_phase("ready")
        for _ in range(8):
            daemon.client.command(rng.choice(("start", "stop", "restart")), "m")
            pause(rng, 0.15)
            engines = [pid for pid in owned(daemon) if "fake_engine" in command_line(pid)]
            assert len(engines) <= 1
        daemon.client.command("start", "m")
        pid = daemon.until_phase("ready")["pid"]
        daemon.client.command("stop", "m")
        daemon.until_phase("stopped")
        assert not alive(pid)


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_a_term_that_comes_with_a_kill_of_the_engine(place: Path) -> None:
    """Both at once, in either order: it is an orderly stop, and no restart begins."""
    for first in ("engine", "daemon"):
        here = place / first
        here.mkdir()
        with host(here, fake_model()) as daemon:
            ready = daemon.until_phase("ready")
            if first == "engine":
                os.kill(ready["pid"], signal.SIGKILL)
                daemon.send(signal.SIGTERM)
            else:
                daemon.send(signal.SIGTERM)
                os.kill(ready["pid"], signal.SIGKILL)
            assert daemon.daemon is not None
            assert daemon.daemon.wait(20) == 0
            assert owned(daemon) == []


GATEWAY = "[gateway]\nlisten = '127.0.0.1:0'\n"
CHANGED = GATEWAY + "cors_origins = ['*']\n"


@pytest.mark.parametrize(
    "declared", [GATEWAY + fake_model() + fake_model("new"), CHANGED + fake_model()], ids=["a model", "a gateway"]
)
def test_what_was_declared_a_moment_before_it_is_told_to_go_is_ended_too(place: Path, declared: str) -> None:
    """With a disk that takes its time the new one is not on record yet, and is begun while everything else ends."""
    with host(place, GATEWAY + fake_model()) as daemon:
        daemon.until_phase("ready")
        assert daemon.daemon is not None
        with strace(daemon.daemon.pid, place, "fdatasync:delay_enter=300000"):
            daemon.declare(declared)
            daemon.send(signal.SIGHUP)
            until(lambda: "configuration read again" in daemon.said())
            assert daemon.stop() == 0
        assert owned(daemon) == []


def without_settings(daemon: Host) -> Callable[[], object]:
    """Have the gateway that is declared by now wait for its settings once it is started; return what ends that."""
    config = load(daemon.config)
    Gatekeeper(config, replicas=dict, apply=lambda: None, put=lambda _name, _event: None).configure(config)
    (settings,) = daemon.runtime.glob("gateway-*.json")
    text = settings.read_bytes()
    settings.unlink()
    os.mkfifo(settings)
    return lambda: settings.write_bytes(text)


def test_on_the_way_out_a_gateway_that_takes_over_changes_nothing_any_more(place: Path) -> None:
    """What is declared is not compared again: it would be acted upon while everything is being ended."""
    patient = fake_model("m", "--token-s", "0.05").replace("drain_timeout_s = 2", "drain_timeout_s = 20")
    with host(place, GATEWAY + patient) as daemon:
        endpoint = daemon.until_phase("ready")["endpoint"]

        def runs() -> dict[str, dict[str, object]]:
            return {run["name"]: run for run in daemon.client.status()["gateway"]["runs"]}

        until(lambda: [run["accepts"] for run in runs().values()] == [True])
        with streaming(endpoint, 100_000) as stream:
            daemon.declare(CHANGED + patient)
            tell_it = without_settings(daemon)
            daemon.send(signal.SIGHUP)
            until(lambda: runs().get("@gateway-2/0", {}).get("pid"), what=daemon.said)
            assert runs()["@gateway-1/0"]["accepts"]
            daemon.send(signal.SIGTERM)
            until(lambda: daemon.replica()["phase"] == "draining")
            tell_it()
            until(lambda: runs()["@gateway-2/0"]["accepts"], what=daemon.said)
            assert fake(endpoint)["in_flight"]
            stream.close()
        assert daemon.daemon is not None
        assert daemon.daemon.wait(20) == 0
    told = [(record["replica"], record["event"]["type"]) for record in daemon.records() if "replica" in record]
    assert ("@gateway-1/0", "Halted") in told
    assert "Removed" not in {event for _, event in told}
