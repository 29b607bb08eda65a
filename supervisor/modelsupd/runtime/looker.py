"""Looks for weights and programs on file systems that may not answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial

from modelsupd.core.spec import EngineSpec, ModelSpec
from modelsupd.runtime.inputs import Inputs, Stock, look


class Looker:
    """Looks without holding anything up: a file system that does not answer holds one thread for each replica at most.

    The threads are daemons and not of the loop's pool, so that neither other work nor the end of the process waits.
    """

    def __init__(self) -> None:
        """Start with nobody looking."""
        self._looking: dict[str, tuple[object, asyncio.Future[Inputs]]] = {}

    async def look(
        self, name: str, spec: ModelSpec, engine: EngineSpec | None, stock: Stock, timeout_s: float
    ) -> Inputs:
        """Return what is there now for the replica `name`; raises TimeoutError where there is no answer in time."""
        known, asked = self._looking.get(name), (spec, engine, stock)
        if known is None or known[1].done() or known[0] != asked:
            loop = asyncio.get_running_loop()
            known = self._looking[name] = (asked, loop.create_future())
            threading.Thread(target=_into, args=(loop, known[1], *asked), name="look", daemon=True).start()
        found = await asyncio.wait_for(asyncio.shield(known[1]), timeout_s)
        self._looking.pop(name, None)
        return found


def _into(
    loop: asyncio.AbstractEventLoop,
    answer: asyncio.Future[Inputs],
    spec: ModelSpec,
    engine: EngineSpec | None,
    stock: Stock,
) -> None:
    try:
        found = look(spec, engine, stock)
    except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
        outcome = partial(answer.set_exception, error)
    else:
        outcome = partial(answer.set_result, found)
    with contextlib.suppress(RuntimeError):  # the loop may be closed by the time a dead file system answers
        loop.call_soon_threadsafe(lambda: answer.done() or outcome())
