"""Who waits for a model, in which order, and for how long. It decides nothing: whoever waits is asked to try again.

Those who were at work already and lost their engine stand before everyone who has only just come, and do not count
against the limit: turning them away would undo what was promised.
"""

from __future__ import annotations

from typing import Protocol

from modelsupd.gateway.base import Model


class Waiter(Protocol):
    """A request that waits."""

    def wake(self) -> bool:
        """Try again; return whether it waits no more."""

    def overdue(self, now: float) -> None:
        """Learn the time: it may be too late, or time for a word to the client."""


class Queue:
    """The requests of one model: how many are with its engines, and who waits, first come first."""

    __slots__ = ("_back", "_front", "_pumping", "active")

    def __init__(self) -> None:
        """Begin with nobody."""
        self.active = 0
        self._front: dict[Waiter, None] = {}
        self._back: dict[Waiter, None] = {}
        self._pumping = False

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._front) + len(self._back)

    def has_room(self, model: Model) -> bool:
        """Tell whether one more may be with the model's engines."""
        return not model.max_concurrent or self.active < model.max_concurrent

    def is_full(self, model: Model) -> bool:
        """Tell whether nobody more may wait."""
        return len(self._back) >= model.max_queued

    def join(self, waiter: Waiter, *, first: bool = False) -> None:
        """Let one wait; `first` before everyone who was not at work already."""
        (self._front if first else self._back)[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Let one go; nothing if it does not wait."""
        self._front.pop(waiter, None)
        self._back.pop(waiter, None)

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
                    self._front.pop(waiter, None)
            for waiter in tuple(self._back):
                if waiter not in self._back:
                    continue
                if not waiter.wake():
                    break
                self._back.pop(waiter, None)
        finally:
            self._pumping = False

    def look(self, now: float) -> None:
        """Tell everyone the time."""
        for waiter in (*self._front, *self._back):
            waiter.overdue(now)
