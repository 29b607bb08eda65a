"""What a terminal, an editor or a disk does to a daemon at the wrong moment."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hosts import NAMESPACE, Host, alive, fake_model, fill
from waiting import until

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

SMALL_PIPE_BYTES = 4096


@contextmanager
def logging_to(place: Path, write_fd: int) -> Iterator[Host]:
    """Run a daemon whose log goes to this descriptor."""
    daemon = Host(place, fake_model())
    daemon.daemon = subprocess.Popen(daemon.command("run"), stdout=write_fd, stderr=write_fd)
    os.close(write_fd)
    try:
        until(daemon.answers)
        yield daemon
    finally:
        if not daemon.ended():
            daemon.daemon.kill()
            daemon.daemon.wait()
        daemon.reap()


def test_a_log_that_nobody_can_take_changes_nothing(place: Path) -> None:
    read_fd, write_fd = os.pipe()
    with logging_to(place, write_fd) as daemon:
        first = daemon.until_phase("ready")
        os.close(read_fd)
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2)
        daemon.send(signal.SIGHUP)
        assert daemon.run("stop", "m").returncode == 0
        assert daemon.stop() == 0
        assert not alive(again["pid"])


def test_a_log_that_nobody_reads_holds_nothing_up(place: Path) -> None:
    read_fd, write_fd = os.pipe()
    fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, SMALL_PIPE_BYTES)
    os.write(write_fd, b"x" * SMALL_PIPE_BYTES)
    with logging_to(place, write_fd) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("ready", run=2)
        assert daemon.stop() == 0
    os.close(read_fd)


def test_a_configuration_that_lost_its_models_is_not_taken(place: Path) -> None:
    daemon = Host(place, fake_model())
    daemon.start()
    try:
        first = daemon.until_phase("ready")
        daemon.declare("")
        refused = daemon.run("reload")
        assert refused.returncode == 1
        assert "declares no model any more" in refused.stderr
        assert daemon.replica()["pid"] == first["pid"]
        daemon.declare(fake_model())
        assert daemon.stop() == 0
    finally:
        daemon.reap()


def test_with_the_runtime_directory_on_the_full_disk_an_engine_is_restarted_too(place: Path) -> None:
    mount = f"mount -t tmpfs -o size=6m,mode=0700 none {place}/disk && mkdir {place}/disk/state {place}/disk/run"
    (place / "disk").mkdir()
    if subprocess.run([*NAMESPACE, "sh", "-c", mount], check=False, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted in a namespace here (user namespaces are off)")
    daemon = Host(place, fake_model())
    text = daemon.config.read_text().replace(f"'{daemon.state}'", f"'{place}/disk/state'")
    daemon.config.write_text(text.replace(f"'{daemon.runtime}'", f"'{place}/disk/run'"))
    with daemon.log.open("wb") as log:
        inside = [*NAMESPACE, "sh", "-c", f'{mount} && exec "$@"', "sh"]
        daemon.daemon = subprocess.Popen([*inside, *daemon.command("run")], stdout=log, stderr=log)
    disk = Path(f"/proc/{daemon.daemon.pid}/root{place}/disk")
    try:
        until(lambda: daemon.ended() or generated(daemon, 1))
        assert not daemon.ended(), daemon.said()
        fill(disk / "filler")
        os.kill(pid_of(daemon, 1), signal.SIGKILL)
        until(lambda: generated(daemon, 2), what="the second run generates")
        (disk / "filler").unlink()
        assert daemon.stop() == 0, daemon.said()
    finally:
        if not daemon.ended():
            daemon.daemon.kill()
            daemon.daemon.wait()


def generated(daemon: Host, run: int) -> bool:
    return any(f"run={run} " in line and "generates" in line for line in daemon.said().splitlines())


def pid_of(daemon: Host, run: int) -> int:
    line = next(line for line in daemon.said().splitlines() if f"run={run} " in line and "generates" in line)
    return int(line.split("pid=")[1].split()[0])
