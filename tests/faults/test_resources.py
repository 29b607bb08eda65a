"""What the machine runs out of: processes, descriptors, memory, ports. Others are not touched by it."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import fake_engine
from hosts import FAKE, QUICK, Host, alive, fake_model, host, whys
from injecting import cgroup, highest_descriptor, limited, strace
from modelsupd.control.client import Unanswered
from waiting import until

#: Several seconds each, so not among the tests that every change runs at once.
pytestmark = pytest.mark.real


def spawner_of(daemon: Host) -> int:
    assert daemon.daemon is not None
    return int(subprocess.check_output(["pgrep", "-P", str(daemon.daemon.pid)]).split()[0])


def pass_time(for_s: float, what: str) -> None:
    from_s = time.monotonic()
    until(lambda: time.monotonic() - from_s > for_s, timeout_s=for_s + 5, what=what)


def test_no_more_processes(place: Path) -> None:
    """A replica that cannot be started waits and is tried again; one that runs is not touched."""
    patient = QUICK.replace("backoff_initial_s = 0.05", "backoff_initial_s = 0.05\nmax_crashes = 1000")
    with host(place, fake_model(limits=patient) + fake_model("other")) as daemon:
        first = daemon.until_phase("ready")
        other = daemon.until_phase("ready", name="other/0")
        with strace(spawner_of(daemon), place, "clone,clone3,fork,vfork:error=EAGAIN"):
            os.kill(first["pid"], signal.SIGKILL)
            until(lambda: "cannot fork a shim: resource temporarily unavailable" in whys(daemon).lower())
            assert daemon.client.status()["daemon"]["state"] == "running"
        again = daemon.until_phase("ready", run=2)
        assert alive(again["pid"])
        assert "spawn:" in whys(daemon)
        assert daemon.replica("other/0")["pid"] == other["pid"]


def test_no_more_descriptors(place: Path) -> None:
    """Clients that say nothing hold all of the daemon's: no verdict falls for it, and a crash is followed up."""
    patient = QUICK.replace("backoff_initial_s = 0.05", "backoff_initial_s = 0.05\nmax_crashes = 1000")
    with host(place, fake_model(limits=patient) + fake_model("other")) as daemon, ExitStack() as clients:
        first = daemon.until_phase("ready")
        other = daemon.until_phase("ready", name="other/0")
        assert daemon.daemon is not None
        pid = daemon.daemon.pid
        with limited(pid, resource.RLIMIT_NOFILE, highest_descriptor(pid) + 20):
            for _ in range(60):
                clients.enter_context(socket.socket(socket.AF_UNIX)).connect(str(daemon.runtime / "control.sock"))
            with pytest.raises((Unanswered, OSError)):
                daemon.client.status()
            # Longer than hang_after_s, without a probe that could be sent.
            pass_time(3, "a verdict would fall")
            os.kill(first["pid"], signal.SIGKILL)
            until(lambda: not alive(first["shim_pid"]))
            pass_time(0.5, "a restart is tried")
            assert not daemon.ended()
            clients.close()
            # No limit is lifted: with the clients gone there are descriptors again.
            until(daemon.answers)
            again = daemon.until_phase("ready", run=2)
        assert again["pid"] != first["pid"]
        assert daemon.replica("other/0")["pid"] == other["pid"], whys(daemon)
        assert "hung" not in whys(daemon)
        assert "Traceback" not in daemon.said()


#: The fake engine, which takes a quarter of a gigabyte when a file says so.
GREEDY = """
import os, sys, threading, time
sys.path.insert(0, {here!r})
import fake_engine

def take():
    while not os.path.exists({asked!r}):
        time.sleep(0.01)
    held = b"x" * (256 << 20)

threading.Thread(target=take, daemon=True).start()
fake_engine.main()
"""


def test_the_kernel_ends_an_engine_for_want_of_memory(place: Path) -> None:
    program, asked = place / "greedy.py", place / "asked"
    program.write_text(GREEDY.format(here=str(Path(fake_engine.__file__).parent), asked=str(asked)))
    command = [sys.executable, "-E", "-S", str(program), "--uds", "{socket}"]
    model = re.sub(r"command = .*", lambda _: f"command = {json.dumps(command)}", fake_model())
    with cgroup("memory", place.name) as group, host(place, model + fake_model("other")) as daemon:
        first = daemon.until_phase("ready")
        other = daemon.until_phase("ready", name="other/0")
        (group / "memory.limit_in_bytes").write_text(str(64 << 20))
        (group / "cgroup.procs").write_text(str(first["pid"]))
        asked.touch()
        until(lambda: not alive(first["pid"]))
        asked.unlink()
        daemon.until_phase("ready", run=2)
        assert "out-of-memory: killed by signal 9, not by modelsupd" in whys(daemon)
        assert "likely out of host memory" in daemon.run("why", "m").stdout
        assert daemon.replica("other/0")["pid"] == other["pid"]


#: The fake engine, which has loaded as soon as a file says so.
LOADING = """
import os, sys, time
sys.path.insert(0, {here!r})
import fake_engine

def load(engine):
    engine.log("load_model: loading model")
    while not os.path.exists({done!r}):
        time.sleep(0.01)

fake_engine.load = load
fake_engine.main()
"""


def test_a_port_that_somebody_else_answers_at_is_not_ready(place: Path) -> None:
    """The thief serves, and even generates; what counts is whose socket it is."""
    program, done = place / "loading.py", place / "done"
    program.write_text(LOADING.format(here=str(FAKE.parent), done=str(done)))
    address = ["--host", "{host}", "--port", "{port}"]
    loading = [sys.executable, "-E", "-S", str(program), *address, "--load-mode", "refuse"]
    command = [sys.executable, "-E", "-S", str(FAKE), *address]
    model = re.sub(r"command = .*", lambda _: f"command = {json.dumps(loading)}", fake_model())
    with host(place, model) as daemon:
        starting = daemon.until_phase("starting")
        port = starting["endpoint"].rpartition(":")[2]
        # Bound, and not listening yet: the moment at which a port can be taken away.
        until(lambda: "loading model" in daemon.run("logs", "m").stdout)
        thief = subprocess.Popen(
            [word.format(host="127.0.0.1", port=port) for word in command], stderr=subprocess.DEVNULL
        )
        try:
            until(lambda: "is answered by a process that is not ours" in daemon.replica()["reason"])
            assert daemon.replica()["phase"] == "starting"
            # The engine finds its port taken; the next run has another.
            done.touch()
            again = daemon.until_phase("ready", run=2)
            assert again["endpoint"] != starting["endpoint"]
            assert "address-in-use" in whys(daemon)
            assert alive(thief.pid), "nobody else's process is ended"
        finally:
            thief.kill()
            thief.wait()


def test_a_crash_loop_is_its_own_affair(place: Path) -> None:
    limits = QUICK.replace("backoff_initial_s = 0.05", "backoff_initial_s = 0.05\nmax_crashes = 3")
    broken = fake_model("m", "--exit-after-requests", "0", "--exit-code", "3", limits=limits)
    with host(place, broken + fake_model("other")) as daemon:
        other = daemon.until_phase("ready", name="other/0")
        failed = daemon.until_phase("failed")
        assert failed["run"] == 4
        assert daemon.replica("other/0")["pid"] == other["pid"]
        assert daemon.replica("other/0")["restarts"] == 0
