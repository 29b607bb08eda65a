"""What a run uses, and who is connected to it, read from /proc."""

from __future__ import annotations

import asyncio
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from modelsupd.core.events import Process
from modelsupd.runtime.shim import tree

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TCP_ESTABLISHED = "01"
_TCP_LISTEN = "0A"
_UNIX_CONNECTED = "03"  # SS_CONNECTED
_UNIX_LISTENS = 0x10000  # __SO_ACCEPTCON


#: How long what an engine has computed may take to leave it, in seconds, before it is ended; and between two looks.
FLUSHED_WITHIN_S = 0.25
_LOOK_AGAIN_S = 0.01


@dataclass(frozen=True, slots=True)
class TreeVitals:
    """What the processes of a run have used. All but `rss_bytes` only grow."""

    cpu_s: float = 0.0
    read_bytes: int = 0
    log_bytes: int = 0
    rss_bytes: int = 0


def measure(shim_pid: int, log_bytes: int | None, last: TreeVitals) -> TreeVitals:
    """Return what everything below a shim has used so far; what is no longer to be had stays as it was last."""
    shim = tree.stat(shim_pid)
    below = tree.descendants(shim_pid) if shim is not None and not shim.dead else []
    # The shim's own share of CPU is left out: it copies the log, which is not the engine's progress.
    ticks = sum(each.cpu + each.reaped_cpu for each in below) + (shim.reaped_cpu if shim is not None else 0)
    return TreeVitals(
        cpu_s=max(last.cpu_s, ticks / _TICKS_PER_S),
        read_bytes=max(last.read_bytes, sum(_read_bytes(each.pid) for each in below)),
        log_bytes=max(last.log_bytes, log_bytes or 0),
        rss_bytes=sum(each.rss for each in below) * _PAGE_BYTES,
    )


def less_idle(before: TreeVitals, last: TreeVitals, idle_s: float) -> TreeVitals:
    """Return `last` without the CPU time that the engine may use while it has nothing to do.

    Where that is all of it, what was read meanwhile was not read for work either: who spins reads its own wake-ups.
    """
    if not idle_s:
        return last
    cpu_s = max(before.cpu_s, last.cpu_s - idle_s)
    return replace(last, cpu_s=cpu_s, read_bytes=last.read_bytes if cpu_s > before.cpu_s else before.read_bytes)


def _read_bytes(pid: int) -> int:
    """Return bytes read by a process: from files (rchar), and from disk, which a mapped file shows in (read_bytes)."""
    total = 0
    for line in (tree.read_file(f"/proc/{pid}/io") or b"").splitlines():
        name, _, value = line.partition(b": ")
        if name in (b"rchar", b"read_bytes"):
            total += int(value)
    return total


def connections(endpoint: str) -> int:
    """Return how many connections an engine has at its endpoint, those that wait to be accepted included."""
    if endpoint.startswith("unix:"):
        return sum(1 for flags, state, _ in _unix_rows(endpoint) if state == _UNIX_CONNECTED and not flags)
    return sum(1 for state, _ in _tcp_rows(_port(endpoint)) if state == _TCP_ESTABLISHED)


async def flushed(endpoint: str) -> None:
    """Give what an engine has generated `FLUSHED_WITHIN_S` to reach whoever waits for it.

    An engine counts a request as done once it is computed; its last words may still be on their way out, and would be
    lost with it. Who keeps a connection open for the next request holds nothing up for longer.
    """
    give_up_at = asyncio.get_running_loop().time() + FLUSHED_WITHIN_S
    while connections(endpoint) and asyncio.get_running_loop().time() < give_up_at:  # noqa: ASYNC110 - the end of another process's connection sets no event
        await asyncio.sleep(_LOOK_AGAIN_S)


def listener_is_ours(process: Process) -> bool:
    """Return whether a process of the run listens at the run's endpoint; False too while nobody does."""
    if process.endpoint.startswith("unix:"):
        inodes = {inode for listens, _, inode in _unix_rows(process.endpoint) if listens}
    else:
        inodes = {inode for state, inode in _tcp_rows(_port(process.endpoint)) if state == _TCP_LISTEN}
    wanted = {f"socket:[{inode}]" for inode in inodes}
    return bool(wanted) and any(_holds(each.pid, wanted) for each in tree.descendants(process.shim_pid))


def _holds(pid: int, wanted: set[str]) -> bool:
    try:
        fds = os.listdir(f"/proc/{pid}/fd")  # noqa: PTH208 - names only; a Path for each would cost more than the look
    except OSError:
        return False
    for fd in fds:
        try:
            if os.readlink(f"/proc/{pid}/fd/{fd}") in wanted:  # noqa: PTH115 - the same
                return True
        except OSError:  # closed meanwhile
            continue
    return False


def _port(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


def _unix_rows(endpoint: str) -> list[tuple[bool, str, str]]:
    """Return (listens, state, inode) of every socket that is bound to the path, or was accepted at it (proc(5))."""
    path = endpoint.removeprefix("unix:").encode()
    found = []
    for line in (tree.read_file("/proc/net/unix") or b"").splitlines():
        if line.endswith(path):
            row = line.split(None, 7)
            if len(row) == 8 and row[7] == path:  # noqa: PLR2004 - Num RefCount Protocol Flags Type St Inode Path
                found.append((bool(int(row[3], 16) & _UNIX_LISTENS), row[5].decode(), row[6].decode()))
    return found


def _tcp_rows(port: int) -> list[tuple[str, str]]:
    """Return (state, inode) of every TCP socket with this local port."""
    suffix = f":{port:04X}"
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in (tree.read_file(table) or b"").decode().splitlines()[1:]:
            row = line.split()
            if row[1].endswith(suffix):
                found.append((row[3], row[9]))
    return found


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot, 0 where it does not tell.

    `oom_kill` of /proc/vmstat counts kills by a cgroup's limit as well (Linux, mm/oom_kill.c).
    """
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
