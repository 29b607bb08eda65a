"""The record of requests: lines that programs can read, rotation, and a disk that is slow, full or gone."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupd.gateway.base import Api, EndedBy
from modelsupd.gateway.record import AccessLog, Entry


def entry(number: int = 0, **others: object) -> Entry:
    fields: dict[str, Any] = {"id": f"r{number}", "at": 1700000000.125, "api": Api.CHAT, "status": 200, **others}
    return Entry(**fields)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@given(
    st.builds(
        Entry,
        id=st.text(),
        at=st.floats(0, 4e9),
        api=st.sampled_from(Api),
        key=st.text(),
        asked=st.text(),
        model=st.text(),
        finish_reason=st.none() | st.text(),
        ttft_s=st.none() | st.floats(0, 1e6),
        tokens_out=st.none() | st.integers(0, 10**12),
        ended_by=st.sampled_from(EndedBy),
        error=st.text(),
    )
)
def test_a_line_is_json_of_one_line_whatever_clients_sent(given_entry: Entry) -> None:
    text = given_entry.line()
    assert text.endswith("\n")
    assert text.count("\n") == 1
    assert text.isascii()
    seen = json.loads(text)
    assert (seen["v"], seen["id"], seen["asked"]) == (1, given_entry.id, given_entry.asked)
    assert seen["finish_reason"] == given_entry.finish_reason
    assert seen["tokens_out"] == given_entry.tokens_out
    assert seen["error"] == (given_entry.error or None)


def test_what_a_line_holds(tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "access.log"
    log = AccessLog(path, max_bytes=1 << 20, files=1)
    log.put(entry(1, key="alice", model="qwen", run="qwen/0#7", ttft_s=0.25, tokens_out=5, ended_by=EndedBy.CLIENT))
    log.close()
    (seen,) = lines(path)
    assert seen == {
        "v": 1, "at": "2023-11-14T22:13:20.125Z", "id": "r1", "key": "alice", "api": "chat", "method": "POST",
        "asked": "", "model": "qwen", "run": "qwen/0#7", "status": 200, "stream": False, "queue_s": 0.0,
        "ttft_s": 0.25, "duration_s": 0.0, "tokens_in": None, "tokens_out": 5, "events": 0, "finish_reason": None,
        "ended_by": "client", "bytes_in": 0, "bytes_out": 0, "retries": 0, "error": None,
    }  # fmt: skip
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_lines_are_in_order_and_the_file_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    for begin in (0, 500):
        log = AccessLog(path, max_bytes=1 << 20, files=1)
        for number in range(begin, begin + 500):
            log.put(entry(number))
        log.close()
    assert [line["id"] for line in lines(path)] == [f"r{number}" for number in range(1000)]


def test_it_is_rotated_by_size_and_nothing_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, max_bytes=4096, files=2)
    for number in range(60):
        log.put(entry(number))
        if number % 5 == 4:
            assert log.flush()
    log.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["access.log", "access.log.1", "access.log.2"]
    kept = [line["id"] for name in ("access.log.2", "access.log.1", "access.log") for line in lines(tmp_path / name)]
    assert kept == [f"r{number}" for number in range(60 - len(kept), 60)]
    assert all(each.stat().st_size <= 4096 for each in tmp_path.iterdir())


def test_two_that_write_while_one_takes_over_lose_nothing_and_rotate_once(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    old, new = (AccessLog(path, max_bytes=8192, files=9) for _ in range(2))
    for number in range(0, 120, 2):
        old.put(entry(number))
        new.put(entry(number + 1))
        if number % 10 == 8:
            assert old.flush()
            assert new.flush()
    old.close()
    new.close()
    files = list(tmp_path.glob("access.log*"))
    assert sorted(line["id"] for each in files for line in lines(each)) == sorted(f"r{number}" for number in range(120))
    assert all(each.stat().st_size <= 8192 + 8 * 400 for each in files)
    assert len(files) > 3


def test_a_disk_that_is_full_costs_lines_that_are_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "access.log"
    log = AccessLog(path, max_bytes=1 << 20, files=1)
    log.put(entry(1))
    assert log.flush()
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[: len(data) // 2]))
    log.put(entry(2))
    assert log.flush()
    assert (log.dropped, "no space left" in log.trouble) == (1, True)
    monkeypatch.setattr(os, "write", whole)
    log.put(entry(3))
    log.close()
    assert [line.get("id", line.get("dropped")) for line in lines(path)] == ["r1", 1, "r3"]
    assert log.trouble == ""


def test_a_disk_that_hangs_holds_nobody_up_and_what_does_not_fit_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, entered, free = os.write, threading.Event(), threading.Event()

    def write(fd: int, data: bytes) -> int:
        entered.set()
        free.wait(10)
        return stuck(fd, data)

    monkeypatch.setattr(os, "write", write)
    log = AccessLog(tmp_path / "access.log", max_bytes=1 << 20, files=1, max_waiting=10)
    log.put(entry(0))
    assert entered.wait(5)
    before = time.monotonic()
    for number in range(1, 31):
        log.put(entry(number))
    assert time.monotonic() - before < 0.5
    assert log.dropped == 20
    free.set()
    log.close()
    assert [line.get("id", line.get("dropped")) for line in lines(tmp_path / "access.log")] == [
        "r0", 20, *(f"r{number}" for number in range(1, 11)),
    ]  # fmt: skip


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = AccessLog(tmp_path / "file" / "access.log", max_bytes=1 << 20, files=1)
    log.put(entry())
    assert log.flush()
    assert log.dropped == 1
    log.close()
