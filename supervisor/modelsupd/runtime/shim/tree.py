"""What /proc tells about processes: who they are, who their children are, whether they live.

A pid alone names nobody, since it is used again. Pid and start time (field 22 of /proc/PID/stat, in clock ticks since
boot) name one process of this boot. Signals go through a pidfd that is opened before the start time is compared, so
that no other process can slip in between.
"""

# ruff: noqa: PTH110, PTH208 - no pathlib in the shim: strings keep it small

from __future__ import annotations

import os
import signal
from typing import NamedTuple

TOKEN_NAME = "MODELSUPD_RUN"  # noqa: S105 - the name of a variable, not a secret
"""The environment variable that tells whose a process is."""

_DEAD = frozenset("ZX")


class Stat(NamedTuple):
    """One process. `start` is in clock ticks since boot, CPU in clock ticks, `rss` in pages."""

    pid: int
    state: str
    ppid: int
    session: int
    cpu: int
    reaped_cpu: int
    start: int
    rss: int
    threads: int

    @property
    def dead(self) -> bool:
        """Whether it only waits to be reaped: such a zombie runs no more and holds no memory.

        The state is the first thread's. Another may live on where SIGKILL does not reach it, in a driver that hangs,
        and with it all that the process holds.
        """
        return self.state in _DEAD and self.threads <= 1


def read_file(path: str) -> bytes | None:
    """Return what a file of /proc says, None where the process is gone or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def stat(pid: int) -> Stat | None:
    """Return what the kernel says of a process, None where there is none."""
    raw = read_file(f"/proc/{pid}/stat")
    if not raw:
        return None
    # The name may hold spaces and brackets, so the fields are counted from after the last ')' (proc(5): field 3).
    rest = raw[raw.rindex(b")") + 2 :].split()
    return Stat(
        pid=pid,
        state=rest[0].decode(),
        ppid=int(rest[1]),
        session=int(rest[3]),
        cpu=int(rest[11]) + int(rest[12]),
        reaped_cpu=int(rest[13]) + int(rest[14]),
        start=int(rest[19]),
        rss=int(rest[21]),
        threads=int(rest[17]),
    )


def pids() -> list[int]:
    """Return all pids that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid: int) -> list[Stat]:
    """Return the processes below `pid`, parents before children, zombies included.

    The kernel may leave out a child while another one exits (proc(5) on `children`), so an empty answer is no proof.
    """
    if not os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children"):
        return _descendants_by_parent(pid)
    found: list[Stat] = []
    todo = [pid]
    while todo:
        for child in _children(todo.pop()):
            seen = stat(child)
            if seen is not None:
                found.append(seen)
                todo.append(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for task in tasks:
        found.extend(int(child) for child in (read_file(f"/proc/{pid}/task/{task}/children") or b"").split())
    return found


def _descendants_by_parent(pid: int) -> list[Stat]:
    """Do the same on a kernel without CONFIG_PROC_CHILDREN, by looking at every process."""
    by_parent: dict[int, list[Stat]] = {}
    for each in pids():
        seen = stat(each)
        if seen is not None:
            by_parent.setdefault(seen.ppid, []).append(seen)
    found: list[Stat] = []
    todo = [pid]
    while todo:
        below = by_parent.get(todo.pop(), [])
        found.extend(below)
        todo.extend(child.pid for child in below)
    return found


def open_pidfd(pid: int, start: int) -> int | None:
    """Return a pidfd of exactly this process, None if it is gone or dead or its pid belongs to another one by now.

    Raises OSError where descriptors have run out.
    """
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, ValueError, OverflowError):
        return None
    seen = stat(pid)
    if seen is None or seen.start != start or seen.dead:
        os.close(fd)
        return None
    return fd


def send(pid: int, start: int, number: int) -> bool:
    """Send a signal to exactly this process; return whether it was there and took it."""
    fd = open_pidfd(pid, start)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, number)
    except (ProcessLookupError, PermissionError):
        return False
    else:
        return True
    finally:
        os.close(fd)


def name_of(pid: int) -> str:
    """Return the name in /proc/PID/comm, '' where there is no such process."""
    return (read_file(f"/proc/{pid}/comm") or b"").decode("utf-8", "replace").strip()


def token_of(pid: int) -> str | None:
    """Return the run's token from a process's environment, None if it has none or we may not look."""
    raw = read_file(f"/proc/{pid}/environ")
    if not raw:
        return None
    prefix = TOKEN_NAME.encode() + b"="
    if raw.startswith(prefix):
        at = len(prefix)
    else:
        at = raw.find(b"\0" + prefix)
        if at < 0:
            return None
        at += 1 + len(prefix)
    end = raw.find(b"\0", at)
    return raw[at : end if end >= 0 else len(raw)].decode("utf-8", "replace")
