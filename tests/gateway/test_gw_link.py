"""The link: what is sent comes as it was, with its sockets; and a gateway without a daemon waits for one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_daemon import Daemon, listening_socket, model
from modelsupd.gateway import wire
from modelsupd.gateway.base import Availability, Model, Run, Table
from modelsupd.gateway.channel import MAX_UNSENT_BYTES, Channel
from modelsupd.gateway.link import LONGEST_PAUSE_S, Link
from modelsupd.gateway.traffic import Ledger
from waiting import auntil

RUNS = st.builds(Run, st.text(), st.integers(0), st.text(), st.booleans())
MODELS = st.builds(
    Model,
    name=st.text(),
    aliases=st.lists(st.text(), max_size=3).map(tuple),
    availability=st.sampled_from(Availability),
    runs=st.lists(RUNS, max_size=3).map(tuple),
    context_length=st.none() | st.integers(),
    queue_timeout_s=st.floats(0, 1e9),
)
NUMBER = st.integers(0, 2**60)
TRAFFIC = st.builds(
    wire.Traffic, run=st.text(), in_flight=NUMBER, bytes=NUMBER, last_delivery_at=st.none() | st.floats(0, 1e9)
)
WANTED = st.lists(st.builds(wire.Wanted, st.text(), NUMBER, st.floats(0, 1e9)), max_size=3).map(tuple)
MESSAGES = st.one_of(
    st.builds(
        wire.Hello, run=st.text(), pid=NUMBER, table_seq=st.none() | NUMBER, traffic=st.tuples(TRAFFIC), wanted=WANTED
    ),
    st.builds(wire.Demand, WANTED),
    st.builds(wire.Welcome, seq=NUMBER, models=st.lists(MODELS, max_size=3).map(tuple), accept=st.booleans()),
    st.builds(wire.Models, seq=NUMBER, changed=st.tuples(MODELS), removed=st.tuples(st.text())),
    st.builds(wire.TrafficReport, traffic=st.tuples(TRAFFIC, TRAFFIC)),
    st.builds(wire.Evidence, run=st.text(), kind=st.text(), words=st.text(), at=st.floats(0, 1e9)),
    st.builds(wire.Accept),
    st.builds(wire.Drain),
)

# Lines


@given(MESSAGES)
def test_a_message_is_one_line_and_comes_back_as_it_was(message: wire.Message) -> None:
    line = wire.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert wire.decode(line[:-1]) == message


@given(MESSAGES, st.data())
def test_no_line_is_taken_for_what_it_is_not_and_none_raises_anything_else(
    message: wire.Message, data: st.DataObject
) -> None:
    raw = json.loads(wire.encode(message))
    key = data.draw(st.sampled_from(sorted(raw)))
    raw[key] = data.draw(st.sampled_from([None, True, -1, 1.5, "x", [], {}, [[]], [{}]]))
    with contextlib.suppress(wire.WireError):
        wire.decode(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "line", [b"", b"{", b"[]", b'{"v":2,"type":"drain"}', b"\xff", b"[" * 100000, b'{"type":"drain"}']
)
def test_a_line_that_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(line)


def test_what_a_newer_peer_adds_is_passed_over() -> None:
    assert wire.decode(b'{"v":1,"type":"song","verse":1}') is None
    assert wire.decode(b'{"v":1,"type":"drain","slowly":true}') == wire.Drain()


def test_changes_are_applied_to_a_table_in_the_configured_order() -> None:
    table = wire.Welcome(seq=1, models=(model("a"), model("b"), model("c")), accept=True).table
    assert list(table.models) == ["a", "b", "c"]
    loading = model("b", availability=Availability.LOADING)
    table = wire.Models(seq=2, changed=(loading,)).applied_to(table)
    assert list(table.models) == ["a", "b", "c"]
    assert table.models["b"] == loading
    table = wire.Models(seq=3, changed=(model("d"),), removed=("a",), order=("d", "c", "b")).applied_to(table)
    assert list(table.models) == ["d", "c", "b"]


# Channels


async def pair() -> tuple[Channel, Channel, list[Any], list[str]]:
    """Return two connected channels, and what the second one receives and says at its end."""
    left, right = socket.socketpair()
    came: list[Any] = []
    closed: list[str] = []
    sender = Channel(left, on_message=lambda *_: None, on_closed=closed.append)
    receiver = Channel(
        right, on_message=lambda message, sockets: came.append((message, sockets)), on_closed=closed.append
    )
    return sender, receiver, came, closed


def test_sockets_come_with_their_own_message_however_the_bytes_are_cut() -> None:
    async def main() -> None:
        sender, receiver, came, _ = await pair()
        with listening_socket() as one, listening_socket() as two:
            big = wire.Evidence(run="r", kind="k", words="x" * 300_000, at=1.0)
            sender.send(big)
            sender.send(wire.Hello(run="a", pid=1, sockets=2), [one, two])
            sender.send(big)
            sender.send(wire.Welcome(seq=1, models=(), accept=True, sockets=1), [two])
            sender.send(wire.Drain())
            await auntil(lambda: len(came) == 5)
            ports = [[each.getsockname()[1] for each in sockets] for _, sockets in came]
            mine, other = one.getsockname()[1], two.getsockname()[1]
            assert ports == [[], [mine, other], [], [other], []]
            assert all(not os.get_inheritable(each.fileno()) for _, sockets in came for each in sockets)
        for _, sockets in came:
            for each in sockets:
                each.close()
        sender.close()
        receiver.close()

    asyncio.run(main())


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_peer_that_reads_nothing_is_given_up_and_nothing_stays_open() -> None:
    async def main() -> None:
        before = open_descriptors()
        left, right = socket.socketpair()
        closed: list[str] = []
        sender = Channel(left, on_message=lambda *_: None, on_closed=closed.append)
        with listening_socket() as one:
            words = "x" * 65536
            for _ in range(MAX_UNSENT_BYTES // len(words) + 16):
                sender.send(wire.Evidence(run="r", kind="k", words=words, at=1.0))
            sender.send(wire.Hello(run="a", pid=1, sockets=1), [one])
        assert len(closed) == 1
        assert "unread" in closed[0]
        assert not sender.is_open
        right.close()
        assert open_descriptors() == before

    asyncio.run(main())


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b'{"v":1,"type":"hello","run":"a","pid":1,"sockets":1}\n', b'{"v":9,"type":"drain"}\n']
)
def test_a_peer_that_makes_no_sense_ends_the_channel(line: bytes) -> None:
    async def main() -> None:
        left, right = socket.socketpair()
        closed: list[str] = []
        receiver = Channel(right, on_message=lambda *_: None, on_closed=closed.append)
        left.sendall(line)
        await auntil(lambda: closed)
        assert not receiver.is_open
        left.close()

    asyncio.run(main())


# The gateway's side


class Gateway:
    """A station that keeps what it is told."""

    def __init__(self) -> None:
        self.table = Table()
        self.told: list[str] = []
        self.sockets: list[socket.socket] = []
        self.ledger = Ledger()
        self.waiting: tuple[wire.Wanted, ...] = ()

    def hello(self) -> tuple[wire.Hello, Sequence[socket.socket]]:
        traffic = self.ledger.all()
        told = wire.Hello(
            run="gateway#1", pid=os.getpid(), sockets=len(self.sockets), traffic=traffic, wanted=self.waiting
        )
        return told, self.sockets

    def wanted(self) -> tuple[wire.Wanted, ...]:
        return self.waiting

    def welcome(self, message: wire.Welcome, sockets: Sequence[socket.socket]) -> None:
        self.table = message.table
        self.sockets = list(sockets) or self.sockets
        self.told.append("welcome")

    def models(self, message: wire.Models) -> None:
        self.table = message.applied_to(self.table)
        self.told.append("models")

    def accept(self) -> None:
        self.told.append("accept")

    def drain(self) -> None:
        self.told.append("drain")


def test_both_sides_begin_with_all_that_they_know_and_go_on_with_what_changes(tmp_path: Path) -> None:
    async def main() -> None:
        daemon, gateway = Daemon(tmp_path), Gateway()
        gateway.ledger.of("qwen/0#1").begin(1.0)
        daemon.listen()
        link = Link(str(daemon.path), gateway, gateway.ledger)
        link.start()
        await auntil(lambda: daemon.hellos)
        assert daemon.hellos[0].traffic[0].in_flight == 1
        assert not link.connected
        with listening_socket() as listening:
            daemon.welcome(model("qwen"), model("tiny"), sockets=[listening])
            await auntil(lambda: link.connected)
        assert list(gateway.table.models) == ["qwen", "tiny"]
        assert len(gateway.sockets) == 1
        daemon.channel.send(wire.Models(seq=2, removed=("tiny",)))
        daemon.channel.send(wire.Drain())
        daemon.channel.send(wire.Accept())
        link.evidence("qwen/0#1", "stalled", "nothing for 120 s")
        gateway.ledger.of("qwen/0#1").delivered(2.0, 10, 1)
        await auntil(lambda: daemon.of(wire.TrafficReport) and daemon.of(wire.Evidence))
        assert gateway.told == ["welcome", "models", "drain", "accept"]
        (report,) = daemon.of(wire.TrafficReport)
        assert isinstance(report, wire.TrafficReport)
        assert [(each.run, each.bytes, each.events) for each in report.traffic] == [("qwen/0#1", 10, 1)]
        link.close()
        daemon.close()
        for each in gateway.sockets:
            each.close()

    asyncio.run(main())


def test_a_gateway_dials_until_there_is_a_daemon_and_tells_it_what_it_missed(tmp_path: Path) -> None:
    async def main() -> None:
        daemon, gateway = Daemon(tmp_path), Gateway()
        link = Link(str(daemon.path), gateway, gateway.ledger)
        link.start()
        link.evidence("qwen/0#1", "refused", "nobody listens")
        daemon.listen()
        await auntil(lambda: daemon.hellos)
        daemon.welcome(model("qwen"))
        await auntil(lambda: daemon.of(wire.Evidence))
        daemon.leave()
        await auntil(lambda: not link.connected)
        link.evidence("qwen/0#1", "closed", "gone")
        assert list(gateway.table.models) == ["qwen"]
        daemon.listen()
        await auntil(lambda: len(daemon.hellos) == 2, 2 * LONGEST_PAUSE_S)
        daemon.welcome(model("other"), seq=9)
        await auntil(lambda: len(daemon.of(wire.Evidence)) == 2)
        assert list(gateway.table.models) == ["other"]
        link.close()
        daemon.close()

    asyncio.run(main())


def test_a_daemon_that_speaks_another_version_is_left_alone_and_dialled_again(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway()
        server = await asyncio.start_unix_server(_speaks_version_two, tmp_path / wire.SOCKET_NAME)
        link = Link(str(tmp_path / wire.SOCKET_NAME), gateway, gateway.ledger)
        link.start()
        await auntil(lambda: len(_seen) >= 2)
        assert not link.connected
        assert not gateway.told
        link.close()
        server.close()

    asyncio.run(main())


_seen: list[bytes] = []


async def _speaks_version_two(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    _seen.append(await reader.readline())
    writer.write(b'{"v":2,"type":"welcome"}\n')
    await reader.read()
    writer.close()


def test_many_runs_are_told_once_each_when_they_changed() -> None:
    ledger = Ledger()
    for index in range(3):
        ledger.of(f"m/0#{index}").begin(1.0)
    assert len(ledger.changed()) == 3
    assert ledger.changed() == ()
    ledger.of("m/0#1").delivered(2.0, 5)
    (told,) = ledger.changed()
    assert (told.run, told.bytes, told.quiet_since) == ("m/0#1", 5, 2.0)
    ledger.of("m/0#1").end()
    ledger.of("m/0#2").end()
    assert {each.run: each.quiet_since for each in ledger.changed()} == {"m/0#1": None, "m/0#2": None}
    ledger.forget_all_but({"m/0#1"})
    assert [each.run for each in ledger.all()] == ["m/0#0", "m/0#1"]
    assert ledger.in_flight == 1


def test_a_run_that_leaves_the_table_is_not_forgotten_before_its_last_request_is_told_of() -> None:
    """It may only sleep: a daemon that was never told would take it for being in use when it is awake again."""
    ledger = Ledger()
    ledger.of("m/0#1").begin(1.0)
    assert [each.in_flight for each in ledger.changed()] == [1]
    ledger.of("m/0#1").end()
    ledger.forget_all_but(())
    assert [(each.run, each.in_flight) for each in ledger.changed()] == [("m/0#1", 0)]
    ledger.forget_all_but(())
    assert ledger.all() == ()
