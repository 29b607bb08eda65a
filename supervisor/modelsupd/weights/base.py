"""What the modules of this package hand to one another. All sizes in bytes; digests in lower-case hex."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from modelsupd.core.events import Failure, FailureClass

_KIB = 1024


class Role(StrEnum):
    """What a part is to its model."""

    WEIGHTS = "weights"
    MMPROJ = "mmproj"
    DRAFT = "draft"
    LORA = "lora"


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub, or one file of it; of a split GGUF, `file` names any shard and means all of them."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        """Return it as it is declared; `@main` is left out."""
        revision = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf:{self.repo}{revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A file or a folder of this host; of a split GGUF, the first shard."""

    path: Path

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)


Source = HubSource | LocalSource


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that a model's engine loads. `allow` and `ignore` are glob patterns that choose among a repo's files.

    `sha256` pins a source of a single file in models.toml itself.
    """

    role: Role
    source: Source
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Pin:
    """One file of a source: its path inside it (POSIX), size, and digest.

    `blob` is the name of the file in the hub's cache: the sha256 again, or git's sha1 of a small file, whose `sha256`
    is None until somebody has had the bytes.
    """

    path: str
    size_bytes: int
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Pinned:
    """All files of a source at one commit; `commit` is None for local files."""

    source: str
    commit: str | None
    files: tuple[Pin, ...]
    allow: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


class WeightsError(Exception):
    """Why weights cannot be used, with the class that decides what follows; the text is for people.

    `retry_after_s` is what a server asked for, `path` the file where it is about one.
    """

    def __init__(
        self, kind: FailureClass, words: str, *, retry_after_s: float | None = None, path: Path | None = None
    ) -> None:
        """Say why, in words that begin with `cannot`."""
        super().__init__(words)
        self.kind = kind
        self.retry_after_s = retry_after_s
        self.path = path

    @property
    def failure(self) -> Failure:
        """Return it as the core knows it."""
        return Failure(self.kind, str(self), self.retry_after_s)


class Stopped(Exception):  # noqa: N818 - named for what happened
    """Told to stop by the caller's event; what was there is kept, and whoever comes next goes on from it."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where one file is fetched from, and the headers that go with it; one of them may hold a token, so no `repr`.

    `what` names the file for people: `org/name/path`. The headers are for the host of `url` alone.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    what: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one state of a file from another without reading it: (device, inode, size, mtime)."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int

    def __str__(self) -> str:
        """Return it as it stands in fingerprints and in the names of verdicts."""
        return f"{self.device:x}-{self.inode:x}-{self.size_bytes:x}-{self.mtime_ns:x}"


#: How it is told that a path leads to no file.
NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


def identity_of(found: os.stat_result) -> Identity:
    """Return the identity that a look at a file saw."""
    return Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch or a verification has come, summed over files; `rate` in bytes a second, None when unknown.

    `file` is the one that moved just now, "" where that is not told, with how far it has come itself.
    """

    doing: str
    done_bytes: int
    total_bytes: int
    rate: float | None = None
    file: str = ""
    file_done_bytes: int = 0
    file_total_bytes: int = 0

    @property
    def left_s(self) -> float | None:
        """Return the time left in seconds, where it can be told."""
        return (self.total_bytes - self.done_bytes) / self.rate if self.rate else None


#: What can become of a file.
FETCHED, VERIFIED, MOVED_ASIDE = "fetched", "verified", "moved aside"


@dataclass(frozen=True, slots=True)
class FileDone:
    """What became of one file (`FETCHED`, `VERIFIED`, `MOVED_ASIDE`), with the words for it."""

    path: str
    outcome: str
    size_bytes: int
    words: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where weights are kept and how they are fetched: `[weights]` of models.toml, with its defaults filled in.

    `cache_dir` is the hub's cache (the folder that holds `models--ORG--NAME`), `state_dir` holds verdicts, records and
    the quarantine. `endpoint` is the hub's or a mirror's address, None for huggingface_hub's own default.
    """

    cache_dir: Path
    state_dir: Path
    endpoint: str | None = None
    token_file: Path | None = None
    offline: bool = False
    parts: int = 4
    part_bytes: int = 8 * 1024 * 1024
    stall_timeout_s: float = 30.0
    attempts: int = 8
    backoff_initial_s: float = 1.0
    backoff_max_s: float = 60.0
    min_free_bytes: int = 256 * 1024 * 1024
    lock_file: Path | None = field(default=None)


class FormatError(Exception):
    """Why a file's header cannot be read, in words that stand behind the file's name: `ends in its header`.

    `unknown` says that the file may be right and only we cannot tell: newer than we know, or beyond our limits.
    """

    def __init__(self, words: str, *, unknown: bool = False) -> None:
        """Say why."""
        super().__init__(words)
        self.unknown = unknown


@dataclass(frozen=True, slots=True)
class Structure:
    """Whether a file, or a set of them, is built as its format demands, told from headers and sizes alone.

    `unknown` is no reason to refuse: the bytes may still be right by their digest. `words` stand behind the file's
    name where the kind is not `ok`.
    """

    kind: Literal["ok", "unknown", "bad"]
    words: str = ""


def size_words(size_bytes: float) -> str:
    """Return a size with its binary unit: `812 B`, `1.2 GiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < _KIB:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KIB
    return f"{value:.1f} TiB"
