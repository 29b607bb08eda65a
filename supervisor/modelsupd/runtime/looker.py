"""Looks for weights and programs on file systems that may not answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from functools import partial

from modelsupd.core.spec import EngineSpec, ModelSpec
from modelsupd.runtime.inputs import Inputs, Stock, look


@dataclass(slots=True, eq=False)
class _Look:
    """A thread that looks: what for, what it will have found, and whether it took longer than somebody waited."""

    what: tuple[ModelSpec, EngineSpec | None, Stock]
    found: asyncio.Future[Inputs]
    late: bool = False


class Looker:
    """Looks without holding anything up: a file system that does not answer holds one thread for each replica at most.

    The threads are daemons and not of the loop's pool, so that neither other work nor the end of the process waits.
    """

    def __init__(self) -> None:
        """Start with nobody looking."""
        self._looking: dict[str, _Look] = {}

    async def look(
        self, name: str, spec: ModelSpec, engine: EngineSpec | None, stock: Stock, timeout_s: float
    ) -> Inputs:
        """Return what is there now for the replica `name`; raises TimeoutError where there is no answer in time.

        A look that somebody else began before does not tell of now: it is waited for, and then looked anew. Only of one
        that was not done in time already is the answer taken, or a slow file system would never give any.
        """
        what = (spec, engine, stock)
        try:
            async with asyncio.timeout(timeout_s):
                earlier = self._looking.get(name)
                if earlier is not None and earlier.what == what and not earlier.late:
                    await asyncio.wait((earlier.found,))
                known = self._looking.get(name)
                if known is None or known.found.done() or known.what != what:
                    known = self._begin(name, what)
                found = await asyncio.shield(known.found)
        except TimeoutError:
            known = self._looking.get(name)
            if known is not None and known.what == what:
                known.late = True
            raise
        if self._looking.get(name) is known:
            del self._looking[name]
        return found

    def _begin(self, name: str, what: tuple[ModelSpec, EngineSpec | None, Stock]) -> _Look:
        loop = asyncio.get_running_loop()
        begun = self._looking[name] = _Look(what, loop.create_future())
        threading.Thread(target=_into, args=(loop, begun.found, *what), name="look", daemon=True).start()
        return begun


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
