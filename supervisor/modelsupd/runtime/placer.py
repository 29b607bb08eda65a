"""Asks the core, whenever something that matters has changed, who gets which GPUs, and who gives way; tells them.

A rule: what was given counts from the moment at which it was given. Until the replica is published with it, or as
something else than waiting, it is remembered here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence

from modelsupd.core.allotment import NOTHING_TOLD, Allotment, Card, allot, awaits
from modelsupd.core.demand import CLIENTS, Usage
from modelsupd.core.events import Beside, Demanded, Event, Waits
from modelsupd.core.phases import Ready, Replica
from modelsupd.core.placement import Hold

#: How often the numbers in a reason are brought up to date while the reason stays the same, in seconds.
RETELL_S = 60.0


class Placer:
    """Gives turns and GPUs to the replicas that wait for some.

    `replicas` returns what is published, `cards` the GPUs as last seen, `put` hands a replica an event, `unread` says
    why GPUs may be missing, `usage` returns what gateways tell. What is told (`Beside`) to a replica that is at rest
    must be published when `put` returns. `on_closed` is called when `closed` has changed: the replicas that are to take
    no new requests.
    """

    def __init__(
        self,
        replicas: Callable[[], Mapping[str, Replica]],
        cards: Callable[[], Sequence[Card]],
        put: Callable[[str, Event], None],
        *,
        unread: Callable[[], str] = str,
        usage: Callable[[], Usage] = lambda: NOTHING_TOLD,
        on_closed: Callable[[], object] = lambda: None,
    ) -> None:
        """Give nothing yet; must be called with the event loop running."""
        self._replicas, self._cards, self._put = replicas, cards, put
        self._unread, self._usage, self._on_closed = unread, usage, on_closed
        self._loop = asyncio.get_running_loop()
        self._granted: dict[str, tuple[int, Hold | None]] = {}
        self._demanding: dict[str, Replica] = {}
        self._leaving: dict[str, Replica] = {}
        self._again: asyncio.TimerHandle | None = None
        self.closed: frozenset[str] = frozenset()
        self._telling: dict[str, tuple[str, str]] = {}
        self._told: dict[str, tuple[int, str, float]] = {}
        self._soon: asyncio.Handle | None = None
        self._closed = False

    def look_soon(self) -> None:
        """Decide once all that happens in this turn of the loop has happened."""
        if self._soon is None and not self._closed:
            self._soon = self._loop.call_soon(self.look)

    def close(self) -> None:
        """Give nothing any more."""
        self._closed = True
        for handle in (self._soon, self._again):
            if handle is not None:
                handle.cancel()

    @property
    def waiting(self) -> bool:
        """Tell whether anyone waits."""
        return any(map(awaits, self._replicas().values()))

    def look(self) -> None:
        """Decide now."""
        self._soon = None
        if self._closed:
            return
        # Whoever is told of a load, and is at rest, has heard of it when `put` returns: then it can begin at once.
        # Each round gives something, or is the last one.
        while self._decide():
            pass

    def _decide(self) -> bool:
        # As it is now: what is told to one may have another forgotten.
        replicas = dict(self._replicas())
        self._forget(replicas)
        cards = self._cards()
        answer = self._asked(replicas, cards)
        told = False
        for name, event in answer.beside.items():
            told = self._tell(name, replicas[name].beside, event) or told
        for name, placed in answer.placed.items():
            self._granted[name] = placed.run, placed.hold
            self._put(name, placed)
        unread = self._unread()
        for name, why in answer.waiting.items():
            self._say(replicas[name], f"{why} ({unread})" if unread and not cards else why)
        self._take_turns(replicas, answer)
        return told or bool(answer.placed)

    def _asked(self, replicas: Mapping[str, Replica], cards: Sequence[Card]) -> Allotment:
        granted = {name: hold for name, (_run, hold) in self._granted.items()}
        return allot(replicas, granted, cards, self._usage(), self._loop.time(), self._leaving)

    def _take_turns(self, replicas: Mapping[str, Replica], answer: Allotment) -> None:
        """Have those started that are asked for, and those end that give way; each is told once."""
        for name in answer.demanded:
            if self._demanding.get(name) is not replicas[name]:
                self._demanding[name] = replicas[name]
                self._put(name, Demanded(CLIENTS))
        for name, event in answer.evicted.items():
            if name not in self._leaving:
                self._leaving[name] = replicas[name]
                self._put(name, event)
        closed = answer.closed | {name for name in self._leaving if isinstance(replicas[name].phase, Ready)}
        if closed != self.closed:
            self.closed = closed
            self._on_closed()
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if answer.again_at is not None:
            self._again = self._loop.call_at(answer.again_at, self.look_soon)

    def _forget(self, replicas: Mapping[str, Replica]) -> None:
        """Drop what was given and is published by now, or will never be taken."""
        self._granted = {
            name: (run, hold)
            for name, (run, hold) in self._granted.items()
            if name in replicas and awaits(replicas[name]) and replicas[name].last_run == run
        }
        self._telling = {
            name: (before, to)
            for name, (before, to) in self._telling.items()
            if name in replicas and replicas[name].beside == before
        }
        self._told = {name: told for name, told in self._told.items() if name in replicas}
        # One that was told, and is published with something new by now, has taken note of it or will never do so.
        self._demanding = {name: seen for name, seen in self._demanding.items() if replicas.get(name) is seen}
        self._leaving = {name: told for name, told in self._leaving.items() if _still(replicas.get(name), told)}

    def _tell(self, name: str, before: str, event: Beside) -> bool:
        """Tell a replica of a load, once; return whether it has heard of it by now."""
        if self._telling.get(name) == (before, event.loading):
            return False
        self._telling[name] = before, event.loading
        self._put(name, event)
        after = self._replicas().get(name)
        return after is not None and after.beside == event.loading

    def _say(self, replica: Replica, why: str) -> None:
        """Have a replica say why it waits; numbers alone, which always move a little, are told now and then."""
        run, now = replica.last_run, self._loop.time()
        told = self._told.get(replica.name)
        if told is not None and told[0] == run:
            same = re.sub(r"\d", "", told[1]) == re.sub(r"\d", "", why)
            if told[1] == why or (same and now - told[2] < RETELL_S):
                return
        self._told[replica.name] = run, why, now
        self._put(replica.name, Waits(run, why))


def _still(replica: Replica | None, told: Replica) -> bool:
    """Tell whether a replica that was told to give way has not been published as doing so.

    Declared otherwise meanwhile, it may have had no reason to.
    """
    if replica is None or replica.spec != told.spec:
        return False
    same = (replica.last_run, type(replica.phase)) == (told.last_run, type(told.phase))
    return same and bool(replica.demanded_by) == bool(told.demanded_by)
