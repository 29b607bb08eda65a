"""Tells of each file of a part whether it is what it should be; changes nothing but what is known about the files.

Nothing is fetched or moved aside here, and no hub is asked: that is for `job`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import NOWHERE, HubSource, Part, Pin, Pinned, Progress, Settings, WeightsError, size_words
from modelsupd.weights.checking import Candidate, Checker, differs
from modelsupd.weights.resolved import known, placed
from modelsupd.weights.verdicts import Verdict, Verdicts


class Outcome(StrEnum):
    """What was found of a file. `STRUCTURE` means that nobody said by a digest which content it should have."""

    OK = "ok"
    STRUCTURE = "structure only"
    BAD = "bad"
    MISSING = "missing"
    UNREAD = "cannot be read"


#: What a model can be started with.
GOOD = frozenset({Outcome.OK, Outcome.STRUCTURE})


@dataclass(frozen=True, slots=True)
class Checked:
    """One file. `expected` and `actual` are digests with their kind, `sha256 …`, as far as they are known."""

    source: str
    path: str
    outcome: Outcome
    size_bytes: int | None
    expected: str | None = None
    actual: str | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """How it is done: verdicts from before `since` do not count, and with `deep` files are read that need not be."""

    settings: Settings
    engine: str
    deep: bool
    since: float
    progress: Callable[[int], None]
    stop: threading.Event


def verify(part: Part, locked: Pinned | None, how: Verification) -> list[Checked]:
    """Return what each file of a part is, sorted by path. Raises Stopped, and WeightsError for the part as a whole."""
    of = known(part, locked, how.settings, how.engine)
    if of is None:
        words = "none of its files is here, nor is it known which they are"
        return [Checked(str(part.source), "", Outcome.MISSING, None, words=words)]
    verdicts = Verdicts(how.settings.state_dir)
    checker = Checker(verdicts, how.progress, lambda _: None, how.stop, since=how.since)
    candidates = [
        Candidate(pin, path, hashed=how.deep or isinstance(part.source, HubSource) or pin.sha256 is not None)
        for pin, path in placed(part, of, how.settings)
    ]
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(lambda candidate: _one(str(part.source), candidate, checker), candidates))


def unread_bytes(parts: Sequence[tuple[Part, Pinned | None]], how: Verification) -> int:
    """Return how many bytes `verify` will read of these parts. Raises as `verify` does."""
    checker = Checker(Verdicts(how.settings.state_dir), how.progress, lambda _: None, how.stop, since=how.since)
    total = 0
    for part, locked in parts:
        of = known(part, locked, how.settings, how.engine)
        for pin, path in placed(part, of, how.settings) if of else ():
            hashed = how.deep or isinstance(part.source, HubSource) or pin.sha256 is not None
            if hashed and path.exists() and checker.known(Candidate(pin, path, hashed=True)) is None:
                total += path.stat().st_size
    return total


def _one(source: str, candidate: Candidate, checker: Checker) -> Checked:
    pin, path = candidate.pin, candidate.path
    expected = _expected(pin)
    try:
        size = path.stat().st_size
        (verdict,) = checker.check([candidate])
    except OSError as error:
        if error.errno in NOWHERE:
            return Checked(source, pin.path, Outcome.MISSING, None, expected, words=f"there is no '{path}'")
        return Checked(source, pin.path, Outcome.UNREAD, None, expected, words=f"{error.strerror}: '{path}'")
    except WeightsError as error:
        return Checked(source, pin.path, Outcome.UNREAD, None, expected, words=str(error))
    return _judged(source, pin, size, verdict, path)


def _judged(source: str, pin: Pin, size: int, verdict: Verdict, path: Path) -> Checked:
    expected = _expected(pin)
    actual = f"sha256 {verdict.sha256}" if verdict.sha256 else None
    if pin.sha256 is None and expected is not None:
        actual = f"git sha1 {verdict.git_sha1}"
    if (wrong := differs(pin, verdict)) is not None:
        sizes = "" if size == pin.size_bytes else f"; {size_words(pin.size_bytes)} expected, {size_words(size)} found"
        return Checked(source, pin.path, Outcome.BAD, size, *wrong, f"'{path}'{sizes}")
    if verdict.structure == "bad":
        return Checked(source, pin.path, Outcome.BAD, size, expected, actual, f"'{path}' {verdict.words}")
    if expected is None:
        words = verdict.words or "there is no digest to compare"
        return Checked(source, pin.path, Outcome.STRUCTURE, size, None, actual, words)
    return Checked(source, pin.path, Outcome.OK, size, expected, actual, verdict.words)


def _expected(pin: Pin) -> str | None:
    if pin.sha256 is not None:
        return f"sha256 {pin.sha256}"
    return f"git sha1 {pin.blob}" if pin.blob is not None else None


def digested(part: Part, settings: Settings, report: Callable[[Progress], None], stop: threading.Event) -> Pinned:
    """Return the files of a part on this host with the sha256 that each has now. Raises WeightsError, OSError."""
    of = known(part, None, settings, None)
    assert of is not None  # noqa: S101 - files of this host are always known
    done, counting = 0, threading.Lock()

    def moved(by_bytes: int) -> None:
        nonlocal done
        with counting:
            done += by_bytes
            report(Progress(f"hashing {part.source}", done, max(done, total)))

    checker = Checker(Verdicts(settings.state_dir), moved, lambda _: None, stop)
    candidates = [Candidate(pin, path) for pin, path in placed(part, of, settings)]
    total = sum(it.path.stat().st_size for it in candidates if checker.known(it) is None)
    verdicts = checker.check(candidates)
    pins = [replace(it.pin, sha256=verdict.sha256) for it, verdict in zip(candidates, verdicts, strict=True)]
    if part.sha256 not in (None, pins[0].sha256):
        words = f"cannot lock '{part.source}': its sha256 is {pins[0].sha256}, declared is {part.sha256}"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words)
    return replace(of, files=tuple(pins))
