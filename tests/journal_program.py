"""Appends to a journal for real, as a process that a test can kill, trace, or give a small disk; tells what it did."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import sys
from pathlib import Path

from journal_world import LIMITS, body
from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal import Journal, Unwritable, history


def tell(**what: object) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def append(journal: Journal, numbers: range | itertools.count[int]) -> None:
    """Append records and tell each that was acknowledged or refused."""
    for number in numbers:
        try:
            seq = await journal.append(body(number))
        except Unwritable as error:
            tell(number=number, refused=error.why)
        else:
            tell(number=number, seq=seq)


def endless(directory: Path) -> None:
    """Append until killed."""
    journal, reading = Journal.open(directory, JournalLimits(segment_bytes=4000, reserve_bytes=4096))
    tell(read=reading.seq)
    asyncio.run(append(journal, itertools.count()))


def some(directory: Path) -> None:
    """Append twenty records."""
    journal, _ = Journal.open(directory, LIMITS)

    async def run() -> None:
        await append(journal, range(20))
        tell(normal=await journal.probe_writable(), read_only=journal.read_only)
        await journal.close()

    asyncio.run(run())


def full(directory: Path) -> None:
    """Append on a disk that others fill, until refused; then give space back."""
    journal, _ = Journal.open(directory, JournalLimits(reserve_bytes=64 * 1024))
    done = 0

    async def until_refused() -> str:
        nonlocal done
        while True:
            try:
                await journal.append(body(done))
            except Unwritable as error:
                return error.why
            done += 1

    async def run() -> None:
        nonlocal done
        await journal.append(body(done))
        done += 1
        ballast = directory.parent / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                tell(free=shutil.disk_usage(directory).free)
        while journal.read_only is None:  # the space that the segment has already
            await journal.append(body(done))
            done += 1
        tell(read_only=journal.read_only, normal=await journal.probe_writable())
        before = done
        why = await until_refused()
        tell(on_reserve=done - before, why=why)
        ballast.unlink()
        tell(normal=await journal.probe_writable(), after=journal.read_only)
        await journal.append(body(done))
        done += 1
        await journal.close()

    asyncio.run(run())
    kept = sum(1 for record in history(directory) if record["kind"] != "snapshot")
    tell(done=done, kept=kept)


if __name__ == "__main__":
    {"endless": endless, "some": some, "full": full}[sys.argv[1]](Path(sys.argv[2]))
