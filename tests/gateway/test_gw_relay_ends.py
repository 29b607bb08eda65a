"""How a relay ends when the engine fails, when the client leaves, and when either is too slow."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from gateway_front import (
    NEVER_S,
    TIMEOUT_S,
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
from modelsupd.gateway.exchange import Exchange
from waiting import auntil

_CLOSE = b"Connection: close\r\n"
_EVENTS = [b'data: {"n": %d}\n\n' % number for number in range(20)]


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
        for answer, expected, first_s in (
            (b"", b"timeout", 0.1),
            (chunked(b"data: 1\n\n", end=False), None, TIMEOUT_S),
        ):
            async with engine(tmp_path, answering(answer)) as made:
                relaying = Relaying(made.endpoint, first_byte_timeout_s=first_s, stall_s=0.1)
                async with fronted(relaying) as served:
                    came = await served.ask(post(more=_CLOSE))
                    assert relaying.failed[0].kind == "timeout"
                    if expected is None:
                        assert dechunked(came.partition(b"\r\n\r\n")[2]) == ([b"data: 1\n\n", relaying.final], True)
                    else:
                        assert came.endswith(expected)
                    await made.left(1)
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
            for asked, leave in enumerate((Client.close, Client.reset), 1):
                relaying = Relaying(made.endpoint)
                async with fronted(relaying, tick_s=NEVER_S) as served:
                    client = await served.open()
                    client.send(post())
                    await made.asked(asked)
                    if after:
                        await client.until(_EVENTS[after - 1])
                    # CPU time: what else the machine has to do meanwhile is not the gateway's.
                    left_at = time.process_time()
                    if (left := leave(client)) is not None:
                        await left
                    await made.left(asked)
                    assert time.process_time() - left_at < 0.1
                    await relaying.told(gone=1)
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
                client.read(on=False)
                client.send(post(more=_CLOSE))
                quiet, before = 0, -1
                while quiet < 20:
                    await asyncio.sleep(0.01)
                    quiet = quiet + 1 if written == before and written else 0
                    before = written
                assert written < 20_000_000
                assert relaying.failed == []
                client.read(on=True)
                pieces, whole = dechunked((await client.rest()).partition(b"\r\n\r\n")[2])
                assert whole
                assert len(b"".join(pieces)) == 2000 * len(piece)
                await client.close()

    on_uvloop(main())


@pytest.mark.parametrize(("limit_s", "own_s"), [(0.2, None), (60, 0.2), (0.2, 60)])
def test_a_client_that_takes_nothing_for_too_long_is_given_up(
    tmp_path: Path, limit_s: float, own_s: float | None
) -> None:
    async def main() -> None:
        async with engine(tmp_path, answering(chunked(bytes(20_000_000)))) as made:
            relaying = Relaying(made.endpoint, unread_timeout_s=own_s)
            async with fronted(relaying, Limits(write_timeout_s=limit_s)) as served:
                client = await served.open()
                client.read(on=False)
                client.send(post())
                await auntil(lambda: relaying.done)
                assert relaying.done[0].ended_by is EndedBy.CLIENT
                assert relaying.done[0].words == "the client took nothing for 0.2 s"
                await made.left(1)
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
