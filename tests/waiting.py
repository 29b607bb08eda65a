"""Waits on conditions, never on time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def until(condition: Callable[[], object], timeout_s: float = 10.0, what: str | Callable[[], str] = "") -> None:
    """Return as soon as `condition()` is true; fail when it is not within `timeout_s`."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {timeout_s} s: {(what() if callable(what) else what) or condition}")
        time.sleep(0.005)


async def auntil(condition: Callable[[], object], timeout_s: float = 10.0, what: str | Callable[[], str] = "") -> None:
    """Do the same without holding up the event loop."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {timeout_s} s: {(what() if callable(what) else what) or condition}")
        await asyncio.sleep(0.005)
