"""Connections to engines: kept, given up in time, tried again, and never shared by two answers."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from canaries import connections_are_closed_once
from gateway_front import (
    Engine,
    Relaying,
    Script,
    answering,
    chunked,
    engine,
    fronted,
    on_uvloop,
    plain,
    post,
)
from modelsupd.gateway import upstream
from modelsupd.gateway.base import Limits
from modelsupd.gateway.exchange import Exchange, UpstreamFailed
from modelsupd.gateway.line import Line
from modelsupd.gateway.upstream import Pool
from waiting import auntil


def test_connections_are_kept_closed_when_idle_for_too_long_and_on_request(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(tmp_path, answering(*[plain(b"1")] * 9)) as made:
            async with fronted(Relaying(made.endpoint), Limits(upstream_idle_s=60)) as served:
                clients = [await served.open() for _ in range(3)]
                for client in clients:
                    client.send(post())
                for client in clients:
                    await client.until(b"\r\n\r\n1")
                assert made.connections == 3
                assert served.front.pool.idle == 3
                for _ in range(3):
                    clients[0].send(post())
                    await clients[0].until(b"\r\n\r\n1")
                assert made.connections == 3
                served.front.pool.close(made.endpoint)
                await auntil(lambda: made.closed == 3)
                for client in clients:
                    await client.close()
            async with fronted(Relaying(made.endpoint), Limits(upstream_idle_s=0.2)) as served:
                client = await served.open()
                client.send(post())
                await client.until(b"\r\n\r\n1")
                await auntil(lambda: served.front.pool.idle == 0)
                await auntil(lambda: made.closed == 4)
                client.send(post())
                await client.until(b"\r\n\r\n1")
                assert made.connections == 5
                await client.close()

    on_uvloop(main())


def test_a_kept_connection_that_was_closed_meanwhile_is_tried_once_more_on_a_fresh_one(tmp_path: Path) -> None:
    """An engine that closes just when the next request is on its way has not failed."""

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            writer.write(plain(b"1"))
            await made.request(reader)  # and closes without an answer

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                client = await served.open()
                for _ in range(4):
                    client.send(post(body=b"same"))
                    await client.until(b"\r\n\r\n1")
                await client.close()
            assert relaying.failed == []
            assert len(relaying.done) == 4
            assert made.connections == 4
            assert set(made.bodies) == {b"same"}

    on_uvloop(main())


def test_a_fresh_connection_that_is_closed_is_a_failure_and_another_run_may_be_tried(tmp_path: Path) -> None:
    (tmp_path / "dead").mkdir()
    (tmp_path / "good").mkdir()

    async def main() -> None:
        async with (
            engine(tmp_path / "dead", answering(b"", then_wait=False)) as dead,
            engine(tmp_path / "good", answering(plain(b"1"))) as good,
        ):

            class Trying(Relaying):
                def on_failed(self, exchange: Exchange, failure: UpstreamFailed) -> None:
                    assert failure.kind == "closed"
                    self.endpoint = good.endpoint
                    self.relay(exchange)

            relaying = Trying(dead.endpoint)
            async with fronted(relaying) as served:
                client = await served.open()
                client.send(post(body=b"asked"))
                await client.until(b"\r\n\r\n1")
                await client.close()
            assert dead.bodies == good.bodies == [b"asked"]
            assert len(relaying.done) == 1

    on_uvloop(main())


def test_nobody_who_listens_is_told_apart_from_want_of_our_own(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]

        async def main() -> None:
            for endpoint in (f"unix:{tmp_path}/none.sock", f"http://127.0.0.1:{port}"):
                relaying = Relaying(endpoint)
                async with fronted(relaying) as served:
                    assert (await served.ask(post(more=b"Connection: close\r\n"))).endswith(b"refused")
                    assert relaying.failed[0].words.startswith("cannot connect: ")

        on_uvloop(main())


def test_an_engine_is_reached_by_tcp() -> None:
    async def main() -> None:
        made = Engine("")
        follow = answering(plain(b"1"))(made)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await follow(reader, writer)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with fronted(Relaying(f"http://127.0.0.1:{port}")) as served:
            assert (await served.ask(post(more=b"Connection: close\r\n"))).endswith(b"1")
        assert b"\r\nhost: 127.0.0.1:%d\r\n" % port in made.heads[0]
        server.close()

    on_uvloop(main())


def test_a_full_queue_of_connections_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "full.sock"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
            listening.bind(str(path))
            listening.listen(0)
            first.connect(str(path))
            async with fronted(Relaying(f"unix:{path}")) as served:
                client = await served.open()
                client.send(post())
                await auntil(lambda: served.front.pool.relays)
                await asyncio.sleep(0.05)  # it is refused meanwhile, again and again
                accepted = [listening.accept()[0], (await _accepted(listening))]
                accepted[1].sendall(plain(b"1"))
                await client.until(b"\r\n\r\n1")
                await client.close()
                for sock in accepted:
                    sock.close()

    on_uvloop(main())


async def _accepted(listening: socket.socket) -> socket.socket:
    listening.settimeout(5)
    return (await asyncio.get_running_loop().run_in_executor(None, listening.accept))[0]


def test_what_an_idle_engine_says_unasked_is_never_the_next_answer(tmp_path: Path) -> None:
    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            writer.write(plain(b"1"))
            await writer.drain()
            if made.connections == 1:
                await asyncio.sleep(0.05)
                writer.write(plain(b"poison"))
            await reader.read()

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made, fronted(Relaying(made.endpoint)) as served:
            client = await served.open()
            client.send(post())
            await client.until(b"\r\n\r\n1")
            await auntil(lambda: made.closed == 1)
            client.send(post())
            await client.until(b"\r\n\r\n1")
            await client.close()

    on_uvloop(main())


def test_an_answer_with_something_behind_it_is_passed_without_it_and_its_connection_closed(tmp_path: Path) -> None:
    async def main() -> None:
        for answer in (plain(b"1"), chunked(b"1")):
            async with (
                engine(tmp_path, answering(answer + plain(b"poison"))) as made,
                fronted(Relaying(made.endpoint)) as served,
            ):
                came = await served.ask(post(more=b"Connection: close\r\n"))
                assert came.endswith((b"\r\n\r\n1", b"\r\n\r\n1\r\n1\r\n0\r\n\r\n"))
                assert b"poison" not in came
                await made.left(1)
            (tmp_path / "e.sock").unlink()

    on_uvloop(main())


def test_a_client_that_leaves_while_we_connect_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "full.sock"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
            listening.bind(str(path))
            listening.listen(0)
            first.connect(str(path))
            relaying = Relaying(f"unix:{path}")
            async with fronted(relaying) as served:
                client = await served.open()
                client.send(post())
                await auntil(lambda: served.front.pool.relays)
                await client.close()
                await auntil(lambda: relaying.gone == 1)
                assert not served.front.pool.relays

    on_uvloop(main())


def test_a_connection_is_closed_once_whenever_it_is_given_up_or_its_engine_goes(tmp_path: Path) -> None:
    async def connect(path: str) -> None:
        line = Line(Pool(Limits()), f"unix:{path}")
        try:
            await upstream.connect(line)
        finally:
            line.drop()

    on_uvloop(connections_are_closed_once(tmp_path, connect))
