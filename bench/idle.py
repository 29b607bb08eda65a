"""CPU and memory while nothing happens but probes: a daemon with 8 replicas, one with 200, and bare probes of the 200.

All run through the same minutes. CPU is what the scheduler counted for all threads of the process. Memory is PSS:
private pages, and of each shared one this process's part. At the end the process that forked the 8 shims is killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import child
import measure
from modelsupd.runtime.shim import tree
from waiting import until

MINUTES = 3
FEW, MANY = 8, 200

#: Starting is over, and every probe has fallen into its rhythm.
SETTLE_S = 15


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def pss_mib(pid: int) -> float:
    """Return its share of memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def shims(host: child.Daemon) -> list[int]:
    """Return the pids of all shims."""
    return [int(str(row["shim_pid"])) for row in host.rows()]


def spawner(host: child.Daemon) -> int:
    """Return the pid of the process that forks shims."""
    return next(each.pid for each in tree.descendants(host.pid) if tree.name_of(each.pid) == "modelsupd-spawn")


def minute(few: child.Daemon, many: child.Daemon, bare: int) -> dict[str, float]:
    """Return what each used of CPU in one minute, in seconds."""
    watched = {
        f"daemon, {FEW} replicas": [few.pid],
        f"daemon, {MANY} replicas": [many.pid],
        f"bare probes of the {MANY}": [bare],
        f"the {FEW} shims": shims(few),
        f"the {MANY} shims": shims(many),
    }
    before = {name: sum(map(cpu_s, pids)) for name, pids in watched.items()}
    time.sleep(60)
    return {name: sum(map(cpu_s, pids)) - before[name] for name, pids in watched.items()}


@contextlib.contextmanager
def _fleet(place: Path, program: Path, replicas: int) -> Iterator[child.Daemon]:
    place.mkdir()
    with (
        contextlib.closing(child.Bell(place / "bell")) as bell,
        child.daemon(place, child.model("m", program, bell.path, replicas=replicas)) as host,
    ):
        host.until_ready(replicas)
        yield host


def main(runs: int = 0) -> None:
    """Measure and print; `runs` is minutes."""
    measure.heading(f"idle: probes every 5 s, over {runs or MINUTES} minutes")
    used: dict[str, list[float]] = {}
    with child.place() as place, contextlib.ExitStack() as stack:
        program = child.compiled(place)
        few = stack.enter_context(_fleet(place / "few", program, FEW))
        many = stack.enter_context(_fleet(place / "many", program, MANY))
        endpoints = "\n".join(str(row["endpoint"]).removeprefix("unix:") for row in many.rows())
        bare = stack.enter_context(
            subprocess.Popen(
                [sys.executable, Path(__file__).with_name("probes.py")], stdin=subprocess.PIPE, start_new_session=True
            )
        )
        stack.callback(bare.kill)
        assert bare.stdin is not None  # noqa: S101 - a pipe was asked for
        bare.stdin.write(endpoints.encode())
        bare.stdin.close()
        time.sleep(SETTLE_S)
        for _ in range(runs or MINUTES):
            for name, seconds in minute(few, many, bare.pid).items():
                used.setdefault(name, []).append(seconds)
        told(used)
        memory(few, many)


def told(used: dict[str, list[float]]) -> None:
    """Print CPU, and the ratio to the bare probes."""
    floor = measure.median(used[f"bare probes of the {MANY}"])
    for name, seconds in used.items():
        each = " ".join(f"{value:.3f}" for value in seconds)
        value = measure.median(seconds)
        print(f"  CPU of {name:26} {value:7.3f} s a minute ({each})   {value / floor:5.2f}x the bare probes")


def memory(few: child.Daemon, many: child.Daemon) -> None:
    """Print memory, before and after the spawner is killed."""
    forked_by, children = spawner(few), shims(few)
    print(f"  PSS of daemon, {FEW} replicas         {pss_mib(few.pid):7.1f} MiB")
    print(f"  PSS of daemon, {MANY} replicas       {pss_mib(many.pid):7.1f} MiB")
    print(f"  PSS of the spawner               {pss_mib(forked_by):7.1f} MiB")
    print(f"  PSS of {FEW} shims, summed           {sum(map(pss_mib, children)):7.1f} MiB")
    os.kill(forked_by, signal.SIGKILL)
    until(lambda: (seen := tree.stat(forked_by)) is None or seen.dead)
    print(f"  the same, the spawner killed     {sum(map(pss_mib, children)):7.1f} MiB")
