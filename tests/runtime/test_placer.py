"""Who decides about turns remembers what it has told, for as long as that holds."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from core.demanding import ready, told
from modelsupd.core.events import Event, Evicted
from modelsupd.core.phases import Replica
from modelsupd.runtime.placer import Placer


def test_one_that_is_declared_otherwise_before_it_hears_that_it_is_to_go_is_open_again() -> None:
    idle = ready("a/0", -10_000, idle_timeout_s=1)
    replicas: dict[str, Replica] = {"a/0": idle}
    heard: list[Event] = []

    async def main() -> None:
        placer = Placer(lambda: replicas, list, lambda _name, event: heard.append(event), usage=told)
        placer.look()
        assert heard == [Evicted(1, "no request for 1 s")]
        assert placer.closed == {"a/0"}
        pinned = replace(idle.spec, demand=replace(idle.spec.demand, idle_timeout_s=0))
        replicas["a/0"] = replace(idle, spec=pinned)
        placer.look()
        assert placer.closed == frozenset()
        placer.close()

    asyncio.run(main())
