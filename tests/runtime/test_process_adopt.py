"""A daemon that comes back: what lives is adopted, what is dead is known, and nobody else is touched."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelsupd.core.events import Exit
from modelsupd.runtime import identity, process
from modelsupd.runtime.process import Processes
from modelsupd.runtime.shim import tree
from running import FOREVER, PYTHON, Site, alive, run
from waiting import auntil

DAEMON = """
import asyncio, sys
from pathlib import Path
from modelsupd.runtime.process import Launch, Processes

async def main():
    processes = Processes(Path(sys.argv[1]), Path(sys.argv[2]))
    await processes.open()
    started = await processes.spawn(Launch(replica="tiny/0", run=1, digest="d7", argv=tuple(sys.argv[3:]),
        env={"PATH": "/usr/bin:/bin"}, listen="unix", log_max_bytes=1 << 20, log_files=1, backstop_s=30))
    print(started.pid, started.shim_pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def orphaned(site: Site, *argv: str) -> tuple[int, int]:
    """Have a daemon start a run and kill that daemon; return the pids of engine and shim."""
    command = [sys.executable, "-c", DAEMON, str(site.runtime), str(site.state), *argv]
    said = await asyncio.to_thread(first_line, command)
    engine, shim = (int(word) for word in said.split())
    return engine, shim


def first_line(command: list[str]) -> str:
    """Return the first line that a program prints, and kill it then."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        said = daemon.stdout.readline()
        daemon.kill()
    return said


def a_stranger() -> subprocess.Popen[bytes]:
    """Return a process that is not ours."""
    return subprocess.Popen(FOREVER)


def test_a_run_outlives_its_daemon_and_is_adopted() -> None:
    async def test(site: Site) -> None:
        talks = "import time\nwhile True: print('on', flush=True); time.sleep(0.005)"
        engine, shim = await orphaned(site, *PYTHON, talks)
        (found,) = await site.processes.scan()
        assert found.process is not None
        assert (found.process.pid, found.process.shim_pid, found.process.run) == (engine, shim, 1)
        assert (found.process.digest, found.token_matches, found.ended) == ("d7", True, None)
        assert found.process.endpoint == f"unix:{site.place().socket}"
        before = site.processes.vitals("tiny/0", 1).log_bytes
        await auntil(lambda: site.processes.vitals("tiny/0", 1).log_bytes > before)  # it writes on, nothing blocks
        assert await site.processes.scan() == []  # held already
        site.processes.terminate("tiny/0", 1)
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit.signal, ended.cleared) == (signal.SIGTERM, True)
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert site.processes.highest_run("tiny/0") == 1

    run(test)


def test_how_an_engine_died_meanwhile_is_known() -> None:
    async def test(site: Site) -> None:
        _, shim = await orphaned(site, "sh", "-c", "sleep 0.1; exit 9")
        await auntil(lambda: not alive(shim))
        (found,) = await site.processes.scan()
        assert (found.process, found.token_matches) == (None, True)
        assert found.ended is not None
        assert (found.ended.exit.code, found.ended.cleared) == (9, True)
        assert site.place().runtime.exists()
        assert await site.processes.end_strays([found], 1) == ()
        assert not site.place().runtime.exists()
        assert (site.place().state / "exit.json").exists()

    run(test)


def test_a_shim_that_was_killed_meanwhile() -> None:
    async def test(site: Site) -> None:
        _, shim = await orphaned(site, "sh", "-c", "setsid sleep 1000 & echo $!; sleep 1000")
        (escaped,) = await site.numbers(1)
        os.kill(shim, signal.SIGKILL)
        await auntil(lambda: not alive(shim))
        (found,) = await site.processes.scan()
        assert found.ended is not None
        assert (found.process, found.ended.exit, found.ended.cleared) == (None, Exit(), False)
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert not alive(escaped)

    run(test)


def test_a_shim_without_its_directory_is_found_and_ended() -> None:
    async def test(site: Site) -> None:
        engine, shim = await orphaned(site, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
        await site.said("ready")
        shutil.rmtree(site.place().runtime)
        (found,) = await site.processes.scan()
        assert (found.replica, found.run, found.process, found.token_matches) == ("tiny/0", 1, None, True)
        assert found.ended is not None
        assert {engine, shim} <= set(found.ended.pids_left)
        assert found.ended.note == "its run directory is gone"
        assert await site.processes.end_strays([found], 0.1) == ()
        assert not alive(engine)
        assert not alive(shim)
        assert json.loads((site.place().state / "exit.json").read_text())["signal"] == signal.SIGKILL

    run(test)


def test_a_stray_is_asked_before_it_is_killed() -> None:
    async def test(site: Site) -> None:
        await orphaned(site, *FOREVER)
        found = await site.processes.scan()
        assert await site.processes.end_strays(found, 5) == ()
        assert json.loads((site.place().state / "exit.json").read_text())["signal"] == signal.SIGTERM
        assert not site.place().runtime.exists()

    run(test)


def rewrite(path: Path, **changes: Any) -> None:  # noqa: ANN401 - JSON
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_forged_start_time_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pid lives, and is somebody else's by now: it gets no signal, neither in recovery nor later."""
    monkeypatch.setattr(process, "RUN_JSON_TIMEOUT_S", 0.1)

    async def test(site: Site) -> None:
        stranger = a_stranger()
        try:
            _, shim = await orphaned(site, *FOREVER)
            who = {"pid": stranger.pid, "start": 12345}
            rewrite(site.place().runtime / "run.json", engine=who, shim=who)
            (found,) = await site.processes.scan()
            assert found.process is None
            assert found.ended is not None
            assert found.ended.pids_left == (shim,)
            assert await site.processes.end_strays([found], 1) == ()  # the shim is found by its token
            assert not alive(shim)
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    run(test)


REUSE = """
import asyncio, os, signal, subprocess, sys
from pathlib import Path
from modelsupd.runtime.process import Launch, Processes

def reuse(pid):
    for _ in range(1000):  # the kernel frees a pid a moment after the process is gone from /proc
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        made = subprocess.Popen(["sleep", "1000"])
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
    raise AssertionError(f"pid {pid} is not free")

async def main():
    first = Processes(Path(sys.argv[1]), Path(sys.argv[2]))
    started = await first.spawn(Launch(replica="tiny/0", run=1, digest="", argv=("sleep", "1000"), env={},
        listen="unix", log_max_bytes=4096, log_files=1, backstop_s=30))
    os.kill(started.shim_pid, signal.SIGKILL)
    await first.wait("tiny/0", 1)
    os.waitpid(started.pid, 0)  # we are the init of this namespace, so the orphan is ours to reap
    while Path(f"/proc/{started.shim_pid}").exists():
        await asyncio.sleep(0.001)
    strangers = [reuse(started.shim_pid), reuse(started.pid)]
    first.terminate("tiny/0", 1)  # by pidfds of the dead
    first.kill("tiny/0", 1)
    await first.close()
    second = Processes(Path(sys.argv[1]), Path(sys.argv[2]))
    (found,) = await second.scan()
    assert found.process is None and found.ended.pids_left == (), found
    second.kill("tiny/0", 1)
    assert await second.clear("tiny/0", 1, 5) == ()
    await second.close()
    assert [each.poll() for each in strangers] == [None, None]
    print("left alone")
    for each in strangers:
        each.kill()
        each.wait()

asyncio.run(main())
"""


def test_a_pid_that_is_used_again_is_not_ours(tmp_path: Path) -> None:
    """In a pid namespace of its own, where the kernel gives out whatever pid it is told to."""
    namespace = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]
    if os.getuid() != 0:
        namespace[1:1] = ["--user", "--map-root-user"]
    if subprocess.run([*namespace, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("needs a pid namespace")
    command = [*namespace, sys.executable, "-c", REUSE, str(tmp_path / "run"), str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "left alone\n", done.stderr


def test_after_a_reboot_nothing_is_signalled() -> None:
    async def test(site: Site) -> None:
        stranger = a_stranger()
        try:
            _, shim = await orphaned(site, *FOREVER)
            os.kill(shim, signal.SIGKILL)
            await auntil(lambda: not site.owned())
            seen = tree.stat(stranger.pid)
            assert seen is not None
            who = {"pid": stranger.pid, "start": seen.start}  # the same numbers, by chance
            rewrite(site.place().runtime / "run.json", engine=who, shim=who, boot_id="another")
            rewrite(site.place().runtime / "spec.json", boot_id="another")
            (found,) = await site.processes.scan()
            assert found.ended is not None
            assert (found.process, found.ended.cleared) == (None, True)
            assert found.ended.note == "the machine was rebooted"
            assert await site.processes.clear("tiny/0", 1, 5) == ()
            assert stranger.poll() is None
        finally:
            stranger.kill()
            stranger.wait()

    run(test)


def test_another_installation_is_left_alone() -> None:
    async def test(site: Site) -> None:
        engine, shim = await orphaned(site, *FOREVER)
        other = Processes(site.runtime, site.root / "other-state")
        (found,) = await other.scan()
        assert (found.process, found.token_matches, found.ended) == (None, False, None)
        assert await other.end_strays([found], 0.1) == ()
        other.kill("tiny/0", 1)
        assert await other.clear("tiny/0", 1, 0.1) == (shim,)
        assert alive(engine)
        assert not (site.place().runtime / "void").exists()
        await other.close()

    run(test)


def test_a_shim_that_has_not_said_who_it_is_yet() -> None:
    """Recovery waits for run.json as long as the lock is held."""

    async def test(site: Site) -> None:
        engine, _ = await orphaned(site, *FOREVER)
        record = site.place().runtime / "run.json"
        later = record.with_name("later")
        record.rename(later)
        scanning = asyncio.create_task(site.processes.scan())
        await asyncio.wait({scanning}, timeout=0.05)
        assert not scanning.done()
        later.rename(record)
        (found,) = await scanning
        assert found.process is not None
        assert found.process.pid == engine

    run(test)


def test_a_run_whose_engine_is_gone_while_its_shim_still_clears_up() -> None:
    async def test(site: Site) -> None:
        program = "(trap '' TERM; echo $$; while :; do sleep 1; done) & sleep 0.1; exit 4"
        engine, shim = await orphaned(site, "sh", "-c", program)
        await auntil(lambda: not alive(engine))
        (found,) = await site.processes.scan()
        if alive(shim):  # it has a second for the one that ignores SIGTERM
            assert found.process is not None
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit.code, ended.cleared) == (4, True)

    run(test)


def test_a_record_that_was_cut_short() -> None:
    async def test(site: Site) -> None:
        _, shim = await orphaned(site, *FOREVER)
        os.kill(shim, signal.SIGKILL)
        await auntil(lambda: not site.owned())
        (site.place().runtime / "run.json").write_text('{"v": 1, "en')
        (site.place().state / "exit.json").write_text("")
        (site.runtime / "runs" / "rubbish").mkdir()
        (found,) = await site.processes.scan()
        assert found.ended is not None
        assert (found.ended.exit, found.ended.pids_left) == (Exit(), ())
        assert await site.processes.clear("tiny/0", 1, 5) == ()

    run(test)


def test_directories_that_a_daemon_died_over_are_removed() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        runs = site.runtime / "runs"
        (runs / "0123456789ab-7").mkdir()
        (runs / ".0123456789ab-6.gone").mkdir()
        (runs / "not-ours").mkdir()
        assert await site.processes.scan() == []
        assert {path.name for path in runs.iterdir()} == {site.place().runtime.name, "not-ours"}
        assert alive(started.pid)

    run(test)


def test_the_id_of_an_installation_is_made_once(tmp_path: Path) -> None:
    assert identity.installation_id(tmp_path) is None
    first = identity.make_installation_id(tmp_path)
    assert identity.make_installation_id(tmp_path) == identity.installation_id(tmp_path) == first
    (tmp_path / "installation").write_text("")  # cut short by a power cut: nothing of that time lives
    assert identity.make_installation_id(tmp_path) != first
