"""A fresh installation with real processes, of which nothing may be left when a test is over."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from modelsupd.runtime import identity
from modelsupd.runtime.process import Launch, Processes
from modelsupd.runtime.rundir import RunDir
from modelsupd.runtime.shim import tree
from waiting import auntil

PYTHON = (sys.executable, "-I", "-S", "-c")
"""Starts Python quickly; the program is the next argument."""

FOREVER = ("sleep", "1000")


class Site:
    """Directories of one installation, in a short path as sockets need it."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="msd-"))
        self.runtime = self.root / "run"
        self.state = self.root / "state"
        self.processes = Processes(self.runtime, self.state)

    def launch(self, *argv: str, run: int = 1, **changes: Any) -> Launch:  # noqa: ANN401 - fields of any type
        given: dict[str, Any] = {
            "replica": "tiny/0",
            "run": run,
            "digest": "d1",
            "argv": argv,
            "env": {"PATH": "/usr/bin:/bin"},
            "listen": "unix",
            "log_max_bytes": 1 << 20,
            "log_files": 2,
            "backstop_s": 30.0,
        }
        return Launch(**(given | changes))

    def place(self, run: int = 1, replica: str = "tiny/0") -> RunDir:
        return RunDir.of(self.runtime, self.state, replica, run)

    def log(self, run: int = 1) -> str:
        return self.processes.log_tail("tiny/0", run)

    def lines(self, run: int = 1) -> list[str]:
        """Return what the engine wrote, without the time stamps."""
        return [line.split(" ", 1)[1] for line in self.log(run).splitlines()]

    async def said(self, words: str, run: int = 1) -> None:
        await auntil(lambda: words in self.log(run), what=f"{words!r} in the log: {self.log(run)!r}")

    async def numbers(self, count: int, run: int = 1) -> list[int]:
        """Return the first numbers that the engine printed, one a line, once they are there."""
        await auntil(lambda: len(self.lines(run)) >= count, what=f"{count} lines in the log: {self.log(run)!r}")
        return [int(line) for line in self.lines(run)[:count]]

    def owned(self) -> list[int]:
        return [each.pid for each in identity.owned(self.processes.installation)]

    def again(self) -> Processes:
        """Return what a new daemon on the same directories would have."""
        return Processes(self.runtime, self.state)


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Yield a fresh installation with its spawner running; end whatever the test left, and insist that it is gone."""
    here = Site()
    await here.processes.open()
    spawner = here.processes.children()
    try:
        yield here
    finally:
        await here.processes.close()
        for each in identity.owned(here.processes.installation):
            tree.send(each.pid, each.start, signal.SIGKILL)
        await auntil(lambda: not here.owned(), what="processes of the installation are gone")
        assert not any(alive(pid) for pid in spawner)
        shutil.rmtree(here.root)


def run(test: Callable[[Site], Coroutine[Any, Any, None]]) -> None:
    """Run a test on a fresh installation, on the event loop that the daemon uses."""

    async def main() -> None:
        async with site() as here:
            await asyncio.wait_for(test(here), 60)

    uvloop.run(main())


def alive(pid: int) -> bool:
    """Return whether a process lives; a zombie does not."""
    seen = tree.stat(pid)
    return seen is not None and not seen.dead
