"""Each system call on a run directory fails once: the run is not started and leaves nothing, or it works."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from hosts import fake_model, host
from injecting import limited, strace
from modelsupd.core.events import FailureClass
from modelsupd.runtime.process import SpawnError
from running import FOREVER, Site, run

#: What a shim does to files, and its forks.
CALLS = "openat,mkdir,write,pwrite64,rename,flock,ftruncate,fallocate,pipe2,pidfd_open,clone,poll,dup3"


async def once(site: Site, number: int) -> bool:
    """Begin a run, end it, and insist that nothing is left; return whether it worked."""
    try:
        await site.processes.spawn(site.launch(*FOREVER, run=number))
        worked = True
    except SpawnError as error:
        assert error.failure.kind in (FailureClass.SPAWN, FailureClass.MISSING_BINARY)  # noqa: PT017 - it may also work
        worked = False
    if worked:
        site.processes.kill("tiny/0", number)
        await site.processes.wait("tiny/0", number)
    assert await site.processes.clear("tiny/0", number, 5) == ()
    assert not site.owned()
    assert not site.place(number).runtime.exists()
    return worked


def test_any_call_of_a_shim_may_fail(tmp_path: Path) -> None:
    async def test(site: Site) -> None:
        (spawner,) = site.processes.children()
        assert await once(site, 1)
        worked = failed = 0
        for number in range(1, 200):
            with strace(spawner, tmp_path, f"{CALLS}:error=EIO:when={number}") as said:
                if await once(site, number + 1):
                    worked += 1
                else:
                    failed += 1
            if "INJECTED" not in said.read_text():
                break
        assert number < 199
        assert failed >= 5
        assert worked >= 5
        assert await once(site, 1000)

    run(test)


@pytest.mark.parametrize("limit_bytes", [8, 100, 300, 600])
def test_a_record_that_does_not_fit_is_not_taken_for_one(limit_bytes: int) -> None:
    """RLIMIT_FSIZE: what fits is written, and the rest refused. Half a run.json would hide a run from a new daemon."""

    async def test(site: Site) -> None:
        (spawner,) = site.processes.children()
        with limited(spawner, resource.RLIMIT_FSIZE, limit_bytes):
            try:
                started = await site.processes.spawn(site.launch(*FOREVER))
            except SpawnError as error:
                assert "file too large" in str(error.failure.detail).lower()  # noqa: PT017 - it may also work
                assert not site.owned()
                assert not site.place().runtime.exists()
            else:
                record = json.loads((site.place().runtime / "run.json").read_text())
                assert record["engine"]["pid"] == started.pid
                site.processes.kill("tiny/0", 1)
                assert (await site.processes.wait("tiny/0", 1)).exit.signal == signal.SIGKILL
        assert await once(site, 2)

    run(test)


@pytest.mark.real
@pytest.mark.parametrize("call", ["mkdir", "rename", "flock"])
def test_any_call_of_the_daemon_on_a_run_directory_may_fail(place: Path, call: str) -> None:
    """Whatever fails once an engine has died, the replica is ready again, and once more after that."""
    patient = "backoff_initial_s = 0.05\nbackoff_factor = 1\nmax_crashes = 1000"
    with host(place, fake_model().replace("backoff_initial_s = 0.05", patient)) as daemon:
        daemon.until_phase("ready")
        assert daemon.daemon is not None
        pid = daemon.daemon.pid
        for number in range(1, 20):
            before = daemon.until_phase("ready")
            with strace(pid, place, f"{call}:error=EIO:when={number}") as said:
                os.kill(before["pid"], signal.SIGKILL)
                daemon.until_phase("ready", run=before["run"] + 1, traced=True)
            if "INJECTED" not in said.read_text():
                break
        assert 1 < number < 19
        again = daemon.until_phase("ready")
        os.kill(again["pid"], signal.SIGKILL)
        daemon.until_phase("ready", run=again["run"] + 1)
        assert daemon.stop() == 0
        assert [path for path in (daemon.runtime / "runs").iterdir() if not path.name.startswith(".")] == []
