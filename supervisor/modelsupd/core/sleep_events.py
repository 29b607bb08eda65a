"""What became of an engine that was told to sleep, or to wake: two events of their own, as of `events`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Slept:
    """The engine sleeps by now, and its memory is given back; else `failure` says why not."""

    run: int
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Woke:
    """The engine is awake, which it has yet to prove; else `failure` says why not."""

    run: int
    failure: str = ""
