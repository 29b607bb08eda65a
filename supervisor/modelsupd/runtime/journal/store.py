"""The blocking half of the writer: one segment open, a reserve for when the disk is full.

Two rules:

1. Nothing is trusted that a failed sync may have dropped. A segment whose write or sync failed beyond repair is closed
   for ever; so is one after which a newer name may exist on disk; and a new process never appends to an old process's
   segment, but opens a new one from a snapshot. (After a failed fsync Linux calls the pages clean: a second try
   "succeeds" without writing. PostgreSQL learned this in 2018.)
2. `_link` names the segment and byte up to which records were acknowledged. It moves only after a sync, and what the
   next segment says in `follows` is `_link`: whatever else lies about on disk never counts.

The exception to the first rule is a full disk on which neither a new segment nor a reserve can be had: then the space
that is left in the newest segment, which is a spent reserve, is used up.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal.disk import Disk, keep_aside, write_all
from modelsupd.runtime.journal.frame import Chain, encode
from modelsupd.runtime.journal.reader import Link, load, numbered
from modelsupd.runtime.journal.reserve import Reserve

#: What a segment is preallocated by. A sync is a third cheaper while the file's size does not change, and a full disk
#: shows where nothing is half written.
CHUNK_BYTES = 256 * 1024

#: With less free space than this the disk counts as full for commands, although records still fit into what is
#: preallocated: that is for what happens to engines meanwhile.
ROOM_BYTES = 64 * 1024

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Unwritable(Exception):  # noqa: N818 - the contract of this package: what is wrong is the name
    """A record could not be made durable; nothing of it counts. `why` is the reason in words."""

    def __init__(self, why: str) -> None:
        """Keep the reason."""
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        """Say what failed, and why."""
        return f"cannot write the journal: {self.why}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record to write: its JSON after the part that the journal writes, and what it does to the fold."""

    rest: bytes
    replica: str | None = None
    state: bytes | None = None
    start: bytes | None = None


@dataclass(slots=True)
class _Open:
    """The segment that is written to. Up to `capacity` bytes it is preallocated, with NULs; a reserve cannot grow."""

    fd: int
    path: Path
    capacity: int
    reserve: bool


def _no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


class Store:
    """Everything about the files. Not for use by two threads at once; all methods block."""

    def __init__(self, directory: Path, limits: JournalLimits, disk: Disk) -> None:
        """Read what is there (raise Damaged), keep a torn tail aside, open a new segment. OSError: not even read."""
        self._directory, self._limits, self._disk = directory, limits, disk
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.reading, self._fold, self._link, end = load(directory)
        self._chain = replace(end, records=0)
        self._number = max(numbered(directory), default=0)
        self._segment: _Open | None = None
        self._trouble = ""
        self._cramped = ""
        self._reserve = Reserve(directory, disk)
        self._remove_unfinished()
        self._keep_torn()
        self._begin()

    @property
    def seq(self) -> int:
        """The number of the last durable record; 0 for none."""
        return self._chain.seq - 1

    @property
    def read_only(self) -> str | None:
        """None, or why only what must be recorded should still be."""
        if self._segment is None:
            return f"{self._trouble}: nothing can be recorded"
        if self._segment.reserve:
            left = self._segment.capacity - self._chain.end
            return f"{self._trouble}: the journal lives on its reserve, {left} bytes of it left"
        if self._reserve.size_bytes is None:
            return f"{self._trouble}: cannot hold back {self._limits.reserve_bytes} bytes for the journal"
        return self._cramped or None

    def commit(self, entries: Sequence[Entry]) -> int:
        """Make records durable and return the `seq` of the first; raise Unwritable, and then none of them counts."""
        cause: OSError | None = None
        segment = self._segment
        if segment is not None and not segment.reserve and self._chain.end >= self._limits.segment_bytes:
            try:
                return self._into_new(entries)
            except OSError as error:
                cause = error
        if self._segment is not None:
            try:
                return self._extend(self._segment, entries)
            except OSError as error:
                cause = error
        ways = [self._into_new, self._into_reserve]
        if cause is not None and cause.errno in _FULL:
            ways.reverse()
        for way in ways:
            try:
                first = way(entries)
            except OSError as error:
                cause = cause or error
            else:
                self._trouble = _words(cause) if cause else self._trouble
                return first
        self._trouble = _words(cause) if cause else self._trouble
        raise Unwritable(self._trouble)

    def probe(self) -> bool:
        """Try to get back to normal, with a reserve and a segment beside it; tell whether all is normal now."""
        self._cramped = self._room()
        if self.read_only is None:
            return True
        try:
            self._provide_reserve()
            if self._segment is None or self._segment.reserve:
                self._into_new(())
        except OSError as error:
            self._trouble = _words(error)
        return self.read_only is None

    def _room(self) -> str:
        """Return "", or why the disk counts as full."""
        try:
            free_bytes = self._disk.free_bytes(self._directory)
        except OSError as error:
            return _words(error)
        return "" if free_bytes >= ROOM_BYTES else f"{_words(_no_space())}: {free_bytes} bytes left"

    def close(self) -> None:
        """Close the segment; a spent reserve keeps its space, which the next process may need."""
        if self._segment is not None and not self._segment.reserve:
            self._leave()
        self._abandon()

    def _begin(self) -> None:
        """Open a segment from a snapshot, in the reserve if need be, and see to a reserve."""
        old = self._link
        cause: OSError | None = None
        for way in (self._into_new, self._into_reserve, self._resume):
            try:
                way(())
                if self._link != old:
                    self._cut(old)
                break
            except OSError as error:
                cause = cause or error
        if cause is None:
            try:
                self._provide_reserve()
            except OSError as error:
                cause = error
        self._trouble = _words(cause) if cause else ""

    # Writing

    def _extend(self, segment: _Open, entries: Sequence[Entry]) -> int:
        """Append to the open segment; on OSError nothing was added, and the segment may be closed."""
        chain = replace(self._chain)
        data = b"".join(
            chain.render(entry.rest, synced_to=None if index else chain.end) for index, entry in enumerate(entries)
        )
        if chain.end > segment.capacity:
            self._grow(segment, chain.end)
        try:
            write_all(self._disk, segment.fd, data, self._chain.end)
            self._disk.fdatasync(segment.fd)
        except OSError:
            self._abandon()  # there was space, so the medium failed, and what it holds now is unknown
            raise
        return self._acknowledge(segment.path.name, chain, entries)

    def _grow(self, segment: _Open, size: int) -> None:
        """Make room for `size` bytes; on OSError the segment is as it was."""
        if segment.reserve:
            raise _no_space()
        more = max(size - segment.capacity, CHUNK_BYTES)
        try:
            self._disk.fallocate(segment.fd, segment.capacity, more)
        except OSError:
            with suppress(OSError):  # what was allocated of it
                self._disk.ftruncate(segment.fd, segment.capacity)
            raise
        segment.capacity += more

    def _acknowledge(self, name: str, chain: Chain, entries: Sequence[Entry]) -> int:
        self._chain = chain
        self._link = Link(name, chain.end)
        for entry in entries:
            if entry.replica is not None:
                self._fold.change(entry.replica, entry.state)
            if entry.start is not None:
                self._fold.start = entry.start
        return chain.seq - len(entries)

    def _abandon(self) -> None:
        """Close the open segment for ever."""
        if self._segment is not None:
            segment, self._segment = self._segment, None
            with suppress(OSError):
                self._disk.close(segment.fd)

    # New segments

    def _render_segment(self, entries: Sequence[Entry]) -> tuple[bytes, Chain]:
        """Return the bytes of a new segment: a snapshot, then the records."""
        chain = replace(self._chain, end=0, records=0)
        link = None if self._link is None else {"segment": self._link.segment, "to": self._link.to}
        wall = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        head = b'"follows":%b,"kind":"snapshot","wall":%b,' % (encode(link), encode(wall))
        lines = [chain.render(head + self._fold.fragment() + b"}", synced_to=0)]
        lines += [chain.render(entry.rest) for entry in entries]
        return b"".join(lines), chain

    def _into_new(self, entries: Sequence[Entry]) -> int:
        """Open a new file as the next segment, the records in it; on OSError there is no new segment that counts."""
        data, chain = self._render_segment(entries)
        temporary = self._directory / "next.tmp"
        fd = self._disk.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(self._disk, fd, data, 0)
            self._disk.fsync(fd)
            return self._publish(_Open(fd, temporary, len(data), reserve=False), chain, entries)
        except OSError:
            with suppress(OSError):
                self._disk.close(fd)
            with suppress(OSError):
                self._disk.unlink(temporary)
            raise

    def _into_reserve(self, entries: Sequence[Entry]) -> int:
        """Make the reserve the next segment; the same on OSError."""
        data, chain = self._render_segment(entries)
        path, size = self._reserve.path, self._reserve.size_bytes
        if size is None or len(data) > size:
            raise _no_space()
        fd = self._disk.open(path, os.O_RDWR)
        try:
            write_all(self._disk, fd, data, 0)
            self._disk.fdatasync(fd)
            first = self._publish(_Open(fd, path, size, reserve=True), chain, entries)
        except OSError:
            with suppress(OSError):
                self._disk.close(fd)
            raise
        finally:
            self._reserve.size_bytes = None  # used up, or no longer blank
        return first

    def _publish(self, segment: _Open, chain: Chain, entries: Sequence[Entry]) -> int:
        """Give a synced file its segment's name, make the name durable, and go on in it."""
        self._number += 1
        target = self._directory / f"{self._number:08}.seg"
        try:
            self._disk.rename(segment.path, target)
            self._disk.sync_directory(self._directory)
        except OSError as error:
            with suppress(OSError):
                self._disk.unlink(target)
            if not (error.errno in _FULL and not target.exists()):
                self._leave()  # the new name may turn up after a crash: only a newer segment may follow
            raise
        self._leave()
        segment.path = target
        self._segment = segment
        first = self._acknowledge(target.name, chain, entries)
        self._prune()
        return first

    def _leave(self) -> None:
        """Close the open segment, which another follows, and give back the space that it did not use."""
        if self._segment is not None:
            with suppress(OSError):
                self._disk.ftruncate(self._segment.fd, self._chain.end)
        self._abandon()

    def _prune(self) -> None:
        """Give up history beyond its limits, oldest first, with the torn tails of what is given up."""
        *older, _ = numbered(self._directory).values()
        oldest_at = time.time() - self._limits.keep_days * 86400
        kept_bytes = 0
        too_old = False
        for path in reversed(older):
            with suppress(OSError):
                status = path.stat()
                kept_bytes += status.st_size
                too_old = too_old or kept_bytes > self._limits.keep_bytes or status.st_mtime < oldest_at
                if too_old:
                    for name in (*self._directory.glob(f"{path.name}.torn*"), path):
                        self._disk.unlink(name)

    def _provide_reserve(self) -> None:
        """See to a reserve of the declared size, with room for the snapshot that comes first."""
        snapshot_bytes = len(self._fold.fragment()) + 1024
        self._reserve.provide(self._limits.reserve_bytes + snapshot_bytes, spare_bytes=snapshot_bytes)

    # At the start

    def _remove_unfinished(self) -> None:
        for path in self._directory.glob("*.tmp"):
            with suppress(OSError):
                self._disk.unlink(path)

    def _keep_torn(self) -> None:
        """Copy a torn tail to a file of its own; where there is no space for it, it stays where it is."""
        kept = []
        for torn in self.reading.torn:
            data = (self._directory / torn.segment).read_bytes()[torn.offset :][: torn.size_bytes]
            try:
                kept.append(replace(torn, kept=keep_aside(self._disk, self._directory, f"{torn.segment}.torn", data)))
            except OSError:
                kept.append(torn)
        self.reading = replace(self.reading, torn=tuple(kept))

    def _cut(self, old: Link | None) -> None:
        """Cut off what a segment held beyond its records, once another follows it; unless that is kept nowhere."""
        if old is None or any(torn.kept is None for torn in self.reading.torn):
            return
        with suppress(OSError):
            fd = self._disk.open(self._directory / old.segment, os.O_RDWR)
            try:
                self._disk.ftruncate(fd, old.to)
            finally:
                self._disk.close(fd)

    def _resume(self, _entries: Sequence[Entry]) -> int:
        """Go on in the newest segment, in whatever blank space it has left (the exception to the first rule)."""
        if self._link is None:
            raise _no_space()
        path = self._directory / self._link.segment
        fd = self._disk.open(path, os.O_RDWR)
        try:
            size = path.stat().st_size
            write_all(self._disk, fd, bytes(sum(torn.size_bytes for torn in self.reading.torn)), self._chain.end)
            self._disk.fdatasync(fd)
        except OSError:
            self._disk.close(fd)
            raise
        self._segment = _Open(fd, path, size, reserve=True)
        return self._chain.seq
