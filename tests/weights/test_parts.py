"""Which bytes of a file are there, and the locks by which one process at a time fetches it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import Stopped, WeightsError
from modelsupd.weights.parts import PART_SUFFIX, RECORD_SUFFIX, PartFile, beside, in_words, locked
from modelsupd.weights.ranges import Ranges
from waiting import until

SIZE = 40
_RANGE = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(_RANGE))
def test_ranges_are_a_set_of_bytes(added: list[tuple[int, int]]) -> None:
    ranges, bytes_there = Ranges(), set[int]()
    for start, end in added:
        new = set(range(start, end)) - bytes_there
        bytes_there |= new
        assert ranges.add(start, end) == len(new)
        assert ranges.total == len(bytes_there)
        assert ranges.prefix == next(at for at in range(SIZE + 1) if at not in bytes_there)
    listed = list(ranges)
    assert {at for start, end in listed for at in range(start, end)} == bytes_there
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(listed)), "none touches another"
    gap = ranges.gap(SIZE)
    if gap is None:
        assert bytes_there >= set(range(SIZE))
    else:
        assert gap[0] == ranges.prefix
        assert not bytes_there & set(range(*gap))
        assert gap[1] == SIZE or gap[1] in bytes_there


@contextmanager
def part_of(final: Path, size: int = SIZE) -> Iterator[PartFile]:
    with (
        locked(beside(final, PART_SUFFIX), threading.Event()) as fd,
        contextlib.closing(PartFile(final, fd, size)) as part,
    ):
        yield part


def test_what_was_marked_is_there_next_time_and_what_was_only_written_is_not(place: Path) -> None:
    final = place / "blob"
    with part_of(final) as part:
        part.allocate(0)
        part.name_etag("tag")
        part.write(memoryview(b"0123456789"), 10)
        assert part.mark(10, 15) == 5
        assert part.mark(12, 16) == 1
        part.write(memoryview(b"x"), 30)
    with part_of(final) as part:
        assert (list(part.done), part.resumed_bytes, part.etag) == ([(10, 16)], 6, "tag")
        view = memoryview(bytearray(6))
        part.read(view, 10)
        assert bytes(view) == b"012345"
    with part_of(final, SIZE + 1) as part:
        assert list(part.done) == [], "another size makes it another file"


def test_what_is_read_back_is_all_that_was_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems give less at once; the digest would go on behind what was asked for, and miss the rest."""
    with part_of(place / "blob") as part:
        part.write(memoryview(b"0123456789"), 0)
        preadv = os.preadv
        monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:3]], at))
        view = memoryview(bytearray(10))
        part.read(view, 0)
        assert bytes(view) == b"0123456789"


def test_a_part_that_was_cut_off_has_no_more_than_is_there(place: Path) -> None:
    final = place / "blob"
    with part_of(final) as part:
        part.allocate(0)
        part.mark(0, 10)
        part.mark(20, 30)
    os.truncate(beside(final, PART_SUFFIX), 15)
    with part_of(final) as part:
        assert list(part.done) == [(0, 10)]
        with pytest.raises(WeightsError, match="somebody has cut it off"):
            part.read(memoryview(bytearray(1)), 20)


def test_restart_forgets_all_for_good(place: Path) -> None:
    final = place / "blob"
    with part_of(final) as part:
        part.allocate(0)
        part.mark(0, 10)
        part.sync()
        assert part.unsynced_bytes == 0
        assert part.restart() == 10
        assert part.mark(5, 6) == 1
    with part_of(final) as part:
        assert list(part.done) == [(5, 6)]


@pytest.mark.parametrize("how", ["meanwhile", "last", "when it is opened again"])
def test_after_a_sync_that_failed_only_what_an_earlier_one_saw_to_is_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Linux calls pages clean that it could not write: they read well, and the next sync succeeds."""
    final = place / "blob"

    def fail(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), beside(final, PART_SUFFIX).stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with part_of(final) as part:
        part.allocate(0)
        part.mark(0, 10)
        part.sync()
        part.mark(10, 30)
        with monkeypatch.context() as failing:
            if how == "when it is opened again":
                part.close()
                failing.setattr(os, "fdatasync", fail)
                with pytest.raises(WeightsError, match="Input/output error"):
                    PartFile(final, part._fd, SIZE)
            else:
                failing.setattr(os, "fdatasync" if how == "meanwhile" else "fsync", fail)
                with pytest.raises(WeightsError, match="Input/output error"):
                    part.sync() if how == "meanwhile" else part.publish()
        if how != "when it is opened again":
            assert list(part.done) == [(0, 10)]
            for again in (part.sync, part.publish, lambda: part.mark(10, 40)):
                with pytest.raises(WeightsError, match="Input/output error"):
                    again()
            part.name_etag("tag")
    assert not final.exists()
    with part_of(final) as part:
        assert list(part.done) == [(0, 10)]
        part.mark(10, 40)
        part.publish()
    assert final.exists()


def test_space_is_set_aside_before_it_is_needed(place: Path) -> None:
    with part_of(place / "blob", 1 << 20) as part:
        part.allocate(0)
        status = part.path.stat()
        assert status.st_size == 1 << 20
        assert status.st_blocks * 512 >= 1 << 20


def test_publish_leaves_nothing_beside_it(place: Path) -> None:
    final = place / "blob"
    final.write_bytes(b"old")
    with part_of(final, 3) as part:
        part.write(memoryview(b"new"), 0)
        part.publish()
    assert [path.name for path in place.iterdir()] == ["blob"]
    assert final.read_bytes() == b"new"


def test_a_record_that_is_a_link_is_not_written_through(place: Path) -> None:
    final, victim = place / "blob", place / "victim"
    beside(final, RECORD_SUFFIX + ".new").symlink_to(victim)
    with pytest.raises(WeightsError, match="cannot write"), part_of(final):
        pass
    assert not victim.exists()


def test_the_lock_is_the_one_that_huggingface_hub_takes(place: Path) -> None:
    path = place / "a" / "lock"
    stop = threading.Event()
    with locked(path, stop):
        assert path.stat().st_mode & 0o777 == 0o664 & ~_umask()
        other = FileLock(path)
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)
    with FileLock(path):

        def wait() -> None:
            with pytest.raises(Stopped), locked(path, stop):
                pass

        waiter = threading.Thread(target=wait)
        waiter.start()
        stop.set()
        waiter.join(10)
    assert not waiter.is_alive()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_who_waited_for_a_file_that_is_gone_takes_the_new_one(place: Path) -> None:
    """As with the part file, which has another name once it is whole."""
    path, had = place / "lock", threading.Event()

    def wait() -> None:
        with locked(path, threading.Event()) as fd:
            assert os.fstat(fd).st_ino == path.stat().st_ino
            had.set()

    with locked(path, threading.Event()):
        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: _opened(path) == 2)
        path.rename(place / "renamed")
        assert not had.is_set()
    waiter.join(10)
    assert had.is_set()


def _opened(path: Path) -> int:
    """Return how many descriptors of this process are of a file."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += descriptor.samefile(path)
    return found


def test_a_file_system_without_locks_is_used_without(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(_fd: int, _operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(place / "lock", threading.Event()) as fd:
        assert fd >= 0


def test_a_lock_that_cannot_be_made_is_said_so(place: Path) -> None:
    (place / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="cannot write") as error, locked(place / "file" / "lock", threading.Event()):
        pass
    assert error.value.kind is FailureClass.WEIGHTS_UNAVAILABLE


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_in_words(size: int, words: str) -> None:
    assert in_words(size) == words
