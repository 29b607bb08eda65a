"""Reads a run's log across its rotations, as it grows.

A log is `log`, and after rotation `log.1` (the newest of the old), `log.2` … What is open keeps its inode when it is
renamed, and that is how the reader finds its place again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 256 * 1024
_LINE_END = re.compile(rb"\r\n|\r|\n")
_ROTATED = re.compile(r"log\.([0-9]+)")


class Tail:
    """The log in one run's directory, from its oldest byte that is kept."""

    def __init__(self, directory: Path) -> None:
        """Open nothing yet: the log may not be there."""
        self._directory = directory
        self._file: BinaryIO | None = None
        self._partial: list[bytes] = []  # of a line that has no end yet; in pieces, because it may have 100 MB
        self._held = b""

    def __enter__(self) -> Tail:  # noqa: PYI034 - nobody derives from it
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def lines(self) -> Iterator[bytes]:
        """Yield the whole lines that can be read now, without their ends; a lone CR ends a line too.

        What has no end yet is kept for the next call.
        """
        for chunk in self._chunks():
            data, self._held = self._held + chunk, b""
            if data.endswith(b"\r"):  # the LF of a CRLF may be about to come
                data, self._held = data[:-1], b"\r"
            first, *others = _LINE_END.split(data)
            self._partial.append(first)
            for other in others:
                line, self._partial = b"".join(self._partial), [other]
                yield line

    def rest(self) -> bytes:
        """Return what has no end and, the run being over, will get none."""
        partial, self._partial, self._held = b"".join(self._partial), [], b""
        return partial

    def _chunks(self) -> Iterator[bytes]:
        if self._file is None and not self._open(self._oldest()):
            return
        while True:
            assert self._file is not None  # noqa: S101 - opened above, and only ever replaced
            chunk = self._file.read(_CHUNK_BYTES)
            if chunk:
                yield chunk
                continue
            # Looked for only now: what was written before the rotation has been read to its end.
            following = self._following()
            chunk = self._file.read(_CHUNK_BYTES) if following else b""
            if chunk:
                yield chunk
            elif not following or not self._open(following):
                return

    def _numbered(self) -> dict[int, Path]:
        """Return the files by age: 0 is the one that is written to."""
        found = {}
        try:
            names = os.listdir(self._directory)  # noqa: PTH208 - names are all that is needed
        except (FileNotFoundError, NotADirectoryError):
            return {}
        for name in names:
            match = _ROTATED.fullmatch(name)
            if match or name == "log":
                found[int(match[1]) if match else 0] = self._directory / name
        return found

    def _oldest(self) -> Path | None:
        numbered = self._numbered()
        return numbered[max(numbered)] if numbered else None

    def _following(self) -> Path | None:
        """Return the file to read after the open one, which is at its end; None if it is the newest."""
        assert self._file is not None  # noqa: S101 - see `_chunks`
        here = os.fstat(self._file.fileno())
        numbered = self._numbered()
        for number, path in numbered.items():
            try:
                if os.path.samestat(path.stat(), here):
                    return None if number == 0 else numbered.get(number - 1)
            except FileNotFoundError:  # rotated meanwhile: the next look sees it
                return None
        return self._oldest()  # ours was rotated away; what came between is lost

    def _open(self, path: Path | None) -> bool:
        if path is None:
            return False
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return False
        if self._file is not None:
            self._file.close()
        self._file = file
        return True
