"""Space held back for when the disk is full: a blank preallocated file that can become the next segment."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from modelsupd.runtime.journal.disk import Disk, write_all


class Reserve:
    """The file `reserve` of a journal. `size_bytes` is None while there is none."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Take what an earlier process left, if it is of use."""
        self.path = directory / "reserve"
        self._disk = disk
        self.size_bytes: int | None = None
        with suppress(OSError):
            self.size_bytes = self._blank()

    def provide(self, size_bytes: int, *, spare_bytes: int) -> None:
        """Make a reserve unless there is one of `size_bytes`, a bit larger so that growth does not ask again.

        OSError: there is no space for it; one that was there still is. Nothing is synced: a crash before it is used may
        lose it, and the next start makes a new one.
        """
        if self.size_bytes is not None and self.size_bytes >= size_bytes:
            return
        temporary = self.path.with_name("reserve.tmp")
        try:
            fd = self._disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            try:
                self._disk.fallocate(fd, 0, size_bytes + spare_bytes)
            finally:
                self._disk.close(fd)
            self._disk.rename(temporary, self.path)
        except OSError:
            with suppress(OSError):
                self._disk.unlink(temporary)
            raise
        self.size_bytes = size_bytes + spare_bytes

    def _blank(self) -> int | None:
        """Return the size of a file that is there and backed by space, after making it blank."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        if status.st_blocks * 512 < status.st_size:
            return None
        if self.path.read_bytes().strip(b"\0"):  # a crash came between writing it and giving it a segment's name
            fd = self._disk.open(self.path, os.O_RDWR)
            try:
                write_all(self._disk, fd, bytes(status.st_size), 0)
                self._disk.fdatasync(fd)
            finally:
                self._disk.close(fd)
        return status.st_size
