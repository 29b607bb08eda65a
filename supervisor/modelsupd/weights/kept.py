"""Files that are replaced whole or not at all, whatever ends the process or the machine in between."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Put `data` in the place of the file at `path`, and make its folder where there is none. Raises OSError.

    Writers side by side do not disturb one another: one of them is last. `durable` also outlives a power cut.
    """
    with replacing(path, mode=mode, durable=durable) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of the one at `path` when the block ends, and vanishes when it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".new", dir=path.parent)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - of a descriptor
            os.fchmod(fd, mode)
            yield file
            file.flush()
            if durable:
                os.fsync(fd)
        os.replace(name, path)  # noqa: PTH105 - a name from mkstemp, not a Path
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108 - the same
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make what was named, renamed or removed in a folder outlive a power cut. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
