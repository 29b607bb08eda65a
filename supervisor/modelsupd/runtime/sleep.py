"""Has an engine sleep, or wake up: the requests that its adapter names, and proof that it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from modelsupd.core.actions import Sleep, Wake
from modelsupd.core.events import Event
from modelsupd.core.placement import Hold
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.engines.base import Adapter, Request, Sleeper, shown
from modelsupd.runtime.http import ProbeError, fetch

#: Pause between two questions whether it sleeps by now, in seconds.
ASK_EVERY_S = 0.02

_OK = 200
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt"})


async def carry_out(engine: Adapter, endpoint: str, action: Sleep | Wake, host_bytes: int | None) -> Event:
    """Carry the action out and return how it ended. Never raises but for cancellation.

    `host_bytes` is how much more the host's memory would have to hold than there is room for, None where it has room.
    """
    to_sleep = isinstance(action, Sleep)
    ended = Slept if to_sleep else Woke
    if not isinstance(engine, Sleeper):
        return ended(action.run, f"an engine of kind '{engine.kind}' cannot sleep")
    if to_sleep and host_bytes is not None:
        return ended(action.run, f"the host's memory lacks {host_bytes / 1024**3:.1f} GiB for what it would put there")
    until = time.monotonic() + action.timeout_s
    try:
        if await _sleeps(engine, endpoint, until) is to_sleep:
            return ended(action.run)  # a daemon before this one had asked for it
        requests = engine.sleep(action.level) if to_sleep else engine.wake(action.level)
        await _ask_all(endpoint, requests, until)
        while await _sleeps(engine, endpoint, until) is not to_sleep:  # noqa: ASYNC110 - another process is asked
            await asyncio.sleep(ASK_EVERY_S)
    except ProbeError as error:
        return ended(action.run, str(error))
    except TimeoutError:
        return ended(action.run, f"it has not done so within {action.timeout_s:g} s")
    return ended(action.run)


async def sleeps(engine: Sleeper, endpoint: str, timeout_s: float) -> bool:
    """Tell whether an engine says that it sleeps; one that does not answer does not say so."""
    try:
        return await _sleeps(engine, endpoint, time.monotonic() + timeout_s) is True
    except (ProbeError, TimeoutError):
        return False


async def lacking_bytes(weights: str | None, before: Hold, reserve_bytes: int) -> int | None:
    """Return how much more memory of the host an engine would want to keep its weights there than it may have.

    None where there is enough. What it wants is the size of its weights or, where that is not known, all that it holds
    of GPUs.
    """
    import psutil  # noqa: PLC0415 - it takes long to import, and hardly ever is it needed

    wanted = await asyncio.to_thread(_size, weights) if weights is not None else 0
    wanted = wanted or sum(before.bytes)
    lacking = wanted + reserve_bytes - int(psutil.virtual_memory().available)
    return lacking if lacking > 0 else None


def _size(weights: str) -> int:
    """Return the size of a model's weights on disk, 0 where they are not to be seen."""
    path = Path(weights)
    try:
        files = [each for each in path.iterdir() if each.suffix in _WEIGHTS] if path.is_dir() else [path]
        return sum(each.stat().st_size for each in files)
    except OSError:
        return 0


async def _ask_all(endpoint: str, requests: Sequence[Request], until: float) -> None:
    for request in requests:
        status, body = await fetch(endpoint, request, _left_s(until))
        if status != _OK:
            raise ProbeError(f"{request.method} {request.path} was answered {status}: {shown(body)}")


async def _sleeps(engine: Sleeper, endpoint: str, until: float) -> bool | None:
    status, body = await fetch(endpoint, engine.is_sleeping, _left_s(until))
    return engine.read_sleeping(status, body)


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
