"""Reads whole files to find out what they are, and keeps a verdict of each; runs in the worker process only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.weights import digest, structure
from modelsupd.weights.base import (
    VERIFIED,
    FileDone,
    FormatError,
    Identity,
    Pin,
    Stopped,
    Structure,
    WeightsError,
    identity_of,
)
from modelsupd.weights.verdicts import Verdict, Verdicts, settles_in_s

_GIT_SHA1_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that lies at `path` and should be `pin`; `hashed` tells whether it has to be read to the end."""

    pin: Pin
    path: Path
    hashed: bool = True


class Checker:
    """Checks files; each is read once for as long as it does not change."""

    def __init__(
        self,
        verdicts: Verdicts,
        progress: Callable[[int], None],
        report: Callable[[FileDone], None],
        stop: threading.Event,
        *,
        since: float = 0.0,
    ) -> None:
        """Tell `progress` of bytes that were hashed, `report` of files that were checked.

        Verdicts from before `since`, in seconds since the epoch, do not count.
        """
        self._verdicts, self._progress, self._report, self._stop = verdicts, progress, report, stop
        self._since = since

    def known(self, candidate: Candidate) -> Verdict | None:
        """Return what is known of the file as it lies there now, if that is all that is asked; OSError passes."""
        verdict = self._verdicts.get(identity_of(candidate.path.stat()))
        if verdict is None or verdict.at < self._since or (candidate.hashed and verdict.sha256 is None):
            return None
        return None if _by_git(candidate.pin) and verdict.git_sha1 is None else verdict

    def check(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return what each file is, and keep it. Raises WeightsError, OSError, Stopped."""
        unknown = [candidate for candidate in candidates if self.known(candidate) is None]
        identities = [self._settled(candidate.path) for candidate in unknown]
        began_ns = time.time_ns()
        hashed = [candidate for candidate in unknown if candidate.hashed]
        sums = digest.sha256([candidate.path for candidate in hashed], self._progress, self._stop)
        by_path = dict(zip((candidate.path for candidate in hashed), sums, strict=True))
        fresh = {}
        for candidate, identity in zip(unknown, identities, strict=True):
            found = by_path.get(candidate.path)
            fresh[candidate.path] = self._conclude(candidate, identity, found, began_ns=began_ns)
        return [fresh.get(candidate.path) or self._kept(candidate) for candidate in candidates]

    def fetched(self, candidate: Candidate, sha256: str) -> Verdict:
        """Return what a file is whose bytes passed through our hands just now, and keep it."""
        identity = identity_of(candidate.path.stat())
        return self._conclude(candidate, identity, sha256, began_ns=time.time_ns(), settled=True)

    def _kept(self, candidate: Candidate) -> Verdict:
        verdict = self.known(candidate)
        if verdict is None:
            raise _changing(candidate, "was changed while it was read")
        return verdict

    def _settled(self, path: Path) -> Identity:
        """Return the identity of a file once nothing that is written later can share it."""
        while (left_s := settles_in_s(identity := identity_of(path.stat()))) > 0:
            if self._stop.wait(left_s):
                raise Stopped
        return identity

    def _conclude(
        self, candidate: Candidate, identity: Identity, sha256: str | None, *, began_ns: int, settled: bool = False
    ) -> Verdict:
        pin, path = candidate.pin, candidate.path
        git_sha1 = digest.git_sha1(path) if _by_git(pin) else None
        built = _structure(path, pin.path)
        verdict = Verdict(sha256, git_sha1, built.kind, built.words, pin.path, time.time())
        why = self._verdicts.put(path, identity, verdict, began_ns=began_ns, settled=settled)
        if why:
            raise _changing(candidate, why)
        if not settled and built.kind != "bad":
            self._report(FileDone(pin.path, VERIFIED, identity.size_bytes))
        return verdict


def differs(pin: Pin, verdict: Verdict) -> tuple[str, str] | None:
    """Return (expected, actual) where a file is not the one that was meant, else None; also where nobody said which."""
    if pin.sha256 is not None and verdict.sha256 != pin.sha256:
        return f"sha256 {pin.sha256}", f"sha256 {verdict.sha256}"
    if pin.sha256 is None and _by_git(pin) and verdict.git_sha1 != pin.blob:
        return f"git sha1 {pin.blob}", f"git sha1 {verdict.git_sha1}"
    return None


def _by_git(pin: Pin) -> bool:
    return pin.blob is not None and len(pin.blob) == _GIT_SHA1_DIGITS


def _structure(path: Path, name: str) -> Structure:
    try:
        return structure.check_file(path, name)
    except FormatError as error:
        return Structure("unknown" if error.unknown else "bad", str(error))


def _changing(candidate: Candidate, why: str) -> WeightsError:
    words = f"cannot verify '{candidate.path}': it {why}"
    return WeightsError(FailureClass.UNREACHABLE, words, path=candidate.path)
