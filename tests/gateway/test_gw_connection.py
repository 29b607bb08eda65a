"""Connections in numbers, opened and dropped at any point; and connections by TLS."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import socket
import ssl
import struct
import subprocess
from pathlib import Path

import pytest

from gateway_front import (
    Client,
    Engine,
    Relaying,
    Script,
    answering,
    chunked,
    dechunked,
    engine,
    fronted,
    on_uvloop,
    plain,
    post,
)
from modelsupd.gateway.base import Limits
from modelsupd.gateway.connection import Connection
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.front import Front
from modelsupd.gateway.listener import Listener, listening
from waiting import auntil

_RESET = struct.pack("ii", 1, 0)
_OPENED = 24_000


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _open_and_drop(port: int, number: int) -> None:
    """Open so many connections, go to some point of an exchange in each, and leave in one of two ways."""
    chance = random.Random(number)  # noqa: S311 - to be the same in each run
    request = post(body=b'{"stream": true}')
    for _ in range(number):
        with socket.socket() as sock:
            sock.connect(("127.0.0.1", port))
            with contextlib.suppress(ConnectionError):
                sent = chance.choice([0, 0, 10, 60, len(request), len(request), 2 * len(request)])
                sock.sendall((request * 2)[:sent])
                if sent >= len(request) and chance.random() < 0.3:
                    sock.recv(chance.choice([1, 100, 10_000]))
            if chance.random() < 0.8:  # and so few ports are left waiting
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


def _answering_for_ever(made: Engine) -> Script:
    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in itertools.count():
            await made.request(reader)
            writer.write(plain(b"{}") if number % 2 else chunked(*[b"data: 1\n\n"] * 20))

    return follow


def test_thousands_of_connections_dropped_at_any_point_leave_nothing_open(tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with engine(tmp_path, _answering_for_ever) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                await loop.run_in_executor(None, _open_and_drop, served.port, 100)
                await auntil(lambda: not served.front.connections)
                served.front.pool.close()
                await auntil(lambda: made.closed == made.connections)
                before = _descriptors()
                await loop.run_in_executor(None, _open_and_drop, served.port, _OPENED)
                await auntil(lambda: not served.front.connections)
                assert served.front.accepted >= _OPENED
                assert len(relaying.exchanges) > _OPENED // 5
                assert served.front.in_flight == served.front.buffered_bytes == 0
                assert not served.front.pool.relays
                served.front.pool.close()
                await auntil(lambda: made.closed == made.connections)
                await auntil(lambda: _descriptors() <= before)

    on_uvloop(main())


def test_whoever_never_comes_out_of_a_handshake_is_forgotten() -> None:
    async def main() -> None:
        async with fronted(Relaying("unix:/nowhere")) as served:
            greeted = Connection(served.front, greets=True)
            assert not served.front.deserted()
            served.front.greeting[greeted] -= 60
            await auntil(served.front.deserted)

    on_uvloop(main())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
def test_streams_and_refusals_pass_by_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2",
         "-subj", "/CN=localhost", "-out", certificate, "-keyout", key, "-nodes"],
        check=True, capture_output=True,
    )  # fmt: skip
    server, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(certificate))
    server.load_cert_chain(certificate, key)

    async def main() -> None:
        events = [b"data: %d\n\n" % number for number in range(100)]
        async with engine(tmp_path, answering(*[chunked(*events)] * 2)) as made:
            heard: list[list[float]] = []
            relaying = Relaying(made.endpoint)

            def handle(exchange: Exchange) -> None:
                heard.append([connection.unheard_s() for connection in front.connections])
                relaying(exchange)

            front = Front(Limits(), handle, tick_s=0.02)
            front.start()
            listener, sock = Listener(front), listening("127.0.0.1", 0)
            await listener.start([sock], server)
            for data, status in (
                (post(), b"200"),
                (post(more=b"Connection: close\r\n"), b"200"),
                (b"no HTTP\r\n", b"400"),
            ):
                opened = await asyncio.open_connection(*sock.getsockname(), ssl=trusting, server_hostname="localhost")
                client = Client(*opened)
                client.send(data)
                head = await client.until(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 " + status)
                if status == b"200":
                    body = await client.until(b"0\r\n\r\n")
                    assert dechunked(body) == (events, True)
                await client.close()
            await auntil(lambda: not front.connections)
            assert heard == [[0.0], [0.0]]  # the kernel is asked of the connection below TLS
            listener.stop()
            front.close()
            sock.close()

    on_uvloop(main())
