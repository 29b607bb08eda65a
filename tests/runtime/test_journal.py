"""The journal as its callers see it: appending, reading, history, compaction."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from journal_world import LIMITS, Quick, body, folded, own
from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal import Journal, Reading, Unwritable, history, read, verify
from waiting import auntil

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_bodies = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("replica"),
            "replica": st.text(max_size=4),
            "why": st.text(),
            "state": st.none() | st.dictionaries(st.text(), _json, max_size=3),
        }
    ),
    st.fixed_dictionaries({"kind": st.sampled_from(["note", "start"]), "x": _json}),
)


def _append(
    directory: Path, bodies: list[dict[str, Any]], limits: JournalLimits = LIMITS, disk: Quick | None = None
) -> Reading:
    """Open, append one after the other, close; return what was read on opening."""
    journal, reading = Journal.open(directory, limits, disk=disk)

    async def run() -> None:
        for item in bodies:
            before = journal.seq
            assert await journal.append(item) > before
        await journal.close()

    asyncio.run(run())
    return reading


def test_an_empty_journal(tmp_path: Path) -> None:
    assert read(tmp_path / "none") == Reading({}, None, 0, (), 0)
    assert list(history(tmp_path / "none")) == []
    assert verify(tmp_path / "none").segments == ()
    assert _append(tmp_path / "j", []) == Reading({}, None, 0, (), 0)
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "j").iterdir()} == {0o600}


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    bodies = [body(number) for number in range(30)]
    _append(tmp_path, bodies)
    reading = read(tmp_path)
    assert (reading.states, reading.start) == folded(bodies)
    assert (reading.seq, reading.records_read, reading.torn) == (31, 31, ())
    records = list(history(tmp_path))
    assert own(records) == bodies
    assert [record["seq"] for record in records] == list(range(1, 32))
    assert records[0]["kind"] == "snapshot"
    assert list(history(tmp_path, after_seq=20)) == records[20:]
    assert [record["seq"] for record in _second_life(tmp_path, bodies)] == list(range(1, 63))


def _second_life(directory: Path, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    reading = _append(directory, bodies)
    assert (reading.states, reading.start) == folded(bodies)
    records = list(history(directory))
    for after in (0, 1, 30, 31, 32, 33, 61, 62, 99):
        assert list(history(directory, after_seq=after)) == records[after:]
    return records


def test_a_segment_is_text_that_people_can_read(tmp_path: Path) -> None:
    _append(tmp_path, [{"kind": "note", "why": "two\nlines, “quoted”"}])
    first, second = (tmp_path / "00000001.seg").read_text(encoding="ascii").splitlines()
    assert json.loads(first.split(" ", 2)[2])["kind"] == "snapshot"
    crc, length, text = second.split(" ", 2)
    assert (len(crc), int(length)) == (8, len(text))
    assert json.loads(text) == {
        "v": 1,
        "seq": 2,
        "prev": first[:8],
        "synced_to": len(first) + 1,
        "kind": "note",
        "why": "two\nlines, “quoted”",
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(_bodies, max_size=12), st.integers(65, 2000))
def test_anything_that_json_holds_comes_back(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[dict[str, Any]], segment_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    _append(directory, bodies, replace(LIMITS, segment_bytes=segment_bytes), Quick())
    reading = read(directory)
    assert (reading.states, reading.start) == folded(bodies)
    assert own(history(directory)) == bodies
    assert not verify(directory).damaged


@pytest.mark.parametrize(
    "wrong",
    [
        {"why": "no kind"},
        {"kind": "snapshot"},
        {"kind": "replica", "replica": "m/0"},
        {"kind": "replica", "state": {}},
        {"kind": "note", "seq": 3},
        {"kind": "note", "x": float("nan")},
        {"kind": "note", "x": {1, 2}},
    ],
)
def test_what_is_no_record_is_refused_and_harms_nothing(tmp_path: Path, wrong: dict[str, Any]) -> None:
    journal, _ = Journal.open(tmp_path, LIMITS)

    async def run() -> None:
        with pytest.raises((ValueError, TypeError)):
            await journal.append(wrong)
        assert await journal.append(body(0)) == 2
        await journal.close()
        with pytest.raises(Unwritable, match="cannot write the journal: it is closed"):
            await journal.append(body(1))
        assert not await journal.probe_writable()

    asyncio.run(run())
    assert own(history(tmp_path)) == [body(0)]


def test_a_state_changed_by_its_caller_later_does_not_change_here(tmp_path: Path) -> None:
    state = {"n": 1}
    journal, _ = Journal.open(tmp_path, replace(LIMITS, segment_bytes=100))

    async def run() -> None:
        await journal.append({"kind": "replica", "replica": "m/0", "state": state})
        state["n"] = 2
        await journal.append({"kind": "note"})
        await journal.append({"kind": "note"})
        await journal.close()

    asyncio.run(run())
    assert read(tmp_path).states == {"m/0": {"n": 1}}


# Group commit


class Gate(Quick):
    """A disk whose syncs wait until they are let go."""

    def __init__(self) -> None:
        """Begin open."""
        self.gate = threading.Event()
        self.gate.set()
        self.syncs = 0

    def fdatasync(self, fd: int) -> None:  # noqa: ARG002 - as Disk has it
        """Wait and count."""
        assert self.gate.wait(10)
        self.syncs += 1


def test_what_waits_for_a_sync_goes_out_in_the_next_one(tmp_path: Path) -> None:
    disk = Gate()
    journal, _ = Journal.open(tmp_path, LIMITS, disk=disk)
    batches: list[int] = []
    journal.on_sync = lambda took_s, records: batches.append(records) if took_s > 0 else None

    async def run() -> None:
        disk.gate.clear()
        first = asyncio.create_task(journal.append(body(0)))
        await asyncio.sleep(0)
        others = [asyncio.create_task(journal.append(body(number))) for number in range(1, 500)]
        await asyncio.sleep(0)
        assert read(tmp_path).seq <= 2, "nothing but the first is even written"
        assert not any(task.done() for task in (first, *others))
        disk.gate.set()
        assert await asyncio.gather(first, *others) == list(range(2, 502))
        await journal.close()

    asyncio.run(run())
    assert batches == [1, 499]
    assert disk.syncs == 2
    assert journal.last_sync_s > 0
    assert own(history(tmp_path)) == [body(number) for number in range(500)]


def test_many_writers_keep_their_order_and_a_cancelled_one_keeps_its_record(tmp_path: Path) -> None:
    disk = Gate()
    journal, _ = Journal.open(tmp_path, replace(LIMITS, segment_bytes=4000), disk=disk)

    async def writer(name: int) -> list[int]:
        return [await journal.append({"kind": "note", "writer": name, "n": n}) for n in range(40)]

    async def run() -> None:
        disk.gate.clear()
        cancelled = asyncio.create_task(journal.append({"kind": "note", "writer": -1, "n": 0}))
        writers = [asyncio.create_task(writer(name)) for name in range(20)]
        await asyncio.sleep(0)
        cancelled.cancel()
        disk.gate.set()
        seqs = await asyncio.gather(*writers)
        assert all(sorted(mine) == mine for mine in seqs)
        assert len({seq for mine in seqs for seq in mine}) == 800
        await journal.close()
        assert cancelled.cancelled()

    asyncio.run(run())
    records = own(history(tmp_path))
    assert len(records) == 801
    for name in range(20):
        assert [record["n"] for record in records if record["writer"] == name] == list(range(40))
    assert any(record["writer"] == -1 for record in records)


def test_closing_waits_for_what_is_queued(tmp_path: Path) -> None:
    disk = Gate()
    journal, _ = Journal.open(tmp_path, LIMITS, disk=disk)

    async def run() -> None:
        disk.gate.clear()
        tasks = [asyncio.create_task(journal.append(body(number))) for number in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(journal.close())
        await asyncio.sleep(0)
        assert not closing.done()
        disk.gate.set()
        await closing
        assert [task.result() for task in tasks] == [2, 3, 4, 5, 6]

    asyncio.run(run())
    assert not any(thread.name == "journal" for thread in threading.enumerate())


def test_a_slow_sync_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    disk = Gate()
    journal, _ = Journal.open(tmp_path, LIMITS, disk=disk)

    async def run() -> None:
        disk.gate.clear()
        task = asyncio.create_task(journal.append(body(0)))
        turns = 0
        while turns < 100:  # the loop turns while the sync hangs
            await asyncio.sleep(0)
            turns += 1
        assert not task.done()
        disk.gate.set()
        await auntil(task.done)
        await journal.close()

    asyncio.run(run())


# Compaction


def test_segments_follow_each_other_and_history_is_kept_by_size(tmp_path: Path) -> None:
    bodies = [body(number) for number in range(200)]
    limits = replace(LIMITS, segment_bytes=2000, keep_bytes=8000)
    _append(tmp_path, bodies, limits, Quick())
    segments = sorted(tmp_path.glob("*.seg"))
    assert 3 <= len(segments) <= 5
    assert sum(path.stat().st_size for path in segments[:-1]) <= 8000
    assert all(path.stat().st_size < 2000 + 600 for path in segments)
    reading = read(tmp_path)
    assert (reading.states, reading.start) == folded(bodies)
    assert reading.records_read < 25
    kept = own(history(tmp_path))
    assert kept == bodies[-len(kept) :]
    assert 30 < len(kept) < 200
    assert {segment.status for segment in verify(tmp_path).segments} == {"intact"}


def test_history_is_kept_by_age(tmp_path: Path) -> None:
    limits = replace(LIMITS, segment_bytes=700)
    _append(tmp_path, [body(number) for number in range(30)], limits, Quick())
    oldest, second, *_ = sorted(tmp_path.glob("*.seg"))
    (tmp_path / f"{oldest.name}.torn").write_bytes(b"of the oldest")
    long_ago = time.time() - 91 * 86400
    os.utime(oldest, (long_ago, long_ago))
    _append(tmp_path, [body(0)], limits, Quick())
    assert not oldest.exists()
    assert not list(tmp_path.glob("*.torn"))
    assert second.exists()


def test_no_history_at_all(tmp_path: Path) -> None:
    _append(tmp_path, [body(number) for number in range(30)], replace(LIMITS, segment_bytes=700, keep_bytes=0), Quick())
    assert len(list(tmp_path.glob("*.seg"))) == 1


def test_the_reserve_grows_with_the_states(tmp_path: Path) -> None:
    _append(tmp_path, [])
    small = (tmp_path / "reserve").stat().st_size
    assert small >= LIMITS.reserve_bytes
    big = {"kind": "replica", "replica": "m/0", "state": {"x": "y" * 50_000}}
    _append(tmp_path, [big])
    _append(tmp_path, [])
    status = (tmp_path / "reserve").stat()
    assert status.st_size >= LIMITS.reserve_bytes + 50_000
    assert status.st_blocks * 512 >= status.st_size
    assert not (tmp_path / "reserve").read_bytes().strip(b"\0")


def test_a_reader_sees_whole_batches_while_a_daemon_writes(tmp_path: Path) -> None:
    """Reading never calls a batch in flight damage, and never goes back."""
    journal, _ = Journal.open(tmp_path, replace(LIMITS, segment_bytes=20_000), disk=Quick())
    stop = threading.Event()
    seen: list[int] = []
    failures: list[Exception] = []

    def look() -> None:
        while not stop.is_set():
            try:
                seen.append(read(tmp_path).seq)
                assert sum(1 for _ in history(tmp_path)) > 0
            except Exception as error:  # noqa: BLE001 - a thread's exceptions are for the test to raise
                failures.append(error)
                return

    async def run() -> None:
        reader = threading.Thread(target=look)
        reader.start()
        try:
            for first in range(0, 3000, 10):
                await asyncio.gather(*(journal.append(body(first + n)) for n in range(10)))
        finally:
            stop.set()
            await asyncio.to_thread(reader.join)
        await journal.close()

    asyncio.run(run())
    assert not failures
    assert seen == sorted(seen)
    assert len(seen) > 3
