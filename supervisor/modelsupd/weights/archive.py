"""A model's weights in one file, for hosts without a network.

The file is a tar: first `modelsupd-export.json`, which says what sources are in it as models.lock does, then each
content once, under its sha256 and in the order of the list. A tar of any other make is refused. Rules:

1. Nothing of an archive decides where anything is written: the cache's own layout does, and for local files the paths
   that models.toml declares.
2. Everything is hashed on its way, in and out. Nothing gets its final name before all of the archive was found right,
   and what the lock pins must be what the lock says.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from modelsupd.core.events import FailureClass
from modelsupd.core.spec import Problem
from modelsupd.errors import describe, printable
from modelsupd.weights.base import Pin, Pinned, Stopped, WeightsError
from modelsupd.weights.kept import replacing
from modelsupd.weights.lock import entry_of, pinned_of
from modelsupd.weights.parts import cannot_write

MANIFEST = "modelsupd-export.json"
VERSION = 1

BLOCK = 512
PIECE_BYTES = 1024 * 1024
LARGEST_MANIFEST_BYTES = 32 * 1024 * 1024

Moved = Callable[[int], None]


def export(
    sources: Sequence[tuple[Pinned, Mapping[str, Path]]], target: Path, progress: Moved, stop: threading.Event
) -> int:
    """Write sources, each with where its files lie, to a tar at `target`, in whose place it appears when it is whole.

    Returns its size. Raises Stopped, and WeightsError: BAD_WEIGHTS for a file that is not what its pin says,
    NO_SPACE, or WEIGHTS_UNAVAILABLE where something cannot be read or written.
    """
    try:
        with replacing(target, mode=0o644) as out:
            return write(sources, out, target, progress, stop)
    except OSError as error:
        raise cannot_write(target, error) from error


def write(
    sources: Sequence[tuple[Pinned, Mapping[str, Path]]],
    out: BinaryIO,
    target: Path,
    progress: Moved,
    stop: threading.Event,
) -> int:
    """Do the same to an open file, which will have the name `target`, for whoever may not make one there."""
    known = [(_with_digests(pinned, files, stop), files) for pinned, files in sources]
    contents: dict[str, tuple[Pin, Path]] = {}
    for pinned, files in known:
        for pin in pinned.files:
            contents.setdefault(pin.sha256 or "", (pin, files[pin.path]))
    entries = [entry_of(pinned) for pinned, _ in known]
    manifest = json.dumps({"v": VERSION, "sources": entries, "sha256": digest_of(entries)}, indent=1).encode()
    try:
        _add(out, MANIFEST, manifest)
        for sha256, (pin, path) in contents.items():
            out.write(_header(sha256, pin.size_bytes))
            _copy(path, pin, out, progress, stop)
            out.write(_padding(pin.size_bytes))
        out.write(b"\0" * 2 * BLOCK)
        out.flush()
        return out.tell()
    except OSError as error:
        raise cannot_write(target, error) from error


def digest_of(entries: object) -> str:
    """Return the sha256 of a list of sources, so that a bit that flips in a name of it does not go unnoticed."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _with_digests(pinned: Pinned, files: Mapping[str, Path], stop: threading.Event) -> Pinned:
    """Return the same with the sha256 of every file; where none is known, as of local files, it is computed."""
    pins = []
    for pin in pinned.files:
        sha256 = pin.sha256
        if sha256 is None:
            hasher = hashlib.sha256()
            for piece in _pieces(files[pin.path], pin, stop):
                hasher.update(piece)
            sha256 = hasher.hexdigest()
        pins.append(Pin(pin.path, pin.size_bytes, sha256, pin.blob))
    return Pinned(pinned.source, pinned.commit, tuple(pins), pinned.allow, pinned.ignore)


def _pieces(path: Path, pin: Pin, stop: threading.Event) -> Iterator[memoryview]:
    """Yield all of a file, in pieces that are valid until the next one. Raises WeightsError for another size."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    left = pin.size_bytes
    try:
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                if stop.is_set():
                    raise Stopped
                left -= got
                if left < 0:
                    break
                yield buffer[:got]
    except OSError as error:
        words = f"cannot read '{path}': {error.strerror}"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words, path=path) from error
    if left:
        words = f"cannot export '{path}': it is not the {pin.size_bytes} bytes long that it should be"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=path)


def _copy(path: Path, pin: Pin, out: BinaryIO, progress: Moved, stop: threading.Event) -> None:
    hasher = hashlib.sha256()
    for piece in _pieces(path, pin, stop):
        hasher.update(piece)
        out.write(piece)
        progress(len(piece))
    if hasher.hexdigest() != pin.sha256:
        words = f"cannot export '{path}': its sha256 is {hasher.hexdigest()}, and should be {pin.sha256}"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=path)


def _add(out: BinaryIO, name: str, data: bytes) -> None:
    out.write(_header(name, len(data)) + data + _padding(len(data)))


def _header(name: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mode = 0o644
    return info.tobuf(tarfile.GNU_FORMAT)  # the only one that writes sizes above 8 GiB without a second header


def _padding(size_bytes: int) -> bytes:
    return b"\0" * (-size_bytes % BLOCK)


# Reading


class Archive:
    """An archive that is read from its start to its end."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read the list of what is in it. Raises WeightsError for what is no archive of ours."""
        self.path = path
        self._file = file
        size = self._next(MANIFEST, None)
        if size > LARGEST_MANIFEST_BYTES:
            raise self.bad("its list is too long")
        try:
            plain = json.loads(self._exactly(size))
        except (ValueError, RecursionError) as error:
            raise self.bad("its list is not JSON") from error
        self._skip_padding(size)
        self.sources = self._sources(plain)
        #: Each content once, in the order of the tar: sha256 → size.
        self.contents: dict[str, int] = {}
        for pinned in self.sources:
            for pin in pinned.files:
                if self.contents.setdefault(pin.sha256 or "", pin.size_bytes) != pin.size_bytes:
                    raise self.bad(f"{pin.path!r} has a size that its digest has not elsewhere")

    def read(self, sha256: str, stop: threading.Event) -> Iterator[memoryview]:
        """Yield the next content in pieces, which have to be hashed by whoever wants to believe them.

        It must be asked for in the order of `contents`, and taken to its end.
        """
        left = self._next(sha256, self.contents[sha256])
        buffer = memoryview(bytearray(min(PIECE_BYTES, max(left, 1))))
        for done in range(0, left, PIECE_BYTES):
            if stop.is_set():
                raise Stopped
            piece = buffer[: min(PIECE_BYTES, left - done)]
            self._fill(piece)
            yield piece
        self._skip_padding(left)

    def bad(self, why: str) -> WeightsError:
        """Return the error for an archive that is wrong."""
        return WeightsError(FailureClass.BAD_WEIGHTS, f"cannot import '{self.path}': {why}", path=self.path)

    def _sources(self, plain: object) -> tuple[Pinned, ...]:
        if not isinstance(plain, dict) or plain.get("v") != VERSION:
            raise self.bad(f"its list is not of version {VERSION}; another modelsupd wrote it")
        tables: Any = plain.get("sources")
        if not isinstance(tables, list) or not tables:
            raise self.bad("it holds no source")
        if plain.get("sha256") != digest_of(tables):
            raise self.bad("its list is damaged: it has not the sha256 that it says")
        problems: list[Problem] = []
        found = [pinned_of(table, ("sources", f"[{index}]"), problems) for index, table in enumerate(tables)]
        if problems:
            more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
            raise self.bad(f"{describe(problems[0])}{more}")
        return tuple(pinned for pinned in found if pinned is not None)

    def _next(self, name: str, size: int | None) -> int:
        """Read the header of the next entry, which must be this one, and return its size."""
        head = self._exactly(BLOCK)
        try:
            info = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise self.bad("it is no tar, or ends before it should") from error
        if info.type != tarfile.REGTYPE or info.linkname or info.name != name or size not in (None, info.size):
            shown = printable(info.name)[:80]
            raise self.bad(f"it holds '{shown}' where a file '{name}' was to come; modelsupd did not write it")
        if info.size < 0:
            raise self.bad(f"'{name}' has a size below 0")
        return int(info.size)

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._file.read(min(PIECE_BYTES, count - len(data)))
            if not piece:
                raise self.bad("it ends before it should")
            data += piece
        return bytes(data)

    def _fill(self, piece: memoryview) -> None:
        at = 0
        while at < len(piece):
            got = self._file.readinto(piece[at:])  # type: ignore[attr-defined]  # of what `open` returns it is there
            if not got:
                raise self.bad("it ends before it should")
            at += got

    def _skip_padding(self, size: int) -> None:
        self._exactly(-size % BLOCK)
