"""Ends what a daemon left behind. Needs no daemon, and refuses to work beside one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from modelsupd.runtime import identity, paths
from modelsupd.runtime.process import Found, Processes


class ReapRefusedError(Exception):
    """A daemon runs on these directories, and its engines are its own; or they are not ours alone."""


@dataclass(frozen=True, slots=True)
class ReapResult:
    """What was done: the runs that are ended, and the pids that withstood SIGKILL."""

    ended: tuple[str, ...]
    left: tuple[int, ...]


def reap(runtime_dir: Path, state_dir: Path, *, term_timeout_s: float, report: Callable[[str], None]) -> ReapResult:
    """End every process of the installation: SIGTERM, and SIGKILL after `term_timeout_s`; `report` gets a line a run.

    Raises ReapRefusedError while a daemon holds one of the directories. Where there never was one, nothing is made.
    """
    if identity.installation_id(state_dir) is None:
        return ReapResult((), ())
    with ExitStack() as locks:
        for directory in (state_dir, runtime_dir):
            try:
                locks.callback(os.close, paths.hold(directory))
            except paths.LockedError as error:
                raise ReapRefusedError(f"cannot reap: {error}") from error
        return asyncio.run(_reap(Processes(runtime_dir, state_dir), term_timeout_s, report))


async def _reap(processes: Processes, term_timeout_s: float, report: Callable[[str], None]) -> ReapResult:
    found = await processes.scan()
    ours = [each for each in found if each.token_matches]
    for each in found:
        report(_words(each))
    left = await processes.end_strays(ours, term_timeout_s)
    await processes.close()
    if left:
        report(f"still alive after SIGKILL: {', '.join(map(str, left))}")
    return ReapResult(tuple(f"{each.replica}#{each.run}" for each in ours), left)


def _words(found: Found) -> str:
    name = f"{found.replica}#{found.run}"
    if not found.token_matches:
        return f"{name}: belongs to another installation, left alone"
    if found.process is not None:
        return f"{name}: ending engine {found.process.pid} and its shim {found.process.shim_pid}"
    if found.ended is not None and found.ended.pids_left:
        return f"{name}: ending {', '.join(map(str, found.ended.pids_left))}"
    return f"{name}: had ended, its directory is removed"
