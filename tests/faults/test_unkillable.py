"""An engine that SIGKILL does not end: called stuck, nothing started beside it, and the daemon can still go."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import fake_engine
from hosts import Host, alive, fake_model, host
from injecting import DeafFileSystem, cgroup
from waiting import until

#: Several seconds each, so not among the tests that every change runs at once.
pytestmark = pytest.mark.real

#: kill_timeout_s short enough for a test.
IMPATIENT = ("kill_timeout_s = 5", "kill_timeout_s = 0.5")

#: The fake engine, whose thread goes to sleep in the kernel when a file says where.
SLEEPER = """
import os, sys, threading, time
sys.path.insert(0, {here!r})
import fake_engine

def sleep_in_the_kernel():
    while not os.path.exists({asked!r}):
        time.sleep(0.01)
    where = open({asked!r}).read()
    os.unlink({asked!r})
    open({asked!r} + ".taken", "w").close()
    os.stat(where)

threading.Thread(target=sleep_in_the_kernel, daemon=True).start()
fake_engine.main()
"""


@pytest.fixture
def deaf(place: Path) -> Iterator[DeafFileSystem]:
    made = DeafFileSystem(place)
    yield made
    made.wake()
    made.wake()


@contextmanager
def closing_wakes(deaf: DeafFileSystem) -> Iterator[None]:
    """Wake everyone before the daemon is asked to go, whatever came of the test."""
    try:
        yield
    finally:
        deaf.wake()


def sleeper(place: Path) -> tuple[str, Path]:
    """Return a model whose engine can be put to sleep, and the file by which."""
    program, asked = place / "sleeper.py", place / "asked"
    program.write_text(SLEEPER.format(here=str(Path(fake_engine.__file__).parent), asked=str(asked)))
    command = [sys.executable, "-E", "-S", str(program), "--uds", "{socket}"]
    model = fake_model().replace(*IMPATIENT)
    lines = [f"command = {json.dumps(command)}" if line.startswith("command") else line for line in model.splitlines()]
    return "\n".join(lines) + "\n", asked


def threads_asleep(pid: int) -> bool:
    """Tell whether a thread of the process sleeps in the kernel where no signal wakes it."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the other threads are just going
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return "D" in states


def until_stuck(daemon: Host, pid: int) -> None:
    try:
        until(lambda: daemon.replica()["reason"].startswith("stuck: "))
    except AssertionError:
        raise AssertionError(f"not stuck but {daemon.replica()}\n{daemon.said()}") from None
    assert daemon.replica()["run"] == 1
    assert daemon.replica()["pid"] == pid or str(pid) in daemon.replica()["reason"]
    assert daemon.run("status").returncode == 1
    from_s = time.monotonic()
    until(lambda: time.monotonic() - from_s > 1, what="time in which another run would be started")
    assert daemon.replica()["run"] == 1


def put_to_sleep(daemon: Host, deaf: DeafFileSystem, asked: Path) -> int:
    """Have a thread of the engine go to sleep in the kernel, and kill the engine; return its pid."""
    pid = int(daemon.until_phase("ready")["pid"])
    asked.with_suffix(".new").write_text(f"{deaf.path}/x")
    asked.with_suffix(".new").rename(asked)
    until(Path(f"{asked}.taken").exists)
    # Until the file system has taken its request, a thread still dies of a signal.
    until(lambda: deaf.waiting & {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()})
    os.kill(pid, signal.SIGKILL)
    until(lambda: threads_asleep(pid))
    return pid


def test_a_thread_that_sleeps_in_the_kernel_fences_the_replica_until_it_wakes(
    place: Path, deaf: DeafFileSystem
) -> None:
    """Its leader is a zombie by then, as with a GPU driver that hangs; the process still holds all it had."""
    model, asked = sleeper(place)
    with host(place, model + fake_model("other")) as daemon, closing_wakes(deaf):
        other = daemon.until_phase("ready", name="other/0")
        pid = put_to_sleep(daemon, deaf, asked)
        until_stuck(daemon, pid)
        assert daemon.replica("other/0")["pid"] == other["pid"]
        why = daemon.run("why", "m").stdout
        assert "stuck" in why
        # Another daemon sees it too, and starts nothing beside it either.
        daemon.stop(signal.SIGKILL)
        daemon.start()
        until_stuck(daemon, pid)
        assert daemon.replica("other/0")["pid"] == other["pid"]
        deaf.wake()
        assert daemon.until_phase("ready", run=2)["pid"] != pid


def test_without_its_shim_it_is_fenced_as_well_and_the_daemon_can_go(place: Path, deaf: DeafFileSystem) -> None:
    model, asked = sleeper(place)
    with host(place, model) as daemon, closing_wakes(deaf):
        shim = daemon.until_phase("ready")["shim_pid"]
        pid = put_to_sleep(daemon, deaf, asked)
        os.kill(shim, signal.SIGKILL)
        until_stuck(daemon, pid)
        assert daemon.stop() == 1
        assert "left behind what cannot be killed" in daemon.said()
        assert threads_asleep(pid)
        deaf.wake()
        until(lambda: not alive(pid))
        daemon.start()
        assert daemon.until_phase("ready")["run"] == 2


def test_a_frozen_engine_cannot_be_killed_either(place: Path) -> None:
    """By the freezer of cgroup v1, for machines on which nothing can be mounted."""
    with cgroup("freezer", place.name) as group, host(place, fake_model().replace(*IMPATIENT)) as daemon:
        first = daemon.until_phase("ready")
        (group / "cgroup.procs").write_text(str(first["pid"]))
        (group / "freezer.state").write_text("FROZEN")
        until_stuck(daemon, first["pid"])
        (group / "freezer.state").write_text("THAWED")
        assert daemon.until_phase("ready", run=2)["pid"] != first["pid"]
