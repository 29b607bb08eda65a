"""Where things lie below the runtime and the state directory, and who may write there.

`RUNTIME/runs/<dir>/` is named by a hash, because a unix socket's path has room for 107 bytes; `STATE/runs/<dir>/` is
named for people. One daemon holds a directory's lock; nobody inherits it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from pathlib import Path
from urllib.parse import quote

_NAME_BYTES = 200  # of the 255 that a file name may have, some are left for the run's number and ".tmp"


class LockedError(Exception):
    """A directory cannot be had for oneself: another daemon or command holds it, or other users may write to it."""


def make_private(directory: Path) -> Path:
    """Make a directory that only its owner may enter, and its parents with the usual permissions; return it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def runtime_name(replica: str, run: int) -> str:
    """Return the short name of a run's directory below RUNTIME/runs."""
    return f"{_short(replica)}-{run}"


def state_name(replica: str, run: int) -> str:
    """Return the readable name of a run's directory below STATE/runs."""
    return f"{_readable(replica)}.{run}"


def cache_name(replica: str) -> str:
    """Return the readable name of the directory below STATE/cache that the replicas of a model share."""
    return _readable(replica.rpartition("/")[0] or replica)


def highest_run(runtime_dir: Path, state_dir: Path, replica: str) -> int:
    """Return the highest run number of a replica that either tree has a directory for, 0 if none."""
    known = _numbers(runtime_dir / "runs", f"{_short(replica)}-") + runs_in_state(state_dir, replica)
    return max(known, default=0)


def runs_in_state(state_dir: Path, replica: str) -> list[int]:
    """Return the numbers of a replica's runs that STATE has a directory for, ascending."""
    return sorted(_numbers(state_dir / "runs", f"{_readable(replica)}."))


def hold(directory: Path) -> int:
    """Take `directory/lock` for as long as the returned descriptor is open; raises LockedError, naming the holder.

    It is raised too where another user could put something else in the place of what a daemon keeps there.
    """
    make_private(directory)
    _refuse_shared(directory)
    path = directory / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise LockedError(f"cannot lock {str(path)!r}: pid {holder} holds it; stop that first") from None
    with contextlib.suppress(OSError):  # the pid is for people; a full disk must not stop a start
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _refuse_shared(directory: Path) -> None:
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        owner = f"it belongs to uid {status.st_uid}, who could replace what is in it"
        raise LockedError(f"cannot use {str(directory)!r}: {owner}; run this as that user")
    if status.st_mode & 0o002:
        raise LockedError(f"cannot use {str(directory)!r}: every user can write to it; chmod it to 700")


def _short(replica: str) -> str:
    return hashlib.sha256(replica.encode()).hexdigest()[:12]


def _readable(replica: str) -> str:
    name = quote(replica, safe="")
    # '~' stands in no quoted '%xx' and names are not allowed to hold it, so that a shortened name meets no other.
    return name if len(name) <= _NAME_BYTES else f"{name[:_NAME_BYTES]}~{_short(replica)}"


def _numbers(directory: Path, prefix: str) -> list[int]:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    found = [name[len(prefix) :] for name in names if name.startswith(prefix)]
    return [int(number) for number in found if number.isascii() and number.isdigit()]


def old_runs(state: Path, replica: str, keep_runs: int) -> list[int]:
    """Return all but the latest `keep_runs` of those runs; none where they cannot be looked at, for now."""
    try:
        return runs_in_state(state, replica)[:-keep_runs]
    except OSError:
        return []  # for want of descriptors, perhaps; they are still there after the next start
