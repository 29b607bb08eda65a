"""Has an engine sleep, or wake up: the requests that its adapter names, and proof that it did."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.actions import Sleep, Wake
from modelsupd.core.events import Event
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.engines.base import Adapter, Request, Sleeper, shown
from modelsupd.runtime.http import ProbeError, fetch

#: Pause between two questions whether it sleeps by now, in seconds.
ASK_EVERY_S = 0.02

_OK = 200
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt"})


@dataclass(frozen=True, slots=True)
class Keeps:
    """What an engine takes into the host's memory when it falls asleep.

    It is the size of its `weights` or, where that is not to be seen, all that it holds of GPUs, `held_bytes`.
    `reserve_bytes` have to be left.
    """

    weights: str | None
    held_bytes: int
    reserve_bytes: int


class Sleepers:
    """Carries out what engines are told about sleep, and keeps account of the host's memory meanwhile."""

    def __init__(self) -> None:
        """Begin with none."""
        # What those take of it who fall asleep just now, and how much there was before the first of them did.
        self._promised: dict[str, int] = {}
        self._before_bytes = 0

    async def carry_out(self, engine: Adapter, endpoint: str, action: Sleep | Wake, keeps: Keeps | None) -> Event:
        """Carry the action out and return how it ended. Never raises but for cancellation.

        `keeps` is what the host's memory has to have room for, None where that does not matter.
        """
        to_sleep = isinstance(action, Sleep)
        ended = Slept if to_sleep else Woke
        if not isinstance(engine, Sleeper):
            return ended(action.run, f"an engine of kind '{engine.kind}' cannot sleep")
        until = time.monotonic() + action.timeout_s
        try:
            if await _sleeps(engine, endpoint, until) is to_sleep:
                return ended(action.run)  # a daemon before this one had asked for it
            lacking_bytes = await self._lacking_bytes(endpoint, keeps, until) if keeps is not None else 0
            if lacking_bytes > 0:
                lacking = f"{lacking_bytes / 1024**3:.1f} GiB"
                return ended(action.run, f"the host's memory lacks {lacking} for what it would put there")
            requests = engine.sleep(action.level) if to_sleep else engine.wake(action.level)
            await _ask_all(endpoint, requests, until)
            while await _sleeps(engine, endpoint, until) is not to_sleep:  # noqa: ASYNC110 - another process is asked
                await asyncio.sleep(ASK_EVERY_S)
        except ProbeError as error:
            return ended(action.run, str(error))
        except TimeoutError:
            return ended(action.run, f"it has not done so within {action.timeout_s:g} s")
        finally:
            self._promised.pop(endpoint, None)
        return ended(action.run)

    async def _lacking_bytes(self, endpoint: str, keeps: Keeps, until: float) -> int:
        """Return how much more of the host's memory one would want that falls asleep than it may have; note it if none.

        What others have yet to take that fall asleep now is theirs.
        """
        import psutil  # noqa: PLC0415 - it takes long to import, and hardly ever is it needed

        size = 0
        if keeps.weights is not None:
            try:
                size = await asyncio.wait_for(asyncio.to_thread(_size, keeps.weights), _left_s(until) / 2)
            except TimeoutError:
                size = 0  # its file system does not answer
        wanted = size or keeps.held_bytes
        room = int(psutil.virtual_memory().available)
        if not self._promised:
            self._before_bytes = room
        room = min(room, self._before_bytes - sum(self._promised.values()))
        lacking = wanted + keeps.reserve_bytes - room
        if lacking <= 0:
            self._promised[endpoint] = wanted
        return lacking


async def sleeps(engine: Sleeper, endpoint: str, timeout_s: float) -> bool:
    """Tell whether an engine says that it sleeps; one that does not answer does not say so."""
    try:
        return await _sleeps(engine, endpoint, time.monotonic() + timeout_s) is True
    except (ProbeError, TimeoutError):
        return False


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
