"""Looks for weights and programs, of which several are asked for at once, or none is answered in time."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modelsupd.core.spec import Engine, ModelSpec
from modelsupd.runtime import looker
from modelsupd.runtime.inputs import Inputs, Stock
from modelsupd.weights.base import Settings
from modelsupd.weights.lock import Lock

SPEC = ModelSpec(engine=Engine.COMMAND, command=("/bin/true", "{weights}"))
OTHER = replace(SPEC, weights="/elsewhere")
STOCK = Stock(Settings(Path("/cache"), Path("/state")), Lock())
LONG_S = 20.0


class Disk:
    """A file system that sees what is on it when a look begins, and answers when it is let."""

    def __init__(self) -> None:
        self.holds = "old"
        self.looks: queue.Queue[ModelSpec] = queue.Queue()
        self._answers: queue.Queue[Exception | None] = queue.Queue()
        self.most = self._now = 0
        self._lock = threading.Lock()

    def look(self, spec: ModelSpec, _engine: object, _stock: Stock) -> Inputs:
        seen = self.holds
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.looks.put(spec)
        trouble = self._answers.get()
        with self._lock:
            self._now -= 1
        if trouble is not None:
            raise trouble
        return Inputs("/bin/true", seen, None)

    async def begun(self) -> ModelSpec:
        return await asyncio.to_thread(self.looks.get, timeout=LONG_S)

    def answer(self, trouble: Exception | None = None) -> None:
        self._answers.put(trouble)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    there = Disk()
    monkeypatch.setattr(looker, "look", there.look)
    yield there
    for _ in range(8):
        there.answer()  # no thread is left behind


class Asker:
    """Asks one looker about the replica `m/0`."""

    def __init__(self) -> None:
        self._looker = looker.Looker()

    def look(self, timeout_s: float = LONG_S, spec: ModelSpec = SPEC) -> asyncio.Task[Inputs]:
        return asyncio.create_task(self._looker.look("m/0", spec, None, STOCK, timeout_s))


async def turns() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_look_that_began_before_it_was_asked_for_is_not_its_answer(disk: Disk) -> None:
    async def main() -> None:
        asker = Asker()
        first = asker.look()
        await disk.begun()
        disk.holds = "new"
        later = [asker.look() for _ in range(3)]
        await turns()
        disk.answer()
        assert (await first).fingerprint == "old"
        await disk.begun()
        disk.answer()
        assert [(await each).fingerprint for each in later] == ["new"] * 3
        assert disk.looks.empty()  # the three were content with one
        assert disk.most == 1

    asyncio.run(main())


def test_a_file_system_slower_than_anybody_waits_gives_its_answer_to_who_asks_next(disk: Disk) -> None:
    async def main() -> None:
        asker = Asker()
        with pytest.raises(TimeoutError):
            await asker.look(0.01)
        with pytest.raises(TimeoutError):
            await asker.look(0.01)
        again = asker.look()
        await turns()
        disk.answer()
        assert (await again).fingerprint == "old"
        assert disk.most == 1
        assert disk.looks.qsize() == 1

    asyncio.run(main())


def test_one_that_waits_for_an_earlier_look_waits_no_longer_than_it_said(disk: Disk) -> None:
    async def main() -> None:
        asker = Asker()
        first = asker.look()
        await disk.begun()
        with pytest.raises(TimeoutError):
            await asker.look(0.01)
        disk.answer()
        assert (await first).fingerprint == "old"
        disk.holds = "new"
        disk.answer()
        assert (await asker.look()).fingerprint == "new"

    asyncio.run(main())


def test_what_is_declared_elsewhere_waits_for_no_file_system_that_hangs(disk: Disk) -> None:
    async def main() -> None:
        asker = Asker()
        hung = asker.look()
        assert await disk.begun() == SPEC
        moved = asker.look(spec=OTHER)
        assert await disk.begun() == OTHER
        disk.answer()
        disk.answer()
        await moved
        await hung

    asyncio.run(main())


def test_who_waited_for_a_look_that_broke_looks_anew(disk: Disk) -> None:
    async def main() -> None:
        asker = Asker()
        first = asker.look()
        await disk.begun()
        second = asker.look()
        await turns()
        disk.answer(RuntimeError("a bug"))
        with pytest.raises(RuntimeError, match="a bug"):
            await first
        disk.answer()
        assert (await second).fingerprint == "old"

    asyncio.run(main())
