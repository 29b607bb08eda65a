"""The process that forks shims: killed, stopped, asked for too much at once, and gone with its daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from modelsupd.runtime import process
from modelsupd.runtime.process import SpawnError
from modelsupd.runtime.spawning import NoReportError
from running import FOREVER, Site, alive, run
from waiting import PATIENCE_S, auntil


def test_a_spawner_that_is_killed_is_started_anew() -> None:
    async def test(site: Site) -> None:
        first = await site.processes.spawn(site.launch(*FOREVER))
        (spawner,) = site.processes.children()
        os.kill(spawner, signal.SIGKILL)
        await auntil(lambda: not alive(spawner))
        second = await site.processes.spawn(site.launch(*FOREVER, run=2))
        assert alive(first.pid)
        assert alive(second.pid)
        assert site.processes.children() != {spawner}

    run(test)


def test_a_spawner_that_is_killed_while_it_is_asked() -> None:
    async def test(site: Site) -> None:
        (spawner,) = site.processes.children()
        await site.processes.spawn(site.launch(*FOREVER))
        os.kill(spawner, signal.SIGSTOP)
        asked = asyncio.create_task(site.processes.spawn(site.launch(*FOREVER, run=2)))
        await auntil((site.place(2).runtime / "spec.json").exists)
        await asyncio.wait({asked}, timeout=0.05)
        os.kill(spawner, signal.SIGKILL)
        with pytest.raises(SpawnError, match="died before it reported"):
            await asked
        assert not site.place(2).runtime.exists()
        await site.processes.spawn(site.launch(*FOREVER, run=3))

    run(test)


def test_no_report_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawner that hangs is replaced by another, and what it was asked for is given up."""

    async def test(site: Site) -> None:
        await site.processes.spawn(site.launch(*FOREVER))
        before = site.owned()
        (spawner,) = site.processes.children()
        os.kill(spawner, signal.SIGSTOP)
        with monkeypatch.context() as short:  # for the one that hangs: on a busy machine no other is done so soon
            short.setattr(process, "REPORT_TIMEOUT_S", 0.2)
            with pytest.raises(SpawnError, match=r"no report from the shim within 0\.2 s"):
                await site.processes.spawn(site.launch(*FOREVER, run=2))
        await site.processes.spawn(site.launch(*FOREVER, run=3))
        assert spawner not in site.processes.children()
        assert len(site.owned()) == len(before) + 2

    run(test)


def test_a_spawner_that_hangs_with_its_socket_full_of_requests() -> None:
    """Those that could not even be sent are sent to the next one, and no descriptor is watched that is closed."""

    async def test(site: Site) -> None:
        (pid,) = site.processes.children()
        os.kill(pid, signal.SIGSTOP)
        spawner = site.processes._spawner
        assert spawner._control is not None
        spawner._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        # The first that finds no answer gives the spawner up, for all; the next one may take its time to start.
        waits = [0.3, *[PATIENCE_S] * 19]
        nowhere = [asyncio.create_task(spawner.ask(Path("/nowhere"), timeout_s)) for timeout_s in waits]
        answers = await asyncio.wait_for(asyncio.gather(*nowhere, return_exceptions=True), PATIENCE_S)
        late = [answer for answer in answers if isinstance(answer, NoReportError)]
        refused = [answer for answer in answers if isinstance(answer, tuple) and answer[0]["step"] == "spawn"]
        assert late
        assert refused, "the next one says that there is no such directory"
        assert len(late) + len(refused) == len(answers), answers
        assert pid not in site.processes.children()
        heard = [asyncio.Event() for _ in range(20)]
        with ExitStack() as sockets:
            for event in heard:
                ours, theirs = socket.socketpair()
                sockets.enter_context(ours)
                sockets.enter_context(theirs)
                asyncio.get_running_loop().add_reader(ours.fileno(), event.set)
                sockets.callback(asyncio.get_running_loop().remove_reader, ours.fileno())
                theirs.send(b"x")
            await auntil(lambda: all(event.is_set() for event in heard))
        await site.processes.spawn(site.launch(*FOREVER))

    run(test)


def test_a_spawner_goes_with_its_daemon_and_says_nothing() -> None:
    async def test(site: Site) -> None:
        (spawner,) = site.processes.children()
        started = await site.processes.spawn(site.launch(*FOREVER))
        await site.processes.close()
        assert not alive(spawner)
        assert alive(started.pid)

    run(test)


def test_asking_a_directory_that_is_no_run() -> None:
    async def test(site: Site) -> None:
        answer, _ = await site.processes._spawner.ask(site.root / "nothing", 5)
        assert answer["step"] == "spawn"
        (site.root / "empty").mkdir()
        answer, _ = await site.processes._spawner.ask(site.root / "empty", 5)
        assert answer["step"] == "spawn"
        with pytest.raises(NoReportError):
            await site.processes._spawner.ask(site.root / "empty", 0)

    run(test)
