"""What sources were found to be, kept in the state directory: for those that no lock pins, and for the collector.

A *record* is which commit and which files a source was resolved to, so that it is started without asking anybody, and
for which engines that was found to be complete. Of the cache, which other tools share, we *own* the files that we
fetched: only they are ours to remove. All of it may be lost: then it is found out anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modelsupd.weights.base import Part, Pin, Pinned
from modelsupd.weights.kept import write_whole

VERSION = 1

_LARGEST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """What a source was resolved to, and the engines for which its files were found to be complete."""

    pinned: Pinned
    engines: tuple[str, ...] = ()


class Records:
    """The records below a state directory. Several processes may read and write them at once."""

    def __init__(self, state_dir: Path) -> None:
        """Take the state directory; nothing is made before the first record."""
        self._records = state_dir / "weights" / "records"
        self._fetched = state_dir / "weights" / "fetched"

    def get(self, part: Part) -> Record | None:
        """Return the record of a part's source and patterns. What is damaged or unreadable counts as none."""
        record = _read(self._records / _name(str(part.source), part.allow, part.ignore))
        same = record and (record.pinned.source, record.pinned.allow, record.pinned.ignore)
        return record if same == (str(part.source), part.allow, part.ignore) else None

    def put(self, pinned: Pinned, engine: str) -> None:
        """Keep what a source was resolved to, and that it is complete for this engine. Raises OSError.

        The engines of an older record are kept where it says the same of the files.
        """
        path = self._records / _name(pinned.source, pinned.allow, pinned.ignore)
        older = _read(path)
        engines = {engine, *(older.engines if older and older.pinned == pinned else ())}
        _write(path, Record(pinned, tuple(sorted(engines))))

    def forget(self, part: Part) -> None:
        """Remove the record of a part, so that it is resolved anew. Raises OSError."""
        (self._records / _name(str(part.source), part.allow, part.ignore)).unlink(missing_ok=True)

    def all(self) -> Iterator[Record]:
        """Yield every record that can be read."""
        yield from _each(self._records)

    # What we fetched

    def own(self, pinned: Pinned) -> None:
        """Keep that these files of this commit are ours to remove, because we fetch them. Raises OSError.

        Those that were ours before stay so.
        """
        path = self._fetched / _name(pinned.source, (), (), pinned.commit or "")
        older = _read(path)
        files = {pin.path: pin for pin in (*(older.pinned.files if older else ()), *pinned.files)}
        merged = replace(pinned, files=tuple(files[name] for name in sorted(files)), allow=(), ignore=())
        if older is None or older.pinned != merged:
            _write(path, Record(merged))

    def owned(self) -> Iterator[Pinned]:
        """Yield what we fetched: source, commit and files, one for each commit."""
        for record in _each(self._fetched):
            yield record.pinned

    def disown(self, pinned: Pinned) -> None:
        """Forget that these files are ours, because they are gone. Raises OSError."""
        path = self._fetched / _name(pinned.source, (), (), pinned.commit or "")
        older = _read(path)
        gone = {pin.path for pin in pinned.files}
        left = tuple(pin for pin in older.pinned.files if pin.path not in gone) if older else ()
        if left and older:
            _write(path, Record(replace(older.pinned, files=left)))
        else:
            path.unlink(missing_ok=True)


def _name(*key: object) -> str:
    return f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.json"


def _each(folder: Path) -> Iterator[Record]:
    paths: list[Path] = []
    with contextlib.suppress(OSError):
        paths = sorted(folder.glob("[0-9a-f]*.json"))
    for path in paths:
        record = _read(path)
        if record is not None:
            yield record


def _write(path: Path, record: Record) -> None:
    write_whole(path, json.dumps({"v": VERSION, **asdict(record)}, separators=(",", ":")).encode())


def _read(path: Path) -> Record | None:
    try:
        with path.open("rb") as file:
            plain = json.loads(file.read(_LARGEST_BYTES))
        if plain["v"] != VERSION:
            return None
        engines = tuple(str(engine) for engine in plain["engines"])
        return Record(pinned_of_json(plain["pinned"]), engines)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def pinned_of_json(plain: Mapping[str, Any]) -> Pinned:
    """Return what `asdict` made of a Pinned; raises KeyError, TypeError or ValueError where it is none."""
    commit = plain["commit"]
    texts = (plain["source"], *plain["allow"], *plain["ignore"], *([] if commit is None else [commit]))
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a text is none")
    files = tuple(_pin(pin) for pin in plain["files"])
    return Pinned(plain["source"], commit, files, tuple(plain["allow"]), tuple(plain["ignore"]))


def _pin(plain: Mapping[str, Any]) -> Pin:
    pin = Pin(plain["path"], plain["size_bytes"], plain["sha256"], plain["blob"])
    if not isinstance(pin.path, str) or not all(isinstance(text, str | None) for text in (pin.sha256, pin.blob)):
        raise TypeError("a text is none")
    if not isinstance(pin.size_bytes, int) or pin.size_bytes < 0:
        raise TypeError("a size is none")
    return pin
