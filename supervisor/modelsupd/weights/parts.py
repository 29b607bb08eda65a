"""One file that is being fetched: which bytes of it are there, kept so that kill -9 and power cuts cost little.

Beside the part file lies its record: lines of JSON, appended to. The first says what the file is, each later one that a
range of bytes is there. Rules:

1. A range is recorded after its bytes were written. A process that is killed in between has fetched them for nothing.
2. A power cut may take bytes away that were written and not synced. After one, which the boot's id tells, nothing
   counts but what a line of `synced` ranges says, and that is written after the sync.
3. Space that was allocated and not written says nothing. Only the record does, and last the digest.
4. After a sync that failed, memory may hold what the disk does not, and another sync would succeed over it. So nothing
   counts then either but what an earlier one has seen to; the rest is fetched and written again, by another call.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import Stopped, WeightsError
from modelsupd.weights.kept import sync_folder
from modelsupd.weights.ranges import Ranges

PART_SUFFIX = ".modelsupd-part"
RECORD_SUFFIX = ".modelsupd-part.json"

_VERSION = 1
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: How often a lock that another process holds is tried, in seconds: there is no waiting for one that ends by an event.
_LOCK_EVERY_S = 0.05

#: These file systems know no locks (or no allocation), and are used without.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
#: What a disk says that is full.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

#: Written at once. The kernel takes its pages as large as a write is; those of a MiB were three to six times as dear as
#: these, since memory that hangs together so far is seldom memory that was in use just now (ext4 of Linux 6.18).
_WRITE_BYTES = 128 * 1024

# Not os.posix_fallocate: where the file system cannot allocate, the C library writes into every block instead, which
# takes minutes for what weighs as much as weights do.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


class PartFile:
    """A file on its way to its final name, held by one process (see `locked`). Its methods may be called by any thread.

    Methods that write raise WeightsError: NO_SPACE with the bytes that are missing, else WEIGHTS_UNAVAILABLE.
    """

    def __init__(self, final: Path, fd: int, size: int) -> None:
        """Take the part file of `final`, opened and locked, and what its record says; both are new at first."""
        self.path = beside(final, PART_SUFFIX)
        self.size = size
        #: The server's name for the content that was begun, "" where it gives none; None before anything was asked for.
        self.etag: str | None = None
        self._final = final
        self._fd = fd
        self._record_path = beside(final, RECORD_SUFFIX)
        self._new_record_path = beside(final, RECORD_SUFFIX + ".new")
        self._record_fd = -1
        self._lock = threading.Lock()
        # The kernel takes one writer of a file at a time, and those who wait for it there spin on a core meanwhile.
        self._writer = threading.Lock()
        self._unsynced = 0
        self._failed: OSError | None = None
        self._synced = Ranges()
        self.done = Ranges()
        try:
            with self._writing():
                self._read_record()
                self._write_record()
        except BaseException:
            self.close()
            raise
        #: What was there when it was opened.
        self.resumed_bytes = self.done.total

    def close(self) -> None:
        """Close the record; the part file is its lock's."""
        if self._record_fd >= 0:
            os.close(self._record_fd)
            self._record_fd = -1

    def allocate(self, min_free_bytes: int) -> None:
        """Set space aside for all that is to come; NO_SPACE unless `min_free_bytes` stay free beside it.

        What other processes write meanwhile can then take none of it away.
        """
        with self._writing():
            status = os.fstat(self._fd)
            to_come = max(0, self.size - status.st_blocks * 512)
            free = _free_bytes(self._fd)
            if to_come and to_come + min_free_bytes > free:
                why = f"{in_words(min_free_bytes)} have to stay free"
                raise self._no_space(to_come + min_free_bytes - free, why)
            if to_come:
                _allocate(self._fd, self.size)
            if os.fstat(self._fd).st_size != self.size:
                os.ftruncate(self._fd, self.size)

    def write(self, data: memoryview, at: int) -> None:
        """Write bytes that were fetched; they count from `mark` on."""
        with self._writer, self._writing():
            while data:
                written = os.pwrite(self._fd, data[:_WRITE_BYTES], at)
                data, at = data[written:], at + written

    def mark(self, start: int, end: int) -> int:
        """Record that these bytes were written; return how many of them are new."""
        with self._lock, self._writing():
            if self._failed:
                raise self._failed
            new = self.done.add(start, end)
            if new:
                self._append([start, end])
                self._unsynced += new
            return new

    def read(self, into: memoryview, at: int) -> None:
        """Read back what was written, all that there is room for."""
        while into:
            try:
                count = os.preadv(self._fd, [into], at)
            except OSError as error:
                words = f"cannot read {self.path}: {error.strerror}"
                raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words) from error
            if count == 0:
                words = f"cannot read {self.path}: somebody has cut it off"
                raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words)
            into, at = into[count:], at + count

    @property
    def unsynced_bytes(self) -> int:
        """Return how much a power cut would take away."""
        return self._unsynced

    def send_to_disk(self) -> None:
        """Have the disk begin with what was written, so that a sync finds little to do; errors are left to that."""
        _libc.sync_file_range(self._fd, 0, 0, _SYNC_FILE_RANGE_WRITE)

    def sync(self) -> None:
        """Make what was marked so far outlive a power cut."""
        with self._lock:
            ranges, before = list(self.done), self._unsynced
        with self._writing():
            self._sync_data(os.fdatasync)
            with self._lock:
                self._append({"synced": ranges})
                self._synced = Ranges(ranges)
                self._unsynced -= before
            os.fdatasync(self._record_fd)

    def restart(self) -> int:
        """Forget all bytes; return how many they were. No other thread may be writing."""
        with self._lock, self._writing():
            lost = self.done.total
            self.done, self._synced = Ranges(), Ranges()
            self.etag = None
            self.resumed_bytes = 0
            self._write_record()
            return lost

    def name_etag(self, etag: str) -> None:
        """Keep the ETag under which the server has the file, for the ranges to come."""
        with self._lock, self._writing():
            self.etag = etag
            self._append({"etag": etag})

    def publish(self) -> None:
        """Give it its final name, once it is verified; what was there is replaced. It outlives a power cut then."""
        with self._writing():
            self._sync_data(os.fsync)
            os.replace(self.path, self._final)  # noqa: PTH105 - beside os.fsync, in one order that matters
            sync_folder(self._final.parent)
            self.forget()

    def forget(self) -> None:
        """Remove the record; a part file without one counts as empty."""
        with contextlib.suppress(FileNotFoundError):
            self._record_path.unlink()

    def _sync_data(self, sync: Callable[[int], None]) -> None:
        """Sync the file. Where that fails, the record says from then on what is on disk for sure, and no more."""
        try:
            if self._failed:
                raise self._failed
            sync(self._fd)
        except OSError as error:
            with self._lock, contextlib.suppress(OSError):
                self._failed, self.done = error, Ranges(list(self._synced))
                # At first there is none, which counts for nothing, whatever becomes of the other one.
                self.forget()
                self._begin_record()
                self._name_record()
            raise

    # -- the record ---------------------------------------------------------------------------------------------------

    def _head(self) -> dict[str, Any]:
        # By the inode a record is known that was left behind by another part file.
        inode = os.fstat(self._fd).st_ino
        return {"v": _VERSION, "size": self.size, "inode": inode, "boot": _boot_id(), "etag": self.etag}

    def _read_record(self) -> None:
        try:
            lines = self._record_path.read_bytes().split(b"\n")[:-1]  # what has no end of line was cut off
        except FileNotFoundError:
            return
        try:
            head = json.loads(lines[0])
            ours = self._head()
            if any(head[key] != ours[key] for key in ("v", "size", "inode")):
                return
            same_boot = head["boot"] == ours["boot"] != ""
            self.etag = head["etag"]
        except (ValueError, KeyError, TypeError, IndexError):
            return
        for line in lines[1:]:
            # What is no line of ours a power cut or a full disk has left: it claims nothing.
            with contextlib.suppress(ValueError, TypeError):
                self._take_line(json.loads(line), same_boot=same_boot)

    def _take_line(self, entry: object, *, same_boot: bool) -> None:
        ranges: list[Any] = []
        if isinstance(entry, dict):
            self.etag = entry.get("etag", self.etag)
            ranges = entry.get("synced", [])
        elif same_boot:
            ranges = [entry]
        present = min(self.size, os.fstat(self._fd).st_size)
        for start, end in ranges:
            if 0 <= start <= end <= present:
                self.done.add(start, end)
                if isinstance(entry, dict):
                    self._synced.add(start, end)

    def _write_record(self) -> None:
        # Of an earlier boot only what was synced then is among these; of this one it is synced next.
        if self.done.total > self._synced.total:
            self._sync_data(os.fdatasync)
        self._synced, self._unsynced = Ranges(list(self.done)), 0
        self._begin_record()
        self._name_record()

    def _begin_record(self) -> None:
        """Open a new record, which says what was synced, and not yet under its name."""
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._record_fd = os.open(self._new_record_path, flags, 0o666)
        self._append(self._head())
        if self._synced.total:
            self._append({"synced": list(self._synced)})
            os.fdatasync(self._record_fd)

    def _name_record(self) -> None:
        os.replace(self._new_record_path, self._record_path)  # noqa: PTH105 - beside os.open

    def _append(self, entry: object) -> None:
        data = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        if os.write(self._record_fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell of a disk that is full, or cannot be written, in words."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                status = os.fstat(self._fd)
                missing = self.size - status.st_blocks * 512 - _free_bytes(self._fd)
                raise self._no_space(max(1, missing), os.strerror(error.errno)) from error
            raise cannot_write(self.path, error) from error

    def _no_space(self, missing_bytes: int, why: str) -> WeightsError:
        return WeightsError(
            FailureClass.NO_SPACE,
            f"cannot write {self.path}: {missing_bytes} bytes of space are missing ({in_words(missing_bytes)}; {why});"
            f" what was fetched is kept, {in_words(self.done.total)} of {in_words(self.size)}",
            path=self._final,
        )


def in_words(size_bytes: int) -> str:
    """Return a size with its binary unit: `812 B`, `1.2 GiB`."""
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size_bytes >> shift:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes} B"


def beside(final: Path, suffix: str) -> Path:
    """Return the path of what belongs to a file on its way."""
    return final.with_name(final.name + suffix)


def cannot_write(path: Path, error: OSError) -> WeightsError:
    """Return what it means that a file cannot be written."""
    kind = FailureClass.NO_SPACE if error.errno in FULL else FailureClass.WEIGHTS_UNAVAILABLE
    where = f" of {error.filename}" if error.filename and str(error.filename) != str(path) else ""
    return WeightsError(kind, f"cannot write {path}: {error.strerror or error}{where}", path=path)


@contextmanager
def locked(path: Path, stop: threading.Event, *, mode: int = 0o664) -> Iterator[int]:
    """Hold a lock on the file at `path`, which is made if need be, and yield its descriptor; wait for other holders.

    `flock`, as huggingface_hub does it, on the file that has the name when the lock is had: another process may have
    renamed or removed it meanwhile. Raises Stopped, and WeightsError where the file cannot be made.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            _wait_for_lock(fd, stop)
            if _is_named(fd, path):
                yield fd
                return
        finally:
            os.close(fd)


def _allocate(fd: int, size: int) -> None:
    while _libc.fallocate(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def _wait_for_lock(fd: int, stop: threading.Event) -> None:
    while True:
        if stop.is_set():
            raise Stopped
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stop.wait(_LOCK_EVERY_S)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            return  # two processes then write the same bytes to the same places
        else:
            return


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _free_bytes(fd: int) -> int:
    status = os.fstatvfs(fd)
    return status.f_bavail * status.f_frsize


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
