"""Requests that two servers could read in two ways, and those that are too long, too slow or too many."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway_front import Fronted, echo, fronted, on_uvloop, post
from modelsupd.gateway.base import Limits
from modelsupd.gateway.exchange import Exchange
from waiting import auntil

_H = b"Host: h\r\n"


def _get(more: bytes = b"", target: bytes = b"/") -> bytes:
    return b"GET %b HTTP/1.1\r\n%b%b\r\n" % (target, _H, more)


def _chunked(body: bytes, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n%b%bTransfer-Encoding: chunked\r\n\r\n%b" % (_H, more, body)


REFUSED = {
    "cl-te": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG"),
    "te-cl": (400, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n"),
    "two-lengths": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "same-length-twice": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "lengths-in-a-list": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: 3, 3\r\n\r\nabc"),
    "length-signed": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: +3\r\n\r\nabc"),
    "length-negative": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: -3\r\n\r\nabc"),
    "length-hex": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: 0x3\r\n\r\nabc"),
    "length-empty": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length:\r\n\r\nabc"),
    "length-overflow": (400, b"POST / HTTP/1.1\r\n" + _H + b"Content-Length: 99999999999999999999999\r\n\r\nabc"),
    "te-twice": (400, _chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n")),
    "te-gzip": (501, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "te-last-is-not-chunked": (400, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    "te-identity": (501, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding: identity\r\n\r\n"),
    "te-obscured": (501, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding: xchunked\r\n\r\n"),
    "te-vertical-tab": (400, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "te-in-1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "te-space-before-colon": (400, b"POST / HTTP/1.1\r\n" + _H + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    "bare-lf": (400, b"GET / HTTP/1.1\nHost: h\n\n"),
    "bare-lf-in-headers": (400, b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
    "bare-lf-at-the-end": (400, b"GET / HTTP/1.1\r\nHost: h\r\n\n"),
    "bare-cr": (400, b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n"),
    "folded": (400, _get(b"X: a\r\n b\r\n")),
    "folded-by-tab": (400, _get(b"X: a\r\n\tTransfer-Encoding: chunked\r\n")),
    "first-header-folded": (400, b"GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
    "nul": (400, _get(b"X: a\0b\r\n")),
    "control-character": (400, _get(b"X: a\x01b\r\n")),
    "space-before-colon": (400, b"GET / HTTP/1.1\r\nHost : h\r\n\r\n"),
    "no-name": (400, _get(b": x\r\n")),
    "no-colon": (400, _get(b"x\r\n")),
    "name-with-space": (400, _get(b"X Y: z\r\n")),
    "name-not-ascii": (400, _get(b"X\xe9: z\r\n")),
    "no-host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two-hosts": (400, _get(b"Host: other\r\n")),
    "host-with-path": (400, b"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n"),
    "host-with-user": (400, b"GET / HTTP/1.1\r\nHost: a@h\r\n\r\n"),
    "absolute-with-user": (400, _get(target=b"http://a@h/")),
    "absolute-without-host": (400, _get(target=b"http:///x")),
    "absolute-of-another-scheme": (400, _get(target=b"ftp://h/x")),
    "authority": (501, b"CONNECT h:443 HTTP/1.1\r\n" + _H + b"\r\n"),
    "asterisk": (400, _get(target=b"*")),
    "fragment": (400, _get(target=b"/x#y")),
    "relative": (400, _get(target=b"x")),
    "target-not-ascii": (400, _get(target=b"/\xff")),
    "target-nul": (400, _get(target=b"/\0")),
    "0.9": (505, b"GET /\r\n\r\n"),
    "0.9-named": (505, b"GET / HTTP/0.9\r\n\r\n"),
    "1.2": (400, b"GET / HTTP/1.2\r\n" + _H + b"\r\n"),
    "2.0": (505, b"GET / HTTP/2.0\r\n" + _H + b"\r\n"),
    "2.0-preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "version-in-lower-case": (400, b"GET / http/1.1\r\n" + _H + b"\r\n"),
    "unknown-method": (400, b"FETCH / HTTP/1.1\r\n" + _H + b"\r\n"),
    "method-in-lower-case": (400, b"get / HTTP/1.1\r\n" + _H + b"\r\n"),
    "trace": (501, b"TRACE / HTTP/1.1\r\n" + _H + b"\r\n"),
    "tab-for-space": (400, b"GET\t/ HTTP/1.1\r\n" + _H + b"\r\n"),
    "tls": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "chunk-size-signed": (400, _chunked(b"+3\r\nabc\r\n0\r\n\r\n")),
    "chunk-size-prefixed": (400, _chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    "chunk-size-overflow": (400, _chunked(b"f" * 17 + b"\r\nabc")),
    "chunk-size-space": (400, _chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
    "chunk-size-bare-lf": (400, _chunked(b"3\nabc\r\n0\r\n\r\n")),
    "chunk-extension-bare-lf": (400, _chunked(b"3;a\nabc\r\n0\r\n\r\n")),
    "chunk-data-too-long": (400, _chunked(b"3\r\nabcd\r\n0\r\n\r\n")),
    "chunk-data-bare-lf": (400, _chunked(b"3\r\nabc\n0\r\n\r\n")),
    "trailer-with-length": (400, _chunked(b"0\r\nContent-Length: 5\r\n\r\n")),
    "expectation": (417, post(more=b"Expect: a-miracle\r\n")),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("size", [1, 7, 100000])
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(name: str, size: int) -> None:
    status, data = REFUSED[name]
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    handled: list[str] = []

    def handle(exchange: Exchange) -> None:
        handled.append(exchange.path)
        echo(exchange)

    async def main() -> None:
        async with fronted(handle) as served:
            client = await served.open()
            whole = data + smuggled
            for at in range(0, len(whole), size):
                client.send(whole[at : at + size])
                if size < 100:
                    await asyncio.sleep(0)
            came = await client.rest()
            await client.close()
            head, _, body = came.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status), came
            assert b"connection: close" in head
            assert json.loads(body)["error"]["code"] == status
            assert handled == []
            assert served.front.refused == {status: 1}

    on_uvloop(main())


def test_limits_of_sizes_are_told() -> None:
    limits = Limits(max_head_bytes=2000, max_headers=20, max_body_bytes=50_000, buffered_bytes=60_000)
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    asked = {
        414: [b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /" + b"a" * 3000],
        431: [
            _get(b"X: " + b"y" * 3000 + b"\r\n"),
            b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 3000,
            _get(b"X: y\r\n" * 21),
        ],
        413: [
            post(body=bytes(50_001)),
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1073741824\r\n\r\n",
            _chunked(chunk * 13),
        ],
        400: [_chunked(b"1\r\na\r\n" * 30000)],
        200: [
            _get(b"X: " + b"y" * 1500 + b"\r\nConnection: close\r\n"),
            post(body=bytes(50_000), more=b"Connection: close\r\n"),
        ],
    }

    async def main() -> None:
        async with fronted(echo, limits) as served:
            for status, requests in asked.items():
                for request in requests:
                    came = await served.ask(request)
                    assert came.startswith(b"HTTP/1.1 %d " % status), (status, request[:80], came[:300])

    on_uvloop(main())


def test_bodies_of_all_connections_together_are_bounded() -> None:
    async def main() -> None:
        async with fronted(echo, Limits(max_body_bytes=100_000, buffered_bytes=150_000)) as served:
            clients = [await served.open() for _ in range(3)]
            for client in clients[:2]:
                client.send(post(body=bytes(70_000))[:-1])
            await auntil(lambda: served.front.buffered_bytes > 139_000)
            clients[2].send(post(body=bytes(70_000)))
            came = await clients[2].rest()
            assert came.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after: 1\r\n" in came
            for client in clients[:2]:
                client.send(b"\0")
                assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            for client in clients:
                await client.close()

    on_uvloop(main())


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"GET / HTT", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc", b"HTTP/1.1 408 "),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab", b"HTTP/1.1 408 "),
        (b"", b""),
    ],
)
def test_slow_heads_and_bodies_are_told_and_idle_connections_are_closed(sent: bytes, expected: bytes) -> None:
    # Whoever says something is not idle, however late the first of it comes.
    limits = Limits(head_timeout_s=0.1, body_timeout_s=0.1, idle_timeout_s=60 if sent else 0.1)

    async def main() -> None:
        async with fronted(echo, limits) as served:
            came = await served.ask(sent)
            assert came.startswith(expected)
            assert bool(came) is bool(expected)

    on_uvloop(main())


def test_a_head_that_drips_is_too_slow_however_steadily_it_does() -> None:
    async def drip(served: Fronted) -> bytes:
        client = await served.open()
        ended = asyncio.create_task(client.rest())
        for byte in _get(b"X-Long: " + b"y" * 10_000 + b"\r\n"):
            if ended.done():
                break
            client.send(bytes([byte]))
            await asyncio.wait([ended], timeout=0.01)
        await client.close()
        return await ended

    async def main() -> None:
        async with fronted(echo, Limits(head_timeout_s=0.2)) as served:
            assert (await drip(served)).startswith(b"HTTP/1.1 408 ")

    on_uvloop(main())


def test_more_connections_than_may_be_are_told_so() -> None:
    async def main() -> None:
        async with fronted(echo, Limits(max_connections=3)) as served:
            clients = [await served.open() for _ in range(3)]
            await auntil(lambda: len(served.front.connections) == 3)
            came = await served.ask(_get())
            assert came.startswith(b"HTTP/1.1 503 ")
            clients[0].send(_get())
            assert (await clients[0].until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
            for client in clients:
                await client.close()

    on_uvloop(main())
