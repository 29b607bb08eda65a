"""Reads the hub's cache as huggingface_hub lays it out: which commit, which files, which digests, where they lie.

Nothing here asks a network, writes, or reads the content of weights; it is quick enough for the daemon. The layout:

- `models--ORG--NAME/refs/REVISION` holds the commit that a branch or tag was resolved to;
- `trees/COMMIT.json` lists all files of a commit with size and digests (since huggingface_hub 2.0);
- `blobs/DIGEST` are the files: sha256 for large ones, git's sha1 for small ones. One may be a link into a store that
  repositories share;
- `snapshots/COMMIT/PATH` are links to blobs, under the names that engines expect;
- `blobs/*.incomplete` and our own part files are no blobs: a blob has the name of its digest and nothing else.

What lies there is written by other tools too and is believed only as far as its digest: names are checked before they
become paths, and a digest says what a file should be, never what it is.
"""

# ruff: noqa: PTH111, PTH112, PTH115, PTH116, PTH118, PTH120, PTH208 - plain strings are much faster, and this is asked often

from __future__ import annotations

import errno
import json
import os
import pwd
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import Pin, WeightsError
from modelsupd.weights.sources import path_problem

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
_REPO = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?(?:/[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?)?")

#: As `os.path.expandvars` sees them.
_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})", re.ASCII)

#: The version of `trees/COMMIT.json` that is understood; another one counts as no listing, as huggingface_hub does it.
TREE_VERSION = 1

#: Far above any real listing: a repository of 100 000 files has one of 30 MB.
_LARGEST_TREE_BYTES = 128 * 1024 * 1024


def cache_dir_of(environ: Mapping[str, str]) -> Path:
    """Return the cache that huggingface_hub uses in this environment (its constants.py, 2.4.0), whether it exists."""
    home = _expanded("~", environ)
    root = environ.get("HF_HOME", f"{environ.get('XDG_CACHE_HOME', f'{home}/.cache')}/huggingface")
    root = _expanded(root, environ)
    return Path(
        _expanded(environ.get("HF_HUB_CACHE", environ.get("HUGGINGFACE_HUB_CACHE", f"{root}/hub")), environ)
    ).absolute()


def is_digest(blob: str | None) -> bool:
    """Tell whether a blob's name is a digest, the only names that blobs have."""
    return blob is not None and bool(_SHA256.fullmatch(blob) or _GIT_SHA1.fullmatch(blob))


def folder_name(repo: str) -> str:
    """Return the name of a model's folder in the cache; raises WeightsError for what is no repository's name."""
    if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, f"cannot use '{repo}': it is no name of a repository")
    return f"models--{repo.replace('/', '--')}"


class Repo:
    """One repository in the cache. Its methods return None for what is not there.

    All raise WeightsError(WEIGHTS_UNAVAILABLE) for what is there and may not be read, with the user who would need to.
    """

    def __init__(self, cache_dir: Path, repo: str) -> None:
        """Take the cache's folder and the repository's name; neither needs to exist."""
        self.repo = repo
        self.cache_dir = cache_dir
        self.folder = cache_dir / folder_name(repo)

    @property
    def blobs(self) -> Path:
        """Return the folder of the blobs."""
        return self.folder / "blobs"

    def lock(self, blob: str) -> Path:
        """Return the file that is flocked by whoever fetches this blob, huggingface_hub too."""
        return self.cache_dir / ".locks" / self.folder.name / f"{_checked(blob)}.lock"

    def blob(self, pin: Pin) -> Path:
        """Return where a file's bytes lie or will lie; it may be a link into the store that repositories share."""
        return self.blobs / _checked(pin.blob or pin.sha256)

    def snapshot(self, commit: str) -> Path:
        """Return the folder of a commit's files, under the names that engines expect."""
        if not COMMIT.fullmatch(commit):
            raise WeightsError(
                FailureClass.WEIGHTS_UNAVAILABLE, f"cannot use commit '{commit}': 40 hex digits make one"
            )
        return self.folder / "snapshots" / commit

    def file(self, commit: str, path: str) -> Path:
        """Return where an engine finds a file of a commit."""
        if why := path_problem(path):
            raise WeightsError(FailureClass.BAD_WEIGHTS, f"cannot use {path!r} of {self.repo}: it {why}")
        return self.snapshot(commit) / path

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a revision was last resolved to; a commit is its own."""
        if COMMIT.fullmatch(revision):
            return revision
        if path_problem(revision):
            return None
        text = self._read(self.folder / "refs" / revision, 4096)
        commit = text.strip() if text else ""
        return commit if COMMIT.fullmatch(commit) else None

    def tree(self, commit: str) -> tuple[Pin, ...] | None:
        """Return all files that the commit has, whether they are here or not; None without a listing of this commit.

        Paths are as the hub gave them: `file` and `sources.refuse` tell which of them may be used.
        """
        if not COMMIT.fullmatch(commit):
            return None
        text = self._read(self.folder / "trees" / f"{commit}.json", _LARGEST_TREE_BYTES)
        try:
            listing = json.loads(text or "null")
            if listing["format_version"] != TREE_VERSION:
                return None
            return tuple(_pin(path, entry) for path, entry in sorted(listing["files"].items()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def pins_by_names(self, commit: str) -> tuple[Pin, ...] | None:
        """Return the files that the commit's snapshot has, with digests from the names of their blobs.

        For caches filled without a listing; it cannot know what is missing, but for `dangling`. None without a
        snapshot. A file that is no link to a blob has no digest that anybody knows, so its pin has none.
        """
        pins = []
        found = False
        for entry in self._entries(commit):
            found = True
            try:
                size = entry.stat().st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.ELOOP:
                    continue
                raise self._unreadable(error) from error
            blob = self.blob_of(Path(entry.path))
            path = PurePosixPath(os.path.relpath(entry.path, self.snapshot(commit))).as_posix()
            pins.append(Pin(path, size, blob if blob and _SHA256.fullmatch(blob) else None, blob))
        return tuple(sorted(pins, key=lambda pin: pin.path)) if found else None

    def dangling(self, commit: str) -> tuple[str, ...]:
        """Return the paths of the snapshot whose blob is gone: they were whole once and are missing now."""
        snapshot = self.snapshot(commit)
        return tuple(
            sorted(os.path.relpath(entry.path, snapshot) for entry in self._entries(commit) if not _exists(entry.path))
        )

    def commits(self) -> tuple[str, ...]:
        """Return the commits of which there is a snapshot, whole or not."""
        try:
            return tuple(sorted(name for name in os.listdir(self.folder / "snapshots") if COMMIT.fullmatch(name)))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except OSError as error:
            raise self._unreadable(error) from error

    def _entries(self, commit: str) -> Iterator[os.DirEntry[str]]:
        """Yield everything in a snapshot that is no folder; links to folders are entries, and not followed."""
        folders = [str(self.snapshot(commit))]
        while folders:
            try:
                with os.scandir(folders.pop()) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif not (entry.is_symlink() and os.path.isdir(entry.path)):
                            yield entry
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise self._unreadable(error) from error

    def blob_of(self, link: Path) -> str | None:
        """Return the digest in the name of the blob of this repository that a link points to; None for no link."""
        if not link.is_symlink():
            return None
        target = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        folder, name = os.path.split(target)
        return name if is_digest(name) and folder == os.path.normpath(self.blobs) else None

    def _read(self, path: Path, most_bytes: int) -> str | None:
        try:
            with path.open("rb") as file:
                data = file.read(most_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(error) from error
        return data.decode(errors="replace") if len(data) <= most_bytes else None

    def _unreadable(self, error: OSError) -> WeightsError:
        return unreadable(Path(error.filename or self.folder), error)


def unreadable(path: Path, error: OSError) -> WeightsError:
    """Return what it means that a file of the cache cannot be read, with the user that we are."""
    words = f"cannot read {path}: {error.strerror}"
    if isinstance(error, PermissionError):
        blocked = next(
            (folder for folder in reversed(path.parents) if not os.access(folder, os.X_OK, effective_ids=True)), path
        )
        words = f"cannot read {path}: user '{_user()}' may not read {blocked}; give it access, or set weights.cache_dir"
    return WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words, path=path)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _checked(blob: str | None) -> str:
    if blob is None or not is_digest(blob):
        raise WeightsError(FailureClass.BAD_WEIGHTS, f"cannot use blob '{blob}': a blob is named by its digest")
    return blob


def _pin(path: str, entry: Mapping[str, object]) -> Pin:
    """Return a listed file; raises ValueError or TypeError for what cannot be one."""
    sha256 = entry.get("lfs_sha256")
    size = entry.get("lfs_size") if sha256 is not None else entry["size"]
    blob = entry["blob_id"] if sha256 is None else sha256
    if not isinstance(size, int) or size < 0 or not isinstance(blob, str) or not is_digest(blob):
        raise ValueError(path)
    if sha256 is not None and not _SHA256.fullmatch(blob):
        raise ValueError(path)
    return Pin(path, size, blob if sha256 is not None else None, blob)


def _exists(path: str) -> bool:
    """Tell whether a link leads to something; unlike `os.path.exists` it takes what may not be read for there."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return True


def _expanded(text: str, environ: Mapping[str, str]) -> str:
    """Return a path with `~` and `$NAME` filled in from this environment, as huggingface_hub does from its own."""
    if text == "~" or text.startswith("~/"):
        home = environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
        text = home.rstrip("/") + text[1:]
    elif text.startswith("~"):
        text = os.path.expanduser(text)
    return re.sub(_VARIABLE, lambda found: environ.get(found[1] or found[2] or "", found[0]), text)
