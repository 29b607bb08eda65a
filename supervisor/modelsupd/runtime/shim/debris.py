"""What a run leaves in /dev/shm when it is killed: memory that nobody has any more and nobody frees.

Whoever is killed cannot unlink what it shared; of vLLM that is hundreds of MiB. Its names tell nothing, so what belongs
to a run is noted while its processes live, by what they have open or mapped there. It is removed once they are gone,
and only if it is still the same file, ours, and held open by no one else.
"""

# ruff: noqa: PTH108, PTH115, PTH116, PTH208 - no pathlib in the shim: strings keep it small

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from modelsupd.runtime.shim import tree

SHM = "/dev/shm/"  # noqa: S108 - it is looked at, and nothing is written there

Found = dict[str, int]
"""Path below /dev/shm → inode."""


def shared_by(pids: Iterable[int]) -> Found:
    """Return what these processes have open or mapped below /dev/shm, of what is there and ours."""
    there = _ours()
    if not there:  # nearly always, and then no process has to be looked at
        return {}
    found: Found = {}
    for pid in pids:
        for path, inode in _used(pid):
            if there.get(path) == inode:
                found[path] = inode
    return found


def remove(found: Found) -> list[str]:
    """Unlink what nobody has open any more; return the paths of what was removed."""
    if not found:
        return []
    held = set(_open_by_others())
    removed = []
    for path, inode in found.items():
        if path not in held and _ours().get(path) == inode:
            with contextlib.suppress(OSError):
                os.unlink(path)
                removed.append(path)
    return removed


def _ours() -> Found:
    found: Found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHM):
            with contextlib.suppress(OSError):
                seen = entry.stat(follow_symlinks=False)
                if seen.st_uid == os.geteuid() and stat.S_ISREG(seen.st_mode):
                    found[entry.path] = seen.st_ino
    return found


def _used(pid: int) -> Iterable[tuple[str, int]]:
    """Yield path and inode of each file below /dev/shm that a process has open or mapped (proc(5))."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                if path.startswith(SHM):
                    yield path, os.stat(f"/proc/{pid}/fd/{fd}").st_ino
    for line in (tree.read_file(f"/proc/{pid}/maps") or b"").splitlines():
        if SHM.encode() in line:
            row = line.split(None, 5)
            if len(row) == 6:  # noqa: PLR2004 - address perms offset dev inode pathname
                yield os.fsdecode(row[5]), int(row[4])


def _open_by_others() -> Iterable[str]:
    # By descriptors alone: a process that cannot be woken may hold its map locked, and whoever reads that waits for it.
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                for fd in os.listdir(f"/proc/{name}/fd"):
                    with contextlib.suppress(OSError):
                        yield os.readlink(f"/proc/{name}/fd/{fd}")
