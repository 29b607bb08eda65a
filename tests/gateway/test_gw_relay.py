"""What becomes of an engine's answer on its way: its bytes, its framing, and what we add."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from counting_observer import Counter
from gateway_front import (
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
from modelsupd.gateway.base import EndedBy
from modelsupd.gateway.parsing import Headers

_CLOSE = b"Connection: close\r\n"
_EVENTS = [b'data: {"n": %d}\n\n' % number for number in range(20)]


def test_a_plain_answer_passes_with_our_headers_and_without_those_of_the_connection(tmp_path: Path) -> None:
    more = b"Keep-Alive: timeout=5\r\nX-ModelsUpd-Run: forged\r\nAccess-Control-Allow-Origin: *\r\nX-Engine: e\r\n"

    async def main() -> None:
        async with engine(tmp_path, answering(plain(b"[1]", more=more), plain(b"[2]"))) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                client = await served.open()
                client.send(post())
                head = await client.until(b"\r\n\r\n")
                assert await client.reader.readexactly(3) == b"[1]"
                client.send(post())
                await client.until(b"\r\n\r\n[2]")
                await client.close()
            assert head.split(b"\r\n") == [
                b"HTTP/1.1 200 OK",
                b"content-type: application/json",
                b"x-engine: e",
                b"x-modelsupd-run: m/0#1",
                b"content-length: 3",
                b"",
                b"",
            ]
            assert made.connections == 1
            assert [(done.status, done.size_bytes, done.ended_by) for done in relaying.done] == [(200, 3, "engine")] * 2
            assert all(observer.ended and observer.bytes == 3 for observer in relaying.observers)

    on_uvloop(main())


def test_an_engine_is_told_the_request_and_nothing_of_who_asks(tmp_path: Path) -> None:
    secret = (
        b"Authorization: Bearer s\r\nX-Api-Key: s\r\nApi-Key: s\r\nCookie: s\r\nProxy-Authorization: s\r\nOrigin: s\r\n"
        b"Accept-Encoding: gzip\r\nConnection: keep-alive, X-Hop\r\nX-Hop: s\r\nTE: s\r\nContent_Length: 99\r\n"
        b"Keep-Alive: s\r\nExpect: 100-continue\r\n"
    )

    async def main() -> None:
        async with engine(tmp_path, answering(plain(b"1"), plain(b"2"), plain(b"3"))) as made:
            async with fronted(Relaying(made.endpoint)) as served:
                client = await served.open()
                client.send(post("/v1/x?a=b", b"body", b"X-Kept: yes\r\n" + secret))
                await client.until(b"\r\n\r\n1")
                client.send(
                    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: s\r\n\r\n"
                )
                await client.until(b"\r\n\r\n2")
                client.send(b"GET /g HTTP/1.1\r\nHost: h\r\n\r\n")
                await client.until(b"\r\n\r\n3")
                await client.close()
            assert made.heads == [
                b"POST /v1/x?a=b HTTP/1.1\r\nhost: localhost\r\nx-kept: yes\r\ncontent-length: 4\r\n\r\n",
                b"POST /c HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n",
                b"GET /g HTTP/1.1\r\nhost: localhost\r\n\r\n",
            ]
            assert made.bodies == [b"body", b"hi", b""]

    on_uvloop(main())


@pytest.mark.parametrize("pace", [1, 3, 100, 100000])
def test_a_stream_passes_byte_for_byte_whatever_pieces_it_comes_in(tmp_path: Path, pace: int) -> None:
    answer = chunked(*_EVENTS, b"data: [DONE]\n\n")

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            for at in range(0, len(answer), pace):
                writer.write(answer[at : at + pace])
                await asyncio.sleep(0)
            await reader.read()

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                head, _, body = (await served.ask(post(more=_CLOSE))).partition(b"\r\n\r\n")
                assert b"\r\ntransfer-encoding: chunked" in head
                pieces, whole = dechunked(body)
                assert whole
                assert b"".join(pieces) == b"".join(_EVENTS) + b"data: [DONE]\n\n"
                assert relaying.done[0].size_bytes == len(b"".join(pieces))

    on_uvloop(main())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    end=st.sampled_from(["whole", "cut", "surplus", "trailer"]),
    minor=st.sampled_from([b"1.1", b"1.0"]),
)
def test_any_answer_in_any_pieces_arrives_as_it_was_or_with_exactly_one_final(
    tmp_path: Path, pieces: list[bytes], cuts: list[int], end: str, minor: bytes
) -> None:
    answer = chunked(*pieces, end=False)
    answer += {
        "whole": b"0\r\n\r\n",
        "cut": b"",
        "trailer": b"0\r\nX: y\r\n\r\n",
        "surplus": b"0\r\n\r\nHTTP/1.1 200 OK\r\n",
    }[end]
    edges = [0, *sorted({cut % (len(answer) + 1) for cut in cuts}), len(answer)]

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            for begin, until in itertools.pairwise(edges):
                writer.write(answer[begin:until])
                await asyncio.sleep(0.0005)

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                came = await served.ask(post(more=_CLOSE).replace(b"1.1", minor, 1))
        (tmp_path / "e.sock").unlink(missing_ok=True)
        body = came.partition(b"\r\n\r\n")[2]
        if minor == b"1.1":
            found, whole = dechunked(body)
            assert whole
            body = b"".join(found)
        assert body == b"".join(pieces) + (relaying.final if end == "cut" else b"")
        assert len(relaying.failed) == (end == "cut")
        assert len(relaying.done) == (end != "cut")

    on_uvloop(main())


def test_an_answer_that_ends_by_closing_is_a_stream_that_ends(tmp_path: Path) -> None:
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it"

    async def main() -> None:
        async with engine(tmp_path, answering(answer, then_wait=False)) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                body = (await served.ask(post(more=_CLOSE))).partition(b"\r\n\r\n")[2]
                pieces, whole = dechunked(body)
                assert (b"".join(pieces), whole) == (b"all of it", True)
                assert relaying.done[0].ended_by is EndedBy.ENGINE

    on_uvloop(main())


def test_answers_without_a_body_end_with_their_head(tmp_path: Path) -> None:
    answers = [
        (b"HEAD", plain(b"x" * 5)[:-5], b"content-length: 5"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", b"content-length: 7"),
        (b"HEAD", chunked()[:-5], b""),
        (
            b"GET",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(b""),
            b"content-length: 0",
        ),
    ]

    async def main() -> None:
        for method, answer, expected in answers:
            async with engine(tmp_path, answering(answer)) as made:
                relaying = Relaying(made.endpoint)
                async with fronted(relaying) as served:
                    client = await served.open()
                    client.send(b"%b / HTTP/1.1\r\nHost: h\r\n\r\n" % method)
                    head = await client.until(b"\r\n\r\n")
                    assert expected in head
                    assert b"content-length" in head or not expected
                    assert b"link" not in head
                    await relaying.told()
                    client.send(b"no request\r\n")
                    assert (await client.rest()).startswith(b"HTTP/1.1 400 ")  # and nothing of a body before it
                    await client.close()
            (tmp_path / "e.sock").unlink()

    on_uvloop(main())


class _Cutting(Counter):
    def data(self, piece: bytes, /) -> bytes | None:
        """Cut everything behind the first event."""
        super().data(piece)
        return None if self.bytes <= len(_EVENTS[0]) else b""


def test_an_observer_sees_head_and_pieces_and_can_cut(tmp_path: Path) -> None:
    heads: list[tuple[int, str]] = []

    class Seeing(_Cutting):
        def head(self, status: int, headers: Headers) -> None:
            heads.append((status, headers.get("content-type")))

    async def main() -> None:
        async with engine(tmp_path, answering(chunked(*_EVENTS[:3]))) as made:
            relaying = Relaying(made.endpoint, observer=Seeing)
            async with fronted(relaying) as served:
                came = await served.ask(post(more=_CLOSE))
                assert dechunked(came.partition(b"\r\n\r\n")[2]) == ([_EVENTS[0]], True)
                assert heads == [(200, "text/event-stream")]
                assert relaying.observers[0].bytes == sum(map(len, _EVENTS[:3]))

    on_uvloop(main())


def test_a_large_body_passes_and_is_let_go_when_the_answer_begins(tmp_path: Path) -> None:
    body = bytes(range(256)) * 40_000

    async def main() -> None:
        async with engine(tmp_path, answering(chunked(b"data: 1\n\n", end=False))) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                client = await served.open()
                client.send(post(body=body))
                await client.until(b"data: 1\n\n")
                assert made.bodies == [body]
                assert served.front.buffered_bytes == 0
                assert relaying.exchanges[0].body == b""
                await client.close()

    on_uvloop(main())
