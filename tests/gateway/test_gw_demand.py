"""Models that start on demand: requests wait for them, and the daemon hears of it at once; a look at one is no use."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway_daemon import Daemon
from gateway_daemon import model as told_model
from gw_world import TICK_S, Asked, Client, World, http, model, run, said, talks, whole_answer
from modelsupd.gateway import wire
from modelsupd.gateway.base import Availability, EndedBy
from modelsupd.gateway.keys import Principal, Refusal
from modelsupd.gateway.link import Link
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.service import Ways
from modelsupd.gateway.traffic import Ledger
from waiting import auntil

ASLEEP: dict[str, Any] = {"availability": Availability.ON_DEMAND, "reason": "starts when asked for", "on_demand": True}
WARM = Ways(tick_s=TICK_S, warm_after_s=0.05)


def operator(headers: Headers) -> Principal | Refusal:  # noqa: ARG001 - whoever it is
    found = Principal()
    found.admin = True
    return found


class Held:
    """An engine that answers when it is let to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG002 - whatever it is
        await self.go.wait()
        writer.write(http(whole_answer()))


# What clients get


def test_a_request_waits_for_a_model_that_starts_on_demand() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", **ASLEEP))
        before = time.monotonic()
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.until_comment()
        assert client.body == b": starts when asked for\n\n"
        wanted = world.wanted()["m"]
        assert wanted.waiting == 1
        assert before <= wanted.since <= time.monotonic()
        assert world.demands == [{"m": 1}]

        world.table(model("m", availability=Availability.LOADING, reason="loading: 5 %"))
        await client.until(b": loading: 5 %\n\n")
        world.table(model("m", engine, on_demand=True))

        answer = await client.rest()
        assert answer.whole
        assert answer.events[-1] == "[DONE]"
        assert world.demands[-1] == {}
        assert not world.wanted()

    run(test, ways=WARM)


def test_a_start_that_takes_too_long_is_503_with_the_reason_and_when_to_come_again() -> None:
    async def test(world: World) -> None:
        world.table(model("m", start_wait_s=0.05, **ASLEEP))
        answer = await world.chat()
        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        assert re.search(r"starts when asked for \(waited \d+ s\)", answer.json["error"]["message"])
        assert world.demands == [{"m": 1}, {}]

    run(test)


def test_one_that_is_stopped_is_refused_at_once_and_wakes_nobody() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.DOWN, on_demand=True))
        assert (await world.chat()).status == 503
        assert not world.demands

    run(test)


def test_auto_prefers_what_is_ready_and_starts_what_it_must() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        asleep, down = model("asleep", **ASLEEP), model("down", availability=Availability.DOWN)
        world.table(asleep, model("m", engine))
        assert (await world.chat("auto")).status == 200
        assert not world.demands

        world.table(down, asleep)
        client = await world.open("/v1/chat/completions", said("auto"))
        await auntil(world.wanted)
        assert list(world.wanted()) == ["asleep"]
        world.table(model("asleep", engine))
        assert (await client.rest()).status == 200

    run(test)


def test_those_who_leave_are_not_waited_for() -> None:
    async def test(world: World) -> None:
        world.table(model("m", **ASLEEP))
        first = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.queued() == 1)
        second = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.queued() == 2)
        oldest = world.wanted()["m"].since
        first.close()
        await auntil(lambda: world.queued() == 1)
        assert world.wanted()["m"].since > oldest
        assert world.demands == [{"m": 1}]  # how many matters less, and is told with the next report
        second.close()
        await auntil(lambda: world.demands == [{"m": 1}, {}])
        assert [entry.ended_by for entry in await world.recorded(2)] == [EndedBy.CLIENT] * 2

    run(test)


@pytest.mark.parametrize(
    ("state", "on_demand", "status"),
    [
        (Availability.ON_DEMAND, True, 200),
        (Availability.LOADING, True, 200),
        (Availability.LOADING, False, 503),
        (Availability.FAILED, True, 503),
        (Availability.DOWN, True, 503),
    ],
)
def test_a_host_is_ready_where_a_request_starts_something(state: Availability, on_demand: bool, status: int) -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=state, on_demand=on_demand))
        answer = await world.ask("/ready", method="GET")
        assert answer.status == status
        if status == 200:
            assert answer.json == {"status": "ready", "ready": 0, "startable": 1, "models": 1}

    run(test)


# What is no use of a model


def test_looking_starts_nothing_and_is_no_use() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", **ASLEEP))
        for path in ("/v1/models", "/v1/models/m", "/health", "/ready"):
            assert (await world.ask(path, method="GET")).status == 200
        assert (await world.ask("/v1/models/m", method="GET")).json["state"] == "on-demand"
        assert (await world.ask("/upstream/m/metrics", method="GET")).status == 503
        assert not world.demands

        world.table(model("m", engine))
        assert (await world.ask("/upstream/m/metrics", method="GET")).status == 200
        assert [entry.run for entry in await world.recorded(5)][-1] == "m/0#1"
        assert not world.ledger.all()
        assert (await world.chat()).status == 200
        (used,) = world.ledger.all()
        assert (used.requests, used.in_flight) == (1, 0)
        assert used.last_delivery_at is not None

    run(test, check=operator)


# What is told at once


def test_only_while_a_model_that_is_not_ready_is_waited_for_is_anything_else_told_at_once() -> None:
    async def test(world: World) -> None:
        held = Held()
        engine = await world.engine(held)
        world.table(model("m", engine, max_concurrent=1), model("other", **ASLEEP))
        clients = [await world.open("/v1/chat/completions", said()) for _ in range(3)]
        await auntil(lambda: world.queued() == 2)
        assert not world.demands

        clients.append(await world.open("/v1/chat/completions", said("other")))
        await auntil(lambda: world.demands == [{"m": 2, "other": 1}])
        held.go.set()
        await asyncio.gather(*(client.rest() for client in clients[:3]))
        # Its queue is empty, and its run is idle, more than once since each request is one at a time.
        await auntil(lambda: len(world.demands) > 2)
        assert world.demands[-1] == {"other": 1}
        assert {"m": 1, "other": 1} in world.demands

        world.table(model("m", engine), model("other", engine))
        assert (await clients[3].rest()).status == 200
        count = len(world.demands)
        assert (await world.chat()).status == 200
        assert len(world.demands) == count

    run(test)


def test_a_model_that_has_to_give_way_while_some_wait_for_their_turn_is_waited_for() -> None:
    async def test(world: World) -> None:
        held = Held()
        engine = await world.engine(held)
        world.table(model("m", engine, max_concurrent=1))
        clients: list[Client] = [await world.open("/v1/chat/completions", said()) for _ in range(2)]
        await auntil(lambda: world.queued() == 1)

        world.table(model("m", availability=Availability.LOADING, reason="gives way", max_concurrent=1))

        assert world.demands == [{"m": 1}]
        world.table(model("m", engine, max_concurrent=1))
        assert len(world.demands) == 2
        held.go.set()
        assert [(await client.rest()).status for client in clients] == [200, 200]

    run(test)


# Over the link


class Station:
    """A gateway that waits for what it is told to."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.waiting: tuple[wire.Wanted, ...] = ()

    def hello(self) -> tuple[wire.Hello, Sequence[socket.socket]]:
        return wire.Hello(run="g#1", pid=os.getpid(), traffic=self.ledger.all(), wanted=self.waiting), ()

    def wanted(self) -> tuple[wire.Wanted, ...]:
        return self.waiting

    def welcome(self, message: wire.Welcome, sockets: Sequence[socket.socket]) -> None:
        """Need nothing."""

    def models(self, message: wire.Models) -> None:
        """Need nothing."""

    def accept(self) -> None:
        """Need nothing."""

    def drain(self) -> None:
        """Need nothing."""


def one(waiting: int) -> tuple[wire.Wanted, ...]:
    return (wire.Wanted("qwen", waiting, 5.0),)


def linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> tuple[Daemon, Station, Link]:
    if monkeypatch is not None:
        monkeypatch.setattr(wire, "TRAFFIC_EVERY_S", 3600.0)  # so that nothing comes by it
    daemon, station = Daemon(tmp_path), Station()
    daemon.listen()
    link = Link(str(daemon.path), station, station.ledger)
    return daemon, station, link


def test_demand_comes_at_once_behind_the_traffic_that_it_is_decided_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        daemon, station, link = linked(tmp_path, monkeypatch)
        link.start()
        await auntil(lambda: daemon.hellos)
        daemon.welcome(told_model())
        await auntil(lambda: link.connected)
        traffic = station.ledger.of("m/0#1")
        traffic.begin(1.0)
        for waiting in (1, 2, 3):
            station.waiting = one(waiting)
            link.stir()
        traffic.end()
        await auntil(lambda: daemon.of(wire.Demand))
        _, report, demand = daemon.messages
        assert isinstance(report, wire.TrafficReport)
        assert [(each.run, each.requests, each.in_flight) for each in report.traffic] == [("m/0#1", 1, 0)]
        assert demand == wire.Demand(one(3))

        link.stir()  # nothing has changed
        station.ledger.on_idle = link.stir
        traffic.begin(2.0)
        traffic.end()
        await auntil(lambda: len(daemon.messages) == 4)
        assert isinstance(daemon.messages[3], wire.TrafficReport)
        link.close()
        daemon.close()

    asyncio.run(main())


def test_what_is_waited_for_stands_in_the_hello_and_what_changed_since_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        daemon, station, link = linked(tmp_path, monkeypatch)
        station.waiting = one(2)
        link.start()
        await auntil(lambda: daemon.hellos)
        assert daemon.hellos[0].wanted == one(2)
        station.waiting = ()
        link.stir()  # goes nowhere: the daemon has not answered
        daemon.welcome(told_model())
        await auntil(lambda: daemon.of(wire.Demand) == [wire.Demand(())])
        daemon.leave()
        await auntil(lambda: not link.connected)
        station.waiting = one(1)
        link.stir()
        daemon.listen()
        await auntil(lambda: len(daemon.hellos) == 2)
        assert daemon.hellos[1].wanted == one(1)
        link.close()
        daemon.close()

    asyncio.run(main())


def test_how_many_wait_comes_with_the_next_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "TRAFFIC_EVERY_S", 0.02)

    async def main() -> None:
        daemon, station, link = linked(tmp_path)
        link.start()
        await auntil(lambda: daemon.hellos)
        daemon.welcome(told_model())
        await auntil(lambda: link.connected)
        station.waiting = one(7)
        await auntil(lambda: daemon.of(wire.Demand) == [wire.Demand(one(7))])
        link.close()
        daemon.close()

    asyncio.run(main())


def test_a_crowd_of_changes_costs_no_more_than_so_many_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        daemon, station, link = linked(tmp_path, monkeypatch)
        link.start()
        await auntil(lambda: daemon.hellos)
        daemon.welcome(told_model())
        await auntil(lambda: link.connected)
        begun_at, turns = time.monotonic(), 3000
        for turn in range(turns):
            station.waiting = one(turn)
            link.stir()
            await asyncio.sleep(0)
        took_s = time.monotonic() - begun_at
        last = wire.Demand(one(turns - 1))
        await auntil(lambda: daemon.of(wire.Demand)[-1] == last)
        told = len(daemon.of(wire.Demand))
        assert wire.URGENT_BURST <= told <= wire.URGENT_BURST + took_s / wire.URGENT_EVERY_S + 2 < turns
        link.close()
        daemon.close()

    asyncio.run(main())
