"""A daemon that is told to go, or killed, at any moment of its start and its stop."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hosts import Host, alive, fake_model, host
from modelsupd.runtime import identity

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
            pause(rng, START_S)
            for _ in range(rng.choice((1, 1, 2, 3))):
                process.send_signal(rng.choice((signal.SIGTERM, signal.SIGINT)))
                pause(rng, STOP_S)
            # Before it listens for signals it dies of the first one, as Python does, and has begun nothing.
            assert process.wait(20) in (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGINT), daemon.said()
            assert owned(daemon) == []
            runs = daemon.runtime / "runs"
            assert not runs.exists() or list(runs.iterdir()) == []
        daemon.start()
        daemon.until_phase("ready", name="m/0")
        daemon.until_phase("ready", name="o/0")
        assert daemon.run("journal", "verify").returncode == 0
        assert daemon.stop() == 0


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
