"""What gateways tell of use and demand, added up: over real sockets, while gateways come and go."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs import read
from core.samples import process, replica
from gateway_daemon import listening_socket
from gateway_process import Client, engine, prepared
from gateway_process import Gateway as GatewayProcess
from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.core.events import Delivered, Event
from modelsupd.core.health import begin
from modelsupd.core.phases import Phase, Ready, Replica, Stopped
from modelsupd.gatekeeper import Gatekeeper
from modelsupd.gateway import wire
from modelsupd.gateway.base import Availability, Model
from modelsupd.gateway.channel import Channel, connect
from modelsupd.runtime.gateway_link import GatewayLinks
from waiting import auntil


class Gateway:
    """A gateway's end of the link."""

    def __init__(self, path: Path) -> None:
        self.told: list[wire.Message] = []
        self._channel = Channel(
            connect(str(path)), on_message=lambda message, _: self.told.append(message), on_closed=lambda _: None
        )

    def hello(self, *traffic: wire.Traffic, wanted: tuple[wire.Wanted, ...] = (), tells_seen: bool = False) -> None:
        self._channel.send(wire.Hello(run="g", pid=1, traffic=traffic, wanted=wanted, tells_seen=tells_seen))

    def saw(self, seq: int) -> None:
        self._channel.send(wire.Seen(seq))

    def reports(self, *traffic: wire.Traffic) -> None:
        self._channel.send(wire.TrafficReport(traffic=traffic))

    def demands(self, *wanted: wire.Wanted) -> None:
        self._channel.send(wire.Demand(wanted))

    def die(self) -> None:
        self._channel.close()


class World:
    """A gatekeeper, and how often it said that use changed."""

    def __init__(self, place: Path) -> None:
        config = read(place, "", MODELSUPD_RUNTIME_DIR=str(place))
        self.replicas: dict[str, Replica] = {
            f"m/{index}": replace(replica(Ready(0, process(1), begin(0)), last_run=1), name=f"m/{index}")
            for index in range(2)
        }
        self.events: list[tuple[str, Event]] = []
        self.changes = 0
        self.path = config.runtime_dir / wire.SOCKET_NAME
        self.keeper = Gatekeeper(
            config,
            replicas=lambda: self.replicas,
            apply=lambda: None,
            put=lambda name, event: self.events.append((name, event)),
            used=self._count,
        )

    def _count(self) -> None:
        self.changes += 1

    async def becomes(self, **expected: Any) -> None:  # noqa: ANN401 - fields of any type
        """Wait until usage is this."""
        wanted = Usage(**{"known": True, **expected})
        await auntil(lambda: self.keeper.usage() == wanted, what=lambda: str(self.keeper.usage()))


def run(place: Path, test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        world = World(place)
        world.keeper.open()
        try:
            await test(world)
        finally:
            world.keeper.close()

    asyncio.run(main())


def traffic(run: str = "m/0#1", in_flight: int = 0, at: float | None = None) -> wire.Traffic:
    return wire.Traffic(run=run, in_flight=in_flight, last_delivery_at=at)


def test_nothing_is_known_before_a_gateway_has_told(place: Path) -> None:
    async def test(world: World) -> None:
        assert world.keeper.usage() == Usage()
        gateway = Gateway(world.path)
        gateway.hello()
        await world.becomes()
        assert world.changes == 1
        assert await _welcomed(gateway)
        gateway.die()
        await auntil(lambda: world.changes == 2)
        assert world.keeper.usage().known

    run(place, test)


async def _welcomed(gateway: Gateway) -> bool:
    await auntil(lambda: gateway.told)
    return isinstance(gateway.told[0], wire.Welcome)


def test_an_old_and_a_new_gateway_count_together(place: Path) -> None:
    async def test(world: World) -> None:
        old, new = Gateway(world.path), Gateway(world.path)
        old.hello(traffic(in_flight=2, at=10.0), wanted=(wire.Wanted("n", 1, 8.0), wire.Wanted("o", 3, 9.0)))
        await world.becomes(runs={"m/0#1": Use(2, 10.0)}, wanted={"n": Wanted(1, 8.0), "o": Wanted(3, 9.0)})
        new.hello(traffic(in_flight=1, at=7.0), traffic("m/1#1", 4), wanted=(wire.Wanted("n", 2, 5.0),))
        await world.becomes(
            runs={"m/0#1": Use(3, 10.0), "m/1#1": Use(4, None)},
            wanted={"n": Wanted(3, 5.0), "o": Wanted(3, 9.0)},
        )
        # What the other one delivered before is no news.
        assert world.events == [("m/0", Delivered(1))]
        old.demands()
        old.reports(traffic(in_flight=0, at=11.0))
        await world.becomes(runs={"m/0#1": Use(1, 11.0), "m/1#1": Use(4, None)}, wanted={"n": Wanted(2, 5.0)})
        for gateway in (old, new):
            gateway.die()

    run(place, test)


def test_what_a_gateway_had_in_hand_goes_with_it_and_when_it_delivered_stays(place: Path) -> None:
    async def test(world: World) -> None:
        dead, other = Gateway(world.path), Gateway(world.path)
        other.hello(wanted=(wire.Wanted("n", 1, 4.0),))
        dead.hello(traffic(in_flight=20, at=12.0), wanted=(wire.Wanted("n", 5, 1.0),))
        await world.becomes(runs={"m/0#1": Use(20, 12.0)}, wanted={"n": Wanted(6, 1.0)})
        before = world.changes
        dead.die()
        await world.becomes(runs={"m/0#1": Use(0, 12.0)}, wanted={"n": Wanted(1, 4.0)})
        assert world.changes == before + 1
        other.die()

    run(place, test)


def test_it_says_when_a_run_is_taken_into_use_or_let_go_and_not_how_it_goes_on(place: Path) -> None:
    async def test(world: World) -> None:
        gateway = Gateway(world.path)
        gateway.hello()
        await world.becomes()
        seen = []
        for in_flight, at in ((1, None), (5, 1.0), (2, 2.0), (0, 3.0), (0, 4.0), (1, 5.0)):
            gateway.reports(traffic(in_flight=in_flight, at=at))
            await world.becomes(runs={"m/0#1": Use(in_flight, at)})
            seen.append(world.changes)
        assert seen == [2, 2, 2, 3, 3, 4]
        gateway.demands(wire.Wanted("n", 1, 6.0))
        await auntil(lambda: world.changes == 5)
        gateway.die()

    run(place, test)


def test_runs_that_are_gone_are_forgotten(place: Path) -> None:
    async def test(world: World) -> None:
        gateway = Gateway(world.path)
        gateway.hello(traffic(in_flight=1, at=1.0), traffic("m/1#1", 1, 1.0))
        await world.becomes(runs={"m/0#1": Use(1, 1.0), "m/1#1": Use(1, 1.0)})
        world.replicas["m/1"] = replace(world.replicas["m/1"], phase=Stopped(2.0))
        world.keeper.publish(())
        assert world.keeper.usage().runs == {"m/0#1": Use(1, 1.0)}
        gateway.die()

    run(place, test)


def gateway_replica(world: World, pid: int, phase: Phase | None = None) -> None:
    """Have the world know of a gateway: its process, wherever that is."""
    name = "@gateway-1/0"
    running = Ready(0, replace(process(1), pid=pid), begin(0))
    world.replicas[name] = replace(replica(phase or running, last_run=1), name=name, model="@gateway-1")


def test_nothing_is_known_while_a_gateway_that_serves_has_not_told_or_has_lost_its_link(place: Path) -> None:
    """What it has in hand is in use, whatever another one tells."""

    async def test(world: World) -> None:
        gateway_replica(world, os.getpid() + 1)
        other = Gateway(world.path)
        other.hello()
        assert await _welcomed(other)
        assert not world.keeper.usage().known
        assert not await world.keeper.seen(0.0)
        gateway_replica(world, os.getpid())
        assert world.keeper.usage().known
        assert await world.keeper.seen(0.0)
        other.die()
        await auntil(lambda: not world.keeper.usage().known)
        gateway_replica(world, os.getpid(), Stopped(2.0))
        assert world.keeper.usage().known, "one that is gone had nothing left"

    run(place, test)


def test_who_withdraws_a_run_can_wait_until_no_gateway_sends_it_anything(place: Path) -> None:
    async def test(world: World) -> None:
        assert await world.keeper.seen(0.0), "nobody is there"
        old, lags = Gateway(world.path), Gateway(world.path)
        old.hello()
        lags.hello(tells_seen=True)
        for gateway in (old, lags):
            assert await _welcomed(gateway)
        world.keeper.publish((Model(name="m", availability=Availability.LOADING),))
        assert not await world.keeper.seen(0.0)
        waiting = asyncio.create_task(world.keeper.seen(10.0))
        lags.saw(0)
        assert not await world.keeper.seen(0.1)
        lags.saw(1)
        assert await waiting
        world.keeper.publish(())
        waiting = asyncio.create_task(world.keeper.seen(10.0))
        lags.die()
        assert await waiting, "of one that is gone nothing comes any more"
        old.die()

    run(place, test)


@pytest.mark.real
def test_a_gateway_that_is_killed_with_requests_in_hand_leaves_no_run_busy(place: Path) -> None:
    """Its real process: it asks for a model on demand, streams from it, and dies."""
    asleep = Model(name="qwen", availability=Availability.ON_DEMAND, on_demand=True)

    async def main() -> None:
        used: list[Usage] = []
        links = GatewayLinks(
            place / wire.SOCKET_NAME,
            on_hello=lambda peer: links.welcome(peer, accept=True, with_sockets=True),
            on_delivered=lambda _: None,
            on_evidence=lambda _: None,
            on_used=lambda: used.append(links.usage()),
        )
        links.open()
        links.publish((asleep,))
        gateway = GatewayProcess(place, prepared(place))
        with engine(place, token_s=0.05) as started, listening_socket() as listening:
            links.sockets.append(listening)
            await asyncio.to_thread(gateway.wait_accepting)
            client = Client(listening)
            asking = asyncio.create_task(asyncio.to_thread(lambda: client.chat(stream=True, max_tokens=1000)))
            await auntil(lambda: used[-1].wanted)
            assert used[-1].wanted["qwen"].waiting == 1
            links.publish((Model(name="qwen", availability=Availability.READY, on_demand=True, runs=(started,)),))
            stream = await asking
            await auntil(lambda: links.usage().runs.get("qwen/0#1", Use()).in_flight == 1)
            assert used[-1].wanted == {}
            gateway.close()
            await auntil(lambda: used[-1].runs.get("qwen/0#1", Use()).in_flight == 0)
            assert used[-1].known
            with contextlib.suppress(OSError):
                stream.close()
            client.close()
            links.close()

    asyncio.run(main())
