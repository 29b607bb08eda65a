"""The file operations that the journal's writer uses, in one place, so that a test can fail or record each of them."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


class Disk:
    """The real ones. Each raises OSError as the system call does; sizes and offsets in bytes."""

    def open(self, path: Path, flags: int) -> int:
        """Open a file, 0600 where it is created, and return its descriptor."""
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write and return how many bytes were taken, which may be fewer than given."""
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        """Make a file's contents durable."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Make a file's contents and attributes durable."""
        os.fsync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        """Cut a file."""
        os.ftruncate(fd, size)

    def fallocate(self, fd: int, offset: int, size: int) -> None:
        """Give a file `size` bytes of NULs from `offset` on, for which there is space."""
        os.posix_fallocate(fd, offset, size)

    def free_bytes(self, directory: Path) -> int:
        """Return how much this process could still write there."""
        found = os.statvfs(directory)
        return found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file over whatever has that name."""
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name."""
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink()

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_all(disk: Disk, fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`, however often the kernel takes only a part of it."""
    view = memoryview(data)
    while view:
        written = disk.pwrite(fd, view, offset)
        if written == 0:
            raise OSError(errno.EIO, "Write took nothing")
        view = view[written:]
        offset += written


def keep_aside(disk: Disk, directory: Path, name: str, data: bytes) -> str:
    """Write bytes to a new file called `name`, `name.1`, …, and return which; a file that holds just them will do."""
    number = 0
    while True:
        path = directory / (f"{name}.{number}" if number else name)
        try:
            fd = disk.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            if path.read_bytes() == data:
                return path.name
            number += 1
            continue
        try:
            write_all(disk, fd, data, 0)
            disk.fsync(fd)
        except OSError:
            with suppress(OSError):
                disk.unlink(path)
            raise
        finally:
            disk.close(fd)
        return path.name
