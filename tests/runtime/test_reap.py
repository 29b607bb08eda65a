"""`reap` needs no daemon, ends everything of the installation, and refuses to work beside a daemon."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from modelsupd.runtime import paths
from modelsupd.runtime.reap import ReapRefusedError, reap
from running import FOREVER, Site, alive, run

DEAF = ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")


async def reaped(site: Site, term_timeout_s: float = 5.0) -> tuple[tuple[str, ...], tuple[int, ...], list[str]]:
    said: list[str] = []
    result = await asyncio.to_thread(
        lambda: reap(site.runtime, site.state, term_timeout_s=term_timeout_s, report=said.append)
    )
    return result.ended, result.left, said


def test_everything_is_ended() -> None:
    async def test(site: Site) -> None:
        polite = await site.processes.spawn(site.launch(*FOREVER))
        deaf = await site.processes.spawn(site.launch(*DEAF, run=2))
        lost = await site.processes.spawn(site.launch(*FOREVER, run=3))
        ended = await site.processes.spawn(site.launch("true", run=4))
        await site.processes.wait("tiny/0", 4)
        await site.said("ready", run=2)
        await site.processes.close()
        shutil.rmtree(site.place(3).runtime)
        runs, left, said = await reaped(site, 0.3)
        assert sorted(runs) == ["tiny/0#1", "tiny/0#2", "tiny/0#3", "tiny/0#4"]
        assert left == ()
        assert f"tiny/0#1: ending engine {polite.pid} and its shim {polite.shim_pid}" in said
        assert "tiny/0#4: had ended, its directory is removed" in said
        assert not any(alive(each.pid) or alive(each.shim_pid) for each in (polite, deaf, lost, ended))
        assert not list((site.runtime / "runs").iterdir())
        assert await reaped(site) == ((), (), [])

    run(test)


def test_a_shim_that_was_killed_leaves_nothing_to_reap() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch("sh", "-c", "setsid sleep 1000 & echo $!; sleep 1000"))
        (escaped,) = await site.numbers(1)
        os.kill(started.shim_pid, signal.SIGKILL)
        await site.processes.wait("tiny/0", 1)
        await site.processes.close()
        assert (await reaped(site))[:2] == (("tiny/0#1",), ())
        assert not alive(escaped)

    run(test)


def test_it_refuses_beside_a_daemon() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        for directory in (site.state, site.runtime):
            fd = paths.hold(directory)
            with pytest.raises(ReapRefusedError, match=rf"cannot reap: cannot lock '.*': pid {os.getpid()} holds it"):
                await reaped(site)
            os.close(fd)
        assert alive(started.pid)

    run(test)


def test_where_there_never_was_a_daemon_nothing_is_made(tmp_path: Path) -> None:
    result = reap(tmp_path / "run", tmp_path / "state", term_timeout_s=1, report=print)
    assert (result.ended, result.left) == ((), ())
    assert not list(tmp_path.iterdir())


def test_a_directory_has_one_holder_and_engines_do_not_inherit_it() -> None:
    async def test(site: Site) -> None:
        fd = paths.hold(site.state)
        with pytest.raises(paths.LockedError):
            paths.hold(site.state)
        await site.processes.spawn(site.launch(*FOREVER))
        child = await asyncio.to_thread(lambda: subprocess.Popen(FOREVER))
        os.close(fd)
        os.close(paths.hold(site.state))
        child.kill()
        child.wait()

    run(test)
