"""HTTP/1.1 as clients speak it: kept and closed connections, sent ahead, in pieces, with expectations and offers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway_front import NEVER_S, Client, echo, fronted, on_uvloop, post
from modelsupd.gateway.base import Limits
from modelsupd.gateway.exchange import Exchange
from waiting import auntil, until

_CHUNKED = b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
_GET = b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n"


async def _answer(client: Client) -> tuple[bytes, bytes]:
    """Return head and body of one answer of known length."""
    head = await client.until(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    return head, await client.reader.readexactly(length)


def test_requests_come_whole_whatever_pieces_they_are_sent_in() -> None:
    requests = [
        (_GET, b"GET /a?b=c 0 "),
        (post("/x", b"hello"), b"POST /x? 5 hello"),
        (_CHUNKED + b"5;n=v\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n", b"POST /x? 6 hello!"),
        (b"GET http://h:80/a?b HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /a?b 0 "),
        (b"GET https://h HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /? 0 "),
        (b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", b"OPTIONS *? 0 "),
        (b"GET /%2e%2e/a//b HTTP/1.1\r\nHost:\r\nX:\r\nY:  z \r\n\r\n", b"GET /%2e%2e/a//b? 0 "),
        (b"\r\n" + _GET, b"GET /a?b=c 0 "),
    ]

    async def main() -> None:
        async with fronted(echo) as served:
            client = await served.open()
            for data, expected in requests:
                for size in (len(data), 1, 3):
                    for at in range(0, len(data), size):
                        client.send(data[at : at + size])
                        if size == 1:
                            await asyncio.sleep(0)
                    head, body = await _answer(client)
                    assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
                    assert body == expected
            await client.close()

    on_uvloop(main())


def test_requests_sent_ahead_are_answered_one_at_a_time_and_in_order() -> None:
    waiting: list[Exchange] = []

    async def main() -> None:
        async with fronted(waiting.append, Limits(max_head_bytes=2000)) as served:
            client = await served.open()
            total = 200
            client.send(b"".join(post(f"/{number}", bytes(number)) for number in range(total)))
            for number in range(total):
                await auntil(lambda: waiting)
                assert len(waiting) == served.front.in_flight == 1
                exchange = waiting.pop()
                assert (exchange.path, len(exchange.body)) == (f"/{number}", number)
                exchange.respond(200, [], exchange.path.encode())
                assert (await _answer(client))[1] == exchange.path.encode()
            await client.close()

    on_uvloop(main())


def test_thousands_sent_ahead_are_answered_at_once_without_recursion() -> None:
    async def main() -> None:
        async with fronted(echo) as served:
            client = await served.open()
            client.send(_GET * 5000)
            for _ in range(5000):
                assert (await _answer(client))[1] == b"GET /a?b=c 0 "
            await client.close()

    on_uvloop(main())


def test_what_follows_a_chunked_request_in_the_same_piece_is_left_to_be_sent_again() -> None:
    data = _CHUNKED + b"0\r\n\r\n"

    async def main() -> None:
        async with fronted(echo) as served:
            came = await served.ask(data + _GET)
            assert came.count(b"HTTP/1.1 200") == 1
            assert b"\r\nconnection: close\r\n" in came

    on_uvloop(main())


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Keep-Alive\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, close\r\n", False),
        (b"GET / HTTP/1.0\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_connections_are_kept_and_closed_as_the_client_asks(head: bytes, kept: bool) -> None:
    async def main() -> None:
        async with fronted(echo) as served:
            client = await served.open()
            client.send(head + b"\r\n")
            answer, _ = await _answer(client)
            assert (b"\r\nconnection: close\r\n" in answer) is not kept
            assert (b"\r\nconnection: keep-alive\r\n" in answer) is (kept and b"1.0" in head)
            if kept:
                client.send(head + b"\r\n")
                await _answer(client)
            else:
                assert await client.rest() == b""
            await client.close()

    on_uvloop(main())


def test_continue_is_said_when_the_body_is_waited_for_and_wanted() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-Continue\r\n\r\n"

    async def main() -> None:
        async with fronted(echo, Limits(max_body_bytes=100)) as served:
            client = await served.open()
            client.send(head % 5)
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.send(b"hel")
            client.send(b"lo")
            assert (await _answer(client))[1] == b"POST /? 5 hello"
            client.send(head % 5 + b"hello")
            assert (await _answer(client))[0].startswith(b"HTTP/1.1 200 ")
            await client.close()
            assert (await served.ask(head % 101)).startswith(b"HTTP/1.1 413 ")

    on_uvloop(main())


@pytest.mark.parametrize("size", [1, 1000])
def test_an_offer_of_another_protocol_is_passed_over_and_the_body_is_read(size: int) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    requests = [
        (post("/x", b"hello", offer), b"POST /x? 5 hello"),
        (b"GET /x HTTP/1.1\r\nHost: h\r\n%b\r\n" % offer, b"GET /x? 0 "),
        (_CHUNKED.replace(b"Host", offer + b"Host") + b"2\r\nhi\r\n0\r\n\r\n", b"POST /x? 2 hi"),
    ]

    async def main() -> None:
        async with fronted(echo) as served:
            client = await served.open()
            for data, expected in requests * 2:
                for at in range(0, len(data), size):
                    client.send(data[at : at + size])
                    await asyncio.sleep(0)
                assert (await _answer(client))[1] == expected
            client.send(requests[0][0] + requests[1][0] + _GET)
            assert [(await _answer(client))[1] for _ in range(3)][2] == b"GET /a?b=c 0 "
            await client.close()

    on_uvloop(main())


def test_head_is_answered_without_a_body_and_no_content_without_a_length() -> None:
    async def main() -> None:
        async with fronted(lambda exchange: exchange.respond(204, [], b"")) as served:
            came = await served.ask(b"OPTIONS /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert came.startswith(b"HTTP/1.1 204 No Content\r\n")
            assert b"content-length" not in came
        async with fronted(echo) as served:
            came = await served.ask(b"HEAD /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            assert b"\r\ncontent-length: 11\r\n" in came
            assert came.endswith(b"\r\n\r\n")

    on_uvloop(main())


def test_ids_of_requests_are_kept_where_they_are_sane_and_made_otherwise() -> None:
    async def main() -> None:
        async with fronted(lambda exchange: exchange.respond(200, [], exchange.request_id.encode())) as served:
            client = await served.open()
            made = []
            for given in (
                b"",
                b"X-Request-Id: a b\r\n",
                b"X-Request-Id: %b\r\n" % (b"a" * 129),
                b"X-Request-Id: a-1\r\n",
            ):
                client.send(b"GET / HTTP/1.1\r\nHost: h\r\n%b\r\n" % given)
                made.append((await _answer(client))[1])
            assert made[3] == b"a-1"
            assert len(set(made[:3])) == 3
            assert all(len(each) == 24 for each in made[:3])
            await client.close()

    on_uvloop(main())


def test_a_defect_in_handling_one_request_is_an_error_of_that_request() -> None:
    def handle(exchange: Exchange) -> None:
        if exchange.path == "/bad":
            raise RuntimeError("a defect")
        echo(exchange)

    async def main() -> None:
        async with fronted(handle) as served:
            client = await served.open()
            client.send(post("/bad") + _GET)
            assert (await _answer(client))[0].startswith(b"HTTP/1.1 500 ")
            assert (await _answer(client))[0].startswith(b"HTTP/1.1 200 ")
            await client.close()

    on_uvloop(main())


def test_a_client_that_leaves_while_it_waits_is_noticed_at_once() -> None:
    waiting: list[Exchange] = []
    gone: list[str] = []

    def handle(exchange: Exchange) -> None:
        waiting.append(exchange)
        exchange.on_client_gone(lambda: gone.append(exchange.path))

    async def main() -> None:
        async with fronted(handle, tick_s=NEVER_S) as served:
            for path, leave in (("/fin", Client.close), ("/half", None), ("/reset", Client.reset)):
                client = await served.open()
                client.send(post(path))
                await auntil(lambda: waiting)
                exchange = waiting.pop()
                if leave is None:
                    client.writer.write_eof()
                elif (left := leave(client)) is not None:
                    await left
                await auntil(lambda: gone)
                assert gone == [path]
                gone.clear()
                assert exchange.client_gone
                assert exchange.ended
                exchange.respond(200, [], b"too late")
                await client.close()

    on_uvloop(main())


def test_draining_lets_what_is_under_way_finish_and_closes_what_is_idle() -> None:
    waiting: list[Exchange] = []

    async def main() -> None:
        async with fronted(waiting.append) as served:
            idle, busy = await served.open(), await served.open()
            busy.send(post())
            await auntil(lambda: waiting)
            await auntil(lambda: len(served.front.connections) == 2)
            served.listener.stop()
            served.front.drain()
            assert await idle.rest() == b""
            waiting.pop().respond(200, [], b"done")
            head, body = await _answer(busy)
            assert b"\r\nconnection: close\r\n" in head
            assert body == b"done"
            assert await busy.rest() == b""
            for client in (idle, busy):
                await client.close()

    on_uvloop(main())


def test_connections_that_wait_while_nobody_accepts_are_taken_by_the_next() -> None:
    async def main() -> None:
        async with fronted(echo) as served:
            assert served.listener.accepting
            sock = served.listener_socket
            served.listener.stop()
            assert not served.listener.accepting
            client = await served.open()
            client.send(_GET)
            await served.listener.start([sock])
            assert (await _answer(client))[1] == b"GET /a?b=c 0 "
            await client.close()

    on_uvloop(main())


_FEW_DESCRIPTORS = """
import asyncio, resource, sys
import uvloop
from gateway_front import echo, fronted
async def main():
    async with fronted(echo) as served:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        sys.stdout.write(f"{served.port}\\n"); sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
uvloop.run(main())
"""


def test_a_process_without_descriptors_goes_on_accepting_when_it_has_some_again() -> None:
    folder = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", _FEW_DESCRIPTORS], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        port = int(process.stdout.readline())

        try:
            with contextlib.ExitStack() as many:
                asked = [many.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(60)]
                for sock in asked:
                    with contextlib.suppress(ConnectionError):  # closed already
                        sock.sendall(_GET)
                answers = [_received(sock) for sock in asked]
                assert answers.count(b"HTTP/1.1 200") > 5
                assert answers.count(b"") > 5
            until(lambda: _asked(port) == b"HTTP/1.1 200")
        finally:
            process.communicate("\n", timeout=10)
        assert process.returncode == 0


def _asked(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(_GET)
        return _received(sock)


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(12)
    except ConnectionError:
        return b""
