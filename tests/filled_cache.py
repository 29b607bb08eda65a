"""A hub's cache filled by hand, as huggingface_hub lays it out, without any hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path

from modelsupd.weights.base import Pin, Pinned, Settings
from modelsupd.weights.cache import Repo
from modelsupd.weights.publishing import publish

COMMIT, OTHER = "a" * 40, "b" * 40


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def pin(path: str, content: bytes, *, small: bool = False) -> Pin:
    return Pin(path, len(content), sha256(content), git_sha1(content) if small else sha256(content))


def fill(
    settings: Settings,
    source: str,
    contents: Mapping[str, bytes],
    *,
    commit: str = COMMIT,
    small: Collection[str] = (),
) -> Pinned:
    """Put a source's files into the cache and return what they are; `small` are named by git's sha1."""
    repo_name = "/".join(source.removeprefix("hf:").partition("@")[0].split("/")[:2])
    repo = Repo(settings.cache_dir, repo_name)
    repo.blobs.mkdir(parents=True, exist_ok=True)
    pins = tuple(pin(path, content, small=path in small) for path, content in sorted(contents.items()))
    for one in pins:
        repo.blob(one).write_bytes(contents[one.path])
    publish(repo_name, commit, "main", pins, settings)
    return Pinned(source, commit, pins)


def listed(cache_dir: Path) -> list[str]:
    """Return every file and link below a cache, locks and its tag left out."""
    found = [path for path in cache_dir.rglob("*") if not path.is_dir() or path.is_symlink()]
    names = [path.relative_to(cache_dir).as_posix() for path in found]
    return sorted(name for name in names if not name.startswith(".locks") and name != "CACHEDIR.TAG")


def tiny_safetensors(fill_with: bytes = b"\0") -> bytes:
    """Return the smallest file that is built as it should be."""
    header = json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + fill_with * 8
