"""Makes the parts of a model whole: finds out which files they are, fetches what is missing, verifies the rest.

Runs in the worker process, and in commands such as `modelsupd pull`. It decides nothing about engines: when it is done,
`look` is asked again. Whatever interrupts it, the next one goes on from what lies on the disk.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.weights import hub, quarantine, resolved, structure, transfer
from modelsupd.weights.base import (
    FETCHED,
    MOVED_ASIDE,
    NOWHERE,
    FileDone,
    HubSource,
    Part,
    Pin,
    Pinned,
    Progress,
    Role,
    Stopped,
    WeightsError,
    size_words,
)
from modelsupd.weights.cache import Repo, unreadable
from modelsupd.weights.checking import Candidate, Checker, differs
from modelsupd.weights.parts import FULL, cannot_write
from modelsupd.weights.publishing import Listing, publish
from modelsupd.weights.records import Records
from modelsupd.weights.sources import local_files
from modelsupd.weights.verdicts import Verdict, Verdicts
from modelsupd.weights.wire import Job

#: How many missing files are named; of more, the number is said.
SHOWN = 5

#: So often a file may vanish while it is looked at.
MOST_VANISHINGS = 2

#: How to bring what is missing to a machine that has no network.
OFFLINE_ADVICE = (
    "where there is a network, 'modelsupd pull' and 'modelsupd export MODEL FILE.tar'; here 'modelsupd import FILE.tar'"
)


def carry_out(job: Job, report: Callable[[Progress | FileDone], None], stop: threading.Event) -> tuple[Pinned, ...]:
    """Do the job; return what each part was found to be, every file with its sha256 where one was taken.

    Raises WeightsError where a part cannot be made whole, Stopped when `stop` is set; what was done until then is kept.
    """
    work = _Work(job, report, stop)
    return tuple(work.part(part, locked) for part, locked in zip(job.parts, job.locked, strict=True))


class _Work:
    def __init__(self, job: Job, report: Callable[[Progress | FileDone], None], stop: threading.Event) -> None:
        self._job, self._settings, self._report, self._stop = job, job.settings, report, stop
        self._records = Records(self._settings.state_dir)
        self._checker = Checker(Verdicts(self._settings.state_dir), self._moved, report, stop)
        self._counting = threading.Lock()
        self._doing, self._done_bytes, self._total_bytes = "", 0, 0
        self._file_bytes: dict[str, int] = {}

    def part(self, part: Part, locked: Pinned | None) -> Pinned:
        if self._stop.is_set():
            raise Stopped
        try:
            if isinstance(part.source, HubSource):
                found = self._of_hub_at_last(part, part.source, locked)
            else:
                found = self._local(part, locked)
            self._records.put(found, self._job.engine)
        except OSError as error:
            path = Path(error.filename or str(part.source))
            raise (cannot_write if error.errno in FULL else unreadable)(path, error) from error
        return found

    # Progress

    @contextmanager
    def _doing_it(self, what: str, total_bytes: int) -> Iterator[None]:
        with self._counting:
            self._doing, self._done_bytes, self._total_bytes = what, 0, total_bytes
            self._file_bytes.clear()
        self._moved(0)
        yield
        self._moved(0)

    def _moved(self, by_bytes: int, pin: Pin | None = None) -> None:
        with self._counting:
            # What a server made us fetch again may not count beyond the whole.
            self._done_bytes = max(0, min(self._done_bytes + by_bytes, self._total_bytes))
            progress = Progress(self._doing, self._done_bytes, self._total_bytes)
            if pin is not None:
                done = max(0, min(self._file_bytes.get(pin.path, 0) + by_bytes, pin.size_bytes))
                self._file_bytes[pin.path] = done
                progress = replace(progress, file=pin.path, file_done_bytes=done, file_total_bytes=pin.size_bytes)
        if progress.total_bytes:
            self._report(progress)

    # Local files

    def _local(self, part: Part, locked: Pinned | None) -> Pinned:
        assert not isinstance(part.source, HubSource)  # noqa: S101 - the caller's choice
        known = {pin.path: pin for pin in locked.files} if locked else {}
        files = local_files(part.source)
        if locked and (other := known.keys() ^ {name for name, _ in files}):
            words = f"cannot use '{part.source}': the lock names other files; they differ in {_listed(sorted(other))}"
            raise WeightsError(FailureClass.BAD_WEIGHTS, words)
        candidates = []
        for name, path in files:
            expected = known[name].sha256 if name in known else part.sha256
            candidates.append(Candidate(Pin(name, path.stat().st_size, expected), path, hashed=expected is not None))
        for candidate, verdict in zip(candidates, self._verified(part, candidates), strict=True):
            if (wrong := differs(candidate.pin, verdict)) is not None:
                raise _wrong(part, candidate, wrong, "it is left where it lies, for it has no source to fetch it from")
            self._refuse_broken(candidate, verdict)
        self._complete(part, candidates)
        return Pinned(str(part.source), None, tuple(candidate.pin for candidate in candidates), part.allow, part.ignore)

    # The hub's files

    def _of_hub_at_last(self, part: Part, source: HubSource, locked: Pinned | None) -> Pinned:
        """Begin again where a file vanishes under our hands: another process has moved it aside and fetches it."""
        for _ in range(MOST_VANISHINGS):
            with contextlib.suppress(FileNotFoundError):
                return self._of_hub(part, source, locked)
        return self._of_hub(part, source, locked)

    def _of_hub(self, part: Part, source: HubSource, locked: Pinned | None) -> Pinned:
        repo = Repo(self._settings.cache_dir, source.repo)
        pinned, listing = self._pins(part, source, repo, locked)
        assert pinned.commit is not None  # noqa: S101 - whatever is of the hub is of a commit
        candidates = [self._candidate(repo, pinned.commit, pin) for pin in pinned.files]
        present = [self._is_there(repo, pinned.commit, candidate) for candidate in candidates]
        missing = [candidate for candidate, is_there in zip(candidates, present, strict=True) if not is_there]
        self._fetch(source, pinned, missing)
        there = [candidate for candidate, is_there in zip(candidates, present, strict=True) if is_there]
        verdicts = dict(zip((it.pin.path for it in there), self._verified(part, there), strict=True))
        wrong = [it for it in there if differs(it.pin, verdicts[it.pin.path])]
        for candidate in wrong:
            self._move_aside(repo, pinned.commit, candidate, verdicts[candidate.pin.path])
        self._fetch(source, pinned, wrong)
        fetched = {*missing, *wrong}
        final = [replace(it, path=repo.blob(it.pin)) if it in fetched else it for it in candidates]
        pins = []
        for candidate in final:
            verdict = self._checker.known(candidate)
            if verdict is None or differs(candidate.pin, verdict):
                words = f"cannot verify '{candidate.path}': it changes all the time"
                raise WeightsError(FailureClass.UNREACHABLE, words)
            self._refuse_broken(candidate, verdict)
            pins.append(replace(candidate.pin, sha256=verdict.sha256))
        self._complete(part, final)
        publish(source.repo, pinned.commit, source.revision, pinned.files, self._settings, listing=listing)
        return Pinned(str(source), pinned.commit, tuple(pins), part.allow, part.ignore)

    def _pins(self, part: Part, source: HubSource, repo: Repo, locked: Pinned | None) -> tuple[Pinned, Listing | None]:
        """Return the files of a source: as they are known here, else as the hub tells."""
        here = resolved.known(part, locked, self._settings, self._engine_of(part))
        if here is not None:
            return here, None
        # A commit that the cache has is not left for a newer one, unless it is known to be another than what is meant.
        commit = None if part.sha256 else repo.commit_of(source.revision)
        asked = replace(source, revision=commit or source.revision)
        with self._doing_it(f"asking for the files of {source}", 0):
            listing = hub.listing(asked, self._settings, stop=self._stop)
        assert listing.commit is not None  # noqa: S101 - the hub's answer is of a commit
        return resolved.pinned(part, listing.commit, listing.files), listing

    def _candidate(self, repo: Repo, commit: str, pin: Pin) -> Candidate:
        path = resolved.placed_in(repo, commit, pin)
        other = repo.blob_of(path)
        if other and pin.blob and len(other) == len(pin.blob) and other != pin.blob:
            # A link to another file of the repository. That one is right, as far as its name goes, and others use it.
            listed = _listed_pin(repo, commit, pin)
            if listed and listed.blob == other:
                raise _contradicted(path, other, pin.blob)
            path = repo.blob(pin)
        return Candidate(pin, path)

    def _is_there(self, repo: Repo, commit: str, candidate: Candidate) -> bool:
        try:
            found = candidate.path.stat()
        except OSError as error:
            if error.errno in NOWHERE:
                return False
            raise
        if found.st_size == candidate.pin.size_bytes:
            return True
        listed = _listed_pin(repo, commit, candidate.pin)
        if listed and listed.size_bytes == found.st_size:
            raise _contradicted(candidate.path, f"{found.st_size} bytes", f"{candidate.pin.size_bytes} bytes")
        self._move_aside(repo, commit, candidate, None)
        return False

    def _move_aside(self, repo: Repo, commit: str, candidate: Candidate, verdict: Verdict | None) -> None:
        """Move a file aside that is wrong, unless another process, or a file of the same content, has seen to it."""
        pin, path = candidate.pin, candidate.path.resolve()
        wrong = differs(pin, verdict) if verdict is not None else None
        try:
            size = path.stat().st_size
            now = self._checker.known(candidate) if verdict is not None else None
            if now != verdict or (verdict is None and size == pin.size_bytes):
                return
            expected, actual = wrong or (f"{pin.size_bytes} bytes", f"{size} bytes")
            listed = _listed_pin(repo, commit, pin)
            if wrong and verdict and listed and listed.sha256 == verdict.sha256:
                raise _contradicted(candidate.path, actual, expected)
            why = f"expected {expected}, found {actual}"
            digests = (expected.split()[-1], actual.split()[-1]) if wrong else (None, None)
            moved = quarantine.move_aside(path, self._settings.state_dir, why, *digests, origin=candidate.path)
        except FileNotFoundError:
            return
        except OSError as error:
            words = f"cannot move '{path}' aside, which is not what it should be: {error.strerror or error}"
            kind = FailureClass.NO_SPACE if error.errno in FULL else FailureClass.WEIGHTS_UNAVAILABLE
            raise WeightsError(kind, words, path=path) from error
        self._report(FileDone(pin.path, MOVED_ASIDE, pin.size_bytes, f"{why}; it lies in '{moved}' now"))

    def _fetch(self, source: HubSource, pinned: Pinned, wanted: Sequence[Candidate]) -> None:
        """Fetch files into the cache; small ones side by side, large ones one after the other in parts."""
        if not wanted:
            return
        total = sum(candidate.pin.size_bytes for candidate in wanted)
        lacking = f"{len(wanted)} of {len(pinned.files)} files of {source} are missing ({size_words(total)}): "
        lacking += _listed([candidate.pin.path for candidate in wanted])
        if self._settings.offline:
            words = f"cannot fetch what is missing: weights.offline is set; {lacking}; {OFFLINE_ADVICE}"
            raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words)
        self._records.own(replace(pinned, files=tuple(candidate.pin for candidate in wanted)))
        small = [candidate for candidate in wanted if candidate.pin.size_bytes <= self._settings.part_bytes]
        large = [candidate for candidate in wanted if candidate.pin.size_bytes > self._settings.part_bytes]
        try:
            count = "1 file" if len(wanted) == 1 else f"{len(wanted)} files"
            with self._doing_it(f"fetching {count} of {source}", total):
                with ThreadPoolExecutor(self._settings.parts) as pool:
                    list(pool.map(lambda candidate: self._fetch_one(source, pinned, candidate), small))
                for candidate in large:
                    self._fetch_one(source, pinned, candidate)
        except WeightsError as error:
            if error.kind is not FailureClass.UNREACHABLE:
                raise
            words = f"{error}; {lacking}; without a network: {OFFLINE_ADVICE}"
            raise WeightsError(error.kind, words, retry_after_s=error.retry_after_s) from error

    def _fetch_one(self, source: HubSource, pinned: Pinned, candidate: Candidate) -> None:
        assert pinned.commit is not None  # noqa: S101 - of the hub
        repo, pin = Repo(self._settings.cache_dir, source.repo), candidate.pin
        location = hub.location(source.repo, pinned.commit, pin.path, self._settings)
        final = repo.blob(pin)
        done = transfer.fetch(
            location,
            pin=pin,
            final=final,
            settings=self._settings,
            progress=lambda by_bytes: self._moved(by_bytes, pin),
            stop=self._stop,
        )
        if done.found:
            # Others wrote it, and may have done so while it was read: it is believed as any other file is.
            self._checker.check([replace(candidate, path=final)])
        else:
            self._checker.fetched(replace(candidate, path=final), done.sha256)
        self._report(FileDone(pin.path, FETCHED, pin.size_bytes))

    # Both

    def _verified(self, part: Part, candidates: Sequence[Candidate]) -> list[Verdict]:
        unknown = [it for it in candidates if it.hashed and self._checker.known(it) is None]
        with self._doing_it(f"verifying {part.source}", sum(it.path.stat().st_size for it in unknown)):
            return self._checker.check(candidates)

    def _complete(self, part: Part, candidates: Sequence[Candidate]) -> None:
        files = {candidate.pin.path: candidate.path for candidate in candidates}
        found = structure.check_set(files, self._engine_of(part))
        if found.kind == "bad":
            raise WeightsError(FailureClass.BAD_WEIGHTS, f"cannot load '{part.source}': {found.words}")

    def _engine_of(self, part: Part) -> str | None:
        return self._job.engine if part.role is Role.WEIGHTS else None

    def _refuse_broken(self, candidate: Candidate, verdict: Verdict) -> None:
        if verdict.structure == "bad":
            words = f"cannot load '{candidate.path}': it {verdict.words}"
            raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=candidate.path)


def _wrong(part: Part, candidate: Candidate, wrong: tuple[str, str], then: str) -> WeightsError:
    expected, actual = wrong
    said = "declared" if part.sha256 else "in the lock"
    words = f"cannot load '{candidate.path}': it has {actual}, and {said} is {expected}; {then}"
    return WeightsError(FailureClass.BAD_WEIGHTS, words, path=candidate.path)


def _listed_pin(repo: Repo, commit: str, pin: Pin) -> Pin | None:
    """Return a file as the hub listed it at this commit, where that is known."""
    return next((one for one in repo.tree(commit) or () if one.path == pin.path), None)


def _contradicted(path: Path, actual: str, expected: str) -> WeightsError:
    """Return the error for a file that is as the hub has it, and not as the lock does: the lock is what is wrong."""
    words = f"cannot load '{path}': it has {actual}, as the hub lists it at this commit, and in the lock is {expected}"
    return WeightsError(FailureClass.BAD_WEIGHTS, f"{words}; it is left where it lies", path=path)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
