"""Finds what the hub's cache holds and nobody names any more, and removes it.

Other tools share the cache, so only what we fetched ourselves is proposed, which `Records` know, unless `everything` is
asked for. Rules:

1. A file of a commit stays when somebody names it. Its blob stays for as long as any file that stays leads to it.
2. What is being fetched stays: whatever is locked, and of other tools whatever was touched within a day. So does what
   was fetched in part and is named.
3. The store that repositories share keeps books of its own (huggingface_hub, `_shared_blobs.py`): what lies there is
   left to `hf cache`.
4. What lies in quarantine is listed and never removed: it is evidence, and an operator's to throw away.
5. A plan is carried out by looking again: a blob that something leads to by then stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelsupd.weights.base import HubSource, Pin, Pinned, Settings
from modelsupd.weights.cache import Repo, is_digest
from modelsupd.weights.parts import PART_SUFFIX, RECORD_SUFFIX
from modelsupd.weights.quarantine import Quarantined, listing
from modelsupd.weights.records import Records
from modelsupd.weights.sources import SourceError, parse

#: What other tools left behind is stale when it was not touched for so long.
STALE_AFTER_S = 86400.0

_FOLDER = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)")

File = tuple[str, str]
"""A file of a repository: commit and path."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What can be removed of one repository: files of commits, blobs, and what was fetched in part.

    `size_bytes` is what that gives back.
    """

    repo: str
    files: tuple[File, ...]
    blobs: tuple[str, ...]
    partial: tuple[Path, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be removed. `quarantined` is listed only, and `shared` counts files that are left to `hf cache`."""

    garbage: tuple[Garbage, ...]
    quarantined: tuple[Quarantined, ...]
    shared: int = 0

    @property
    def size_bytes(self) -> int:
        """Return how many bytes it gives back."""
        return sum(garbage.size_bytes for garbage in self.garbage)


@dataclass(slots=True)
class _Named:
    """What somebody names of a repository."""

    files: set[File] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)

    def add(self, commit: str, pins: Iterable[Pin]) -> None:
        for pin in pins:
            self.files.add((commit, pin.path))
            self.blobs.add(pin.blob or pin.sha256 or "")


def plan(settings: Settings, kept: Iterable[Pinned], *, spared: Collection[str] = (), everything: bool = False) -> Plan:
    """Return what nobody names: `kept` is what locks and records of declared sources name.

    `spared` are repositories of which all stays, such as declared ones whose files nobody knows yet. Raises OSError and
    WeightsError where the cache cannot be read.
    """
    named = _by_repo(kept)
    ours = _by_repo(Records(settings.state_dir).owned())
    garbage, shared = [], 0
    for name in sorted({*_repos(settings.cache_dir)} if everything else ours.keys()):
        if name in spared:
            continue
        repo = Repo(settings.cache_dir, name)
        found, left = _garbage(repo, named[name], None if everything else ours[name])
        shared += left
        if found.files or found.blobs or found.partial:
            garbage.append(found)
    return Plan(tuple(garbage), tuple(listing(settings.state_dir)), shared)


def _by_repo(pinned: Iterable[Pinned]) -> Mapping[str, _Named]:
    found: defaultdict[str, _Named] = defaultdict(_Named)
    for one in pinned:
        with contextlib.suppress(SourceError):
            source = parse(one.source)
            if isinstance(source, HubSource) and one.commit:
                found[source.repo].add(one.commit, one.files)
    return found


def _repos(cache_dir: Path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        for folder in cache_dir.iterdir():
            seen = _FOLDER.fullmatch(folder.name)
            if seen and folder.is_dir() and not folder.is_symlink():
                yield f"{seen['owner']}/{seen['name']}"


def _garbage(repo: Repo, named: _Named, ours: _Named | None) -> tuple[Garbage, int]:
    """Return what can be removed of a repository; `ours` is what we fetched, None where it does not matter who did.

    With it comes how many files were left because their blobs are shared.
    """
    links = _links(repo)
    going = {file for file in links if file not in named.files and (ours is None or file in ours.files)}
    shared = {file for file in going if _is_shared(repo, links[file])}
    going -= shared
    stay = {blob for file, blob in links.items() if file not in going} | named.blobs
    blobs = {blob for file, blob in links.items() if file in going and blob} - stay
    partial = []
    for entry in _entries(repo.blobs):
        blob = entry.name.partition(".")[0]
        if entry.name == blob and is_digest(blob):
            # Nothing leads to it: a fetch ended before it was published, or goes on this moment.
            mine = _is_stale(entry) if ours is None else blob in ours.blobs
            if mine and blob not in stay and not entry.is_symlink():
                blobs.add(blob)
        elif _is_left_over(entry, blob, named, ours) and not _is_held(repo, Path(entry.path), blob):
            partial.append(Path(entry.path))
    held = {blob for blob in blobs if _is_held(repo, repo.blobs / blob, blob)}
    blobs -= held
    removed = [repo.blobs / blob for blob in blobs] + partial
    removed += [repo.snapshot(commit) / path for commit, path in going if not links[commit, path]]
    size = sum(map(_given_back, removed))
    return Garbage(repo.repo, tuple(sorted(going)), tuple(sorted(blobs)), tuple(sorted(partial)), size), len(shared)


def _links(repo: Repo) -> dict[File, str]:
    """Return what is filed under all commits: the file, and the name of its blob, "" where it is none of its own."""
    found = {}
    for commit in repo.commits():
        snapshot = repo.snapshot(commit)
        for folder, folders, names in os.walk(snapshot):
            for name in (*names, *(inner for inner in folders if os.path.islink(os.path.join(folder, inner)))):  # noqa: PTH114, PTH118 - beside os.walk
                path = Path(folder, name)
                blob = path.readlink().name if path.is_symlink() else ""
                found[commit, path.relative_to(snapshot).as_posix()] = blob
    return found


def _is_shared(repo: Repo, blob: str) -> bool:
    return is_digest(blob) and (repo.blobs / blob).is_symlink()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_left_over(entry: os.DirEntry[str], blob: str, named: _Named, ours: _Named | None) -> bool:
    """Tell whether a fetch left this behind that nobody will take up again."""
    if entry.name.endswith((PART_SUFFIX, RECORD_SUFFIX)):
        # One that a digest alone names is taken up where it ended; others are of an import that was cut short.
        resumed = entry.name in (blob + PART_SUFFIX, blob + RECORD_SUFFIX)
        return not (resumed and blob in named.blobs)
    return ours is None and entry.name.endswith(".incomplete") and _is_stale(entry)


def _is_stale(entry: os.DirEntry[str]) -> bool:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_AFTER_S
    except OSError:
        return False


def _given_back(path: Path) -> int:
    """Return how many bytes the removal of a file gives back: none while it has another name."""
    try:
        found = path.lstat()
    except OSError:
        return 0
    return found.st_blocks * 512 if found.st_nlink == 1 else 0


def _is_held(repo: Repo, path: Path, blob: str) -> bool:
    with _holding(repo, path, blob) as free:
        return not free


@contextlib.contextmanager
def _holding(repo: Repo, path: Path, blob: str) -> Iterator[bool]:
    """Keep others from fetching a blob, or yield False where somebody does just now."""
    with contextlib.ExitStack() as stack:
        yield all(_lock(lock, stack) for lock in ([repo.lock(blob)] if is_digest(blob) else []) + [path])


def _lock(path: Path, stack: contextlib.ExitStack) -> bool:
    try:
        # Not for writing: a blob may be a running program's, and a lock another user's.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:
        return False  # who cannot tell leaves it
    stack.callback(os.close, fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks, where nobody else has one either
    return True


# Carrying it out


def carry_out(plan: Plan, settings: Settings) -> int:
    """Remove what a plan names and is still garbage; return how many bytes that gave back. Raises OSError."""
    return sum(_remove(garbage, settings) for garbage in plan.garbage)


def _remove(garbage: Garbage, settings: Settings) -> int:
    repo = Repo(settings.cache_dir, garbage.repo)
    given_back = 0
    for commit, path in garbage.files:
        link = repo.snapshot(commit) / path  # as it was found there, so it does not lead out
        if not link.is_symlink():
            given_back += _given_back(link)
        link.unlink(missing_ok=True)
        _remove_empty(link.parent, repo.folder / "snapshots")
    for commit in {commit for commit, _ in garbage.files}:
        if not repo.snapshot(commit).exists():
            _forget_commit(repo, commit)
    led_to = set(_links(repo).values())
    leftovers = [(repo.blobs / blob, blob) for blob in garbage.blobs if blob not in led_to]
    leftovers += [(path, path.name.partition(".")[0]) for path in garbage.partial]
    for leftover, blob in leftovers:
        with _holding(repo, leftover, blob) as free:
            if free:
                size = _given_back(leftover)
                leftover.unlink(missing_ok=True)
                given_back += size
    _disown(garbage, settings)
    for name in ("blobs", "snapshots", "refs", "trees", ".no_exist"):
        with contextlib.suppress(OSError):  # what is not empty is not removed
            (repo.folder / name).rmdir()
    with contextlib.suppress(OSError):
        repo.folder.rmdir()
    return given_back


def _forget_commit(repo: Repo, commit: str) -> None:
    """Remove what is kept of a commit beside its files, so that no tool finds a name that leads to nothing."""
    for ref in [path for path in (repo.folder / "refs").rglob("*") if path.is_file()]:
        if ref.read_text(errors="replace").strip() == commit:
            ref.unlink(missing_ok=True)
            _remove_empty(ref.parent, repo.folder / "refs")
    (repo.folder / "trees" / f"{commit}.json").unlink(missing_ok=True)
    absent = repo.folder / ".no_exist" / commit
    for inner in sorted(absent.rglob("*"), reverse=True):
        if inner.is_dir() and not inner.is_symlink():
            inner.rmdir()
        else:
            inner.unlink(missing_ok=True)
    _remove_empty(absent, repo.folder / ".no_exist")


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder below `top`, and its parents there, as far as they are empty."""
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent


def _disown(garbage: Garbage, settings: Settings) -> None:
    records = Records(settings.state_dir)
    gone = set(garbage.files)
    for mine in list(records.owned()):
        source = parse(mine.source)
        if isinstance(source, HubSource) and source.repo == garbage.repo:
            files = tuple(pin for pin in mine.files if (mine.commit or "", pin.path) in gone)
            if files:
                records.disown(Pinned(mine.source, mine.commit, files))
