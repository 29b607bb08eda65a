"""The bytes of one file: several connections side by side, and its digest taken while they come in.

The first connection asks alone. Only when the server has shown that it keeps to ranges do others join it. Each takes
the next piece that nobody has taken, so that the file grows from its start, and the digest is taken of what has grown.
All decisions on whether to go on are here; HTTP is in `ranged`, what is there of the file in `parts`.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from modelsupd.weights.base import Settings, Stopped, WeightsError
from modelsupd.weights.parts import PartFile, Ranges, in_words
from modelsupd.weights.ranged import Answer, Attempt, Route, Wire

#: Read, written and hashed at once: what fits into a core's cache.
BUFFER_BYTES = 1024 * 1024

#: What a kill -9 loses of each connection: so much, or what came in so much time.
_MARK_BYTES = 1024 * 1024
_MARK_EVERY_S = 0.5

#: How much must have come between two failures for the count of failures to begin anew.
_PROGRESS_BYTES = 64 * 1024

#: A connection that delivers less than so many bytes a second, over the stall timeout, stands still.
_LEAST_RATE = 64

#: A piece grows until it takes so many times as long as the wait for its first byte, so that asking costs little beside
#: it, but to no more than so many parts: of large pieces the first one comes late, and only what comes in order can be
#: hashed meanwhile.
_PIECE_PER_WAIT = 20
_MOST_PARTS_IN_PIECE = 8

#: So much may have come that is not hashed yet. Where a network is faster than a core hashes, fetching more would only
#: take the other cores' time from it, and the bytes would have left the caches by the time they are read back.
_AHEAD_BYTES = 64 * 1024 * 1024

#: So often, or after so many bytes, what came is made to outlive a power cut.
_SYNC_EVERY_S = 10.0
_SYNC_BYTES = 512 * 1024 * 1024

#: How often the end is looked for while nothing comes, in seconds.
_LOOK_EVERY_S = 0.1


class Again(Exception):  # noqa: N818 - named for what follows
    """It has to be begun again: the server has another file now, or does not keep to ranges after all."""

    def __init__(self, attempt: Attempt, *, changed: bool) -> None:
        """Take what it is when it happens too often, and whether what is there has become useless."""
        super().__init__(str(attempt))
        self.error = attempt.error
        self.changed = changed


@dataclass(frozen=True, slots=True)
class Digests:
    """What was found of a file's bytes."""

    sha256: str
    git_sha1: str | None


class Download:
    """One run of the connections. What its threads share is changed with `_changed` held."""

    def __init__(
        self, route: Route, part: PartFile, settings: Settings, progress: Callable[[int], None], *, connections: int
    ) -> None:
        """Prepare it; `progress` is called with the number of new bytes, by one thread at a time."""
        self.received_bytes = 0
        self._route = route
        self._part = part
        self._settings = settings
        self._connections = connections
        self._progress = progress
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._wires: list[Wire] = []
        self._taken: dict[int, tuple[int, int]] = {}
        self._error: BaseException | None = None
        self._pause_until = 0.0
        self._new_bytes = 0
        #: Up to where it was hashed, and what was there before: an earlier call's, which is hashed while more comes.
        self._hashed_bytes = 0
        self._begun_bytes = part.done.prefix
        #: Whether more than one connection was let in.
        self._side_by_side = False

    def run(self, stop: threading.Event, *, git: bool) -> Digests:
        """Return the digests when all bytes are there, git's too if it is asked for.

        Raises WeightsError, Again, and Stopped when `stop` is set.
        """
        try:
            if self._part.done.total < self._part.size:
                self._start(self._work)
            if self._part.size > _SYNC_BYTES:
                self._start(self._sync)
            return self._hash(stop, git=git)
        finally:
            self._ended.set()
            with self._changed:
                threads, wires = list(self._threads), list(self._wires)
            for wire in wires:
                wire.abort()
            for thread in threads:
                thread.join()

    # -- the thread of the caller: hashes what has grown --------------------------------------------------------------

    def _hash(self, stop: threading.Event, *, git: bool) -> Digests:
        size = self._part.size
        sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        view = memoryview(bytearray(min(BUFFER_BYTES, size)))
        at = 0
        while at < size:
            until = self._grown(at, stop)
            count = self._part.read(view[: until - at], at)
            sha256.update(view[:count])
            if git:
                sha1.update(view[:count])
            at += count
        return Digests(sha256.hexdigest(), sha1.hexdigest() if git else None)

    def _grown(self, at: int, stop: threading.Event) -> int:
        """Wait until there is more of the file than `at`; return how much there is, without a gap."""
        with self._changed:
            was_far_ahead, self._hashed_bytes = self._is_far_ahead(), at
            if was_far_ahead and not self._is_far_ahead():
                self._changed.notify_all()
        while True:
            with self._changed:
                if stop.is_set():
                    raise Stopped
                if self._error:
                    raise self._error
                for wire in self._wires:
                    wire.abort_if_late()
                if self._part.done.prefix > at:
                    return self._part.done.prefix
                self._changed.wait(_LOOK_EVERY_S)

    # -- the threads of the connections -------------------------------------------------------------------------------

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guarded, args=(target,), daemon=True)
        with self._changed:
            self._threads.append(thread)
        thread.start()

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _work(self) -> None:
        wire = Wire(self._route, self._settings.stall_timeout_s, self._ended)
        buffer = memoryview(bytearray(min(BUFFER_BYTES, self._part.size)))
        worth_bytes, failures, seen_bytes = 0.0, 0, 0
        with self._changed:
            self._wires.append(wire)
        try:
            while not self._ended.is_set() and (piece := self._take(worth_bytes)):
                try:
                    worth_bytes = self._fetch(wire, buffer, *piece)
                    failures = 0
                except Attempt as failed:
                    wire.close()
                    if self._ended.is_set():
                        return
                    if self._new_bytes - seen_bytes >= _PROGRESS_BYTES:
                        failures = 0
                    seen_bytes = self._new_bytes
                    failures += 1
                    self._give_back()
                    self._pause(failed, failures)
                finally:
                    self._give_back()
        finally:
            wire.close()

    def _take(self, worth_bytes: float) -> tuple[int, int] | None:
        """Return the next piece for this thread, about as long as it is worth; None when there is none left."""
        part_bytes, size = self._settings.part_bytes, self._part.size
        with self._changed:
            while self._is_far_ahead() and not self._ended.is_set():
                self._changed.wait(_LOOK_EVERY_S)
            ranges = Ranges([*self._part.done, *self._taken.values()])
            if (gap := ranges.gap(size)) is None:
                return None
            start, end = gap
            if self._connections > 1:
                share = (size - ranges.total) // (2 * self._connections)
                parts = int(min(worth_bytes, share, part_bytes * _MOST_PARTS_IN_PIECE) // part_bytes)
                end = min(end, start + max(1, parts) * part_bytes)
            self._taken[threading.get_ident()] = (start, end)
            return start, end

    def _is_far_ahead(self) -> bool:
        return self._part.done.prefix - max(self._hashed_bytes, self._begun_bytes) > _AHEAD_BYTES

    def _give_back(self) -> None:
        with self._changed:
            self._taken.pop(threading.get_ident(), None)

    def _pause(self, failed: Attempt, failures: int) -> None:
        """Wait until it is time for another try; raises the error when there is none left."""
        settings, error = self._settings, failed.error
        if failures >= min(failed.tries or settings.attempts, settings.attempts):
            tried = f" ({failures} attempts without progress)" if failures > 1 else ""
            kept = f"; what was fetched is kept, {in_words(self._part.done.total)} of {in_words(self._part.size)}"
            raise WeightsError(error.kind, f"{error}{tried}{kept}", retry_after_s=error.retry_after_s) from failed
        delay_s = min(settings.backoff_max_s, settings.backoff_initial_s * 2 ** (failures - 1))
        delay_s *= random.uniform(0.5, 1)  # noqa: S311 - so that many do not come back at the same moment
        if error.retry_after_s is not None:
            if error.retry_after_s > settings.backoff_max_s:
                raise error
            # All connections wait, since it is one server that asks for it.
            delay_s = max(delay_s, error.retry_after_s)
            with self._changed:
                self._pause_until = max(self._pause_until, time.monotonic() + delay_s)
        self._ended.wait(delay_s)

    def _fetch(self, wire: Wire, buffer: memoryview, start: int, end: int) -> float:
        """Fetch a piece; return how many bytes a piece had better have, by how this one came."""
        if (pause_s := self._pause_until - time.monotonic()) > 0 and self._ended.wait(pause_s):
            return 0.0
        began_at = time.monotonic()
        answer = wire.get(start, end, self._part.etag)
        waited_s = time.monotonic() - began_at
        start, end = self._accept(answer)
        self._receive(answer, buffer, start, end)
        if not answer.finish():
            wire.close()
        rate = (end - start) / max(time.monotonic() - began_at - waited_s, 1e-6)
        return rate * waited_s * _PIECE_PER_WAIT

    def _accept(self, answer: Answer) -> tuple[int, int]:
        """Decide on what an answer says; return the bytes that it holds."""
        with self._changed:
            if answer.etag != self._part.etag:
                if self._part.done.total or self._side_by_side:
                    raise Again(self._route.wrong("has another file there than a while ago"), changed=True)
                self._part.name_etag(answer.etag)
            if not answer.ranged and self._side_by_side:
                raise Again(self._route.wrong("does not keep to ranges any more"), changed=False)
            self._taken[threading.get_ident()] = (answer.start, answer.end)
            others = 0
            if answer.ranged and not self._side_by_side:
                self._side_by_side, others = self._connections > 1, self._connections - 1
        for _ in range(others):
            self._start(self._work)
        return answer.start, answer.end

    def _receive(self, answer: Answer, buffer: memoryview, start: int, end: int) -> None:
        at = marked = start
        mark_at = time.monotonic() + _MARK_EVERY_S
        window_until, window_at = time.monotonic() + self._settings.stall_timeout_s, at
        try:
            while at < end:
                try:
                    count = answer.read_into(buffer[: end - at])
                except (OSError, http.client.HTTPException) as error:
                    raise self._lost(error) from error
                if count == 0:
                    raise self._route.broken(f"ended the connection {end - at} bytes before the end of a range")
                self._part.write(buffer[:count], at)
                at += count
                now = time.monotonic()
                if at - marked >= _MARK_BYTES or now >= mark_at:
                    self._mark(marked, at)
                    marked, mark_at = at, now + _MARK_EVERY_S
                if now >= window_until:
                    if at - window_at < _LEAST_RATE * self._settings.stall_timeout_s:
                        raise self._lost(TimeoutError())
                    window_until, window_at = now + self._settings.stall_timeout_s, at
        finally:
            self._mark(marked, at)

    def _lost(self, error: Exception) -> Attempt:
        if isinstance(error, TimeoutError):
            return self._route.broken(f"has sent next to nothing for {self._settings.stall_timeout_s:g} s")
        return self._route.unreached(error)

    def _mark(self, start: int, end: int) -> None:
        with self._changed:
            new = self._part.mark(start, end)
            self.received_bytes += end - start
            self._new_bytes += new
            if new:
                self._progress(new)
            self._changed.notify_all()

    # -- the thread that syncs ----------------------------------------------------------------------------------------

    def _sync(self) -> None:
        synced_at = time.monotonic()
        while not self._ended.wait(_LOOK_EVERY_S):
            now = time.monotonic()
            late = now - synced_at >= _SYNC_EVERY_S and self._part.unsynced_bytes
            if late or self._part.unsynced_bytes >= _SYNC_BYTES:
                self._part.sync()
                synced_at = time.monotonic()
