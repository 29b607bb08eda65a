"""Opens, reads and quotes files whose content nobody vouches for yet: in bounded time and memory, only regular files.

Plain reads, never a mapping: a file that shrinks meanwhile is an error here, and would be a SIGBUS there.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelsupd.weights.base import FormatError

#: How many lists, objects and elements JSON may have. It bounds what is built from it, to some hundreds of bytes each.
MAX_JSON_VALUES = 4_000_000

_SHOWN_CHARACTERS = 80


@contextmanager
def opened(path: Path) -> Iterator[tuple[int, int]]:
    """Yield a file's descriptor and its size. Raises FormatError where it is no regular file, and OSError."""
    # Without O_NONBLOCK, opening a pipe would wait for somebody who writes into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FormatError("is no regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def bytes_at(descriptor: int, offset: int, count: int) -> bytes:
    """Return bytes that were in the file when its size was asked. Raises FormatError when they are not any more."""
    data = os.pread(descriptor, count, offset)
    if len(data) == count:
        return data
    pieces, have = [data], len(data)
    while have < count:
        piece = os.pread(descriptor, count - have, offset + have)
        if not piece:
            raise FormatError("became shorter while it was read")
        pieces.append(piece)
        have += len(piece)
    return b"".join(pieces)


def whole(path: Path, limit: int) -> bytes:
    """Return a file's bytes. Raises FormatError where they are more than the limit, and OSError."""
    with opened(path) as (descriptor, size):
        if size > limit:
            raise FormatError(f"has {size} bytes, of which at most {limit} are read", unknown=True)
        return bytes_at(descriptor, 0, size)


def parsed(text: bytes, pairs_hook: Callable[[list[tuple[str, Any]]], object]) -> object:
    """Return what JSON says; `pairs_hook` makes something of each object. Raises FormatError."""
    if text.count(b"[") + text.count(b"{") + text.count(b",") > MAX_JSON_VALUES:
        raise FormatError(f"has JSON of more than {MAX_JSON_VALUES} values, which is not read", unknown=True)
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
    except RecursionError:
        raise FormatError("has JSON that is nested too deeply") from None
    except ValueError as error:  # of JSON, of UTF-8, of numbers with thousands of digits, and of the hook
        raise FormatError(f"has JSON that cannot be read: {error}") from None


def quoted(text: str) -> str:
    """Return what a file says as it may be shown: quoted, without control characters, and not too long."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")
