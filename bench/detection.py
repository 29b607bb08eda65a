"""SIGKILL of an engine until its end is known, of runs that were spawned here and of runs that were adopted.

Known means that `Processes.wait` has returned: the shim has seen the end, found nothing left of the tree and written
exit.json. The floor, in turn with it: an event loop that is told by a pidfd that its own child has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

import child
import measure
from modelsupd.runtime.process import Launch, Processes

RUNS = 320

#: A child that has just begun is given this long to come to rest.
PAUSE_S = 0.02


async def killed(processes: Processes, run: int, pid: int) -> float:
    """Return how long it takes to know, in seconds."""
    waiting = asyncio.create_task(processes.wait("m/0", run))
    await asyncio.sleep(PAUSE_S)
    began_at = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    ended = await waiting
    took_s = time.perf_counter() - began_at
    assert ended.cleared  # noqa: S101 - a measurement of something else would be worthless
    await processes.clear("m/0", run, 5.0)
    return took_s


async def told(command: tuple[str, ...]) -> float:
    """Return the same for a child and a pidfd, with nothing between them."""
    loop = asyncio.get_running_loop()
    pid = os.posix_spawn(command[0], command, os.environ)  # noqa: ASYNC221 - it blocks for half a millisecond
    pidfd = os.pidfd_open(pid)
    gone: asyncio.Future[float] = loop.create_future()

    def ended() -> None:
        loop.remove_reader(pidfd)
        gone.set_result(time.perf_counter())

    loop.add_reader(pidfd, ended)
    await asyncio.sleep(PAUSE_S)
    began_at = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    took_s = await gone - began_at
    os.close(pidfd)
    os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended
    return took_s


async def measured(place: Path, runs: int) -> dict[str, Sequence[float]]:
    """Return the seconds of each way."""
    program = str(child.compiled(place))
    rows: dict[str, list[float]] = {"spawned": [], "adopted": [], "pidfd of an own child": []}
    directories = place / "run", place / "state"
    for directory in directories:
        directory.mkdir(mode=0o700)
    with contextlib.closing(child.Bell(place / "bell")) as bell:
        processes = Processes(*directories)
        await processes.open()

        def launch(run: int) -> Launch:
            argv = (program, str(bell.path), "{socket}")
            limits = {"log_max_bytes": 1 << 20, "log_files": 1, "backstop_s": 30.0}
            return Launch(replica="m/0", run=run, digest="0", argv=argv, env={}, listen="unix", **limits)  # type: ignore[arg-type] # each has its own type

        for number in range(1, 2 * runs, 2):
            spawned = await processes.spawn(launch(number))
            rows["spawned"].append(await killed(processes, number, spawned.pid))
            await processes.spawn(launch(number + 1))
            other = Processes(*directories)
            (found,) = [each for each in await other.scan() if each.process is not None]
            assert found.process is not None  # noqa: S101 - chosen so
            rows["adopted"].append(await killed(other, number + 1, found.process.pid))
            await other.close()
            await processes.clear("m/0", number + 1, 5.0)
            rows["pidfd of an own child"].append(await told((program, str(bell.path), str(place / "engine"))))
            for _ in range(3):
                bell.next("serves")
        await processes.close()
    return dict(rows)


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading("detection: SIGKILL of an engine -> its end is known")
    with child.place() as place, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measured(place, runs or RUNS))
    measure.compare(rows, "spawned")
