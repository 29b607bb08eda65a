"""The journal's writer: appends from coroutines, one thread for all that blocks.

Two rules:

1. `append` returns only when the record is durable. What is queued while a sync runs goes out together in the next
   write and the next sync (group commit); one batch is under way at a time.
2. Only the thread touches the store once it runs; what passes between it and the loop are finished values.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal.disk import Disk
from modelsupd.runtime.journal.frame import encode, rest_of
from modelsupd.runtime.journal.reader import Reading
from modelsupd.runtime.journal.store import Entry, Store, Unwritable

__all__ = ["Journal", "Unwritable"]

#: Records of one batch at most, so that one write and sync keep nobody waiting for long.
BATCH_RECORDS = 1024


def entry_of(body: Mapping[str, Any]) -> Entry:
    """Return a body as the store takes it; raise ValueError or TypeError for one that is not a record."""
    kind = body.get("kind")
    if kind == "snapshot":
        raise ValueError("cannot append a record: snapshots are the journal's own")
    if kind != "replica":
        return Entry(rest_of(body), start=encode(dict(body)) if kind == "start" else None)
    replica = body.get("replica")
    if not isinstance(replica, str) or "state" not in body:
        raise ValueError(f"cannot append a record of a replica: it needs a name and a state, not {dict(body)!r}")
    # The state is encoded once and used twice: in the record and, until the next one, in snapshots.
    state = encode(body["state"])
    rest = rest_of({key: value for key, value in body.items() if key != "state"})
    return Entry(b'%b,"state":%b}' % (rest[:-1], state), replica, None if body["state"] is None else state)


@dataclass(slots=True)
class _Batch:
    """Records on their way to the disk and back; an empty one asks the store to get back to normal."""

    loop: asyncio.AbstractEventLoop
    items: list[tuple[Entry, asyncio.Future[int]]]
    error: Exception | None = None
    first: int = 0
    took_s: float = 0.0
    seq: int = 0
    read_only: str | None = None
    probed: asyncio.Future[None] | None = None
    entries: list[Entry] = field(init=False)

    def __post_init__(self) -> None:
        self.entries = [entry for entry, _ in self.items]


class Journal:
    """The one writer of a directory; its caller sees to it that there is no other."""

    def __init__(self, store: Store) -> None:
        """Use `open`."""
        #: Called on the loop after each sync that succeeded: seconds that write and sync took, records in the batch.
        self.on_sync: Callable[[float, int], None] | None = None
        #: How long the last write and sync took.
        self.last_sync_s = 0.0
        self._store = store
        self._seq, self._read_only = store.seq, store.read_only
        self._waiting: list[tuple[Entry, asyncio.Future[int]]] = []
        self._busy = False
        self._closing = False
        self._drained: asyncio.Future[None] | None = None
        self._jobs: SimpleQueue[_Batch | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, directory: Path, limits: JournalLimits, *, disk: Disk | None = None) -> tuple[Journal, Reading]:
        """Read a journal, keep a torn tail aside, and open it for appending; blocks, so call it before the loop runs.

        The journal adds up the states itself, so that its snapshots hold just what was acknowledged. Raise Damaged
        where bytes that had been synced are bad, OSError where the directory cannot be read or made. A full disk is
        no error: see `read_only`.
        """
        store = Store(directory, limits, disk or Disk())
        return cls(store), store.reading

    @property
    def seq(self) -> int:
        """The number of the last durable record; 0 for none."""
        return self._seq

    @property
    def read_only(self) -> str | None:
        """None, or why operators' commands must be refused; what must be recorded may still be appended."""
        return self._read_only

    async def append(self, body: Mapping[str, Any]) -> int:
        """Return the record's number once it is durable.

        Raise Unwritable if it could not be made durable, and ValueError or TypeError for a body that is not a record.
        A caller that is cancelled meanwhile does not take its record back.
        """
        if self._closing:
            raise Unwritable("it is closed")
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry_of(body), future))
        self._next_batch()
        return await future

    async def probe_writable(self) -> bool:
        """Look at the disk, get back to normal if need be, and return whether operators' commands may be taken."""
        if self._closing:
            return False
        loop = asyncio.get_running_loop()
        probed: asyncio.Future[None] = loop.create_future()
        self._submit(_Batch(loop, [], probed=probed))
        await probed
        return self._read_only is None

    async def close(self) -> None:
        """Wait for what is queued, then close; appends after this raise Unwritable."""
        self._closing = True
        if self._busy:
            self._drained = self._drained or asyncio.get_running_loop().create_future()
            await self._drained
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)
        self._store.close()

    # On the loop

    def _next_batch(self) -> None:
        """Hand what is queued to the thread, unless a batch is under way."""
        if self._busy or not self._waiting:
            return
        self._busy = True
        items, self._waiting = self._waiting[:BATCH_RECORDS], self._waiting[BATCH_RECORDS:]
        self._submit(_Batch(asyncio.get_running_loop(), items))

    def _submit(self, batch: _Batch) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
            self._thread.start()
        self._jobs.put(batch)

    def _done(self, batch: _Batch) -> None:
        """Tell those who wait for a batch, and go on with the next one."""
        self._seq, self._read_only = batch.seq, batch.read_only
        if batch.probed is not None:
            if not batch.probed.done():
                batch.probed.set_result(None)
            return
        self._busy = False
        for number, (_, future) in enumerate(batch.items, batch.first):
            if future.done():  # its caller was cancelled
                continue
            if batch.error is None:
                future.set_result(number)
            else:  # each waiter gets an exception of its own, since raising one adds to its traceback
                future.set_exception(type(batch.error)(*batch.error.args))
        if batch.error is None:
            self.last_sync_s = batch.took_s
            if self.on_sync is not None:
                self.on_sync(batch.took_s, len(batch.items))
        self._next_batch()
        if self._drained is not None and not self._busy:
            self._drained.set_result(None)

    # In the thread

    def _work(self) -> None:
        while (batch := self._jobs.get()) is not None:
            began_at = time.perf_counter()
            try:
                if batch.probed is not None:
                    self._store.probe()
                else:
                    batch.first = self._store.commit(batch.entries)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
                batch.error = error
            batch.took_s = time.perf_counter() - began_at
            batch.seq, batch.read_only = self._store.seq, self._store.read_only
            batch.loop.call_soon_threadsafe(self._done, batch)
