"""Those who follow the journal as it is written: `modelsupd events -f`, and whoever waits for a command's outcome."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from modelsupd.runtime.journal import history

#: Records that wait for one who follows before it is given up, and those read from disk at a time.
FOLLOWER_RECORDS = 10_000
HISTORY_PIECE = 1000


class Followers:
    """Hands each record to all who follow."""

    def __init__(self, journal_dir: Path) -> None:
        """Take the journal's directory, from which those who come late are served."""
        self._journal_dir = journal_dir
        self._queues: set[asyncio.Queue[Mapping[str, Any]]] = set()

    async def records(self, after_seq: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield journal records after `after_seq`, the ones on disk first, then each new one as it is written.

        Ends where the reader is too slow to follow; it can ask again from where it is.
        """
        queue: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue(FOLLOWER_RECORDS)
        self._queues.add(queue)
        try:
            last = after_seq
            kept = history(self._journal_dir, after_seq=after_seq)
            while pieces := await asyncio.to_thread(lambda: list(itertools.islice(kept, HISTORY_PIECE))):
                for record in pieces:
                    last = max(last, record["seq"])
                    yield record
            while not queue.full():
                new = await queue.get()
                if new["seq"] > last:
                    yield new
        finally:
            self._queues.discard(queue)

    def recorded(self, seq: int, body: Mapping[str, Any]) -> None:
        """Pass a record on."""
        for queue in self._queues:
            if not queue.full():
                queue.put_nowait({"v": 1, "seq": seq, **body})
