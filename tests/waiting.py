"""Waits on conditions, never on time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: How long a condition is given that a test sets no bound of its own to, in seconds: what is right comes at once, but
#: on a machine that has other things to do.
PATIENCE_S = 45.0


def until(condition: Callable[[], object], timeout_s: float = PATIENCE_S, what: str | Callable[[], str] = "") -> None:
    """Return as soon as `condition()` is true; fail when it is not within `timeout_s`."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {timeout_s} s: {(what() if callable(what) else what) or condition}")
        time.sleep(0.005)


async def auntil(
    condition: Callable[[], object], timeout_s: float = PATIENCE_S, what: str | Callable[[], str] = ""
) -> None:
    """Do the same without holding up the event loop."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {timeout_s} s: {(what() if callable(what) else what) or condition}")
        await asyncio.sleep(0.005)
