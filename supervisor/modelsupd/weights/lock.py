"""models.lock: which commit and which content each source stands for, in a file that people review like code.

It is written by commands alone, and only whole: what stands in it was fetched and verified. The daemon reads it. One
line per file and everything sorted, so that a diff shows what changed and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import tomli

from modelsupd.core.spec import Problem
from modelsupd.errors import ConfigError, printable
from modelsupd.weights.base import HubSource, LocalSource, Part, Pin, Pinned
from modelsupd.weights.kept import write_whole
from modelsupd.weights.sources import SourceError, parse, path_problem

VERSION = 1

#: Room for a hundred thousand files.
LARGEST_BYTES = 32 * 1024 * 1024

_HEAD = """\
# Which content each source of models.toml stands for. Written by `modelsupd pull` and `modelsupd lock`; keep it beside
# models.toml, review its changes, and keep both under version control. modelsupd starts nothing that differs from it.
"""
_MEND = "it is written by 'modelsupd pull': take it back from version control, or move it away and pull again"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_INTEGER = 2**63 - 1

Key = tuple[str, tuple[str, ...], tuple[str, ...]]


def key_of(pinned: Pinned) -> Key:
    """Return what an entry is found by: the source, and the patterns that choose among its files."""
    return pinned.source, pinned.allow, pinned.ignore


@dataclass(frozen=True, slots=True)
class Lock:
    """What a lock file says; `entries` are sorted and no two have the same key."""

    entries: tuple[Pinned, ...] = ()

    def of(self, part: Part) -> Pinned | None:
        """Return the entry of a part's source, None where there is none. Its own `sha256` is for the caller to ask."""
        key = str(part.source), part.allow, part.ignore
        return next((entry for entry in self.entries if key_of(entry) == key), None)

    def holding(self, pinned: Iterable[Pinned]) -> Lock:
        """Return the lock with these entries, in place of those with the same key."""
        entries = {key_of(entry): entry for entry in (*self.entries, *pinned)}
        return Lock(tuple(_tidy(entries[key]) for key in sorted(entries)))

    def only(self, parts: Iterable[Part]) -> Lock:
        """Return the lock with nothing but the entries of these parts."""
        wanted = {(str(part.source), part.allow, part.ignore) for part in parts}
        return Lock(tuple(entry for entry in self.entries if key_of(entry) in wanted))


def _tidy(pinned: Pinned) -> Pinned:
    return replace(pinned, files=tuple(sorted(pinned.files, key=lambda pin: pin.path)))


# Writing


def written(lock: Lock) -> str:
    """Return the text of the file. Raises ValueError for a file whose sha256 nobody knows yet."""
    return "".join(
        [_HEAD, f"version = {VERSION}\n", *(_entry(_tidy(entry)) for entry in sorted(lock.entries, key=key_of))]
    )


def _entry(pinned: Pinned) -> str:
    lines = ["\n[[source]]", f"source = {_quoted(pinned.source)}"]
    for name, patterns in (("allow", pinned.allow), ("ignore", pinned.ignore)):
        if patterns:
            lines.append(f"{name} = [{', '.join(map(_quoted, patterns))}]")
    if pinned.commit:
        lines.append(f'commit = "{pinned.commit}"')
    lines += ["files = [", *map(_file, pinned.files), "]\n"]
    return "\n".join(lines)


def _file(pin: Pin) -> str:
    values = _plain(pin)
    return f"  {{ {', '.join(f'{key} = {_value(value)}' for key, value in values.items())} }},"


def _plain(pin: Pin) -> dict[str, str | int]:
    if pin.sha256 is None:
        raise ValueError(f"{pin.path!r} was not fetched yet, so that its sha256 is not known")
    if path_problem(pin.path):
        raise ValueError(f"{pin.path!r} {path_problem(pin.path)}")
    values: dict[str, str | int] = {"path": pin.path, "size": pin.size_bytes, "sha256": pin.sha256}
    # A blob is named by the sha256 unless it is small; then git's sha1 is what finds it in the cache.
    return values if pin.blob in (None, pin.sha256) else {**values, "blob": str(pin.blob)}


def _value(value: str | int) -> str:
    return _quoted(value) if isinstance(value, str) else str(value)


def entry_of(pinned: Pinned) -> dict[str, Any]:
    """Return an entry as plain data, which `pinned_of` reads. Raises ValueError as `written` does."""
    entry = {"source": pinned.source, "allow": list(pinned.allow), "ignore": list(pinned.ignore)}
    files = [_plain(pin) for pin in pinned.files]
    return entry | ({"commit": pinned.commit} if pinned.commit else {}) | {"files": files}


def _quoted(text: str) -> str:
    """Return a TOML basic string; JSON's escapes are all TOML's too, but DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write(path: Path, lock: Lock) -> None:
    """Put a lock in the place of the file at `path` or where that links to. Raises OSError, and as `written`."""
    write_whole(path.resolve(), written(lock).encode(), mode=0o644)


# Reading


def read(path: Path) -> Lock:
    """Return what the file says; no file is an empty lock. Raises ConfigError with all that is wrong with it."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        return Lock()
    except OSError as error:
        raise ConfigError(path, [Problem((), None, (error.strerror or str(error)).lower())]) from error
    try:
        if len(raw) > LARGEST_BYTES:
            raise ValueError(f"it is larger than {LARGEST_BYTES} bytes")  # noqa: TRY301 - told in the same words as the rest
        parsed = tomli.loads(raw.decode())
    except tomli.TOMLDecodeError as error:
        line = printable(error.doc.split("\n")[min(error.lineno, error.doc.count("\n") + 1) - 1].strip())
        shown = f": {line[:60]}" if line else ""
        said = f"line {error.lineno}, column {error.colno}: {error.msg[:1].lower()}{error.msg[1:]}{shown}"
        raise ConfigError(path, [Problem((), None, f"{said}; {_MEND}")]) from error
    except (ValueError, RecursionError) as error:
        words = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ConfigError(path, [Problem((), None, f"{words}; {_MEND}")]) from error
    problems: list[Problem] = []
    lock = _lock(parsed, problems)
    if problems:
        raise ConfigError(path, problems)
    return lock


def _lock(parsed: Mapping[str, Any], problems: list[Problem]) -> Lock:
    version = parsed.get("version")
    if version != VERSION or isinstance(version, bool):
        why = f"must be {VERSION}; another one is written by another modelsupd"
        problems.append(Problem(("version",), version, why))
        return Lock()
    problems.extend(_unknown((), parsed, ("version", "source")))
    tables = parsed.get("source", [])
    if not isinstance(tables, list):
        problems.append(Problem(("source",), None, "must be a list of tables, each headed [[source]]"))
        return Lock()
    entries: dict[Key, Pinned] = {}
    for index, table in enumerate(tables):
        where = ("source", f"[{index}]")
        found: list[Problem] = []
        pinned = pinned_of(table, where, found)
        if pinned is not None and not found and key_of(pinned) in entries:
            found.append(Problem((*where, "source"), pinned.source, "is there twice, with the same patterns"))
        problems.extend(found)
        if pinned is not None:
            entries[key_of(pinned)] = pinned
    return Lock(tuple(_tidy(entries[key]) for key in sorted(entries)))


def pinned_of(table: object, where: tuple[str, ...], problems: list[Problem]) -> Pinned | None:
    """Return one entry, as it stands in a lock file, a record or a manifest; None where nothing of it can be used.

    What is wrong with it is added to `problems`, which begins with nothing for a caller that wants to know whether the
    entry can be trusted.
    """
    if not isinstance(table, dict):
        problems.append(Problem(where, None, "must be a table"))
        return None
    problems.extend(_unknown(where, table, ("source", "allow", "ignore", "commit", "files")))
    text = table.get("source")
    try:
        source = parse(text) if isinstance(text, str) else None
    except SourceError as error:
        problems.append(Problem((*where, "source"), text, str(error)))
        return None
    if source is None or str(source) != text:
        problems.append(Problem((*where, "source"), text, "must be a source as models.toml declares it"))
        return None
    if isinstance(source, LocalSource) and not source.path.is_absolute():
        problems.append(Problem((*where, "source"), text, "must be an absolute path"))
        return None
    of_hub = isinstance(source, HubSource)
    commit = table.get("commit")
    if of_hub and not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        problems.append(Problem((*where, "commit"), commit, "must be 40 hex digits in lower case"))
    elif not of_hub and commit is not None:
        problems.append(Problem((*where, "commit"), commit, "is not for local files"))
    patterns = {name: _patterns((*where, name), table.get(name, []), problems) for name in ("allow", "ignore")}
    files = tuple(_files((*where, "files"), table.get("files"), problems, of_hub=of_hub))
    return Pinned(text, commit if isinstance(commit, str) else None, files, patterns["allow"], patterns["ignore"])


def _patterns(where: tuple[str, ...], value: object, problems: list[Problem]) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    problems.append(Problem(where, None, "must be a list of strings"))
    return ()


def _files(where: tuple[str, ...], value: object, problems: list[Problem], *, of_hub: bool) -> Iterator[Pin]:
    if not isinstance(value, list) or not value:
        problems.append(Problem(where, None, "must be a list of at least one file"))
        return
    seen: set[str] = set()
    folders: set[str] = set()
    for index, item in enumerate(value):
        here = (*where, f"[{index}]")
        found = list(_file_problems(here, item, seen, of_hub=of_hub))
        problems.extend(found)
        if not found:
            seen.add(item["path"])
            folders.update(str(folder) for folder in PurePosixPath(item["path"]).parents)
            blob = item.get("blob", item["sha256"] if of_hub else None)
            yield Pin(item["path"], item["size"], item["sha256"], blob)
    problems.extend(Problem(where, path, "is a file and a folder") for path in sorted(seen & folders))


def _file_problems(where: tuple[str, ...], item: object, seen: set[str], *, of_hub: bool) -> Iterator[Problem]:
    if not isinstance(item, dict):
        yield Problem(where, None, "must be a table of path, size and sha256")
        return
    yield from _unknown(where, item, ("path", "size", "sha256", "blob"))
    path, size, sha256, blob = (item.get(name) for name in ("path", "size", "sha256", "blob"))
    if not isinstance(path, str):
        yield Problem((*where, "path"), path, "must be a string")
    elif why := path_problem(path):
        yield Problem((*where, "path"), path, f"cannot be a file's path: it {why}")
    elif path in seen:
        yield Problem((*where, "path"), path, "is there twice")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _LARGEST_INTEGER:
        yield Problem((*where, "size"), size, "must be an integer of bytes")
    if not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        yield Problem((*where, "sha256"), sha256, "must be 64 hex digits in lower case")
    if blob is not None and not (of_hub and isinstance(blob, str) and _COMMIT.fullmatch(blob)):
        yield Problem((*where, "blob"), blob, "must be 40 hex digits in lower case, of a small file of the hub")


def _unknown(where: tuple[str, ...], table: Mapping[str, object], known: Sequence[str]) -> Iterator[Problem]:
    for key in table:
        if key not in known:
            yield Problem((*where, key), None, f"unknown key; there are {', '.join(known)}")
