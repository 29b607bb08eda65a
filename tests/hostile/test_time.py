"""Time that is not to be trusted: a wall clock that jumps, and a machine on which nobody gets any CPU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hosts import QUICK, Host, fake_model, host, whys
from modelsupd.runtime.shim import tree
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons, or kills a process many times

SOURCE = Path(__file__).parent / "skewed_clock.c"
HOUR_S = 3600
DAY_S = 24 * HOUR_S


class Clock:
    """The wall clock of a daemon that is started with `env`."""

    def __init__(self, place: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("needs a C compiler, to put another clock in front of a program")
        self._file = place / "offset"
        self.set(0)
        library = place / "skewed_clock.so"
        flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", f'-DOFFSET_FILE="{self._file}"']
        subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
        self.env = {"LD_PRELOAD": str(library)}

    def set(self, offset_s: int) -> None:
        """Set the clock that many seconds ahead of the true time."""
        with self._file.open("r+b" if self._file.exists() else "w+b") as file:
            file.write(offset_s.to_bytes(8, sys.byteorder, signed=True))


def told(daemon: Host) -> list[datetime]:
    """Return the wall times of the journal's records, in their order."""
    return [datetime.fromisoformat(record["wall"]) for record in daemon.records() if record["kind"] != "snapshot"]


def quiet(daemon: Host, for_s: float) -> None:
    """Let time pass in which nothing may happen."""
    before = daemon.records()[-1]["seq"]
    from_s = time.monotonic()
    until(lambda: time.monotonic() - from_s > for_s, what="time for several probes")

    assert daemon.records()[-1]["seq"] == before, whys(daemon)


@pytest.mark.parametrize(
    "jump_s", [-HOUR_S, pytest.param(DAY_S, marks=pytest.mark.real), pytest.param(-DAY_S, marks=pytest.mark.real)]
)
def test_a_wall_clock_that_jumps_changes_nothing(place: Path, jump_s: int) -> None:
    clock = Clock(place)
    waiting = fake_model("w", "--exit-after-requests", "0").replace(
        "backoff_initial_s = 0.05", "backoff_initial_s = 30"
    )
    with host(place, fake_model() + waiting, start=False) as daemon:
        daemon.start(env=clock.env)
        first = daemon.until_phase("ready")
        daemon.until_phase("backoff", name="w/0")
        clock.set(jump_s)
        # No verdict, no restart, and a pause that was under way is neither over nor longer.
        quiet(daemon, 1.0)
        assert daemon.replica()["pid"] == first["pid"]
        assert daemon.replica("w/0")["phase"] == "backoff"
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2, timeout_s=HOUR_S / 60)
        # The proof that the daemon's clock did jump, and that the journal is read all the same.
        jumped = told(daemon)[-1] - datetime.now(UTC)
        assert abs(jumped - timedelta(seconds=jump_s)) < timedelta(minutes=1)
        assert daemon.run("why", "m").returncode == 0
        assert daemon.run("journal", "verify").returncode == 0
        # A daemon that starts on the changed clock adopts what the other one left, and goes on with what waits.
        daemon.stop(signal.SIGKILL)
        daemon.start(env=clock.env)
        assert daemon.until_phase("ready")["pid"] == again["pid"]
        assert daemon.replica("w/0")["phase"] == "backoff"
        until(
            lambda: (
                [record["event"]["type"] for record in daemon.records() if "event" in record].count("Recovered") == 2
            )
        )
        clock.set(0)
        quiet(daemon, 1.0)
        assert daemon.stop() == 0


@contextmanager
def busy(core: int) -> Iterator[None]:
    """Use all there is of one core."""
    burner = subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-IS", "-c", "while True: pass"], stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        burner.kill()
        burner.wait()


@contextmanager
def leftovers(top: int, core: int) -> Iterator[None]:
    """Give a process and those below it what others leave over of one core."""
    cores = os.sched_getaffinity(0)
    threads = [int(task.name) for pid in (top, *below(top)) for task in Path(f"/proc/{pid}/task").iterdir()]
    for thread in threads:
        with suppress(ProcessLookupError):  # one that has just ended
            os.sched_setaffinity(thread, {core})
            os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        for thread in threads:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread, cores)
                with suppress(PermissionError):  # only root may take that back
                    os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def below(pid: int) -> list[int]:
    return [each.pid for each in tree.descendants(pid)]


@pytest.mark.real  # it takes long
def test_an_engine_that_is_slow_because_nobody_gets_cpu_is_not_judged(place: Path) -> None:
    """Daemon and engine get the three thousandth part of a core that is left over: answers come late, but they come."""
    core = max(os.sched_getaffinity(0))
    limits = QUICK.replace("hang_after_s = 2", "hang_after_s = 3").replace("probe_timeout_s = 1", "probe_timeout_s = 2")
    with host(place, fake_model(limits=limits)) as daemon:
        first = daemon.until_phase("ready")
        assert daemon.daemon is not None
        with leftovers(daemon.daemon.pid, core), busy(core):
            from_s = time.monotonic()
            until(lambda: time.monotonic() - from_s > 5, what="time in which a verdict would fall")
        daemon.until_phase("ready", timeout_s=20)
        assert daemon.replica()["pid"] == first["pid"], whys(daemon)
        assert daemon.replica()["restarts"] == 0


@pytest.mark.real  # it takes long
def test_a_daemon_that_only_now_and_then_gets_cpu_gives_no_verdict(place: Path) -> None:
    """Stopped for longer than hang_after_s and woken for a moment, again and again: each gap counts as none."""
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        for gaps in (1, 2):
            daemon.send(signal.SIGSTOP)
            from_s = time.monotonic()
            until(lambda from_s=from_s: time.monotonic() - from_s > 2.5, what="longer than hang_after_s")  # type: ignore[misc]  # mypy cannot type a lambda's default
            daemon.send(signal.SIGCONT)
            # For no longer than it takes to notice: two gaps that it did not see the end of would be one.
            until(lambda gaps=gaps: daemon.said().count("got no CPU") >= gaps)  # type: ignore[misc]  # the same
        quiet(daemon, 1.0)
        assert daemon.replica()["pid"] == first["pid"]
        assert daemon.replica()["restarts"] == 0
