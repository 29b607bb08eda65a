"""The folder that an engine is given where it loads a whole one: links to the files that were verified, and no others.

Such an engine looks around by itself. In the hub's cache other tools file what they fetch beside what we chose, and a
folder of the operator's own may hold the same weights in other formats: none of that was verified, so none of it is to
be found. Rules:

1. The name of such a folder is made of what is in it. It stays the same while the files do, since engines keep what
   they compiled under the path of the weights; and other files never come into the folder of a running engine.
2. The links lead to where `look` saw the files, so that what it found out is about what is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from modelsupd.weights.base import HubSource, Source
from modelsupd.weights.parts import cannot_write

Links = tuple[tuple[str, Path], ...]
"""Files by their paths inside the folder (POSIX), with the absolute paths at which they lie."""


def path_of(source: Source, links: Links, state_dir: Path) -> Path:
    """Return where the folder for these files of a source is, or would be."""
    name = source.repo.rpartition("/")[2] if isinstance(source, HubSource) else source.path.name
    key = json.dumps([(inner, str(path)) for inner, path in links])
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    # Names of files are limited in bytes; a character of the operator's may have four.
    shown = name.encode(errors="replace")[:100].decode(errors="ignore")
    return _all(state_dir) / f"{shown}-{digest[:16]}"


def lay_out(folder: Path, links: Links) -> None:
    """Make the folder, or mend it, so that it holds these links and nothing else. Raises WeightsError."""
    try:
        _lay_out(folder, links)
    except OSError as error:
        raise cannot_write(folder, error) from error


def prune(state_dir: Path) -> int:
    """Remove the folders whose files are gone, by a collector or by hand; return how many. Raises OSError."""
    gone = [folder for folder in _entries(_all(state_dir)) if folder.is_dir() and _leads_nowhere(folder)]
    for folder in gone:
        shutil.rmtree(folder)
    return len(gone)


def _all(state_dir: Path) -> Path:
    return state_dir / "weights" / "folders"


def _lay_out(folder: Path, links: Links) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted = {inner: str(path) for inner, path in links}
    inner_folders = {str(parent) for inner in wanted for parent in Path(inner).parents} - {"."}
    for entry in _below(folder):
        inner = entry.relative_to(folder).as_posix()
        if entry.is_dir() and not entry.is_symlink():
            is_right = inner in inner_folders
        else:
            is_right = inner in wanted and _target(entry) == wanted[inner]
        if not is_right:
            _remove(entry)
    for inner in sorted(inner_folders):
        (folder / inner).mkdir(exist_ok=True)
    for inner, path in wanted.items():
        # Another replica of the model may be doing the same.
        with contextlib.suppress(FileExistsError):
            (folder / inner).symlink_to(path)


def _below(folder: Path) -> list[Path]:
    """Return everything below a folder, links not followed, what is deeper first."""
    found: list[Path] = []
    for at, folders, names in os.walk(folder):
        found += [Path(at, name) for name in (*folders, *names)]
    return found[::-1]


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)  # noqa: PTH115 - a text to compare, not a path
    except OSError:
        return None


def _remove(entry: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _leads_nowhere(folder: Path) -> bool:
    return any(path.is_symlink() and not path.exists() for path in _below(folder))


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
