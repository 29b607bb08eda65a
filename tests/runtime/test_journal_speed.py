"""The journal's costs, as ratios, so that a busy or slow machine does not fail them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from journal_world import LIMITS, Quick
from modelsupd.runtime.journal import Journal, history
from modelsupd.runtime.journal.store import Store
from modelsupd.runtime.journal.writer import entry_of

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


def _fastest(what: Callable[[], object], times: int = 5) -> float:
    took = []
    for _ in range(times):
        began_at = time.process_time()
        what()
        took.append(time.process_time() - began_at)
    return min(took)


def test_history_costs_at_most_twice_a_plain_loop_over_json(tmp_path: Path) -> None:
    store = Store(tmp_path, replace(LIMITS, segment_bytes=1 << 20), Quick())
    for _ in range(100):
        store.commit([entry_of(RECORD)] * 200)
    store.close()
    lines = [line for path in sorted(tmp_path.glob("*.seg")) for line in path.read_bytes().splitlines()]
    texts = [line.split(b" ", 2)[2] for line in lines]
    plain = _fastest(lambda: [json.loads(text) for text in texts] and None)
    ours = _fastest(lambda: sum(1 for _ in history(tmp_path)))
    assert ours < 2 * plain, f"{ours / plain:.2f} times"


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
