"""An event loop whose time is virtual: it jumps to the next timer, so that hours pass in a moment."""

from __future__ import annotations

import asyncio
from typing import Any


class Asleep(Exception):  # noqa: N818 - named for what happened
    """Nothing is ready and no timer is set: what is waited for can never come."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in the order of their instants; no files, no sockets, no threads."""

    def __init__(self, starts_at: float = 0.0) -> None:
        """Start the clock at `starts_at`, as a machine's does at some instant of its boot."""
        super().__init__()
        self._now = starts_at
        self._clock_resolution = 1e-9
        self._selector = self

    def time(self) -> float:
        """Return the virtual instant, in seconds."""
        return self._now

    def stall(self, gap_s: float) -> None:
        """Let time pass in which nothing of this process runs: timers fire late, in their order."""
        self._now += gap_s

    def select(self, timeout: float | None) -> list[Any]:
        """Go to the next timer; called by the loop in place of a selector's wait."""
        if timeout is None:
            raise Asleep("nothing is ready and no timer is set")
        if timeout > 0:
            # The timer's own instant, not the sum of now and the wait, which may differ in the last bit.
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]  # of BaseEventLoop, which the stubs hide
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing ever comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""
