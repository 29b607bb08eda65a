"""Moves aside what turned out to be wrong: it is never loaded, and never deleted by us.

A file is moved by a rename and never copied, so each file system has a folder of its own: `weights/quarantine` in the
state directory where that is on the same one, else a hidden folder beside. Each file there has a note `NAME.json`; the
state directory has all notes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from modelsupd.weights.kept import sync_folder, write_whole

#: Where a file goes that is not on the state directory's file system: into this folder beside it, or for a blob of a
#: hub's cache beside the folder of blobs, which other tools list.
HIDDEN = ".modelsupd-quarantine"

_VERSION = 1
_NOTE_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that was moved aside: where it lies, where it came from, why, when, and its digest beside the right one.

    `expected` and `actual` are None where digests were not what was wrong with it.
    """

    path: Path
    origin: Path
    why: str
    size_bytes: int
    expected: str | None
    actual: str | None
    at: str


def folder(state_dir: Path) -> Path:
    """Return where files go, and notes of those that went elsewhere."""
    return state_dir / "weights" / "quarantine"


def move_aside(
    path: Path, state_dir: Path, why: str, expected: str | None, actual: str | None, *, origin: Path | None = None
) -> Path:
    """Move a file into quarantine, with a note; return where it lies now. Raises OSError.

    Of a link, what it points to is moved: no other link may lead to it either. `origin` is what the note calls it when
    that is not `path`. The same content from the same place is kept once.
    """
    real = Path(os.path.realpath(path))
    origin = origin or path
    last: OSError | None = None
    for into in (folder(state_dir), _beside(real)):
        try:
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
            size = real.stat().st_size
            target = _target(into, origin.name, actual)
            os.replace(real, target)  # noqa: PTH105 - not Path.rename, which says less about replacing
        except OSError as error:
            if not real.exists():
                raise
            last = error  # another file system, or a folder that is not ours to write to
            continue
        sync_folder(into)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        _note(Quarantined(target, origin, why, size, expected, actual, at), into, folder(state_dir))
        return target
    raise last or OSError(f"{path} cannot be moved")


def listing(state_dir: Path) -> list[Quarantined]:
    """Return what lies in quarantine, oldest first; what somebody has removed since is left out."""
    found = []
    for note in folder(state_dir).glob(f"*{_NOTE_SUFFIX}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            plain = json.loads(note.read_bytes())
            if plain.pop("v") == _VERSION and os.path.lexists(plain["path"]):
                found.append(Quarantined(**plain | {key: Path(plain[key]) for key in ("path", "origin")}))
    return sorted(found, key=lambda one: (one.at, str(one.path)))


def _beside(real: Path) -> Path:
    return (real.parent.parent if real.parent.name == "blobs" else real.parent) / HIDDEN


def _target(into: Path, name: str, actual: str | None) -> Path:
    # By the digest it is known that the same content lies there already; without one every file is another one.
    base = f"{name[:150]}.{actual[:16]}" if actual else name[:150]
    if actual:
        return into / base
    number = 0
    while os.path.lexists(into / f"{base}.{number}"):
        number += 1
    return into / f"{base}.{number}"


def _note(one: Quarantined, into: Path, notes: Path) -> None:
    """Write the note beside the file and into the state directory; that it cannot be written undoes no move."""
    plain = {"v": _VERSION, **asdict(one), "path": str(one.path), "origin": str(one.origin)}
    data = json.dumps(plain, indent=1).encode() + b"\n"
    with contextlib.suppress(OSError):
        write_whole(into / f"{one.path.name}{_NOTE_SUFFIX}", data)
        if into != notes:
            # Files of several folders meet there and may have the same name.
            unique = hashlib.sha256(os.fsencode(one.path)).hexdigest()[:16]
            write_whole(notes / f"{one.path.name}.{unique}{_NOTE_SUFFIX}", data)
