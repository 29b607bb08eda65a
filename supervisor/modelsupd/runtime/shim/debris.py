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
    there = {inode: path for path, inode in _ours().items()}
    if not there:  # nearly always, and then no process has to be looked at
        return {}
    # By inode, for a semaphore is made under another name than it is known by (sem_open in glibc).
    return {there[inode]: inode for pid in pids for inode in (*_open(pid), *_mapped(pid)) if inode in there}


def remove(found: Found) -> list[str]:
    """Unlink what nobody else has open any more; return the paths of what was removed."""
    if not found:
        return []
    # By descriptors alone: a process that cannot be woken may hold its map locked, and whoever reads that waits for it.
    others = [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    held = {inode for pid in others for inode in _open(pid)}
    there = _ours()
    removed = []
    for path, inode in found.items():
        if inode not in held and there.get(path) == inode:
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


def _open(pid: int) -> Iterable[int]:
    """Yield the inode of each file below /dev/shm that a process has open (proc(5))."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(SHM):
                    yield os.stat(f"/proc/{pid}/fd/{fd}").st_ino


def _mapped(pid: int) -> Iterable[int]:
    """Yield the inode of each that it has mapped, under whatever name it had then."""
    for line in (tree.read_file(f"/proc/{pid}/maps") or b"").splitlines():
        row = line.split(None, 5)  # address perms offset dev inode pathname
        if len(row) == 6 and row[5].startswith(SHM.encode()):  # noqa: PLR2004 - the same
            yield int(row[4])
