"""The bytes of one file: several connections side by side, and its digest taken while they come in.

The first connection asks alone. Others join it when the server has shown that it keeps to ranges, and if waiting for
its bytes takes longer than hashing them: else they would only take the cores' time from both. Each takes the next piece
that nobody has taken, so that the file grows from its start, and the digest is taken of what has grown. All decisions
on whether to go on are here; HTTP is in `ranged`, what is there of the file in `parts`, what goes to the digest in
`inorder`.
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
from modelsupd.weights.inorder import InOrder
from modelsupd.weights.parts import PartFile, in_words
from modelsupd.weights.ranged import Answer, Attempt, Pace, Route, Wire
from modelsupd.weights.ranges import Ranges

#: Received, written and hashed at once: what fits into a core's cache; and how many may be on their way to the digest.
BUFFER_BYTES = 1024 * 1024
BUFFERS = 4

#: What a kill -9 loses of each connection: a buffer, or what came in so much time.
_MARK_EVERY_S = 0.5

#: How much must have come between two failures for the count of failures to begin anew.
_PROGRESS_BYTES = 64 * 1024

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

#: After so many bytes the disk is told to begin with them, so that syncs, the last one above all, find little to do.
_SEND_BYTES = 64 * 1024 * 1024

#: How often the end is looked for while nothing comes, in seconds.
_LOOK_EVERY_S = 0.1

#: The first connection is slow when waiting for its bytes takes so many times as long as hashing them, measured over so
#: long a wait; or when it lets wait for so long on end.
_SLOW = 2.0
_JOIN_AFTER_S = 0.2
_JOIN_ANYWAY_S = 0.5


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
        #: Whether more than one connection was let in, and may be: the server keeps to ranges.
        self._side_by_side = self._may_join = False
        #: How long was waited for bytes that came, and how long those took that were hashed.
        self._waited_s = self._hashing_s = 0.0
        self._in_order = InOrder(self._changed, BUFFERS, min(BUFFER_BYTES, part.size))

    def run(self, stop: threading.Event, *, git: bool) -> Digests:
        """Return the digests when all bytes are there, git's too if it is asked for.

        Raises WeightsError, Again, and Stopped when `stop` is set.
        """
        try:
            if self._part.done.total < self._part.size:
                self._start(self._work)
            if self._part.size > _SEND_BYTES:
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
        own = memoryview(bytearray(min(BUFFER_BYTES, size)))
        at = 0
        while at < size:
            view, buffer = self._grown(at, own, stop)
            began_at = time.monotonic()
            if buffer is None:
                self._part.read(view, at)
            sha256.update(view)
            if git:
                sha1.update(view)
            at += len(view)
            self._hashed(at, buffer, time.monotonic() - began_at)
        return Digests(sha256.hexdigest(), sha1.hexdigest() if git else None)

    def _grown(self, at: int, own: memoryview, stop: threading.Event) -> tuple[memoryview, memoryview | None]:
        """Wait until there is more of the file than `at`; return the bytes with the buffer that they were received in.

        Without one they have to be read back, into the part of `own` that is returned.
        """
        began_at = time.monotonic()
        while True:
            with self._changed:
                if stop.is_set():
                    raise Stopped
                if self._error:
                    raise self._error
                for wire in self._wires:
                    wire.abort_if_late()
                if found := self._in_order.taken():
                    return found
                if (until := self._part.done.prefix) > at and not self._in_order.is_coming:
                    view = own[: until - at]
                    self._in_order.begin(at + len(view))
                    return view, None
                self._changed.wait(_LOOK_EVERY_S)
                joining = self._joining(time.monotonic() - began_at)
            for _ in range(joining):
                self._start(self._work)

    def _hashed(self, at: int, buffer: memoryview | None, took_s: float) -> None:
        with self._changed:
            was_far_ahead, self._hashed_bytes = self._is_far_ahead(), at
            self._hashing_s += took_s
            if buffer is not None:
                self._in_order.give_back(buffer)
            elif was_far_ahead and not self._is_far_ahead():
                self._changed.notify_all()

    def _joining(self, waiting_s: float) -> int:
        """Return how many connections are to join the first one, for which the digest has been waiting."""
        if not self._may_join or self._side_by_side:
            return 0
        took = self._waited_s * self._hashed_bytes, _SLOW * self._hashing_s * self.received_bytes
        is_slow = self._hashed_bytes > 0 and took[0] >= took[1]  # before anything was hashed nothing can be compared
        if not (is_slow and self._waited_s >= _JOIN_AFTER_S) and waiting_s < _JOIN_ANYWAY_S:
            return 0
        self._side_by_side = True
        return self._connections - 1

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
        worth_bytes, failures, seen_bytes = 0.0, 0, 0
        with self._changed:
            self._wires.append(wire)
            buffer = [self._in_order.new()]
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

    def _fetch(self, wire: Wire, buffer: list[memoryview], start: int, end: int) -> float:
        """Fetch a piece; return how many bytes a piece had better have, by how this one came."""
        if (pause_s := self._pause_until - time.monotonic()) > 0 and self._ended.wait(pause_s):
            return 0.0
        began_at = time.monotonic()
        answer = wire.get(start, end, self._part.etag)
        waited_s = time.monotonic() - began_at
        start, end = self._accept(answer)
        self._receive(answer, buffer, start, end)
        if not (answer.finish() and answer.ranged):  # of a whole file what was there already may be unread
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
            self._may_join = answer.ranged and self._connections > 1
            return answer.start, answer.end

    def _receive(self, answer: Answer, buffer: list[memoryview], start: int, end: int) -> None:
        """Receive what is not there yet of `[start, end)`: all of a range.

        A whole file in place of one is read past what is there. That may have been hashed already, and the digest has
        to be of the bytes that the file holds in the end.
        """
        pace, at = Pace(self._settings.stall_timeout_s), start
        if answer.ranged:
            self._receive_gap(answer, buffer, (start, end), pace)
            return
        while (gap := self._part.done.gap(end)) is not None:
            self._skip(answer, buffer[0], gap[0] - at, pace)
            self._receive_gap(answer, buffer, gap, pace)
            at = gap[1]

    def _receive_gap(self, answer: Answer, buffer: list[memoryview], gap: tuple[int, int], pace: Pace) -> None:
        start, end = gap
        at, marked, waited_s = start, start, 0.0
        mark_at = time.monotonic() + _MARK_EVERY_S
        try:
            while at < end:
                asked_at = time.monotonic()
                count = self._read(answer, buffer[0][at - marked :][: end - at], end - at)
                now = time.monotonic()
                waited_s += now - asked_at
                self._part.write(buffer[0][at - marked :][:count], at)
                at += count
                if at - marked == len(buffer[0]) or now >= mark_at:
                    self._mark(marked, at, buffer, waited_s)
                    marked, mark_at, waited_s = at, now + _MARK_EVERY_S, 0.0
                if pace.stands_still(count, now):
                    raise self._lost(TimeoutError())
        finally:
            self._mark(marked, at, buffer, waited_s)

    def _skip(self, answer: Answer, view: memoryview, count: int, pace: Pace) -> None:
        left = count
        try:
            while left:
                got = self._read(answer, view[:left], left)
                left -= got
                if pace.stands_still(got, time.monotonic()):
                    raise self._lost(TimeoutError())
        finally:
            with self._changed:
                self.received_bytes += count - left

    def _read(self, answer: Answer, view: memoryview, left: int) -> int:
        try:
            count = answer.read_into(view)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error
        if count == 0:
            raise self._route.broken(f"ended the connection {left} bytes before the end of a range")
        return count

    def _lost(self, error: Exception) -> Attempt:
        if isinstance(error, TimeoutError):
            return self._route.broken(f"has sent next to nothing for {self._settings.stall_timeout_s:g} s")
        return self._route.unreached(error)

    def _mark(self, start: int, end: int, buffer: list[memoryview], waited_s: float) -> None:
        """Record what was received and written, and pass it on to the digest if it is next, for another buffer."""
        with self._changed:
            new = self._part.mark(start, end)
            self.received_bytes += end - start
            self._waited_s += waited_s
            self._new_bytes += new
            if new:
                self._progress(new)
            if not self._in_order.passed(start, end, buffer, self._ended):
                self._changed.notify_all()

    # -- the thread that syncs ----------------------------------------------------------------------------------------

    def _sync(self) -> None:
        synced_at, sent_bytes = time.monotonic(), 0
        while not self._ended.wait(_LOOK_EVERY_S):
            now = time.monotonic()
            late = now - synced_at >= _SYNC_EVERY_S and self._part.unsynced_bytes
            if late or self._part.unsynced_bytes >= _SYNC_BYTES:
                self._part.sync()
                synced_at, sent_bytes = time.monotonic(), self._new_bytes
            elif self._new_bytes - sent_bytes >= _SEND_BYTES:
                sent_bytes = self._new_bytes
                self._part.send_to_disk()
