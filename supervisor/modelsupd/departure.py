"""How the daemon goes: engines first, and what stands before them only when nothing is left to serve."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence

import structlog

from modelsupd import narrator
from modelsupd.core.events import Halted, Hurried
from modelsupd.core.fleet import all_still
from modelsupd.core.phases import Clearing, Killing, Replica
from modelsupd.runtime.driver import Driver
from modelsupd.runtime.process import Processes

log = structlog.get_logger("daemon")

#: The signal after so many that asked to hurry is the last one waited for.
LAST_WARNING = 2


async def end_all(
    driver: Driver,
    signals: asyncio.Queue[signal.Signals],
    is_last: Callable[[str], bool],
    kill_unrecorded: Callable[[], None],
) -> list[str]:
    """Stop every replica, those of which `is_last` is true after all others; return what could not be ended.

    One that was declared a moment ago may not be published yet: it hears of the end all the same, and is waited for.
    Each further signal is one more reason to hurry: skip the drain, kill, and the last one does not wait for the disk.
    """
    hurried = 0
    for last in (False, True):

        def names(last: bool = last) -> list[str]:
            return [name for name in driver.known() if is_last(name) is last]

        for name in names():
            driver.put(name, Halted())
            for number in range(hurried):
                driver.put(name, Hurried(kill=number > 0))
        still = asyncio.create_task(
            driver.until(lambda replicas, names=names: _over(replicas, names()))  # type: ignore[misc]  # a default binds the loop's variable
        )
        while not still.done():
            next_signal = asyncio.create_task(signals.get())
            await asyncio.wait({still, next_signal}, return_when=asyncio.FIRST_COMPLETED)
            if next_signal.done() and next_signal.result() in (signal.SIGTERM, signal.SIGINT):
                hurried += 1
                log.info("told to hurry" if hurried == 1 else "told to kill")
                for name in names():
                    driver.put(name, Hurried(kill=hurried > 1))
                if hurried > LAST_WARNING:
                    kill_unrecorded()
                    os._exit(1)
            next_signal.cancel()
    return [name for name, replica in driver.replicas.items() if not all_still([replica])]


def kill_unrecorded(driver: Driver, processes: Processes) -> None:
    """Kill past the journal, for a disk that does not answer; the next daemon finds out what became of it."""
    log.error("leaving without a record; processes are killed")
    for name, replica in driver.replicas.items():
        if replica.process is not None:
            processes.kill(name, replica.process.run)
    narrator.flush()


def _over(replicas: Mapping[str, Replica], names: Sequence[str]) -> bool:
    """Tell whether nothing of a stage runs any more but what withstood SIGKILL."""
    return all(name in replicas and _is_over(replicas[name]) for name in names)


def _is_over(replica: Replica) -> bool:
    return all_still([replica]) or (isinstance(replica.phase, Killing | Clearing) and bool(replica.phase.stuck))
