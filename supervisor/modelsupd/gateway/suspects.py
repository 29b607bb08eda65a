"""Which runs failed a client a moment ago. The gateway's own word, gone as soon as the run answers well.

A run that fails fast has nothing in flight, and would be chosen first for every request; so the doubt lasts longer with
each failure, and when it has run out a single request tries the run before others follow.
"""

from __future__ import annotations

from collections.abc import Collection

from modelsupd.core.routing import SUSPECT_S, suspect_for_s


class Suspects:
    """The runs in doubt, by their key. Instants are on the loop's clock."""

    __slots__ = ("_doubt_s", "_until")

    def __init__(self) -> None:
        """Suspect nobody."""
        self._doubt_s: dict[str, float] = {}
        self._until: dict[str, float] = {}

    def failed(self, run: str, now: float) -> None:
        """Note a failure. All that fail at the same time are one: they say no more than the first."""
        if now < self._until.get(run, 0.0):
            return
        doubt_s = suspect_for_s(self._doubt_s.get(run, 0.0))
        self._doubt_s[run] = doubt_s
        self._until[run] = now + doubt_s

    def proved(self, run: str) -> None:
        """Note an answer that was as it should be."""
        if run in self._until:
            del self._doubt_s[run]
            del self._until[run]

    def until(self, run: str, now: float, in_flight: int = 0) -> float:
        """Return until when a run is suspect; 0 for one that is not. One that is being tried stays so meanwhile."""
        until = self._until.get(run, 0.0)
        return max(until, now + SUSPECT_S) if until and in_flight else until

    def forget_all_but(self, runs: Collection[str]) -> None:
        """Drop what is known of runs that are gone."""
        for run in [run for run in self._until if run not in runs]:
            del self._doubt_s[run]
            del self._until[run]
