"""sha256 of several files side by side, against as many `openssl dgst -sha256` at the same time.

The files are in memory before, so that the digest is measured and not a disk. Also shown is what a core can do: the
same bytes hashed over and over from its cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import threading
from pathlib import Path

import child
import measure
from modelsupd.weights import digest

RUNS = 9
SIZE_BYTES = 1 << 30


def openssl(paths: list[Path]) -> None:
    """Hash each file in a process of its own, all at once."""
    running = [subprocess.Popen(["openssl", "dgst", "-sha256", path], stdout=subprocess.DEVNULL) for path in paths]
    for process in running:
        process.wait()


def file_digests(paths: list[Path]) -> None:
    """Hash each file by the standard library's own function, in a thread of its own."""

    def one(path: Path) -> None:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    threads = [threading.Thread(target=one, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def from_cache(count: int) -> None:
    """Hash as many bytes out of a core's cache, on as many threads."""

    def one() -> None:
        piece, value = bytes(256 << 10), hashlib.sha256()
        for _ in range(SIZE_BYTES // len(piece)):
            value.update(piece)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(runs: int = 0) -> None:
    """Measure and print."""
    cores = len(os.sched_getaffinity(0))
    measure.heading(f"sha256: {cores} files of {SIZE_BYTES >> 20} MiB on {cores} cores")
    with tempfile.TemporaryDirectory(dir=child.MEMORY) as place:
        paths = [Path(place) / str(number) for number in range(cores)]
        for path in paths:
            subprocess.run(
                ["bash", "-c", 'head -c "$1" /dev/urandom > "$2"', "bash", str(SIZE_BYTES), path], check=True
            )
        stop = threading.Event()
        ways = {
            "ours": lambda: digest.sha256(paths, lambda _: None, stop),
            "openssl, one process each": lambda: openssl(paths),
            "hashlib.file_digest": lambda: file_digests(paths),
            "from a core's cache": lambda: from_cache(len(paths)),
        }
        rows: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs or RUNS):
            for name, way in ways.items():
                rows[name].append(measure.timed(way))
    for name, seconds in rows.items():
        rate = f"{cores * SIZE_BYTES / measure.median(seconds) / 1e9:.2f} GB/s"
        ratio = measure.median(seconds) / measure.median(rows["ours"])
        print(f"  {name:26} {measure.milliseconds(seconds)}   {rate}   ours is {ratio:.2f} times as fast")
