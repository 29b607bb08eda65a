"""Files what lies in the hub's cache as huggingface_hub does it, so that engines and other tools find it.

A blob becomes a file of a commit by a link, `snapshots/COMMIT/PATH` to `blobs/DIGEST`. There is never a link to a blob
that is not there, and before the first link stands the commit's listing, by which other tools tell that a snapshot is
not whole yet. Everything appears by rename; doing it twice, or in two processes, changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.errors import printable
from modelsupd.weights.base import Pin, Pinned, Settings, WeightsError
from modelsupd.weights.cache import COMMIT, TREE_VERSION, Repo
from modelsupd.weights.sources import path_problem

_SHOWN = 3

#: Tells backup tools to leave the cache out; the first line is fixed (bford.info/cachedir).
_CACHEDIR_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by modelsupd, for the cache that it shares with huggingface_hub.
# For information about cache directory tags see https://bford.info/cachedir/
"""


@dataclass(frozen=True, slots=True)
class Listing(Pinned):
    """All files of a commit, as the hub lists them; `tree` is what huggingface_hub keeps of that, path → entry."""

    tree: Mapping[str, Mapping[str, object]] = field(default_factory=dict, repr=False, compare=False)


def publish(
    repo: str, commit: str, revision: str, files: Iterable[Pin], settings: Settings, *, listing: Listing | None = None
) -> Path:
    """Make links to the blobs of `files`, which lie in the cache, and record the commit of `revision`.

    Returns the snapshot's folder. `listing` is kept for other tools, where it is known. Raises WeightsError and makes
    no link at all when one of the blobs is missing or of another size. A file in a link's place is left alone, and may
    do without a blob: so caches look on file systems without links. What is complete may lie where we cannot write.
    """
    cached = Repo(settings.cache_dir, repo)
    snapshot = cached.snapshot(commit)
    pins = tuple(files)
    links = [(cached.file(commit, pin.path), cached.blob(pin)) for pin in pins]
    missing = [
        pin.path
        for pin, (link, blob) in zip(pins, links, strict=True)
        if not _is_file(blob, pin.size_bytes) and (link.is_symlink() or not _is_file(link, pin.size_bytes))
    ]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        shown = ", ".join(map(printable, missing[:_SHOWN])) + more
        words = f"cannot publish {repo} at {commit[:12]}: not in the cache, or of another size: {shown}"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words)
    if why := path_problem(revision):
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, f"cannot use revision {revision!r} of {repo}: it {why}")
    is_new = not snapshot.is_dir()
    try:
        snapshot.mkdir(parents=True, exist_ok=True)
        with _where_allowed():
            _tag(settings.cache_dir)
            if listing is not None and listing.commit == commit and listing.tree:
                _keep_tree(cached.folder / "trees" / f"{commit}.json", listing.tree)
        for link, blob in links:
            _link(snapshot, link, blob)
        with _where_allowed():
            # Of a commit that was here before and is only looked at again, it may be another one by now.
            is_news = is_new or listing is not None or cached.commit_of(revision) is None
            if is_news and not COMMIT.fullmatch(revision):
                _keep_ref(cached.folder / "refs" / revision, commit)
    except OSError as error:
        raise _failed(repo, commit, error) from error
    return snapshot


@contextlib.contextmanager
def _where_allowed() -> Iterator[None]:
    """Do without what only other tools want, in a cache that we may not write; they do the same."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


def _is_file(path: Path, size_bytes: int) -> bool:
    """Tell whether this, or what it is a link to, is a file of this size."""
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size_bytes


def _link(snapshot: Path, link: Path, blob: Path) -> None:
    """Make `link` lead to `blob`, with a relative path so that the cache may be moved as a whole."""
    folder = snapshot
    for name in link.relative_to(snapshot).parts[:-1]:
        folder /= name
        folder.mkdir(exist_ok=True)
        if not stat.S_ISDIR(folder.lstat().st_mode):  # a link could lead anywhere, and we would write there
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder", str(folder))
    target = os.path.relpath(blob, folder)
    try:
        found = link.lstat()
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISLNK(found.st_mode) or str(link.readlink()) == target:
            return
    aside = _aside(link)
    aside.symlink_to(target)
    aside.replace(link)


def _keep_tree(path: Path, tree: Mapping[str, Mapping[str, object]]) -> None:
    """Write a commit's listing, which never changes, where there is none yet."""
    if not path.exists():
        files = {name: dict(tree[name]) for name in sorted(tree)}
        _write(path, json.dumps({"format_version": TREE_VERSION, "files": files}, indent=1))


def _keep_ref(path: Path, commit: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path.read_text() == commit:
            return
    _write(path, commit)


def _tag(cache_dir: Path) -> None:
    path = cache_dir / "CACHEDIR.TAG"
    if not path.exists():
        _write(path, _CACHEDIR_TAG)


def _write(path: Path, text: str) -> None:
    """Write a file so that it is never seen half written, not even after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(path)
    try:
        with aside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _aside(path: Path) -> Path:
    """Return a name beside `path` that nobody else uses; short, because the name may be as long as names can be."""
    return path.with_name(f".{secrets.token_hex(6)}.tmp")


def _failed(repo: str, commit: str, error: OSError) -> WeightsError:
    kind = FailureClass.WEIGHTS_UNAVAILABLE
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = FailureClass.NO_SPACE
    elif error.errno in (errno.EPERM, errno.EOPNOTSUPP):
        why = f"{why}; the file system of weights.cache_dir must allow symbolic links"
    path = Path(error.filename) if isinstance(error.filename, str) else None
    return WeightsError(kind, f"cannot publish {repo} at {commit[:12]}: {path or 'cache'}: {why}", path=path)
