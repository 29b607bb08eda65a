"""What was found out about a file by reading all of it, kept so that an unchanged file is not read again.

A verdict is about an `Identity`: device, inode, size and mtime. It may be kept only where no other content can come to
have the same identity. Two things give it one without anybody meaning harm:

1. A write within the same tick of the clock that mtimes are taken from: four milliseconds on a local disk, up to two
   seconds elsewhere. So reading must begin a tick after the file's mtime; `settles_in_s` tells how long that is. Files
   that we fetched ourselves need not wait: nobody but us writes them, and we do not any more.
2. A process that has the file mapped for writing: what it stores shows in the mtime much later. So there is no verdict
   while somebody has the file open for writing, which the kernel tells us of our own files on most file systems, by
   refusing a read lease (fcntl(2), F_SETLEASE).

Whoever sets an mtime back can write the weights; no cache of verdicts keeps such a one out. A verdict that is damaged,
or of a format that is not known, counts as none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from modelsupd.weights.base import Identity, identity_of
from modelsupd.weights.kept import write_whole

VERSION = 1

#: The coarsest mtimes there are: two seconds on FAT, one on some servers of NFS.
TICK_NS = 2_000_000_000

#: A verdict that is asked for is marked as used, but not each time.
_MARK_EVERY_S = 7 * 86400.0

#: Verdicts are a few hundred bytes; more is none.
_LARGEST_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a file is: its digests where they were computed, and whether it is built as its format demands.

    `structure` is `ok`, `unknown` or `bad` (see `base.Structure`), `words` what goes with it. `name` is what the file
    was called and `at` when it was read, in seconds since the epoch: both for people.
    """

    sha256: str | None
    git_sha1: str | None
    structure: str
    words: str = ""
    name: str = ""
    at: float = 0.0


class Verdicts:
    """The verdicts below a state directory. Several processes may read and write them at once."""

    def __init__(self, state_dir: Path) -> None:
        """Take the state directory; nothing is made before the first verdict."""
        self.folder = state_dir / "weights" / "verdicts"

    def get(self, identity: Identity) -> Verdict | None:
        """Return what is known of the file with this identity. Never raises: what cannot be read is not known."""
        path = f"{self.folder}/{identity}"
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - asked of every file at every look, so without a Path
                data = file.read(_LARGEST_BYTES + 1)
                used_at = os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        verdict = _read(data, str(identity))
        if verdict is not None and not 0 <= time.time() - used_at < _MARK_EVERY_S:
            with contextlib.suppress(OSError):
                os.utime(path)
        return verdict

    def put(
        self, path: Path, identity: Identity, verdict: Verdict, *, began_ns: int | None = None, settled: bool = False
    ) -> str:
        """Keep a verdict about the file at `path`, which had this identity when its reading began.

        Returns "", or why nothing was kept, in words that stand behind the file's name; it has to be read again then.
        `began_ns` is when that was, by `time.time_ns`; `settled` says that nobody but this process wrote the file, and
        that it will not write it again. Never raises.
        """
        try:
            why = _may_change(path, identity, began_ns, settled=settled)
            if not why:
                write_whole(self.folder / str(identity), _written(verdict, str(identity)), durable=False)
        except OSError as error:
            return f"cannot be marked as verified: {error.filename or path}: {error.strerror}"
        return why

    def forget(self, identity: Identity) -> None:
        """Remove a verdict, as of a file that is found to differ from it. Raises OSError."""
        (self.folder / str(identity)).unlink(missing_ok=True)

    def prune(self, unused_days: float = 90.0) -> int:
        """Remove what nobody asked for in so many days, and return how many that were. Never raises."""
        removed = 0
        oldest = time.time() - unused_days * 86400
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.stat(follow_symlinks=False).st_mtime < oldest:
                        Path(entry.path).unlink()
                        removed += 1
        return removed


def settles_in_s(identity: Identity) -> float:
    """Return for how many seconds a file has to be left alone before its reading can lead to a verdict."""
    left_ns = identity.mtime_ns + TICK_NS - time.time_ns()
    # What lies further in the future than a tick is a clock that was wrong: a write would not get that mtime.
    return left_ns / 1e9 if 0 < left_ns < 2 * TICK_NS else 0.0


def _may_change(path: Path, identity: Identity, began_ns: int | None, *, settled: bool) -> str:
    """Return why another content than the one that was read could have this identity, "" where none can."""
    now_ns = time.time_ns()
    began_ns = now_ns if began_ns is None else began_ns
    if not settled and began_ns - TICK_NS < identity.mtime_ns < now_ns + TICK_NS:
        return "was written while it was read, or just before"
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if _is_open_for_writing(fd):
            return "is open for writing in another process"
        return "" if identity_of(os.fstat(fd)) == identity else "was changed while it was read"
    finally:
        os.close(fd)


def _is_open_for_writing(fd: int) -> bool:
    """Tell whether a process has the file open, or mapped, for writing; False where the kernel does not tell us."""
    try:
        # Whoever opens the file before the lease is given back waits for that, and we are told by a signal: by SIGIO,
        # which ends a process, unless we name another. Of SIGURG nobody takes notice.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    with contextlib.suppress(OSError):  # closing gives it back too
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def _written(verdict: Verdict, identity: str) -> bytes:
    plain = {
        "v": VERSION,
        "identity": identity,
        "sha256": verdict.sha256,
        "git_sha1": verdict.git_sha1,
        "structure": verdict.structure,
        "words": verdict.words[:1000],
        "name": verdict.name[:1000],
        "at": verdict.at,
    }
    body = json.dumps(plain).encode()
    # A bit that flips in a digest here would make a file that is whole look corrupt.
    return body + b"\n%08x\n" % zlib.crc32(body)


def _read(data: bytes, identity: str) -> Verdict | None:
    body, _, check = data.partition(b"\n")
    try:
        if len(data) > _LARGEST_BYTES or int(check, 16) != zlib.crc32(body):
            return None
        plain = json.loads(body)
        if plain["v"] != VERSION or plain["identity"] != identity:
            return None
        return Verdict(
            plain["sha256"], plain["git_sha1"], plain["structure"], plain["words"], plain["name"], plain["at"]
        )
    except (ValueError, KeyError, TypeError):
        return None
