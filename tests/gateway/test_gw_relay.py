"""What becomes of an engine's answer on its way: bytes, framing, and every way of ending."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from modelsupd.gateway.base import EndedBy, Limits
from modelsupd.gateway.exchange import Counter, Exchange
from modelsupd.gateway.parsing import Headers
from waiting import auntil

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
            assert [(done.status, done.bytes, done.ended_by) for done in relaying.done] == [(200, 3, "engine")] * 2
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
                client.send(b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: s\r\n\r\n")
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
                assert relaying.done[0].bytes == len(b"".join(pieces))

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
    answer += {"whole": b"0\r\n\r\n", "cut": b"", "trailer": b"0\r\nX: y\r\n\r\n", "surplus": b"0\r\n\r\nHTTP/1.1 200 OK\r\n"}[end]
    edges = [0, *sorted({cut % (len(answer) + 1) for cut in cuts}), len(answer)]

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            for begin, until in zip(edges, edges[1:], strict=False):
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
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + plain(b""), b"content-length: 0"),
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
                    await auntil(lambda relaying=relaying: relaying.done)
                    client.send(b"BAD")
                    client.writer.write_eof()
                    assert await client.rest() == b""
                    await client.close()
            (tmp_path / "e.sock").unlink()

    on_uvloop(main())


BROKEN = {
    "garbage": b"hello, I am no HTTP server at all\r\n\r\n",
    "both-framings": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "other-coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 3\n\nabc",
    "folded": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "head-too-long": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70000,
    "too-many-headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 300 + b"\r\n",
    "switching": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_answer_is_the_engine_s_failure_and_nothing_of_it_passes(tmp_path: Path, name: str) -> None:
    async def main() -> None:
        async with engine(tmp_path, answering(BROKEN[name])) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                came = await served.ask(post(more=_CLOSE))
                assert came.startswith(b"HTTP/1.1 503 ")
                assert came.endswith(b"bad-answer")
                assert relaying.failed[0].bytes_sent_to_client == 0

    on_uvloop(main())


def test_garbage_in_the_middle_of_a_stream_ends_in_one_final(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(tmp_path, answering(chunked(b"data: 1\n\n", end=False) + b"zz\r\n")) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                body = (await served.ask(post(more=_CLOSE))).partition(b"\r\n\r\n")[2]
                assert relaying.failed[0].kind == "bad-answer"
                if relaying.failed[0].bytes_sent_to_client:
                    assert dechunked(body)[0][-1] == relaying.final

    on_uvloop(main())


@pytest.mark.parametrize("sent", range(6))
def test_an_engine_that_dies_at_any_point_is_told_with_what_had_passed(tmp_path: Path, sent: int) -> None:
    whole = chunked(b"data: 1\n\n", b"data: 2\n\n")
    head = whole.index(b"\r\n\r\n") + 4
    points = [0, 20, head, head + 5, head + 14, len(whole) - 2]

    async def main() -> None:
        async with engine(tmp_path, answering(whole[: points[sent]], then_wait=False)) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                came = await served.ask(post(more=_CLOSE))
                failed = relaying.failed[0]
                assert failed.kind == "closed"
                if points[sent] < head:
                    assert failed.bytes_sent_to_client == 0
                    assert came.endswith(b"closed")
                else:
                    assert failed.bytes_sent_to_client > 0
                    pieces, end = dechunked(came.partition(b"\r\n\r\n")[2])
                    assert end
                    assert pieces[-1] == relaying.final
                    assert b"".join(pieces[:-1]) == [b"", b"da", b"data: 1\n\n", b"data: 1\n\ndata: 2\n\n"][sent - 2]

    on_uvloop(main())


def test_an_answer_of_promised_length_that_breaks_off_is_not_made_to_look_whole(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(tmp_path, answering(plain(b"[1, 2, 3]")[:-4], then_wait=False)) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying) as served:
                came = await served.ask(post())
                assert came.endswith(b"[1, 2")
                assert b"content-length: 9" in came

    on_uvloop(main())


def test_silence_before_and_after_the_first_byte_has_its_limits(tmp_path: Path) -> None:
    async def main() -> None:
        for answer, limits, expected in (
            (b"", {"first_byte_timeout_s": 0.1}, b"timeout"),
            (chunked(b"data: 1\n\n", end=False), {"stall_s": 0.1}, None),
        ):
            async with engine(tmp_path, answering(answer)) as made:
                relaying = Relaying(made.endpoint, **limits)
                async with fronted(relaying) as served:
                    came = await served.ask(post(more=_CLOSE))
                    assert relaying.failed[0].kind == "timeout"
                    if expected is None:
                        assert dechunked(came.partition(b"\r\n\r\n")[2]) == ([b"data: 1\n\n", relaying.final], True)
                    else:
                        assert came.endswith(expected)
                    await auntil(lambda made=made: made.closed == 1)
            (tmp_path / "e.sock").unlink()

    on_uvloop(main())


def test_a_slow_drip_is_no_stall(tmp_path: Path) -> None:
    """Row 11 of the faults: a byte now and then keeps a stream alive."""

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            for byte in chunked(b"data: 1\n\n"):
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made:
            relaying = Relaying(made.endpoint, stall_s=0.3)
            async with fronted(relaying) as served:
                came = await served.ask(post(more=_CLOSE))
                assert dechunked(came.partition(b"\r\n\r\n")[2]) == ([*[bytes([b]) for b in b"data: 1\n\n"]], True)

    on_uvloop(main())


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_client_that_leaves_cancels_the_engine_s_work_at_once(tmp_path: Path, after: int) -> None:
    """Row 34 of the faults: within 100 ms, at whichever chunk."""

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await made.request(reader)
            if after:
                writer.write(chunked(*_EVENTS[:after], end=False))
            await reader.read()

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made:
            for leave in (Client.close, Client.reset):
                relaying = Relaying(made.endpoint)
                async with fronted(relaying) as served:
                    client = await served.open()
                    client.send(post())
                    await auntil(lambda made=made: len(made.heads) == made.connections)
                    if after:
                        await client.until(_EVENTS[after - 1])
                    before = made.closed
                    left_at = asyncio.get_running_loop().time()
                    if (left := leave(client)) is not None:
                        await left
                    await auntil(lambda made=made, before=before: made.closed > before, timeout_s=1)
                    assert asyncio.get_running_loop().time() - left_at < 0.1
                    await auntil(lambda relaying=relaying: relaying.gone == 1)
                    assert [done.ended_by for done in relaying.done] == [EndedBy.CLIENT]
                    assert relaying.failed == []

    on_uvloop(main())


def test_a_client_that_does_not_read_holds_up_its_engine_and_no_more_than_its_buffer(tmp_path: Path) -> None:
    """Row 33 of the faults: what is written ahead is bounded, and silence then is not the engine's."""
    written = 0
    piece = bytes(16384)

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal written
            await made.request(reader)
            writer.write(chunked(end=False))
            for _ in range(2000):
                writer.write(b"4000\r\n" + piece + b"\r\n")
                await writer.drain()
                written += len(piece)
            writer.write(b"0\r\n\r\n")

        return follow

    async def main() -> None:
        async with engine(tmp_path, script) as made:
            relaying = Relaying(made.endpoint, stall_s=0.1)
            async with fronted(relaying, Limits(stream_buffer_bytes=65536)) as served:
                client = await served.open()
                client.writer.transport.pause_reading()
                client.send(post(more=_CLOSE))
                quiet, before = 0, -1
                while quiet < 20:
                    await asyncio.sleep(0.01)
                    quiet = quiet + 1 if written == before and written else 0
                    before = written
                assert written < 20_000_000
                assert relaying.failed == []
                client.writer.transport.resume_reading()
                pieces, whole = dechunked((await client.rest()).partition(b"\r\n\r\n")[2])
                assert whole
                assert len(b"".join(pieces)) == 2000 * len(piece)
                await client.close()

    on_uvloop(main())


def test_a_client_that_takes_nothing_for_too_long_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        async with engine(tmp_path, answering(chunked(bytes(20_000_000)))) as made:
            relaying = Relaying(made.endpoint)
            async with fronted(relaying, Limits(write_timeout_s=0.2)) as served:
                client = await served.open()
                client.writer.transport.pause_reading()
                client.send(post())
                await auntil(lambda: relaying.done)
                assert relaying.done[0].ended_by is EndedBy.CLIENT
                assert "took nothing" in relaying.done[0].words
                await auntil(lambda: made.closed == 1)
                client.reset()

    on_uvloop(main())


def test_an_answer_of_5xx_is_passed_unless_it_is_a_dying_engine_s(tmp_path: Path) -> None:
    dead = b'{"error": {"message": "EngineCore encountered an issue. See stack trace", "type": "EngineDeadError"}}'

    async def main() -> None:
        for answer, passed in (
            (plain(b'{"error": "no such tool"}', b"500 Internal Server Error"), True),
            (plain(b"x" * 100_000, b"503 Service Unavailable"), True),
            (plain(dead, b"500 Internal Server Error"), False),
            (plain(b"x" * 50, b"502 Bad Gateway")[:-20], False),
        ):
            async with engine(tmp_path, answering(answer, then_wait=passed)) as made:
                relaying = Relaying(made.endpoint)
                async with fronted(relaying) as served:
                    came = await served.ask(post(more=_CLOSE))
                    if passed:
                        assert came.partition(b"\r\n\r\n")[2] == answer.partition(b"\r\n\r\n")[2]
                        assert b"x-modelsupd-run" in came
                    else:
                        assert came.endswith(b"status-5xx-by-dying")
                        held = relaying.failed[0].answer
                        assert held is not None
                        assert held.headers.get("Content-Type") == "application/json"
            (tmp_path / "e.sock").unlink()

    on_uvloop(main())


def test_a_stream_that_was_begun_for_a_waiting_client_goes_on_with_the_engine_s(tmp_path: Path) -> None:
    async def main() -> None:
        for answer, expected in (
            (chunked(*_EVENTS[:2]), _EVENTS[0] + _EVENTS[1]),
            (plain(b'{"error": "bad"}', b"400 Bad Request"), b"final"),
        ):
            async with engine(tmp_path, answering(answer)) as made:
                relaying = Relaying(made.endpoint, final=b"final")

                def wait_then_relay(exchange: Exchange, relaying: Relaying = relaying) -> None:
                    exchange.start_stream(200, [(b"content-type", b"text/event-stream")])
                    exchange.send(b": waiting\n\n")
                    asyncio.get_running_loop().call_soon(relaying, exchange)

                async with fronted(wait_then_relay) as served:
                    came = await served.ask(post(more=_CLOSE))
                    pieces, whole = dechunked(came.partition(b"\r\n\r\n")[2])
                    assert whole
                    assert b"".join(pieces) == b": waiting\n\n" + expected
                    assert made.bodies == [b"{}"]
                    if expected == b"final":
                        failed = relaying.failed[0]
                        assert failed.kind == "status"
                        assert failed.answer is not None
                        assert failed.answer.body == b'{"error": "bad"}'
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
