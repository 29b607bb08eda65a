"""What all requests of a gateway have in common: the table, who waits, which runs are in doubt, and one clock.

Nothing here waits or holds a task: whoever has to wait is looked at whenever something has changed that may concern it,
and four times a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from modelsupd.core.routing import Candidate, choose
from modelsupd.gateway.base import Availability, Model, Run, Table
from modelsupd.gateway.record import Entry
from modelsupd.gateway.suspects import Suspects
from modelsupd.gateway.traffic import Ledger
from modelsupd.gateway.waiting import Queue, Waiter
from modelsupd.gateway.wire import Kind, Wanted

TICK_S: Final = 0.25

#: A run that failed a request is tried once more by the same request, when it is not suspect any more.
TRIES_PER_RUN: Final = 2

#: A round of the clock that is late by this much says that the gateway itself got no CPU: nobody else is to blame.
_LATE_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """Where it is told what happened; all are called on the loop."""

    evidence: Callable[[str, Kind, str], None] = field(default=lambda run, kind, words: None)  # noqa: ARG005 - ignored
    record: Callable[[Entry], None] = field(default=lambda entry: None)  # noqa: ARG005 - ignored
    demand: Callable[[], object] = field(default=lambda: None)
    """What is waited for, or how busy a run is, changed so that it matters now. Any number of times in a turn."""


class Desk:
    """The shared state. All methods are called on the loop, and return at once."""

    def __init__(self, ledger: Ledger, reports: Reports, *, tick_s: float = TICK_S) -> None:
        """Begin without a table, which is not the same as an empty one."""
        self.ledger = ledger
        self.reports = reports
        self.suspects = Suspects()
        self.table: Table | None = None
        self.relays: set[Waiter] = set()
        self.clock = time.monotonic
        self._queues: dict[str, Queue] = {}
        self._pressing: set[str] = set()  # models that are not ready, and waited for
        self._used_at: dict[str, float] = {}
        self._tick_s = tick_s
        self._ticked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Set the clock going."""
        self._ticked_at = self.clock()
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def close(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def set_table(self, table: Table) -> None:
        """Work from this table from now on."""
        self.table = table
        runs = {run.key for model in table.models.values() for run in model.runs}
        self.ledger.forget_all_but(runs)
        self.suspects.forget_all_but(runs)
        self._used_at = {key: at for key, at in self._used_at.items() if key in runs}
        for queue in list(self._queues.values()):
            queue.pump()
            self._stirred(queue.model)  # for one that was ready and is not, or the other way about
        # A model that is gone has nobody who waits any more; its last requests hold their queue themselves.
        names = table.models.keys()
        self._queues = {name: queue for name, queue in self._queues.items() if name in names or queue.active}

    def model(self, name: str) -> Model | None:
        """Return a model as it is now, by its own name."""
        return self.table.models.get(name) if self.table is not None else None

    def queue(self, name: str) -> Queue:
        """Return who waits for a model."""
        found = self._queues.get(name)
        if found is None:
            found = self._queues[name] = Queue(name, self._stirred)
        return found

    def queued(self) -> Mapping[str, int]:
        """Return how many requests wait, by model. From any thread."""
        return {name: len(queue) for name, queue in list(self._queues.items())}

    def wanted(self) -> tuple[Wanted, ...]:
        """Return every model that requests wait for."""
        return tuple(Wanted(name, len(queue), queue.since()) for name, queue in self._queues.items() if len(queue))

    def pick(self, model: Model, tried: Mapping[str, int], session: str | None, now: float) -> Run | None:
        """Return the run that serves next; `tried` are those that failed this request, and how often."""
        runs = model.runs
        if len(runs) == 1 and not tried:
            run = runs[0]
            if run.draining:
                return None
            self._used_at[run.key] = now
            return run
        candidates = {}
        for run in runs:
            key = run.key
            in_flight = self.ledger.of(key).in_flight
            until = self.suspects.until(key, now, in_flight)
            if key in tried and (tried[key] >= TRIES_PER_RUN or until > now):
                continue
            used_at = self._used_at.get(key, 0.0)
            candidates[key] = (
                run,
                Candidate(
                    key=key,
                    home=run.replica,
                    in_flight=in_flight,
                    last_used_at=used_at,
                    draining=run.draining,
                    suspect_until=until,
                ),
            )
        chosen = choose([candidate for _, candidate in candidates.values()], now, session)
        if chosen is None:
            return None
        self._used_at[chosen.key] = now
        return candidates[chosen.key][0]

    def _stirred(self, name: str) -> None:
        """Take note that somebody waits for a model now, or nobody any more, or that it has become another one."""
        queue, model = self._queues.get(name), self.model(name)
        waited_for = queue is not None and len(queue) > 0
        presses = waited_for and model is not None and model.availability is not Availability.READY
        if presses:
            self._pressing.add(name)
        elif name in self._pressing:
            self._pressing.discard(name)
        elif not self._pressing:
            return
        self.ledger.on_idle = self.reports.demand if self._pressing else None
        self.reports.demand()

    def _tick(self) -> None:
        now = self.clock()
        late = now - self._ticked_at > self._tick_s + _LATE_S
        self._ticked_at = now
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)
        if late:
            return
        for queue in list(self._queues.values()):
            if len(queue):
                queue.pump()
                queue.look(now)
        for relay in tuple(self.relays):
            relay.overdue(now)
