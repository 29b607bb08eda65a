"""A file fetched from a hub on loopback, verified and under its name, against `curl | openssl dgst -sha256`.

The hub is tests/mock_hub.py in a process of its own, which sends by sendfile. Ours writes the file, hashes it, syncs
and renames it, in the process that asks. The peers are pipes of processes, of which the first keeps nothing, and the
second writes and syncs the file too. It goes into memory first, where network and digest are what is measured, then to
a disk, whose speed those figures are mostly about.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import child
import measure
from modelsupd.weights.base import Location, Pin, Settings
from modelsupd.weights.transfer import fetch

RUNS = 9
SIZE_BYTES = 1 << 30

_NAME = "model.safetensors"
_REPO = "org/name"


def serve(path: Path) -> None:
    """Be the hub, until stdin ends; tell where, the commit, and the file's digest."""
    from mock_hub import MockHub  # noqa: PLC0415 - of the tests, whose folder only the hub's process needs

    with MockHub() as hub:
        repo = hub.add(_REPO, {_NAME: path}, lfs={_NAME})
        print(f"{hub.url}/{_REPO}/resolve/{repo.commit}/{_NAME}", repo.file(_NAME).sha256, flush=True)
        sys.stdin.read()


@contextmanager
def served(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the address at which a hub of its own process has a file, and the file's sha256."""
    tests = Path(__file__).parent.parent / "tests"
    code = f"import sys; sys.path[:0] = [{str(tests)!r}, {str(Path(__file__).parent)!r}]; import download, pathlib"
    command = [sys.executable, "-c", f"{code}; download.serve(pathlib.Path(sys.argv[1]))", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdin is not None  # noqa: S101 - asked for above
        assert hub.stdout is not None  # noqa: S101 - the same
        try:
            url, sha256 = hub.stdout.readline().split()
            yield url, sha256
        finally:
            hub.stdin.close()


def ours(url: str, sha256: str, place: Path, parts: int) -> None:
    """Fetch it into a cache of its own."""
    blobs = place / "cache" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    settings = Settings(place / "cache", place / "state", parts=parts)
    fetch(
        Location(url, {}, f"{_REPO}/{_NAME}"),
        pin=Pin(_NAME, SIZE_BYTES, sha256, sha256),
        final=blobs / sha256,
        settings=settings,
        progress=lambda _: None,
        stop=threading.Event(),
    )


def shell(command: str, *words: str) -> None:
    """Run a line of the shell."""
    subprocess.run(["bash", "-o", "pipefail", "-c", command, "bash", *words], check=True, stdout=subprocess.DEVNULL)


def measured(url: str, sha256: str, where: Path, runs: int) -> None:
    """Measure with the file going to one file system, and print."""
    ways = {
        "ours, up to 4 connections": lambda place: ours(url, sha256, place, 4),
        "ours, 1 connection": lambda place: ours(url, sha256, place, 1),
        "curl | openssl": lambda _: shell('curl -sS "$1" | openssl dgst -sha256', url),
        "curl | tee FILE | openssl": lambda place: shell(
            'curl -sS "$1" | tee "$2" | openssl dgst -sha256 && sync "$2"', url, str(place / "file")
        ),
    }
    rows: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs):
        # Each begins in turn, because what one leaves behind for the disk or for memory costs the next one.
        names = list(ways)
        for name in names[run % len(names) :] + names[: run % len(names)]:
            way = ways[name]
            place = Path(tempfile.mkdtemp(dir=where))
            with contextlib.ExitStack() as stack:
                stack.callback(shutil.rmtree, place)
                rows[name].append(measure.timed(lambda way=way, place=place: way(place)))  # type: ignore[misc]  # bound now
            os.sync()
    for name, seconds in rows.items():
        rate = f"{SIZE_BYTES / measure.median(seconds) / 1e9:.2f} GB/s"
        print(f"    {name:26} {measure.milliseconds(seconds)}   {rate}")
    for name in list(ways)[2:]:
        ratio = measure.median(rows[name]) / measure.median(rows["ours, up to 4 connections"])
        print(f"    ours (up to 4) is {ratio:.2f} times as fast as {name}")


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading(f"download: {SIZE_BYTES >> 20} MiB from a hub on loopback")
    with child.place() as place:
        source = place / "source"
        shell('head -c "$1" /dev/urandom > "$2"', str(SIZE_BYTES), str(source))
        with served(source) as (url, sha256):
            for name, where in (("in memory", child.MEMORY), ("on a disk", place)):
                print(f"  {name}")
                measured(url, sha256, where, runs or RUNS)
