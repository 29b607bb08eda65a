"""Verdicts: an unchanged file is known, a changed one is not, and no other content can pass for one that was read."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupd.weights.base import Identity, identity_of
from modelsupd.weights.verdicts import TICK_NS, Verdict, Verdicts, settles_in_s
from waiting import until

GOOD = Verdict("1" * 64, None, "ok", "", "m.gguf", 1000.5)


def aged(path: Path, content: bytes = b"content", age_s: float = 3600) -> Identity:
    """Write a file that was last written so long ago."""
    path.write_bytes(content)
    at = time.time_ns() - int(age_s * 1e9)
    os.utime(path, ns=(at, at))
    return identity_of(path.stat())


def test_what_was_found_is_known_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    identity = aged(file)
    verdicts = Verdicts(tmp_path / "state")
    assert verdicts.get(identity) is None
    assert verdicts.put(file, identity, GOOD) == ""
    assert Verdicts(tmp_path / "state").get(identity) == GOOD
    assert verdicts.get(aged(file, b"others!")) is None
    assert verdicts.get(aged(file, b"longer content")) is None
    verdicts.forget(identity)
    verdicts.forget(identity)
    assert verdicts.get(identity) is None


def test_a_file_that_changes_while_it_is_read_gets_none(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    verdicts = Verdicts(tmp_path / "state")
    identity = aged(file)
    began_ns = time.time_ns()
    aged(file, b"others!", age_s=1800)
    assert verdicts.put(file, identity, GOOD, began_ns=began_ns) == "was changed while it was read"
    file.unlink()
    assert "No such file" in verdicts.put(file, identity, GOOD)
    assert verdicts.get(identity) is None


def test_a_write_within_the_same_tick_does_not_pass(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"content")
    identity = identity_of(file.stat())
    assert 0 < settles_in_s(identity) <= 2
    verdicts = Verdicts(tmp_path / "state")
    assert verdicts.put(file, identity, GOOD) == "was written while it was read, or just before"
    # What a coarse clock does: another content, and the same identity.
    file.write_bytes(b"others!")
    os.utime(file, ns=(identity.mtime_ns, identity.mtime_ns))
    assert identity_of(file.stat()) == identity
    assert verdicts.get(identity) is None


def test_reading_may_begin_a_tick_after_the_last_write(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    verdicts = Verdicts(tmp_path / "state")
    identity = aged(file, age_s=2.0)
    assert settles_in_s(identity) == 0
    assert verdicts.put(file, identity, GOOD) == ""
    # A long reading that began too early does not become right by lasting.
    late = aged(file, b"others!", age_s=60)
    assert verdicts.put(file, late, GOOD, began_ns=late.mtime_ns + TICK_NS // 2)
    assert verdicts.put(file, late, GOOD, began_ns=late.mtime_ns + TICK_NS) == ""


def test_an_mtime_in_the_future_is_a_clock_that_was_wrong(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    identity = aged(file, age_s=-86400)
    assert settles_in_s(identity) == 0
    assert Verdicts(tmp_path).put(file, identity, GOOD) == ""
    assert settles_in_s(aged(file, age_s=-1)) > 2


def test_what_we_wrote_ourselves_need_not_wait(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"content")
    identity = identity_of(file.stat())
    verdicts = Verdicts(tmp_path / "state")
    assert verdicts.put(file, identity, GOOD, settled=True) == ""
    assert verdicts.get(identity) == GOOD


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_file_that_somebody_may_still_write_gets_none(tmp_path: Path, how: str) -> None:
    file = tmp_path / "m.gguf"
    identity = aged(file)
    verdicts = Verdicts(tmp_path / "state")
    ready, done = multiprocessing.Event(), multiprocessing.Event()
    writer = multiprocessing.Process(target=_hold_for_writing, args=(file, how, ready, done))
    writer.start()
    try:
        assert ready.wait(20)
        for settled in (False, True):
            assert verdicts.put(file, identity, GOOD, settled=settled) == "is open for writing in another process"
    finally:
        done.set()
        writer.join(20)
    assert writer.exitcode == 0
    assert verdicts.put(file, identity, GOOD) == ""


def _hold_for_writing(path: Path, how: str, ready: object, done: object) -> None:
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0) if how == "mapped" else None
        if mapped is not None:
            file.close()
        ready.set()  # type: ignore[attr-defined]  # an Event, whose class is made by the context
        done.wait(20)  # type: ignore[attr-defined]  # the same


def test_what_reads_a_file_does_not_stop_a_verdict_and_the_lease_stops_no_writer(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    identity = aged(file)
    with file.open("rb"):
        assert Verdicts(tmp_path / "state").put(file, identity, GOOD) == ""
    began = time.monotonic()
    with file.open("r+b"):
        assert time.monotonic() - began < 5  # a lease that was kept would hold it up for 45 s


def test_a_state_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    identity = aged(file)
    (tmp_path / "state").write_text("no folder")
    verdicts = Verdicts(tmp_path / "state")
    assert verdicts.get(identity) is None
    assert verdicts.prune() == 0
    assert verdicts.put(file, identity, GOOD).startswith("cannot be marked as verified: ")


def test_the_unused_are_removed_and_use_counts(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    identities = [aged(tmp_path / name) for name in ("a", "b", "c")]
    for identity, name in zip(identities, ("a", "b", "c"), strict=True):
        assert verdicts.put(tmp_path / name, identity, GOOD) == ""
    month_ago = time.time() - 30 * 86400
    for identity in identities[:2]:
        os.utime(verdicts.folder / str(identity), (month_ago, month_ago))
    assert verdicts.get(identities[0]) == GOOD
    assert verdicts.prune(unused_days=20) == 1
    assert [verdicts.get(identity) for identity in identities] == [GOOD, None, GOOD]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "garbage", "another's", "newer", "deep", "directory"])
def test_a_damaged_verdict_is_none(tmp_path: Path, damage: str) -> None:
    identity = aged(tmp_path / "a")
    verdicts = Verdicts(tmp_path)
    assert verdicts.put(tmp_path / "a", identity, GOOD) == ""
    path = verdicts.folder / str(identity)
    data = path.read_bytes()
    if damage == "another's":
        other = aged(tmp_path / "b")
        path.rename(verdicts.folder / str(other))
        assert verdicts.get(other) is None
    elif damage == "directory":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(
            {
                "cut": data[:-20],
                "empty": b"",
                "flipped": data.replace(b"1111", b"1110", 1),
                "garbage": b"\xff\x00\n\n",
                "newer": data.replace(b'"v": 1', b'"v": 2'),
                "deep": b"[" * 9000,
            }[damage]
        )
    assert verdicts.get(identity) is None


@settings(deadline=None)
@given(data=st.binary(max_size=80))
def test_no_bytes_lead_to_anything_but_none(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    verdicts = Verdicts(tmp_path_factory.getbasetemp())
    verdicts.folder.mkdir(parents=True, exist_ok=True)
    identity = Identity(1, 2, 3, 4)
    (verdicts.folder / str(identity)).write_bytes(data)
    assert verdicts.get(identity) is None


def test_several_writers_and_readers_at_once(tmp_path: Path) -> None:
    identity = aged(tmp_path / "a")
    writers = [multiprocessing.Process(target=_write_often, args=(tmp_path, identity, number)) for number in range(3)]
    verdicts = Verdicts(tmp_path)
    for writer in writers:
        writer.start()
    try:
        until(lambda: verdicts.get(identity) is not None, timeout_s=20)
        while any(writer.is_alive() for writer in writers):
            assert verdicts.get(identity) is not None
    finally:
        for writer in writers:
            writer.join(20)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [path.name for path in verdicts.folder.iterdir()] == [str(identity)]


def _write_often(place: Path, identity: Identity, number: int) -> None:
    for _ in range(50):
        assert Verdicts(place).put(place / "a", identity, Verdict(f"{number}" * 64, None, "ok")) == ""


def test_fifty_files_are_known_in_no_time(tmp_path: Path) -> None:
    verdicts = Verdicts(tmp_path)
    identities = [aged(tmp_path / str(number)) for number in range(50)]
    for number, identity in enumerate(identities):
        assert verdicts.put(tmp_path / str(number), identity, GOOD) == ""

    def took_s() -> float:
        began = time.thread_time()  # what others do on the machine does not count
        assert all(verdicts.get(identity) for identity in identities)
        return time.thread_time() - began

    assert min(took_s() for _ in range(20)) < 0.005
