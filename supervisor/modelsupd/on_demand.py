"""What of the daemon starts models when they are asked for, and has them give way to one another."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from modelsupd.core.allotment import Card
from modelsupd.core.demand import Usage
from modelsupd.core.events import Event
from modelsupd.core.fleet import targets
from modelsupd.core.phases import Replica
from modelsupd.core.placement import Size
from modelsupd.core.preview import preview
from modelsupd.runtime.placer import Placer


class OnDemand:
    """Brings together what gateways tell, what GPUs there are, and who decides.

    `replicas` returns what is published, `put` hands a replica an event, `usage` returns what gateways tell.
    `on_closed` is called when others than before are to take no new requests.
    """

    def __init__(
        self,
        *,
        replicas: Callable[[], Mapping[str, Replica]],
        put: Callable[[str, Event], None],
        usage: Callable[[], Usage],
        on_closed: Callable[[], object],
    ) -> None:
        """Decide nothing before `placer` is asked for."""
        self._replicas, self._put, self._usage, self._on_closed = replicas, put, usage, on_closed
        self._placer: Placer | None = None
        self._cards: Callable[[], Sequence[Card]] = tuple

    def placer(self, cards: Callable[[], Sequence[Card]], unread: Callable[[], str]) -> Placer:
        """Return who decides; `cards` returns the GPUs as last seen, `unread` why some may be missing.

        Must be called with the event loop running.
        """
        self._cards = cards
        self._placer = Placer(
            self._replicas, cards, self._put, unread=unread, usage=self._usage, on_closed=self._on_closed
        )
        return self._placer

    @property
    def closed(self) -> frozenset[str]:
        """Return the replicas that are to take no new requests, because they are to give way."""
        return self._placer.closed if self._placer is not None else frozenset()

    def look_soon(self) -> None:
        """Decide anew, for gateways have told something."""
        if self._placer is not None:
            self._placer.look_soon()

    async def plan(self, target: str, size: Callable[[Replica], Awaitable[Size | None]]) -> list[dict[str, Any]]:
        """Return what would happen if a model were asked for now; raises `fleet.UnknownTarget`.

        `size` returns what a run takes of GPUs, None where it takes none or that is not known.
        """
        replicas = self._replicas()
        names = targets(replicas, target)
        sizes = dict(zip(names, [await size(replicas[name]) for name in names], strict=True))
        now = asyncio.get_running_loop().time()
        # Meanwhile one may have been removed.
        there = {name: each for name, each in sizes.items() if name in self._replicas()}
        found = preview(self._replicas(), self._cards(), self._usage(), now, there)
        return [dataclasses.asdict(each) for each in found]
