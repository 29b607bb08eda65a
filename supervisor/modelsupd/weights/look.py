"""Tells whether an engine can be started on what lies on this disk: the one place that decides it.

A part is whole when there is a record of which files make it up, the record agrees with the lock, and each of those
files is, as it lies there now, the one that a verdict is about. Nothing is hashed, fetched or asked for here: what
cannot be told at once is work for a worker (`job`), after which it is looked at again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.spec import Engine
from modelsupd.weights.base import (
    NOWHERE,
    HubSource,
    Identity,
    Part,
    Pin,
    Pinned,
    Role,
    Settings,
    WeightsError,
    identity_of,
    size_words,
)
from modelsupd.weights.cache import Repo, unreadable
from modelsupd.weights.folders import Links, path_of
from modelsupd.weights.records import Record, Records
from modelsupd.weights.sources import files_of, local_files
from modelsupd.weights.verdicts import Verdicts

#: Engines that load one GGUF file, not a folder.
LOAD_ONE_FILE = frozenset({Engine.LLAMA_CPP, Engine.LLAMA_CPP_PYTHON})


@dataclass(frozen=True, slots=True)
class Whole:
    """A part that an engine may load: `path` is what the engine is given, `proof` how its files were proven.

    Where `path` is a folder, `links` are its files, and `folders.lay_out` has to make it before an engine is started.
    """

    role: Role
    path: Path
    commit: str | None
    size_bytes: int
    proof: str
    links: Links = ()


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of all parts of a model.

    `whole` holds a member for each part in their order, None for one that is not. `todo` tells why a worker is needed,
    "" where none is. `failure` is what no worker can mend. `fingerprint` changes when any file does.
    """

    whole: tuple[Whole | None, ...]
    todo: str
    failure: Failure | None
    fingerprint: str

    @property
    def evidence(self) -> str:
        """Return in words how all of it was proven, "" where there is nothing to load."""
        found = [part for part in self.whole if part is not None]
        if not found or len(found) != len(self.whole):
            return ""
        proofs = sorted({part.proof for part in found})
        return f"weights: {size_words(sum(part.size_bytes for part in found))}, {', '.join(proofs)}"


class _TodoError(Exception):
    """A part is not known to be whole, and a worker could make it so."""


def look(parts: Sequence[Part], locked: Sequence[Pinned | None], settings: Settings, engine: str) -> Look:
    """Look at every part of a model. Blocks on file systems that do, so call it in a thread."""
    whole: list[Whole | None] = []
    todo, failure, prints = "", None, hashlib.sha256()
    ground = _Ground(Records(settings.state_dir), Verdicts(settings.state_dir), settings, engine, prints.update)
    for part, pinned in zip(parts, locked, strict=True):
        found = None
        try:
            found = _part(part, pinned, ground)
        except _TodoError as why:
            todo = todo or str(why)
            prints.update(str(why).encode())
        except WeightsError as error:
            failure = failure or error.failure
            prints.update(str(error).encode())
        except OSError as error:
            failure = failure or unreadable(Path(error.filename or str(part.source)), error).failure
            prints.update(str(error).encode())
        whole.append(found)
    if todo and settings.token_file is not None:
        # What the hub refused may be had with another token.
        prints.update(f"token={identify(settings.token_file)}".encode())
    return Look(tuple(whole), todo, failure, prints.hexdigest()[:16] if parts else "-")


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a look stands on; `note` is told of everything that the fingerprint depends on."""

    records: Records
    verdicts: Verdicts
    settings: Settings
    engine: str
    note: Callable[[bytes], None]


def _part(part: Part, pinned: Pinned | None, ground: _Ground) -> Whole:
    """Return the part, if it is whole."""
    record, settings = ground.records.get(part), ground.settings
    files = _where(part, record.pinned if record else None, settings)
    identities = {}
    for name, path in files:
        identity = identify(path)
        ground.note(f"{name}={identity or '-'};".encode())
        if identity is not None:
            identities[name] = identity
            if not os.access(path, os.R_OK):
                raise unreadable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)))
    if not isinstance(part.source, HubSource):
        _refuse_local(part, files, identities, ground.engine)
    if record is None:
        raise _TodoError(f"'{part.source}' was not looked into yet")
    _agree(part, pinned, record, {name for name, _ in files}, ground.engine)
    proofs = set()
    for pin in record.pinned.files:
        if pin.path not in identities:
            raise _TodoError(f"'{pin.path}' of '{part.source}' is missing")
        proofs.add(_proof(pin, identities[pin.path], ground.verdicts, part))
    proof = (
        "verified by sha256" if proofs == {"sha256"} else "checked for structure only: there is no digest to compare"
    )
    if pinned is not None or part.sha256:
        proof = "verified against the lock"
    return Whole(
        part.role,
        located(part, record.pinned, settings),
        record.pinned.commit,
        sum(pin.size_bytes for pin in record.pinned.files),
        proof,
        _links(part, record.pinned, settings),
    )


def _refuse_local(part: Part, files: Sequence[tuple[str, Path]], found: Mapping[str, Identity], engine: str) -> None:
    """Raise where local files cannot be what is meant, which no worker can mend."""
    missing = [str(path) for name, path in files if name not in found]
    if missing or not files:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        words = (
            f"cannot read the {part.role} '{missing[0] if missing else part.source}'{more}: {os.strerror(errno.ENOENT)}"
        )
        raise WeightsError(FailureClass.BAD_WEIGHTS, words)
    if engine in LOAD_ONE_FILE and Path(str(part.source)).is_dir():
        words = f"cannot load the {part.role} '{part.source}': it is a folder, and {engine} loads one GGUF file"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words)
    if engine == Engine.VLLM and part.role is Role.WEIGHTS and Path(str(part.source)).is_file():
        words = f"cannot load the {part.role} '{part.source}': it is a file, and vllm loads a whole folder"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words)
    if len(files) == 1 and found[files[0][0]].size_bytes == 0:
        raise WeightsError(FailureClass.BAD_WEIGHTS, f"cannot load the {part.role} '{part.source}': the file is empty")


def _where(part: Part, pinned: Pinned | None, settings: Settings) -> list[tuple[str, Path]]:
    """Return the files of a part, as far as they are known, with where they lie."""
    if not isinstance(part.source, HubSource):
        return list(local_files(part.source))
    if pinned is None or pinned.commit is None:
        return []
    repo = Repo(settings.cache_dir, part.source.repo)
    return [(pin.path, repo.file(pinned.commit, pin.path)) for pin in pinned.files]


def _agree(part: Part, pinned: Pinned | None, record: Record, names: set[str], engine: str) -> None:
    """Raise where the record is not of what is wanted now: another lock, other files, another engine."""
    if engine not in record.engines:
        raise _TodoError(f"'{part.source}' was not looked into for {engine} yet")
    known = {pin.path: pin for pin in record.pinned.files}
    if names != known.keys():
        raise _TodoError(f"the files of '{part.source}' are others than before")
    if pinned is not None:
        if pinned.commit != record.pinned.commit:
            raise _TodoError(f"the lock wants commit {pinned.commit} of '{part.source}'")
        wanted = {(pin.path, pin.sha256) for pin in pinned.files}
        if wanted != {(pin.path, pin.sha256) for pin in record.pinned.files}:
            raise _TodoError(f"the lock wants other files of '{part.source}'")
    if part.sha256 and [pin.sha256 for pin in record.pinned.files] != [part.sha256]:
        raise _TodoError(f"'{part.source}' is declared with another sha256")


def _proof(pin: Pin, identity: Identity, verdicts: Verdicts, part: Part) -> str:
    """Return how a file was proven; raises where it was not, as it lies there now."""
    verdict = verdicts.get(identity)
    if verdict is None:
        raise _TodoError(f"'{pin.path}' of '{part.source}' is not verified yet")
    if pin.sha256 is not None:
        if verdict.sha256 != pin.sha256:
            raise _TodoError(f"'{pin.path}' of '{part.source}' is another file than before")
        return "sha256"
    if verdict.structure == "bad":
        raise _TodoError(f"'{pin.path}' of '{part.source}' was found to be broken")
    return "structure"


def identify(path: Path) -> Identity | None:
    """Return what a file is told by, links followed; None where they lead to none, or in circles. Other errors pass."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of fifty files, the cheaper call
    except OSError as error:
        if error.errno in NOWHERE:
            return None
        raise
    return identity_of(found)


def located(part: Part, pinned: Pinned | None, settings: Settings) -> Path:
    """Return the path that an engine is given: a file, or a folder of links; of a split GGUF the first shard.

    Without `pinned` it is where a hub's files would come to lie, as far as that can be told.
    """
    if pinned is not None and (links := _links(part, pinned, settings)):
        return path_of(part.source, links, settings.state_dir)
    if not isinstance(part.source, HubSource):
        return part.source.path
    repo = Repo(settings.cache_dir, part.source.repo)
    commit = (pinned.commit if pinned else None) or repo.commit_of(part.source.revision)
    if commit is None:
        return repo.folder / "snapshots" / "(not resolved yet)" / (part.source.file or "")
    if part.source.file is None:
        return repo.snapshot(commit)
    return repo.file(commit, files_of(part.source.file)[0])


def _links(part: Part, pinned: Pinned, settings: Settings) -> Links:
    """Return what the folder of a part holds; nothing where the engine is given a file."""
    if isinstance(part.source, HubSource):
        if part.source.file is not None or pinned.commit is None:
            return ()
        snapshot = Repo(settings.cache_dir, part.source.repo).snapshot(pinned.commit)
    elif part.source.path.is_dir():
        snapshot = part.source.path
    else:
        return ()
    return tuple((pin.path, (snapshot / pin.path).absolute()) for pin in pinned.files)
