"""Who waits for a model, in which order, and for how long. It decides nothing: whoever waits is asked to try again.

Those who were at work already and lost their engine stand before everyone who has only just come, and do not count
against the limit: turning them away would undo what was promised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from modelsupd.gateway import errors
from modelsupd.gateway.base import Availability, Model
from modelsupd.gateway.errors import Trouble


class Waiter(Protocol):
    """A request that waits."""

    def wake(self) -> bool:
        """Try again; return whether it waits no more."""

    def overdue(self, now: float) -> None:
        """Learn the time: it may be too late, or time for a word to the client."""


class Queue:
    """The requests of one model: how many are with its engines, and who waits, first come first."""

    __slots__ = ("_back", "_front", "_pumping", "_stirred", "active", "model")

    def __init__(self, model: str, stirred: Callable[[str], None]) -> None:
        """Begin with nobody; `stirred` is called with the model when somebody waits, and when nobody does any more."""
        self.model = model
        self.active = 0
        self._stirred = stirred
        # Who waits, and since when.
        self._front: dict[Waiter, float] = {}
        self._back: dict[Waiter, float] = {}
        self._pumping = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._front) + len(self._back)

    def since(self) -> float:
        """Return since when the first of those waits who wait now; infinite where none does."""
        return min(next(iter(line.values()), math.inf) for line in (self._front, self._back))

    def has_room(self, model: Model) -> bool:
        """Tell whether one more may be with the model's engines."""
        return not model.max_concurrent or self.active < model.max_concurrent

    def is_full(self, model: Model) -> bool:
        """Tell whether nobody more may wait."""
        return len(self._back) >= model.max_queued

    def join(self, waiter: Waiter, now: float, *, first: bool = False) -> None:
        """Let one wait; `first` before everyone who was not at work already."""
        (self._front if first else self._back)[waiter] = now
        if len(self) == 1:
            self._stirred(self.model)

    def leave(self, waiter: Waiter) -> None:
        """Let one go; nothing if it does not wait."""
        if self._front or self._back:
            self._front.pop(waiter, None)
            self._back.pop(waiter, None)
            if not (self._front or self._back):
                self._stirred(self.model)

    def position(self, waiter: Waiter) -> int:
        """Return the place of one that waits, from 1."""
        for place, each in enumerate((*self._front, *self._back), 1):
            if each is waiter:
                return place
        return 0

    def pump(self) -> None:
        """Have those who wait try again, in order; the first who still has to wait keeps its place, and the rest wait.

        Those at the front are all asked, since each may be waiting for another run than the next.
        """
        if self._pumping or not (self._front or self._back):
            return
        self._pumping = True
        try:
            for waiter in tuple(self._front):
                if waiter in self._front and waiter.wake():
                    self.leave(waiter)
            for waiter in tuple(self._back):
                if waiter not in self._back:
                    continue
                if not waiter.wake():
                    break
                self.leave(waiter)
        finally:
            self._pumping = False

    def look(self, now: float) -> None:
        """Tell everyone the time."""
        for waiter in (*self._front, *self._back):
            waiter.overdue(now)


class Wait:
    """The wait of one request: since when, for what, and until when."""

    __slots__ = ("_limit_s", "_turn", "_warmed_at", "since", "total_s")

    def __init__(self) -> None:
        """Not wait yet."""
        self.since: float | None = None
        self.total_s = 0.0
        self._turn = False
        self._limit_s = 0.0
        self._warmed_at = 0.0

    def refusal(self, model: Model, queue: Queue, now: float, *, again: bool) -> Trouble | None:
        """Return why waiting is of no use, None where it is; `again` of a request that lost its engine.

        What is waited for is the request's turn, or the model's start. Whoever has waited for the one and now has to
        wait for the other gets the time that there is for it, and no more than both together.
        """
        turn = model.availability is Availability.READY and not queue.has_room(model)
        limit_s = model.queue_timeout_s if turn else model.start_wait_s
        down = model.availability is Availability.DOWN and not again
        if limit_s <= 0 or down or model.availability is Availability.FAILED:
            return errors.not_ready(model.name, model.reason, model.retry_after_s)
        if self.since is None:
            if not again and queue.is_full(model):
                return errors.queue_full(model.name, len(queue), model.retry_after_s)
            self._limit_s = limit_s
        elif turn != self._turn:
            self._limit_s = min(now - self.since + limit_s, model.start_wait_s + model.queue_timeout_s)
        self._turn = turn
        return None

    def begin(self, now: float) -> None:
        """Wait from now on."""
        self.since = self._warmed_at = now

    def end(self, now: float) -> None:
        """Wait no more."""
        if self.since is not None:
            self.total_s += now - self.since
            self.since = None

    def late(self, now: float) -> bool:
        """Tell whether it has waited as long as it may."""
        return self.since is not None and now - self.since >= self._limit_s

    def too_late(self, model: Model, position: int, now: float) -> Trouble:
        """Return what the client is told then."""
        waited_s = now - (self.since or now)
        if self._turn:
            return errors.waited_too_long(model.name, waited_s, position, model.retry_after_s)
        reason = model.reason or "it has not become ready"
        return errors.not_ready(model.name, f"{reason} (waited {waited_s:.0f} s)", model.retry_after_s)

    def cold(self, now: float, warm_after_s: float) -> bool:
        """Tell whether a client that streams needs to hear something now, and note that it does; never with 0."""
        if warm_after_s <= 0 or now - self._warmed_at < warm_after_s:
            return False
        self._warmed_at = now
        return True

    def words(self, model: Model, position: int) -> str:
        """Return what it waits for, for people."""
        if self._turn:
            return f"number {position} of those that wait for model '{model.name}'"
        return model.reason or f"waiting for model '{model.name}'"
