"""Disks that are full, slow, short of inodes or broken, below a daemon that supervises."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hosts import Host, fake_model, host
from injecting import limited, strace
from modelsupd.runtime.journal import history
from waiting import until

#: Several seconds each, so not among the tests that every change runs at once.
pytestmark = pytest.mark.real

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def seconds(of: float) -> float:
    return time.monotonic() - of


def slowest_status_s(daemon: Host, times: int) -> float:
    slowest_s = 0.0
    for _ in range(times):
        asked_at = time.monotonic()
        daemon.client.status()
        slowest_s = max(slowest_s, seconds(asked_at))
    return slowest_s


def test_a_slow_sync_holds_up_what_waits_for_it_and_nothing_else(place: Path) -> None:
    """300 ms a sync: a restart takes that much longer for each of its records, and `status` does not."""
    with host(place, fake_model() + fake_model("other")) as daemon:
        first = daemon.until_phase("ready")
        other = daemon.until_phase("ready", name="other/0")
        assert daemon.daemon is not None
        with strace(daemon.daemon.pid, place, "fdatasync:delay_enter=300000") as said:
            os.kill(first["pid"], signal.SIGKILL)
            killed_at = time.monotonic()
            until(lambda: daemon.replica()["phase"] != "ready")
            assert slowest_status_s(daemon, 20) < 0.25
            again = daemon.until_phase("ready", run=2)
            took_s = seconds(killed_at)
        assert "fdatasync" in said.read_text()
        assert 0.6 < took_s < 6
        assert again["restarts"] == 1
        assert daemon.replica("other/0")["pid"] == other["pid"]


@pytest.mark.parametrize("which", ["1", "2", "3+4"])
def test_a_sync_that_fails_is_not_taken_for_done_and_supervision_goes_on(place: Path, which: str) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        assert daemon.daemon is not None
        with strace(daemon.daemon.pid, place, f"fdatasync:error=EIO:when={which}") as said:
            os.kill(first["pid"], signal.SIGKILL)
            daemon.until_phase("ready", run=2, traced=True)
            until(lambda: "INJECTED" in said.read_text())
        until(lambda: daemon.client.status()["daemon"]["journal"]["read_only"] is None)
        assert daemon.run("restart", "m").returncode == 0
        assert daemon.run("journal", "verify").returncode == 0
        numbers = [record["seq"] for record in daemon.records()]
        assert numbers == list(range(1, len(numbers) + 1)), "nothing that was acknowledged is missing"


@pytest.mark.parametrize("spare_bytes", [0, 1, 50, 700])
def test_a_write_that_stops_short_leaves_no_half_record(place: Path, spare_bytes: int) -> None:
    """RLIMIT_FSIZE: the kernel takes what still fits, and says EFBIG to the rest."""
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        assert daemon.daemon is not None
        [segment] = (daemon.state / "journal").glob("*.seg")
        with limited(daemon.daemon.pid, resource.RLIMIT_FSIZE, segment.stat().st_size + spare_bytes):
            os.kill(first["pid"], signal.SIGKILL)
            again = daemon.until_phase("ready", run=2)
            assert daemon.client.status()["daemon"]["state"] == "running"
        until(lambda: daemon.client.status()["daemon"]["journal"]["read_only"] is None)
        assert daemon.run("restart", "m").returncode == 0
        assert daemon.replica()["pid"] != again["pid"]
        assert daemon.run("journal", "verify").returncode == 0


@contextmanager
def on_disk(place: Path, mount: str, namespace: list[str]) -> Iterator[tuple[Host, Path]]:
    """Yield a daemon whose state directory is a file system of its own, and that directory as seen from here."""
    (place / "state").mkdir()
    if subprocess.run([*namespace, "sh", "-c", mount], check=False, capture_output=True).returncode != 0:
        pytest.skip(f"cannot mount here: {mount}")
    with host(place, fake_model(), start=False) as daemon:
        daemon.start(wrapped=[*namespace, "sh", "-c", f'{mount} && exec "$@"', "sh"])
        assert daemon.daemon is not None
        yield daemon, Path(f"/proc/{daemon.daemon.pid}/root{place}/state")
        assert daemon.stop() == 0


def fill(path: Path) -> None:
    """Write until there is no space for more, on the disk and not only in memory."""
    with path.open("ab", buffering=0) as filler, full():
        while True:
            filler.write(b"\0" * 4096)
    with path.open("ab") as filler:
        os.fsync(filler.fileno())


@contextmanager
def full() -> Iterator[None]:
    """Take want of space for the end of what is done here."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def ext4(place: Path) -> str:
    """Return how to mount a new ext4 as the state directory; skip where that cannot be done."""
    if os.getuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("needs root and mkfs.ext4, for a loop device")
    image = place / "disk"
    with image.open("wb") as file:
        file.truncate(24 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    return f"mount -o loop,nosuid {image} {place}/state && chmod 700 {place}/state"


@contextmanager
def frozen(path: Path) -> Iterator[None]:
    """Have whoever writes to a file system wait, as on a disk that does not answer."""
    subprocess.run(["fsfreeze", "--freeze", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path], check=True)


def test_a_disk_that_hangs_holds_up_what_is_to_be_recorded_and_nothing_else(place: Path) -> None:
    with on_disk(place, ext4(place), ["unshare", "--mount"]) as (daemon, state):
        first = daemon.until_phase("ready")
        with frozen(state):
            os.kill(first["pid"], signal.SIGKILL)
            until(lambda: "connection refused" in daemon.replica()["reason"])
            assert slowest_status_s(daemon, 20) < 0.25
            assert daemon.replica()["run"] == 1, "nothing is begun that is not on record"
        again = daemon.until_phase("ready", run=2)
        assert again["restarts"] == 1
        assert daemon.run("journal", "verify").returncode == 0


def test_a_full_ext4(place: Path) -> None:
    """Blocks are given out late there, so that a write that was taken may not fit; the reserve must be real blocks."""
    with on_disk(place, ext4(place), ["unshare", "--mount"]) as (daemon, state):
        first = daemon.until_phase("ready")

        fill(state / "filler")
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2)
        # What a segment has of real blocks takes records still; when that is over, commands are refused.
        for _ in range(3):
            fill(state / "filler")
            asked = daemon.run("restart", "m")
            assert asked.returncode == 0 or "no space left on device" in asked.stderr
        (state / "filler").unlink()
        until(lambda: daemon.run("restart", "m").returncode == 0, what="space is found again")
        assert daemon.replica()["pid"] != again["pid"]
        assert [record["seq"] for record in history(state / "journal")][-1] > 12


def test_no_inodes_left(place: Path) -> None:
    """A run is started without a log of its own rather than not at all."""
    mount = f"mount -t tmpfs -o size=8m,nr_inodes=64,mode=0700 none {place}/state"
    with on_disk(place, mount, NAMESPACE) as (daemon, state):
        first = daemon.until_phase("ready")
        with full():
            for number in range(1000):
                (state / f"filler{number}").touch()
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("ready", run=2)
        for filler in state.glob("filler*"):
            filler.unlink()
        assert daemon.run("restart", "m").returncode == 0
        assert daemon.until_phase("ready", run=3)["run"] == 3
