"""Faults of the disk: any operation fails, unsynced writes are lost or reordered, a short write, a full disk."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from journal_world import LIMITS, Crashing, Failing, Quick, body, commit, folded, own, reopened
from modelsupd.runtime.journal import Disk, history, read, verify
from modelsupd.runtime.journal import store as store_module
from modelsupd.runtime.journal.store import Store

SMALL = replace(LIMITS, segment_bytes=700, reserve_bytes=1200)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CHUNK_BYTES", 512)


def _run(directory: Path, disk: Disk) -> tuple[list[dict[str, Any]], list[bool]]:
    """Append 24 records in batches of one to three; return those acknowledged, and what was read-only when."""
    store = Store(directory, SMALL, disk)
    acknowledged: list[dict[str, Any]] = []
    read_only = []
    numbers = itertools.count()
    for size in (1, 2, 3) * 4:
        batch = [body(next(numbers)) for _ in range(size)]
        if commit(store, batch):
            acknowledged += batch
        read_only.append(store.read_only is not None)
    assert store.probe(), store.read_only  # by now the disk is well again
    assert store.read_only is None
    last = body(99)
    assert commit(store, [last])
    store.close()
    return [*acknowledged, last], read_only


def _nothing_lost(directory: Path, acknowledged: list[dict[str, Any]]) -> None:
    reading = read(directory)
    assert (reading.states, reading.start) == folded(acknowledged)
    assert own(history(directory)) == acknowledged
    assert not verify(directory).damaged


@pytest.mark.parametrize("lasting", [1, 2, 12, 40])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_any_operation_may_fail(tmp_path: Path, error: int, lasting: int) -> None:
    for n in itertools.count(1):
        directory = tmp_path / str(n)
        disk = Failing(n, n + lasting - 1, error)
        try:
            acknowledged, _ = _run(directory, disk)
        except AssertionError:
            if disk.count > disk.until:
                raise
            continue  # the fault outlasted the scenario, so that there was no way back to normal
        if not disk.fired:
            assert n > 60
            return
        _nothing_lost(directory, acknowledged)
        if lasting == 1:
            assert len(acknowledged) == 25, "a single fault is got over without refusing anything"
        shutil.rmtree(directory)


@pytest.mark.parametrize("seed", range(12))
def test_a_crash_at_any_operation_keeps_what_was_acknowledged(tmp_path: Path, seed: int) -> None:
    """Unsynced writes are lost in part, reordered and torn by sector; failed syncs drop pages; names may lag."""
    draw = random.Random(seed)  # noqa: S311 - it is to be the same each time
    acknowledged: list[dict[str, Any]] = []
    in_flight: list[list[dict[str, Any]]] = []
    crashes: list[tuple[dict[str, bytes], int, list[list[dict[str, Any]]]]] = []

    def moment(disk: Crashing) -> None:
        crashes.append((disk.left(), len(acknowledged), list(in_flight)))

    disk = Crashing(draw, draw.choice((0.0, 0.05, 0.2)), moment)
    store = Store(tmp_path / "run", SMALL, disk)
    numbers = itertools.count()
    for _ in range(16):
        batch = [body(next(numbers)) for _ in range(draw.randint(1, 3))]
        in_flight.append(batch)
        if commit(store, batch):
            acknowledged += batch
            in_flight.clear()
        if store.read_only is not None and draw.random() < 0.3:
            store.probe()
    store.close()
    assert len(crashes) > 40
    for number, (files, known, maybe) in enumerate(crashes):
        _survives(tmp_path / f"crash{number}", files, acknowledged[:known], maybe)


def _survives(
    directory: Path, files: dict[str, bytes], known: list[dict[str, Any]], maybe: list[list[dict[str, Any]]]
) -> None:
    """Check that what is recovered is what was acknowledged, and at most the beginning of one batch more."""
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    reading = reopened(directory).reading
    allowed = [known, *(known + batch[:size] for batch in maybe for size in range(1, len(batch) + 1))]
    assert (reading.states, reading.start) in [folded(bodies) for bodies in allowed]
    assert own(history(directory)) in allowed
    assert not verify(directory).damaged
    again = reopened(directory).reading
    assert (again.states, again.start, again.torn) == (reading.states, reading.start, ())
    for torn in reading.torn:
        assert torn.kept is not None
        assert len((directory / torn.kept).read_bytes()) == torn.size_bytes
    shutil.rmtree(directory)


class Full(Quick):
    """A disk on which files can grow by `space` bytes more."""

    space = 10**9

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """Write, where there is space or where the file has some already."""
        grown = max(0, offset + len(data) - self._size(fd))
        self._take(grown)
        return super().pwrite(fd, data, offset)

    def fallocate(self, fd: int, offset: int, size: int) -> None:
        """Allocate, if there is space."""
        self._take(max(0, offset + size - self._size(fd)))
        super().fallocate(fd, offset, size)

    def _size(self, fd: int) -> int:
        return Path(f"/proc/self/fd/{fd}").stat().st_size

    def _take(self, size: int) -> None:
        if size > self.space:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.space -= size


def test_a_full_disk_lives_on_the_reserve_and_recovers(tmp_path: Path) -> None:
    disk = Full()
    store = Store(tmp_path, replace(LIMITS, reserve_bytes=4096), disk)
    done = [body(n) for n in range(3)]
    assert commit(store, done)
    assert store.read_only is None
    disk.space = 0
    refused = None
    for number in range(3, 200):
        if not commit(store, [body(number)]):
            refused = number
            break
        done.append(body(number))
        if store.read_only is not None:
            assert store.read_only.startswith("no space left on device: ")
            assert not store.probe()
    assert refused is not None
    assert refused - 3 > 4096 // 140, "the reserve holds the records that it was declared for"
    assert store.read_only is not None
    _nothing_lost(tmp_path, done)
    # A daemon that is restarted meanwhile still opens, and says so.
    store.close()
    store = Store(tmp_path, LIMITS, disk)
    assert store.reading.states == folded(done)[0]
    assert store.read_only is not None
    disk.space = 10**6
    assert store.probe()
    assert store.read_only is None
    assert commit(store, [body(500)])
    store.close()
    _nothing_lost(tmp_path, [*done, body(500)])


def test_a_restart_on_a_full_disk_goes_on_in_what_is_left_of_the_reserve(tmp_path: Path) -> None:
    disk = Full()
    store = Store(tmp_path, replace(LIMITS, reserve_bytes=4096), disk)
    done = [body(n) for n in range(3)]
    assert commit(store, done)
    disk.space = 0
    while store.read_only is None:
        done.append(body(len(done)))
        assert commit(store, [done[-1]])
    newest = max(tmp_path.glob("*.seg"))
    with newest.open("r+b") as file:  # the daemon is killed in the middle of a write
        file.seek(len(newest.read_bytes().rstrip(b"\0")))
        file.write(b"0123abcd 99 {" * 100)
    store = Store(tmp_path, LIMITS, disk)
    assert store.reading.torn
    assert store.reading.torn[0].kept is None, "there is no space to keep it"
    assert store.read_only is not None
    for _ in range(5):
        done.append(body(len(done)))
        assert commit(store, [done[-1]])
    store.close()
    assert read(tmp_path).torn == ()
    _nothing_lost(tmp_path, done)


def test_a_segment_that_another_may_follow_is_written_to_no_more(tmp_path: Path) -> None:
    """A new segment's name exists, is not known to be durable and cannot be removed: only a newer one may follow."""

    class Stubborn(Quick):
        broken = False

        def sync_directory(self, path: Path) -> None:  # noqa: ARG002 - as Disk has it
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")

        def unlink(self, path: Path) -> None:
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")
            super().unlink(path)

    disk = Stubborn()
    store = Store(tmp_path, SMALL, disk)
    acknowledged = [body(n) for n in range(8)]  # more than a segment is to hold, so that the next batch opens another
    assert commit(store, acknowledged)
    disk.broken = True
    assert not commit(store, [body(8)])
    assert store.read_only == "input/output error: nothing can be recorded"
    disk.broken = False
    acknowledged.append(body(9))
    assert commit(store, acknowledged[-1:])
    _nothing_lost(tmp_path, acknowledged)
    assert "abandoned" in {segment.status for segment in verify(tmp_path).segments}
    assert store.probe()
    store.close()
    _nothing_lost(tmp_path, acknowledged)


def test_a_torn_tail_that_cannot_be_kept_aside_stays_where_it_is(tmp_path: Path) -> None:
    class NoTorn(Quick):
        def open(self, path: Path, flags: int) -> int:
            if path.name.endswith(".torn"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().open(path, flags)

    store = Store(tmp_path, LIMITS, Quick())
    assert commit(store, [body(0)])
    store.close()
    segment = tmp_path / "00000001.seg"
    data = segment.read_bytes() + b"torn"
    segment.write_bytes(data)
    store = Store(tmp_path, LIMITS, NoTorn())
    assert [(torn.size_bytes, torn.kept) for torn in store.reading.torn] == [(4, None)]
    assert commit(store, [body(1)])
    store.close()
    assert segment.read_bytes() == data
    _nothing_lost(tmp_path, [body(0), body(1)])


def test_short_writes_are_completed(tmp_path: Path) -> None:
    class Short(Quick):
        def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
            return super().pwrite(fd, data[:7], offset)

    store = Store(tmp_path, SMALL, Short())
    done = [body(n) for n in range(20)]
    assert commit(store, done)
    store.close()
    _nothing_lost(tmp_path, done)


def test_a_dirty_reserve_is_made_blank_again(tmp_path: Path) -> None:
    reopened(tmp_path)
    reserve = tmp_path / "reserve"
    with reserve.open("r+b") as file:
        file.write(b"a crash came before this got a segment's name")
    reopened(tmp_path)
    assert not reserve.read_bytes().strip(b"\0")
