"""Digests of files, several at a time.

Read in pieces that stay in a core's cache, and not through mmap: that is no slower (bench/sha256.py), and a file that
is cut off meanwhile ends its mapping's reader by SIGBUS.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from modelsupd.weights.base import Stopped

_BUFFER_BYTES = 1024 * 1024

#: Progress is told of after so many bytes.
_TELL_BYTES = 8 * 1024 * 1024

Report = Callable[[int], None]


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...


def sha256(paths: Sequence[Path], progress: Report, stop: threading.Event, threads: int | None = None) -> list[str]:
    """Return the sha256 of each file, in order; `threads` of them are read side by side, by default one per core.

    `progress` is called with the bytes read since its last call, by one thread at a time. Raises Stopped, and the
    OSError of the first file that cannot be read; the others are then given up.
    """
    count = max(1, min(len(paths), threads or len(os.sched_getaffinity(0))))
    ended, lock = threading.Event(), threading.Lock()
    found: dict[int, str] = {}

    def tell(count: int) -> None:
        with lock:
            progress(count)

    def one(number: int) -> None:
        value = hashlib.sha256()
        try:
            _read(paths[number], value, tell, lambda: ended.is_set() or stop.is_set())
        except BaseException:
            ended.set()
            raise
        found[number] = value.hexdigest()

    # The largest first, so that none of them is left for one core at the end.
    order = sorted(range(len(paths)), key=lambda number: -paths[number].stat().st_size)
    with ThreadPoolExecutor(count) as pool:
        results = [pool.submit(one, number) for number in order]
    errors = [error for result in results if (error := result.exception())]
    for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
        raise error
    return [found[number] for number in range(len(paths))]


def git_sha1(path: Path) -> str:
    """Return the name that git gives to a file's content: sha1 of `blob SIZE`, a zero byte and the bytes."""
    value = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    _read(path, value, lambda _: None, lambda: False)
    return value.hexdigest()


def _read(path: Path, value: _Hash, tell: Report, ended: Callable[[], bool]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(_BUFFER_BYTES))
        at = told = 0
        while count := os.preadv(fd, [buffer], at):
            if ended():
                raise Stopped
            value.update(buffer[:count])
            at += count
            if at - told >= _TELL_BYTES:
                tell(at - told)
                told = at
        if at > told:
            tell(at - told)
    finally:
        os.close(fd)
