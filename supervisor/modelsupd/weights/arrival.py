"""Takes in what an archive holds: verified on the way, and given its names only when all of it was found right.

The counterpart of `archive.export`, with the same rules.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from modelsupd.core.events import FailureClass
from modelsupd.weights import structure
from modelsupd.weights.archive import PIECE_BYTES, Archive, Moved
from modelsupd.weights.base import HubSource, Part, Pin, Pinned, Settings, Stopped, WeightsError, identity_of
from modelsupd.weights.cache import Repo
from modelsupd.weights.kept import sync_folder
from modelsupd.weights.lock import Lock, key_of
from modelsupd.weights.parts import PART_SUFFIX, beside, cannot_write, locked
from modelsupd.weights.publishing import publish
from modelsupd.weights.quarantine import move_aside
from modelsupd.weights.records import Records
from modelsupd.weights.sources import files_of, parse
from modelsupd.weights.verdicts import Verdict, Verdicts

_GIT_SHA1_CHARS = 40


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a content goes; `lock` is what others hold who write a blob, None for a local file."""

    final: Path
    pin: Pin
    lock: Path | None


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A content that is on disk under a name that nobody looks for, with what was found out about it."""

    place: _Place
    path: Path
    file: IO[bytes]
    verdict: Verdict


def import_(
    path: Path,
    settings: Settings,
    *,
    parts: Sequence[Part],
    lock: Lock,
    progress: Moved,
    stop: threading.Event,
) -> tuple[Pinned, ...]:
    """Take in the archive at `path` and return what it held; `parts` are those that models.toml declares.

    What is there already and right stays as it is. Raises Stopped, and WeightsError: BAD_WEIGHTS for an archive that is
    wrong or not what the lock says, NO_SPACE with the bytes missing, WEIGHTS_UNAVAILABLE for what cannot be written.
    """
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        words = f"cannot read '{path}': {error.strerror}"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words, path=path) from error
    with file:
        return take_in(file, settings, parts=parts, lock=lock, progress=progress, stop=stop)


def take_in(
    file: BinaryIO,
    settings: Settings,
    *,
    parts: Sequence[Part],
    lock: Lock,
    progress: Moved,
    stop: threading.Event,
) -> tuple[Pinned, ...]:
    """Do the same with an archive that is open already, for whoever may not open it."""
    path = Path(file.name)
    with ExitStack() as cleared:
        archive = Archive(path, file)
        for pinned in archive.sources:
            _refuse(archive, pinned, parts, lock)
        wanted = _missing(archive, settings, stop)
        _refuse_without_space(path, wanted, settings)
        arrived = []
        for sha256, places in wanted.items():
            arrived += _receive(archive, sha256, places, cleared, progress, stop)
        for one in arrived:
            _give_name(one, settings, stop)
    for pinned in archive.sources:
        source = parse(pinned.source)
        if isinstance(source, HubSource) and pinned.commit:
            Records(settings.state_dir).own(pinned)
            publish(source.repo, pinned.commit, source.revision, pinned.files, settings)
    return archive.sources


def _refuse(archive: Archive, pinned: Pinned, parts: Sequence[Part], lock: Lock) -> None:
    """Raise where a source is not what models.toml and models.lock want, or has no place here."""
    wanted = next((entry for entry in lock.entries if key_of(entry) == key_of(pinned)), None)
    if wanted and (wanted.commit, _contents(wanted)) != (pinned.commit, _contents(pinned)):
        what = f"commit {pinned.commit}" if wanted.commit != pinned.commit else "other files"
        raise archive.bad(f"it holds {what} of '{pinned.source}', and the lock wants {wanted.commit or 'others'}")
    declared = [part for part in parts if (str(part.source), part.allow, part.ignore) == key_of(pinned)]
    for part in declared:
        if part.sha256 and [pin.sha256 for pin in pinned.files] != [part.sha256]:
            raise archive.bad(f"its '{pinned.source}' has not the sha256 {part.sha256} that models.toml declares")
    if not isinstance(parse(pinned.source), HubSource) and not declared:
        raise archive.bad(f"it holds the local '{pinned.source}', which no model here has; declare it in models.toml")


def _contents(pinned: Pinned) -> set[tuple[str, str | None]]:
    return {(pin.path, pin.sha256) for pin in pinned.files}


def _missing(archive: Archive, settings: Settings, stop: threading.Event) -> dict[str, list[_Place]]:
    """Return for each content the places where it has to go, without those where it is already."""
    found: dict[str, list[_Place]] = {sha256: [] for sha256 in archive.contents}
    verdicts = Verdicts(settings.state_dir)
    for pinned in archive.sources:
        source = parse(pinned.source)
        for pin in pinned.files:
            if isinstance(source, HubSource):
                repo = Repo(settings.cache_dir, source.repo)
                place = _Place(repo.blob(pin), pin, repo.lock(pin.blob or ""))
            else:
                place = _Place(_folder(source.path, pinned) / pin.path, pin, None)
            same = [other.final for other in found[pin.sha256 or ""]]
            if place.final not in same and not _is_there(place, verdicts, stop):
                if place.lock is None and os.path.lexists(place.final):
                    raise archive.bad(f"another file is at '{place.final}'; move it away first")
                found[pin.sha256 or ""].append(place)
    return found


def _folder(path: Path, pinned: Pinned) -> Path:
    """Return the folder in which the files of a local source lie: itself, or its parent where it is a file."""
    is_file = {pin.path for pin in pinned.files} <= set(files_of(path.name)) and not path.is_dir()
    return path.parent if is_file else path


def _is_there(place: _Place, verdicts: Verdicts, stop: threading.Event) -> bool:
    """Tell whether the right content has this name already."""
    hasher = hashlib.sha256()
    try:
        with place.final.open("rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if found.st_size != place.pin.size_bytes:
                return False
            verdict = verdicts.get(identity_of(found))
            if verdict is not None and verdict.sha256 is not None:
                return verdict.sha256 == place.pin.sha256
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
                if stop.is_set():
                    raise Stopped
    except OSError:
        return False
    return hasher.hexdigest() == place.pin.sha256


def _refuse_without_space(path: Path, wanted: dict[str, list[_Place]], settings: Settings) -> None:
    """Raise where the disks have no room for all that is to come; what cannot be told is found out later."""
    needed: dict[int, tuple[Path, int]] = {}
    for place in (place for places in wanted.values() for place in places):
        folder = next(folder for folder in place.final.parents if folder.exists())
        device = folder.stat().st_dev
        needed[device] = folder, needed.get(device, (folder, 0))[1] + place.pin.size_bytes
    for folder, needed_bytes in needed.values():
        missing = needed_bytes + settings.min_free_bytes - shutil.disk_usage(folder).free
        if missing > 0:
            words = f"cannot import '{path}': {missing} bytes of space are missing in {folder}"
            raise WeightsError(FailureClass.NO_SPACE, words, path=folder)


def _receive(
    archive: Archive,
    sha256: str,
    places: Sequence[_Place],
    cleared: ExitStack,
    progress: Moved,
    stop: threading.Event,
) -> list[_Arrived]:
    """Read the next content and write it beside the places where it goes. Raises WeightsError where it is not right."""
    files = [_open_beside(place.final, cleared) for place in places]
    hasher = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % archive.contents[sha256], usedforsecurity=False)
    named_by_git = any(len(place.pin.blob or "") == _GIT_SHA1_CHARS for place in places)
    for piece in archive.read(sha256, stop):
        hasher.update(piece)
        if named_by_git:
            git.update(piece)
        for path, file in files:
            _write(path, file, piece)
        progress(len(piece))
    if hasher.hexdigest() != sha256:
        raise archive.bad(f"the sha256 of one of its files is {hasher.hexdigest()}, and should be {sha256}")
    arrived = []
    for place, (path, file) in zip(places, files, strict=True):
        if len(place.pin.blob or "") == _GIT_SHA1_CHARS and place.pin.blob != git.hexdigest():
            raise archive.bad(f"git's sha1 of {place.pin.path!r} is {git.hexdigest()}, and should be {place.pin.blob}")
        built = structure.check_file(path, place.pin.path)
        if built.kind == "bad":
            raise archive.bad(f"{place.pin.path!r} {built.words}")
        sha1 = git.hexdigest() if named_by_git else None
        verdict = Verdict(sha256, sha1, built.kind, built.words, place.pin.path, time.time())
        arrived.append(_Arrived(place, path, file, verdict))
    return arrived


def _open_beside(final: Path, cleared: ExitStack) -> tuple[Path, IO[bytes]]:
    """Return a new file beside its final name, locked so that the collector leaves it alone; `cleared` removes it."""
    path = beside(final, f".{secrets.token_hex(6)}{PART_SUFFIX}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        file = cleared.enter_context(path.open("xb", buffering=0))
        cleared.callback(path.unlink, missing_ok=True)
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise cannot_write(path, error) from error
    return path, file


def _write(path: Path, file: IO[bytes], piece: memoryview) -> None:
    try:
        while piece:
            piece = piece[file.write(piece) :]
    except OSError as error:
        raise cannot_write(path, error) from error


def _give_name(arrived: _Arrived, settings: Settings, stop: threading.Event) -> None:
    """Publish one content that was found right, durably, and keep what was found out about it."""
    place = arrived.place
    with ExitStack() as held:
        if place.lock is not None:
            held.enter_context(locked(place.lock, stop))
        try:
            os.fsync(arrived.file.fileno())
            if place.lock is None:
                if os.path.lexists(place.final):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place.final))
            elif place.final.exists():
                if _is_there(place, Verdicts(settings.state_dir), stop):
                    return  # another process brought it meanwhile
                why = "differs from what was imported under its name"
                move_aside(place.final, settings.state_dir, why, expected=place.pin.sha256, actual=None)
            os.rename(arrived.path, place.final)  # noqa: PTH104 - beside os.fsync
            sync_folder(place.final.parent)
        except OSError as error:
            raise cannot_write(place.final, error) from error
    arrived.file.close()
    identity = identity_of(place.final.stat())
    Verdicts(settings.state_dir).put(place.final, identity, arrived.verdict, settled=True)
