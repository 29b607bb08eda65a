"""The journal against the bare system calls, and reading a long history against a plain loop of `json.loads`.

Bare is one write and one fdatasync of the very bytes that the journal wrote, in turn with it, to a file on the same
disk: once to one that grows, as the plainest program would, and once to one whose space was allocated before.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

import child
import measure
from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal import Journal, history

RUNS = 600
RECORDS = 1_000_000
READINGS = 3

#: Appends that wait at the same time, and rounds of them.
AT_ONCE, ROUNDS = 256, 30

#: History is what is measured, so all of it is kept.
LIMITS = JournalLimits(keep_bytes=1 << 40)


def body(number: int) -> dict[str, Any]:
    """Return a record as the driver writes it: a replica that was found ready, with its whole state."""
    at = 1000.0 + number
    reason = "generates: POST /v1/chat/completions: 4 tokens generated"
    process = {"run": 7, "pid": 14361, "shim_pid": 14359, "endpoint": "unix:/run/modelsupd/runs/0123456789ab-7/e.sock"}
    return {
        "kind": "replica",
        "at": at,
        "wall": "2026-11-21T09:00:00.000+00:00",
        "replica": f"m/{number % 8}",
        "run": 7,
        "event": {"type": "Probed", "kind": "start", "outcome": "tokens", "took_s": 0.004},
        "why": reason,
        "state": {
            "v": 1,
            "model": "m",
            "want": "up",
            "restarts": 2,
            "last_run": 7,
            "phase": {"name": "ready", "since": at, "process": process},
            "history": {"failed_at": [at - 20.0], "streak": 0, "cool_downs": 0, "addresses": 0},
            "reason": reason,
            "digest": "0123456789abcdef",
            "boot": {"id": "01234567-89ab-cdef-0123-456789abcdef", "zero_s": 1790000000.0},
        },
    }


class Bare:
    """A file, written and synced."""

    def __init__(self, path: Path, size: int = 0) -> None:
        """Open it, with space for `size` bytes."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._at = 0
        if size:
            os.posix_fallocate(self._fd, 0, size)
            os.fsync(self._fd)

    def append(self, data: bytes) -> float:
        """Return how long it took, in seconds."""
        began_at = time.perf_counter()
        os.pwrite(self._fd, data, self._at)
        os.fdatasync(self._fd)
        self._at += len(data)
        return time.perf_counter() - began_at


def last_line(directory: Path, length: int) -> bytes:
    """Return the record that was written last, as it lies on disk."""
    newest = max(directory.glob("*.seg"))
    return newest.read_bytes().rstrip(b"\0")[-length:]


async def appends(place: Path, runs: int) -> None:
    """Measure one append at a time, and many at once."""
    journal, _ = Journal.open(place / "journal", LIMITS)
    await journal.append(body(0))
    line = last_line(place / "journal", 1 << 16).splitlines(keepends=True)[-1]
    bare = Bare(place / "bare")
    allocated = Bare(place / "allocated", (runs + AT_ONCE * ROUNDS) * len(line))
    rows: dict[str, list[float]] = {"journal append": [], "grown write + fdatasync": [], "the same, allocated": []}
    for number in range(runs):
        began_at = time.perf_counter()
        await journal.append(body(number))
        rows["journal append"].append(time.perf_counter() - began_at)
        rows["grown write + fdatasync"].append(bare.append(line))
        rows["the same, allocated"].append(allocated.append(line))
    print(f"  records of {len(line)} bytes")
    shown: dict[str, Sequence[float]] = dict(rows)
    measure.compare(shown, "journal append")
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(ROUNDS):
        began_at = time.perf_counter()
        await asyncio.gather(*(journal.append(body(number)) for number in range(AT_ONCE)))
        ours.append(AT_ONCE / (time.perf_counter() - began_at))
        plain.append(10 / sum(bare.append(line) for _ in range(10)))
    rate, floor = measure.median(ours), measure.median(plain)
    words = f"{rate:8.0f} records/s   bare one at a time {floor:6.0f}/s   {rate / floor:.1f}x"
    print(f"  {f'group commit, {AT_ONCE} at once':28} {words}")
    await journal.close()


async def written(directory: Path, records: int) -> None:
    """Write a long history."""
    journal, _ = Journal.open(directory, LIMITS)
    for begin in range(0, records, 4096):
        await asyncio.gather(*(journal.append(body(number)) for number in range(begin, min(records, begin + 4096))))
    await journal.close()


def plain_copy(directory: Path, path: Path) -> int:
    """Write the same records as plain lines of JSON; return how many there are."""
    count = 0
    with path.open("wb") as file:
        for segment in sorted(directory.glob("*.seg")):
            for line in segment.read_bytes().rstrip(b"\0").splitlines(keepends=True):
                file.write(line[line.index(b"{") :])
                count += 1
    return count


def readings(place: Path, records: int) -> None:
    """Measure reading a history back."""
    directory, plain = place / "long", place / "plain"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(written(directory, records))
    count = plain_copy(directory, plain)

    def loads() -> None:
        with plain.open("rb") as file:
            assert sum(1 for line in file if json.loads(line)) == count  # noqa: S101 - all must have been read

    def ours() -> None:
        assert sum(1 for _ in history(directory)) == count  # noqa: S101 - the same

    ways: dict[str, Callable[[], None]] = {"journal history": ours, "json.loads of each line": loads}
    rows: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(READINGS):
        for name, way in ways.items():
            rows[name].append(measure.timed(way))
    print(f"  {count} records, {plain.stat().st_size / 2**20:.0f} MiB")
    shown: dict[str, Sequence[float]] = dict(rows)
    measure.compare(shown, "journal history")


def main(runs: int = 0) -> None:
    """Measure and print; with `runs` the history is shorter as well."""
    measure.heading("journal")
    with child.place() as place:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(appends(place, runs or RUNS))
        readings(place, min(runs * 1000, RECORDS) if runs else RECORDS)
