"""What a source is known to be without asking anybody: which files, at which commit, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.weights import structure
from modelsupd.weights.base import NOWHERE, HubSource, Part, Pin, Pinned, Settings, WeightsError
from modelsupd.weights.cache import Repo
from modelsupd.weights.records import Records
from modelsupd.weights.sources import chosen, local_files


def known(part: Part, locked: Pinned | None, settings: Settings, engine: str | None) -> Pinned | None:
    """Return the files of a part: as locked, as resolved before, as the cache has them; None where nobody knows.

    Of local files that no lock pins it is those that are there. A cache that nobody listed is believed where its files
    are complete for `engine`. What has not the sha256 that is declared is not what is meant, and the hub may have it by
    now. Raises WeightsError, and OSError of local files.
    """
    if locked is not None:
        return locked
    if not isinstance(part.source, HubSource):
        pins = tuple(Pin(name, _size(path), part.sha256) for name, path in local_files(part.source))
        return Pinned(str(part.source), None, pins, part.allow, part.ignore)
    record = Records(settings.state_dir).get(part)
    if record is not None and _has_declared(part, record.pinned.files):
        return record.pinned
    repo = Repo(settings.cache_dir, part.source.repo)
    commit = repo.commit_of(part.source.revision)
    if commit is None:
        return None
    files = repo.tree(commit)
    if files is None and _is_complete(part, repo, commit, engine):
        files = repo.pins_by_names(commit)
    if files is None or not _has_declared(part, chosen(part, files)):
        return None
    return pinned(part, commit, files)


def pinned(part: Part, commit: str, files: Sequence[Pin]) -> Pinned:
    """Return those of a commit's files that a part means. Raises WeightsError, also for a sha256 that is not theirs."""
    pins = chosen(part, files)
    if part.sha256 is not None:
        if len(pins) != 1:
            words = f"cannot use sha256 with '{part.source}': it is {len(pins)} files; 'modelsupd pull' locks them all"
            raise WeightsError(FailureClass.BAD_WEIGHTS, words)
        if pins[0].sha256 not in (None, part.sha256):
            words = f"cannot use '{part.source}': its sha256 is {pins[0].sha256}, declared is {part.sha256}"
            raise WeightsError(FailureClass.BAD_WEIGHTS, words)
    return Pinned(str(part.source), commit, pins, part.allow, part.ignore)


def placed(part: Part, of: Pinned, settings: Settings) -> tuple[tuple[Pin, Path], ...]:
    """Return where each file lies, or would lie: under the name that engines are given, else as a blob of the cache."""
    if not isinstance(part.source, HubSource):
        folder = part.source.path if part.source.path.is_dir() else part.source.path.parent
        return tuple((pin, folder / pin.path) for pin in of.files)
    repo = Repo(settings.cache_dir, part.source.repo)
    assert of.commit is not None  # noqa: S101 - whatever is of the hub is of a commit
    return tuple((pin, placed_in(repo, of.commit, pin)) for pin in of.files)


def placed_in(repo: Repo, commit: str, pin: Pin) -> Path:
    """Return where a file of the cache lies: in the snapshot, else among the blobs, where it will be put."""
    at = repo.file(commit, pin.path)
    return at if at.exists() else repo.blob(pin)


def _has_declared(part: Part, files: Sequence[Pin]) -> bool:
    return part.sha256 is None or all(pin.sha256 in (None, part.sha256) for pin in files)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        if error.errno in NOWHERE:
            return 0  # one shard of several, or the file itself: whoever wants it will see
        raise


def _is_complete(part: Part, repo: Repo, commit: str, engine: str | None) -> bool:
    """Tell whether a snapshot of a cache that nobody listed looks whole: by its own index, shards and config."""
    pins = repo.pins_by_names(commit)
    if not pins or repo.dangling(commit) or any(pin.blob is None for pin in pins):
        return False
    try:
        picked = chosen(part, pins)
    except WeightsError:
        return False
    files = {pin.path: repo.file(commit, pin.path) for pin in picked}
    return structure.check_set(files, engine).kind != "bad"
