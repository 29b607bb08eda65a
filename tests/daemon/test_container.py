"""The daemon as PID 1 of a container: nobody else reaps orphans there, and its end is everybody's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hosts import Host, alive, fake_model, host
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons, or kills a process many times

#: What a container's runtime does, as far as init is concerned.
NAMESPACES = ["--pid", "--fork", "--mount-proc", "--kill-child"]


def container() -> list[str]:
    """Return what runs a program as PID 1; without root it takes a user namespace too, if the host allows one."""
    flags = NAMESPACES if os.geteuid() == 0 else ["--user", "--map-root-user", *NAMESPACES]
    why = "there is no unshare"
    try:
        tried = subprocess.run(["unshare", *flags, "true"], check=False, capture_output=True, text=True)
        if tried.returncode == 0:
            return ["unshare", *flags]
        why = tried.stderr.strip()
    except FileNotFoundError:
        pass
    pytest.skip(f"no PID namespace can be had here: {why}")


@contextmanager
def init(place: Path, models: str) -> Iterator[tuple[Host, int]]:
    """Run a daemon as PID 1; yield it, and its pid out here."""
    with host(place, models, start=False) as daemon:
        daemon.start(wrapped=container())
        assert daemon.daemon is not None
        [pid] = children(daemon.daemon.pid)
        try:
            yield daemon, pid
        finally:
            # unshare itself hears no SIGTERM while it waits for its child.
            for child in [] if daemon.ended() else children(daemon.daemon.pid):
                os.kill(child, signal.SIGTERM)
            daemon.daemon.wait(20)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def zombies(pid: int) -> list[int]:
    return [child for child in children(pid) if not alive(child)]


def inside(init_pid: int, *command: str) -> str:
    """Run a command in the container and return what it says."""
    flags = ["--user", "--preserve-credentials"] if os.geteuid() != 0 else []
    return subprocess.check_output(["nsenter", f"--target={init_pid}", *flags, "--pid", "--mount", *command], text=True)


#: Leaves a process behind that ends at once, and says its pid: its parent is PID 1 by then.
ORPHAN = "(sleep 0.2 & echo $!);"


def test_it_is_pid_1_and_serves(place: Path) -> None:
    with init(place, fake_model()) as (daemon, pid):
        ready = daemon.until_phase("ready")
        assert daemon.client.version()["pid"] == 1
        assert ready["pid"] < 1000, "a number of the namespace"
        assert zombies(pid) == []


def test_orphans_are_reaped(place: Path) -> None:
    with init(place, fake_model()) as (daemon, pid):
        ready = daemon.until_phase("ready")
        before = set(children(pid))
        orphans = [int(word) for word in inside(pid, "sh", "-c", ORPHAN * 20).split()]
        assert len(set(orphans)) == 20
        until(lambda: set(children(pid)) == before, what="no child but those that it had")
        numbers = Path("/proc", str(pid), "root", "proc")
        until(lambda: not any((numbers / str(orphan)).exists() for orphan in orphans))
        assert daemon.replica()["pid"] == ready["pid"]


def test_a_killed_shim_is_reaped_and_nothing_of_its_engine_is_left(place: Path) -> None:
    """Shim, engine and what left the engine's session all become children of PID 1."""
    with init(place, fake_model("m", "--orphan", "setsid")) as (daemon, pid):
        first = daemon.until_phase("ready")
        before = len(children(pid))
        inside(pid, "kill", "-KILL", str(first["shim_pid"]))
        daemon.until_phase("ready", run=2)
        until(lambda: zombies(pid) == [] and len(children(pid)) == before, what="as many children as before")


def test_a_killed_spawner_is_reaped_and_replaced(place: Path) -> None:
    """The spawner is a child that is waited for elsewhere; orphans that end beside it are not forgotten for it."""
    with init(place, fake_model()) as (daemon, pid):
        daemon.until_phase("ready")
        [spawner] = [child for child in children(pid) if "spawn" in Path(f"/proc/{child}/comm").read_text()]
        os.kill(spawner, signal.SIGKILL)
        inside(pid, "sh", "-c", ORPHAN)
        assert daemon.run("restart", "m").returncode == 0
        daemon.until_phase("ready", run=2)
        until(lambda: zombies(pid) == [] and spawner not in children(pid), what="no dead child")


def test_sigterm_stops_all_and_the_exit_status_is_that_of_an_orderly_stop(place: Path) -> None:
    with init(place, fake_model("a", "--orphan", "setsid") + fake_model("b")) as (daemon, pid):
        for name in ("a/0", "b/0"):
            daemon.until_phase("ready", name=name)
        os.kill(pid, signal.SIGTERM)
        assert daemon.daemon is not None
        assert daemon.daemon.wait(20) == 0
        assert list((daemon.runtime / "runs").iterdir()) == []
        whys = [record.get("why") for record in daemon.records()]
        assert whys[-1] == "stopped", "the daemon's own last word: it was not cut off by the end of the namespace"
        assert whys.count("run 1 ended as it was told to: exit code 0") == 2


def test_signals_that_mean_nothing_do_nothing(place: Path) -> None:
    with init(place, fake_model()) as (daemon, pid):
        ready = daemon.until_phase("ready")
        for number in (signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR2, signal.SIGCHLD, signal.SIGPIPE, signal.SIGALRM):
            os.kill(pid, number)
        assert daemon.run("status").returncode == 0
        assert daemon.replica()["pid"] == ready["pid"]


def test_sigint_from_within_stops_it_too(place: Path) -> None:
    """What `docker stop` sends can be set, and a terminal's interrupt arrives as one."""
    with init(place, fake_model()) as (daemon, pid):
        daemon.until_phase("ready")
        inside(pid, "kill", "-INT", "1")
        assert daemon.daemon is not None
        assert daemon.daemon.wait(20) == 0


def test_its_death_ends_the_container_and_the_next_one_goes_on(place: Path) -> None:
    with init(place, fake_model()) as (daemon, pid):
        first = daemon.until_phase("ready")
        os.kill(pid, signal.SIGKILL)
        assert daemon.daemon is not None
        assert daemon.daemon.wait(20) != 0
        daemon.start(wrapped=container())
        again = daemon.until_phase("ready", run=2)
        assert again["run"] > first["run"]


def test_a_configuration_that_cannot_be_used_ends_it_with_its_own_status(place: Path) -> None:
    bad = Host(place, "[models.m]\nengine = 'comand'\n")
    done = subprocess.run([*container(), *bad.command("run")], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "comand" in done.stderr
