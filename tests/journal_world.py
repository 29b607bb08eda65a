"""What the journal's tests share: records, what they must add up to, and disks that fail, lose and reorder."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal import Disk, Unwritable
from modelsupd.runtime.journal.store import Store
from modelsupd.runtime.journal.writer import entry_of

LIMITS = JournalLimits(reserve_bytes=4096)


def body(number: int, replicas: int = 4) -> dict[str, Any]:
    """Return the record of a test: every ninth forgets its replica, every seventh is a start."""
    if number % 7 == 6:
        return {"kind": "start", "boot": f"b{number}"}
    state = None if number % 9 == 8 else {"n": number}
    return {"kind": "replica", "replica": f"m/{number % replicas}", "why": "as told", "state": state}


def folded(bodies: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the states and the start that records add up to, found without the journal's own code."""
    states: dict[str, Any] = {}
    start = None
    for item in bodies:
        if item["kind"] == "start":
            start = item
        elif item["kind"] == "replica":
            states.pop(item["replica"], None)
            if item["state"] is not None:
                states[item["replica"]] = item["state"]
    return states, start


def own(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what callers appended, in order, out of a history."""
    framing = ("v", "seq", "prev", "synced_to")
    return [
        {key: value for key, value in record.items() if key not in framing}
        for record in records
        if record["kind"] not in ("snapshot", "gap")
    ]


class Quick(Disk):
    """A real disk without waiting for it."""

    def fdatasync(self, fd: int) -> None:
        """Return at once."""

    def fsync(self, fd: int) -> None:
        """Return at once."""

    def sync_directory(self, path: Path) -> None:
        """Return at once."""


class Failing(Quick):
    """Fails the n-th operation (`until` = n) or all from the n-th to the `until`-th, and tells whether it did."""

    def __init__(self, first: int, until: int, error: int) -> None:
        """Count from one."""
        self.first, self.until, self.error = first, until, error
        self.count = 0
        self.fired = False

    def _one(self) -> None:
        self.count += 1
        if self.first <= self.count <= self.until:
            self.fired = True
            raise OSError(self.error, os.strerror(self.error))

    def open(self, path: Path, flags: int) -> int:
        """Fail or open."""
        self._one()
        return super().open(path, flags)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Fail, or write a part only, as the kernel may; a failing write may have written a part before."""
        half = max(1, len(data) // 2)
        try:
            self._one()
        except OSError:
            super().pwrite(fd, data[:half], offset)
            raise
        return super().pwrite(fd, data[:half], offset)

    def fdatasync(self, fd: int) -> None:  # noqa: ARG002 - as Disk has it
        """Fail or return."""
        self._one()

    def fsync(self, fd: int) -> None:  # noqa: ARG002 - as Disk has it
        """Fail or return."""
        self._one()

    def ftruncate(self, fd: int, size: int) -> None:
        """Fail or cut."""
        self._one()
        super().ftruncate(fd, size)

    def fallocate(self, fd: int, offset: int, size: int) -> None:
        """Fail, after a part, or allocate."""
        try:
            self._one()
        except OSError:
            super().fallocate(fd, offset, size // 2)
            raise
        super().fallocate(fd, offset, size)

    def rename(self, source: Path, target: Path) -> None:
        """Fail or rename."""
        self._one()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        """Fail or link."""
        self._one()
        super().link(source, target)

    def unlink(self, path: Path) -> None:
        """Fail or unlink."""
        self._one()
        super().unlink(path)

    def sync_directory(self, path: Path) -> None:  # noqa: ARG002 - as Disk has it
        """Fail or return."""
        self._one()


class File:
    """What a crash would leave of a file: `durable`, and any part of `pending`."""

    def __init__(self) -> None:
        """Begin empty."""
        self.durable = bytearray()
        self.pending: list[tuple[str, int, bytes]] = []

    def apply(self, what: str, at: int, data: bytes) -> None:
        """Do one operation to what is durable."""
        if what == "cut":
            del self.durable[at:]
        end = at + len(data)
        self.durable.extend(bytes(max(0, (at if what == "cut" else end) - len(self.durable))))
        if what == "write":
            self.durable[at:end] = data

    def crashed(self, draw: random.Random) -> bytes:
        """Return what one crash leaves: any of the pending operations, sector by sector, in any order."""
        left = File()
        left.durable = bytearray(self.durable)
        pieces = list(self._pieces())
        if draw.random() < 0.5:
            draw.shuffle(pieces)
        share = draw.choice((0.0, 0.5, 0.9, 1.0))
        for piece in pieces:
            if draw.random() < share:
                left.apply(*piece)
        return bytes(left.durable)

    def _pieces(self) -> Iterator[tuple[str, int, bytes]]:
        for what, at, data in self.pending:
            if what != "write":
                yield what, at, data
                continue
            begin = 0
            while begin < len(data):
                size = 64 - (at + begin) % 64  # sectors small enough that records of a test fill several
                yield what, at + begin, data[begin : begin + size]
                begin += size


class Crashing(Disk):
    """Does everything for real and knows what a power cut would leave, a failed sync's dropped pages included."""

    def __init__(self, draw: random.Random, fault_rate: float, moment: Any) -> None:  # noqa: ANN401 - a callable of the test's own
        """Call `moment(self)` before each operation; fail at `fault_rate`."""
        self.draw, self.fault_rate, self.moment = draw, fault_rate, moment
        self.files: dict[int, File] = {}
        self.by_name: dict[str, File] = {}
        self.durable_names: dict[str, File] = {}
        self.pending_names: list[tuple[str, File | None]] = []

    def left(self) -> dict[str, bytes]:
        """Return the files that one crash leaves: names change in order, contents as they like."""
        names: dict[str, File] = dict(self.durable_names)
        for name, file in self.pending_names[: self.draw.randint(0, len(self.pending_names))]:
            if file is None:
                names.pop(name, None)
            else:
                names[name] = file
        return {name: file.crashed(self.draw) for name, file in names.items()}

    def _one(self) -> None:
        self.moment(self)
        if self.draw.random() < self.fault_rate:
            error = self.draw.choice((errno.EIO, errno.ENOSPC))
            raise OSError(error, os.strerror(error))

    def open(self, path: Path, flags: int) -> int:
        """Open, and note a new name."""
        self._one()
        fd = super().open(path, flags)
        if path.name not in self.by_name:
            self.by_name[path.name] = File()
            self.pending_names.append((path.name, self.by_name[path.name]))
        self.files[fd] = self.by_name[path.name]
        if flags & os.O_TRUNC:
            self.files[fd].pending.append(("cut", 0, b""))
        return fd

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write, or fail after a part."""
        try:
            self._one()
        except OSError:
            part = bytes(data[: self.draw.randint(0, len(data))])
            self.files[fd].pending.append(("write", offset, part))
            super().pwrite(fd, part, offset)
            raise
        self.files[fd].pending.append(("write", offset, bytes(data)))
        return super().pwrite(fd, data, offset)

    def _sync(self, fd: int) -> None:
        file = self.files[fd]
        try:
            self._one()
        except OSError:
            # As Linux does it: some pages made it, the others are called clean and never written.
            file.durable = bytearray(file.crashed(self.draw))
            file.pending.clear()
            raise
        for operation in file.pending:
            file.apply(*operation)
        file.pending.clear()

    def fdatasync(self, fd: int) -> None:
        """Make durable or fail."""
        self._sync(fd)

    def fsync(self, fd: int) -> None:
        """Make durable or fail."""
        self._sync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        """Cut."""
        self._one()
        self.files[fd].pending.append(("cut", size, b""))
        super().ftruncate(fd, size)

    def fallocate(self, fd: int, offset: int, size: int) -> None:
        """Allocate."""
        self._one()
        self.files[fd].pending.append(("grow", offset, bytes(size)))
        super().fallocate(fd, offset, size)

    def rename(self, source: Path, target: Path) -> None:
        """Rename."""
        self._one()
        super().rename(source, target)
        file = self.by_name.pop(source.name)
        self.by_name[target.name] = file
        # One entry for both names: a rename is atomic. The old name, should it stay, is of no consequence.
        self.pending_names.append((target.name, file))

    def unlink(self, path: Path) -> None:
        """Unlink."""
        self._one()
        super().unlink(path)
        self.by_name.pop(path.name, None)
        self.pending_names.append((path.name, None))

    def sync_directory(self, path: Path) -> None:  # noqa: ARG002 - as Disk has it
        """Make the names durable."""
        self._one()
        for name, file in self.pending_names:
            if file is None:
                self.durable_names.pop(name, None)
            else:
                self.durable_names[name] = file
        self.pending_names.clear()


def commit(store: Store, bodies: list[dict[str, Any]]) -> bool:
    """Append in one batch and tell whether it was acknowledged."""
    try:
        store.commit([entry_of(item) for item in bodies])
    except Unwritable:
        return False
    return True


def reopened(directory: Path) -> Store:
    """Open a journal once more, quickly, and close it."""
    store = Store(directory, LIMITS, Quick())
    store.close()
    return store
