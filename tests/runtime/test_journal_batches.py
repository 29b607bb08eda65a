"""Group commit, counted in syncs, so that a busy or slow machine does not fail it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from journal_world import LIMITS, Quick
from modelsupd.runtime.journal import Journal

RECORD = {
    "kind": "replica",
    "at": 1234.567,
    "wall": "2026-01-01T00:00:00.000Z",
    "replica": "qwen/0",
    "run": 7,
    "event": {"type": "Probed", "run": 7, "kind": "generation", "outcome": "tokens", "evidence": "4 tokens in 0.1 s"},
    "why": "it generates",
    "state": {
        "phase": {"type": "Ready", "since": 1234.5},
        "want": "up",
        "crashes": [1.0, 2.0, 3.0],
        "process": {"run": 7, "pid": 4711, "shim_pid": 4710, "endpoint": "unix:/run/modelsupd/runs/x/engine.sock"},
    },
}


def test_many_appends_share_a_sync(tmp_path: Path) -> None:
    """With a sync of 2 ms, a hundred writers together get at least fifty times what one gets."""

    class Slow(Quick):
        def fdatasync(self, fd: int) -> None:  # noqa: ARG002 - as Disk has it
            time.sleep(0.002)

    journal, _ = Journal.open(tmp_path, LIMITS, disk=Slow())
    batches: list[int] = []
    journal.on_sync = lambda _took_s, records: batches.append(records)

    async def writer() -> None:
        for _ in range(10):
            await journal.append(RECORD)

    async def run() -> None:
        await asyncio.gather(*(writer() for _ in range(100)))
        await journal.close()

    asyncio.run(run())
    assert sum(batches) == 1000
    assert len(batches) <= 20
