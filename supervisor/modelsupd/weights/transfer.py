"""Fetches one file of a hub so that it is whole and verified when it has its name, whatever happens in between.

Rules:

1. A file gets its final name only after its digest was found to be the one that was asked for.
2. One process at a time works on a blob, by the lock that huggingface_hub takes too. Whoever waited looks first
   whether it is there by now, and believes it only by its digest.
3. What was fetched wholly and is not what was asked for is moved aside; another try follows, and no third.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.weights import digest, quarantine
from modelsupd.weights.base import Location, Pin, Settings, Stopped, WeightsError
from modelsupd.weights.cache import unreadable
from modelsupd.weights.download import Again, Digests, Download
from modelsupd.weights.parts import PART_SUFFIX, RECORD_SUFFIX, PartFile, beside, cannot_write, locked
from modelsupd.weights.ranged import Route

#: How often a transfer begins again because the server has another file, or stops keeping to ranges.
_MOST_AGAIN = 3


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is there and was verified just now.

    `received_bytes` came over the network in this call. `found` says that it was there already: somebody else has
    fetched it, perhaps while this call waited.
    """

    path: Path
    size_bytes: int
    sha256: str
    received_bytes: int
    found: bool


def fetch(
    location: Location,
    *,
    pin: Pin,
    final: Path,
    settings: Settings,
    progress: Callable[[int], None],
    stop: threading.Event,
) -> Fetched:
    """Make `final` the file of this pin, fetched from `location` as far as it is not there yet.

    `progress` is told of bytes that are there in addition, first of those that an earlier call has left; the number is
    negative where some had to be given up. It is called by several threads, one at a time. Raises WeightsError
    (UNREACHABLE, NO_SPACE, BAD_WEIGHTS, WEIGHTS_UNAVAILABLE) and Stopped; what is there is then kept for the next call.
    """
    return _Fetch(location, pin, final, settings, progress, stop).run()


class _Fetch:
    """One call of `fetch`."""

    def __init__(
        self,
        location: Location,
        pin: Pin,
        final: Path,
        settings: Settings,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        expected = pin.sha256 or pin.blob
        if expected is None:
            raise ValueError(f"{pin.path} is pinned without a digest")
        self._expected = expected
        self._location = location
        self._pin = pin
        self._final = final
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._received_bytes = 0

    def run(self) -> Fetched:
        """Return when it is there."""
        with self._alone():
            for last in (False, True):
                with locked(beside(self._final, PART_SUFFIX), self._stop, mode=0o666) as fd:
                    if (there := self._there()) is not None:
                        self._tidy()
                        return there
                    with contextlib.closing(PartFile(self._final, fd, self._pin.size_bytes)) as part:
                        part.allocate(self._settings.min_free_bytes)
                        digests = self._downloaded(part)
                        if self._actual(digests) == self._expected:
                            part.publish()
                            size = self._pin.size_bytes
                            return Fetched(self._final, size, digests.sha256, self._received_bytes, found=False)
                        aside = self._put_aside(part.path, self._actual(digests))
                        part.forget()
                        self._progress(-self._pin.size_bytes)
                        if last:
                            raise self._unverified(self._actual(digests), aside)
        raise AssertionError  # the second round returns or raises

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the blob; a file outside of a hub's cache has none but its part file's."""
        if self._final.parent.name != "blobs":
            yield
            return
        repo = self._final.parents[1]
        with locked(repo.parent / ".locks" / repo.name / f"{self._final.name}.lock", self._stop):
            yield

    def _there(self) -> Fetched | None:
        """Return the file if somebody has fetched it, and it is the right one; move it aside if it is not."""
        final, size = self._final, self._pin.size_bytes
        try:
            if not final.exists():
                return None
            actual = None
            if final.stat().st_size == size:
                sha256 = digest.sha256([final], self._progress, self._stop)[0]
                actual = sha256 if self._pin.sha256 else digest.git_sha1(final)
                if actual == self._expected:
                    return Fetched(final, size, sha256, 0, found=True)
                self._progress(-size)
        except OSError as error:
            raise unreadable(final, error) from error
        self._put_aside(final, actual)
        return None

    def _downloaded(self, part: PartFile) -> Digests:
        """Return the digests of all bytes, once they are there."""
        self._progress(part.done.total)
        digests = self._connected(part)
        if part.resumed_bytes and self._actual(digests) != self._expected:
            # What an earlier process has left was perhaps not what it wrote, so all of it is fetched anew.
            self._progress(-part.restart())
            digests = self._connected(part)
        return digests

    def _connected(self, part: PartFile) -> Digests:
        settings, size = self._settings, self._pin.size_bytes
        route = Route(self._location, size)
        connections = max(1, min(settings.parts, size // settings.part_bytes))
        for count in range(1, _MOST_AGAIN + 1):
            download = Download(route, part, settings, self._progress, connections=connections)
            try:
                return download.run(self._stop, git=self._pin.sha256 is None)
            except Again as again:
                if count == _MOST_AGAIN:
                    raise again.error from again
                if again.changed:
                    self._progress(-part.restart())
                if count > 1 or not again.changed:
                    connections = 1
            finally:
                self._received_bytes += download.received_bytes
            if self._stop.wait(settings.backoff_initial_s):
                raise Stopped
        raise AssertionError  # the last round returns or raises

    def _actual(self, digests: Digests) -> str:
        return digests.sha256 if self._pin.sha256 else digests.git_sha1 or ""

    def _put_aside(self, path: Path, actual: str | None) -> Path:
        what = self._location.what or self._pin.path
        why = f"{what} is not what it should be"
        try:
            state_dir = self._settings.state_dir
            return quarantine.move_aside(path, state_dir, why, self._expected, actual, origin=self._final)
        except OSError as error:
            raise cannot_write(path, error) from error

    def _tidy(self) -> None:
        """Remove what is left of a transfer whose file is there."""
        for suffix in (PART_SUFFIX, RECORD_SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                beside(self._final, suffix).unlink()

    def _unverified(self, actual: str, aside: Path) -> WeightsError:
        what = self._location.what or self._pin.path
        return WeightsError(
            FailureClass.BAD_WEIGHTS,
            f"cannot fetch {what}: what came twice has the digest {actual} and not {self._expected};"
            f" it was moved to {aside}",
            path=self._final,
        )
