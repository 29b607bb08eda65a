"""What a new daemon does before anything else: look at what is there, and end what must not be."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from modelsupd.core.events import Process
from modelsupd.core.fleet import Declared
from modelsupd.core.phases import Clearing, Live, Replica
from modelsupd.core.recovery import Boot, Recovered, recover
from modelsupd.runtime.process import Found, Processes

log = structlog.get_logger("adoption")

#: How long processes that must not be are given to go, in seconds.
STRAY_TIMEOUT_S = 10.0


async def take_over(
    states: Mapping[str, Mapping[str, Any]], processes: Processes, declared: Mapping[str, Declared], boot: Boot
) -> Recovered:
    """Return the fleet to start from; by then nothing runs that is not in it."""
    found = [run for run in await processes.scan() if _is_ours(run)]
    live: dict[str, list[Process]] = {}
    for run in found:
        if run.process is not None:
            live.setdefault(run.replica, []).append(run.process)
    names = {*states, *(run.replica for run in found)}
    leftovers = {
        (run.replica, run.run): run.gpus
        for run in found
        if run.process is None and not (run.ended and run.ended.cleared)
    }
    highest = {name: processes.highest_run(name) for name in names}
    recovered = recover(states, live, highest, declared, boot, leftovers)
    await _clear_up(found, recovered, processes)
    return recovered


def _is_ours(run: Found) -> bool:
    """Tell whether a run was started by this installation; of another one nothing is signalled."""
    if run.token_matches:
        return True
    log.warning(
        "left alone: a run in this runtime directory was started by another installation",
        run=f"{run.replica}#{run.run}",
        advice="if its state directory is lost, end its processes by hand and remove its run directory",
    )
    return False


async def _clear_up(found: list[Found], recovered: Recovered, processes: Processes) -> None:
    """End runs that are over, and remove what ended ones left in the runtime directory."""
    over = {(name, process.run) for name, process in recovered.strays}
    if over:
        log.warning("ending processes of runs that are over", runs=[f"{name}#{run}" for name, run in sorted(over)])
        await processes.end_strays([run for run in found if (run.replica, run.run) in over], STRAY_TIMEOUT_S)
    await asyncio.gather(
        *(
            processes.clear(run.replica, run.run, STRAY_TIMEOUT_S)
            for run in found
            if run.process is None and not _is_awaited(run, recovered.replicas.get(run.replica))
        )
    )


def _is_awaited(run: Found, replica: Replica | None) -> bool:
    """Tell whether the fleet itself looks after the end of this run."""
    return replica is not None and isinstance(replica.phase, Live | Clearing) and replica.last_run == run.run


def start_record(boot: Boot, pid: int, version: str) -> dict[str, Any]:
    """Return what the journal keeps of the start of a daemon."""
    return {
        "kind": "start",
        "at": boot.now,
        "wall": datetime.now(UTC).isoformat(),
        "boot_id": boot.id,
        "pid": pid,
        "version": version,
        "why": f"modelsupd {version} started",
    }
