"""Tests that nobody's rights can change the outcome of, because they leave the machine alone; and the proof of that.

`make test-unprivileged` leaves these folders out, since it would only do again what `make pytest` has done.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = ("core", "sim")

#: What a test that is pure does not do (Python's audit events). Another Python may be started: to be told the same.
_FORBIDDEN = ("os.fork", "os.kill", "os.chmod", "os.chown", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "socket.")
#: What others write on the way: Hypothesis its examples, Python what it compiled.
_OTHERS = (".hypothesis", "__pycache__", "/dev/null")

#: Modules by way of which others write.
_BETWEEN = (tempfile.__file__, pathlib.__file__)

_watching: list[str] = []
_hooked: list[bool] = []


def is_pure(path: Path) -> bool:
    """Tell whether the tests of this file have to be pure."""
    return path.parent.name in FOLDERS and path.parent.parent == Path(__file__).parent


@contextmanager
def watched(name: str) -> Iterator[None]:
    """Raise in whatever changes something outside of this process, for as long as the block takes."""
    if not _hooked:
        sys.addaudithook(_look)
        _hooked.append(True)
    _watching.append(name)
    try:
        yield
    finally:
        _watching.pop()


def _look(event: str, args: tuple[object, ...]) -> None:
    if not _watching or any(other in str(argument) for argument in args for other in _OTHERS):
        return
    writes = event == "open" and isinstance(args[0], str | bytes) and int(str(args[2])) & (os.O_WRONLY | os.O_RDWR)
    if (writes or event.startswith(_FORBIDDEN)) and not _hypothesis_tells():
        raise AssertionError(f"{_watching[-1]} is to be pure, and does this: {event} {args}")


def _hypothesis_tells() -> bool:
    """Tell whether this comes of Hypothesis itself, which writes down how an example that fails is kept."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename in _BETWEEN:
        frame = frame.f_back
    return f"{os.sep}hypothesis{os.sep}" in frame.f_code.co_filename
