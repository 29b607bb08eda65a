"""What a run leaves in /dev/shm when it is killed: memory that nobody has any more and nobody frees.

Whoever is killed cannot unlink what it shared; of vLLM that is hundreds of MiB. Its names tell nothing, so what belongs
to a run is noted while its processes live, by what they have open or mapped there. It is removed once they are gone,
and only if it is still the same file, ours, and held open by no one else. What was there before the run is never
removed: weights are kept there by some, to be read from memory.
"""

# ruff: noqa: PTH108, PTH115, PTH116, PTH208 - no pathlib in the shim: strings keep it small

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable

from modelsupd.runtime.shim import tree

SHM = "/dev/shm/"  # noqa: S108 - it is looked at, and nothing is written there

File = tuple[int, int]
"""Device and inode: a process in another mount namespace has a /dev/shm of its own, with inodes of the same numbers."""

Found = dict[str, File]
"""Path below /dev/shm → the file."""


def there() -> frozenset[File]:
    """Return what of ours lies in /dev/shm now."""
    return frozenset(_ours().values())


def shared_by(pids: Iterable[int], before: frozenset[File] = frozenset()) -> Found:
    """Return what these processes have open or mapped below /dev/shm, of what is ours and was not there `before`."""
    paths = {file: path for path, file in _ours().items() if file not in before}
    if not paths:  # nearly always, and then no process has to be looked at
        return {}
    # Not by name, for a semaphore is made under another one than it is known by (sem_open in glibc).
    return {paths[file]: file for pid in pids for file in (*_open(pid), *_mapped(pid)) if file in paths}


def remove(found: Found) -> list[str]:
    """Unlink what nobody else has open any more; return the paths of what was removed."""
    if not found:
        return []
    # By descriptors alone: a process that cannot be woken may hold its map locked, and whoever reads that waits for it.
    others = [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    held = {file for pid in others for file in _open(pid)}
    ours = _ours()
    removed = []
    for path, file in found.items():
        if file not in held and ours.get(path) == file:
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
                    found[entry.path] = seen.st_dev, seen.st_ino
    return found


def _open(pid: int) -> Iterable[File]:
    """Yield each file below /dev/shm that a process has open (proc(5))."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(SHM):
                    seen = os.stat(f"/proc/{pid}/fd/{fd}")
                    yield seen.st_dev, seen.st_ino


def _mapped(pid: int) -> Iterable[File]:
    """Yield each that it has mapped, under whatever name it had then."""
    for line in (tree.read_file(f"/proc/{pid}/maps") or b"").splitlines():
        row = line.split(None, 5)  # address perms offset dev inode pathname
        if len(row) == 6 and row[5].startswith(SHM.encode()):  # noqa: PLR2004 - the same
            major, minor = row[3].split(b":")
            yield os.makedev(int(major, 16), int(minor, 16)), int(row[4])
