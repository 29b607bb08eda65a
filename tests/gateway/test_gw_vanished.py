"""Half-open connections: the cable is pulled out, so that neither side says that it goes. What was held is freed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway_daemon import Daemon
from gateway_process import FAKE_ENGINE, Gateway, engine, linked, prepared, serving
from hosts import fake
from modelsupd.gateway.base import Availability, Limits, Model, Run
from modelsupd.gateway.vanished import unheard_s, watch
from networks import CLIENT, SERVER, Network, network
from waiting import auntil, until

#: The shortest that can be declared, and what is granted beyond it: a round of looks, and a busy machine.
VANISHED_S = 4
GRACE_S = 6

#: None of these may be what ends a connection here.
PATIENT = Limits(
    vanished_after_s=VANISHED_S, idle_timeout_s=600, head_timeout_s=600, body_timeout_s=600, write_timeout_s=600
)


@pytest.fixture
def cable() -> Iterator[Network]:
    with network() as made:
        if made is None:
            pytest.skip("needs the right to make network namespaces, and `ip` of iproute2")
        yield made


@dataclass
class Served:
    """A gateway on one side of the cable; `connect` makes clients on the other."""

    cable: Network
    daemon: Daemon
    gateway: Gateway
    port: int
    clients: contextlib.ExitStack

    def connect(self) -> socket.socket:
        client = self.cable.within(CLIENT, lambda: socket.create_connection((SERVER, self.port), 5))
        client.settimeout(20)
        return self.clients.enter_context(client)

    def records(self) -> list[dict[str, Any]]:
        path = self.gateway.admin.parent / "gateway" / "access.log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextlib.asynccontextmanager
async def served(cable: Network, folder: Path, *models: Model, **limits: float) -> AsyncIterator[Served]:
    given = prepared(folder, open_to_network=True, limits=PATIENT if not limits else Limits(**limits))  # type: ignore[arg-type] # all of these are floats
    gateway = Gateway(folder, given, wrapped=cable.enter(SERVER))
    listening = cable.within(SERVER, lambda: socket.create_server((SERVER, 0), backlog=64))
    with listening, contextlib.ExitStack() as clients:
        async with linked(folder, [gateway]) as daemon:
            await serving(daemon, gateway, listening, *models)
            yield Served(cable, daemon, gateway, listening.getsockname()[1], clients)


def model(run: Run, name: str = "qwen", **more: Any) -> Model:  # noqa: ANN401 - fields of any type
    return Model(name=name, availability=Availability.READY, runs=(run,), **more)


def chat(name: str, **fields: object) -> bytes:
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "hi"}], **fields}).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def read_until(client: socket.socket, words: bytes) -> bytes:
    came = b""
    while words not in came:
        piece = client.recv(65536)
        assert piece, came
        came += piece
    return came


@pytest.mark.real
def test_clients_that_vanish_are_noticed_whatever_they_were_about(cable: Network, tmp_path: Path) -> None:
    """Idle, streamed to, waiting for a slow answer, in the middle of a request: all four are gone, none says so."""

    async def main() -> None:
        with (
            engine(tmp_path, "talking", token_s=0.05) as talking,
            engine(tmp_path, "thinking", delay_s=600) as thinking,
        ):
            models = (model(talking, "talks", max_concurrent=1), model(thinking, "thinks", max_concurrent=1))
            async with served(cable, tmp_path, *models) as at:
                idle, streamed, waiting, sending = [at.connect() for _ in range(4)]
                idle.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
                read_until(idle, b"ok")
                streamed.sendall(chat("talks", stream=True, max_tokens=100_000))
                read_until(streamed, b"data: ")
                waiting.sendall(chat("thinks"))
                sending.sendall(chat("talks")[:-5])
                await auntil(lambda: fake(thinking.endpoint)["in_flight"] == 1)
                await auntil(lambda: at.gateway.health()["connections"] == 4)

                cable.unplug()
                pulled_at = time.monotonic()

                def freed() -> bool:
                    return not at.gateway.health()["connections"]

                await auntil(freed, timeout_s=VANISHED_S + GRACE_S, what=lambda: f"{at.gateway.health()}")
                assert time.monotonic() - pulled_at > VANISHED_S / 2
                await auntil(lambda: not fake(talking.endpoint)["in_flight"])
                await auntil(lambda: at.gateway.health()["in_flight"] == 0)
                await auntil(lambda: len(at.records()) == 2)
                assert {(each["model"], each["ended_by"]) for each in at.records()} == {
                    ("talks", "client"),
                    ("thinks", "client"),
                }

    asyncio.run(main())


@pytest.mark.real
def test_a_slow_client_that_is_still_there_has_not_vanished(cable: Network, tmp_path: Path) -> None:
    """Its window is shut for longer than a vanished client is granted; it confirms nothing but that it is there."""

    async def main() -> None:
        with engine(tmp_path) as run:
            async with served(cable, tmp_path, model(run)) as at:
                client = at.connect()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.sendall(chat("qwen", stream=True, max_tokens=3000))
                began_at = time.monotonic()
                await auntil(lambda: time.monotonic() - began_at > VANISHED_S + GRACE_S, timeout_s=20)
                assert at.gateway.health()["connections"] == 1
                assert b"[DONE]" in await asyncio.to_thread(_rest, client)

    asyncio.run(main())


def _rest(client: socket.socket) -> bytes:
    """Return the end of an answer."""
    last = b""
    while b"0\r\n\r\n" not in last[-5:]:
        piece = client.recv(1 << 20)
        assert piece, last[-200:]
        last = last[-200:] + piece
    return last


@pytest.mark.real
def test_an_engine_that_cannot_be_reached_any_more_is_given_up_within_the_limits(
    cable: Network, tmp_path: Path
) -> None:
    """The loopback goes down under an engine on TCP: a stream, an answer that had not begun, a new request."""

    async def main() -> None:
        with _tcp_engine(cable) as port:
            limits: dict[str, Any] = {"stream_stall_s": 1, "first_byte_timeout_s": 2, "start_wait_s": 1}
            served_model = model(Run("qwen/0", 1, f"http://127.0.0.1:{port}"), max_concurrent=2, **limits)
            async with served(cable, tmp_path, served_model, vanished_after_s=600) as at:
                streamed, waiting, late = (at.connect() for _ in range(3))
                streamed.sendall(chat("qwen", stream=True, max_tokens=100_000))
                read_until(streamed, b"data: ")
                cable.within(SERVER, lambda: _set_fault(port, delay_s=600))
                waiting.sendall(chat("qwen"))
                await auntil(lambda: at.gateway.health()["in_flight"] == 2)

                cable.ip(SERVER, "link", "set", "lo", "down")

                rest = await asyncio.to_thread(read_until, streamed, b"[DONE]")
                assert rest.count(b'"error"') == 1
                assert b"504" in await asyncio.to_thread(read_until, waiting, b'"error"')
                late.sendall(chat("qwen"))
                assert b" 504 " in await asyncio.to_thread(read_until, late, b'"error"')
                await auntil(lambda: at.gateway.health()["in_flight"] == 0)

                cable.ip(SERVER, "link", "set", "lo", "up")
                cable.within(SERVER, lambda: _set_fault(port, delay_s=0.0))
                late.sendall(chat("qwen", max_tokens=2))
                assert b" 200 " in await asyncio.to_thread(read_until, late, b"completion_tokens")

    asyncio.run(main())


@contextlib.contextmanager
def _tcp_engine(cable: Network) -> Iterator[int]:
    def free() -> int:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            return int(sock.getsockname()[1])

    port = cable.within(SERVER, free)
    words = ("--host", "127.0.0.1", "--port", str(port), "--token-s", "0.05")
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*cable.enter(SERVER), sys.executable, "-S", FAKE_ENGINE, *words], stdin=quiet, stdout=quiet, stderr=quiet
    )

    def listens() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(lambda: cable.within(SERVER, listens))
        yield port
    finally:
        process.kill()
        process.wait()


def _set_fault(port: int, **settings: object) -> None:
    body = json.dumps(settings).encode()
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"POST /fake HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert b" 200 " in sock.recv(65536)


# What the kernel is told


@pytest.mark.parametrize(("after_s", "first", "between"), [(4, 1, 1), (60, 30, 10), (43200, 21600, 7200)])
def test_accepted_connections_inherit_that_they_are_watched(after_s: float, first: int, between: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        watch(listening, after_s)
        with socket.create_connection(listening.getsockname()) as client:
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                told = [accepted.getsockopt(socket.IPPROTO_TCP, name) for name in names]
                assert told == [first, between, 3]
                assert told[0] + told[1] * told[2] <= after_s
                assert unheard_s(accepted) == 0
            assert client.recv(1) == b""
        assert unheard_s(listening) == 0
        listening.close()
        assert unheard_s(listening) == 0


def test_what_is_no_tcp_is_left_alone(tmp_path: Path) -> None:
    assert unheard_s(None) == 0
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        watch(listening, 60)
        assert unheard_s(listening) == 0
