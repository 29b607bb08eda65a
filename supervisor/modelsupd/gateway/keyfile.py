"""The file of keys: `STATE/keys.json`, written by `modelsupd key`, read by the gateway.

A key is 32 random bytes, so that its SHA-256 gives nothing away and needs no salt; the key itself is shown once and
kept nowhere. A revoked key stays in the file: a host that ever had keys does not fall open when the last one goes.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from modelsupd.errors import ModelsupdError
from modelsupd.gateway import plain

VERSION = 1

#: The file's name in the state directory.
NAME = "keys.json"

_MARK = "msk-"
_RANDOM_BYTES = 32
_PREFIX_CHARACTERS = len(_MARK) + 6
_KEY_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
_LARGEST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key as it is kept. Times are RFC 3339; `models` are globs, none of them for all; a limit of 0 is none."""

    name: str
    digest: str
    """SHA-256 of the key, in hex."""
    prefix: str
    """Its first characters, by which people tell keys apart."""
    models: tuple[str, ...] = ()
    admin: bool = False
    max_concurrent: int = 0
    requests_per_minute: int = 0
    created: str = ""
    revoked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    v: int
    keys: tuple[Key, ...] = ()


def digest_of(key: str) -> str:
    """Return by what a key is known."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()


def read(path: Path) -> tuple[Key, ...]:
    """Return all keys, revoked ones too; none where there is no such file. Raises ModelsupdError."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise _unreadable(path, (error.strerror or str(error)).lower()) from error
    if len(raw) > _LARGEST_BYTES:
        raise _unreadable(path, f"it is larger than {_LARGEST_BYTES} bytes")
    try:
        content = plain.read(_File, json.loads(raw))
    except (ValueError, RecursionError) as error:
        # `Unreadable` is one of these; neither says anything of a digest.
        raise _unreadable(path, str(error)) from error
    if content.v != VERSION:
        raise _unreadable(path, f"it is of version {content.v}, and this is {VERSION}")
    return content.keys


def add(path: Path, key: Key) -> str:
    """Make a key with the name and limits of `key`, and return it: it is kept nowhere. Raises ModelsupdError."""
    if not _KEY_NAME.fullmatch(key.name):
        raise ModelsupdError(
            f"cannot add key '{key.name}': a name is 1 to 64 of the letters, digits and ._@-,"
            " and begins and ends with a letter or digit"
        )
    made = _MARK + base64.urlsafe_b64encode(secrets.token_bytes(_RANDOM_BYTES)).decode().rstrip("=")
    with _locked(path):
        keys = read(path)
        if any(each.name == key.name and each.revoked is None for each in keys):
            raise ModelsupdError(f"cannot add key '{key.name}': there is one of that name; revoke it first")
        _write(path, (*keys, replace(key, digest=digest_of(made), prefix=made[:_PREFIX_CHARACTERS], revoked=None)))
    return made


def revoke(path: Path, name: str, at: str) -> Key:
    """Revoke the key of that name, and return it. Raises ModelsupdError where there is none."""
    with _locked(path):
        keys = read(path)
        found = next((each for each in keys if each.name == name and each.revoked is None), None)
        if found is None:
            active = ", ".join(sorted(each.name for each in keys if each.revoked is None)) or "none"
            raise ModelsupdError(f"cannot revoke key '{name}': there is none of that name; there are: {active}")
        gone = replace(found, revoked=at)
        _write(path, tuple(gone if each is found else each for each in keys))
    return gone


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other writers away. The lock is a file of its own, since the keys' is replaced by each of them."""
    try:
        descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ModelsupdError(f"cannot change '{path}': {(error.strerror or str(error)).lower()}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    """Replace the file in one step; what was there stays until the new one is on disk."""
    text = json.dumps(plain.write(_File(v=VERSION, keys=keys)), indent=1) + "\n"
    fresh = path.with_suffix(".tmp")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, no path
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        fresh.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ModelsupdError(f"cannot write '{path}': {(error.strerror or str(error)).lower()}") from error


def _unreadable(path: Path, why: str) -> ModelsupdError:
    return ModelsupdError(f"cannot read the keys in '{path}': {why}")
