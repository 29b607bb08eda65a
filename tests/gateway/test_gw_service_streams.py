"""Answers that have begun: an engine's death, its silence and its lies in the middle, and a client that leaves."""

from __future__ import annotations

import asyncio
import json

import pytest

from gw_world import DONE, GOOD_STREAM, HEAD, Asked, World, chunk, event, http, model, run, said, whole_answer
from modelsupd.gateway.base import EndedBy
from modelsupd.gateway.wire import Kind
from waiting import auntil


@pytest.mark.parametrize("count", range(5))
def test_an_engine_that_dies_in_the_middle_ends_the_stream_with_one_error(count: int) -> None:
    """Row 12 of the faults."""

    async def cut(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + b"".join(chunk(event(str(index))) for index in range(count)))
        await writer.drain()
        writer.transport.abort() if count == 0 else writer.close()
        await asyncio.Event().wait()

    async def test(world: World) -> None:
        engine = await world.engine(cut)
        world.table(model("m", engine, start_wait_s=0.1))

        answer = await world.chat(stream=True)

        if answer.status == 503:
            # Its head may have been lost with it: then nothing had begun, and the status says it all.
            assert count == 0
            return
        assert answer.whole
        assert answer.body.startswith(b"".join(event(str(index)) for index in range(count)))
        assert answer.body.count(b'"error"') == 1
        *_, error, done = answer.events
        assert "stopped in the middle" in json.loads(error)["error"]["message"]
        assert done == "[DONE]"
        (entry,) = await world.recorded()
        assert (entry.status, entry.error, entry.ended_by) == (200, "closed", EndedBy.ENGINE)
        assert [kind for _, kind, _ in world.evidence] == [Kind.CLOSED]
        assert len(engine.asked) == 1

    run(test)


@pytest.mark.parametrize("cut_at", [1, 7, 60, len(event("one")) + 1, len(GOOD_STREAM) - 20])
def test_half_an_event_never_reaches_the_client(cut_at: int) -> None:
    async def cut(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + chunk(event("zero")) + chunk(GOOD_STREAM[:cut_at]))
        await writer.drain()
        writer.close()
        await asyncio.Event().wait()

    async def test(world: World) -> None:
        engine = await world.engine(cut)
        world.table(model("m", engine))

        answer = await world.chat(stream=True)

        assert answer.whole
        parsed = [json.loads(data) for data in answer.events if data != "[DONE]"]
        assert [("error" in data) for data in parsed].count(True) == 1
        assert "error" in parsed[-1]
        assert answer.events[-1] == "[DONE]"

    run(test)


def test_an_answer_that_is_no_stream_is_cut_so_that_the_client_sees_it() -> None:
    async def cut(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        body = whole_answer()
        writer.write(http(body)[: -len(body) // 2])
        await writer.drain()
        writer.close()
        await asyncio.Event().wait()

    async def test(world: World) -> None:
        engine = await world.engine(cut)
        world.table(model("m", engine))

        answer = await world.chat()

        assert not answer.whole
        (entry,) = await world.recorded()
        assert (entry.status, entry.error) == (200, "closed")

    run(test)


def test_a_stream_that_stops_ends_with_an_error_however_many_comments_come() -> None:
    """Row 10 of the faults: llama-server's comments come from a thread that outlives a hang."""

    async def hangs(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + chunk(event("one")))
        while True:
            writer.write(chunk(b":\n\n"))
            await writer.drain()
            await asyncio.sleep(0.02)

    async def test(world: World) -> None:
        engine = await world.engine(hangs)
        world.table(model("m", engine, stream_stall_s=0.2))

        answer = await world.chat(stream=True)

        assert answer.whole
        assert json.loads(answer.events[-2])["error"]["code"] == "stalled"
        assert answer.body.count(b'"error"') == 1
        (entry,) = await world.recorded()
        assert (entry.error, entry.ended_by) == ("stalled", EndedBy.GATEWAY)
        assert [kind for _, kind, _ in world.evidence] == [Kind.STALLED]
        await auntil(lambda: engine.gone == 1, what="the engine's connection is closed")
        assert world.ledger.in_flight == 0

    run(test)


def test_a_slow_drip_is_a_stall_once_no_event_gets_whole() -> None:
    """Row 11 of the faults."""

    async def drips(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + chunk(event("one")))
        for index in range(1000):
            writer.write(chunk(event("two")[index % 50 : index % 50 + 1]))
            await writer.drain()
            await asyncio.sleep(0.02)

    async def test(world: World) -> None:
        engine = await world.engine(drips)
        world.table(model("m", engine, stream_stall_s=0.2))

        answer = await world.chat(stream=True)

        assert answer.body.startswith(event("one") + b'data: {"error"')
        assert answer.events[-1] == "[DONE]"

    run(test)


def test_an_engine_s_own_error_passes_and_no_second_one_follows() -> None:
    error = b'data: {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}\n\n'

    async def fails(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + chunk(event("one")) + chunk(error + DONE) + b"0\r\n\r\n")

    async def test(world: World) -> None:
        engine = await world.engine(fails)
        world.table(model("m", engine))

        answer = await world.chat(stream=True)

        assert answer.body == event("one") + error + DONE
        (entry,) = await world.recorded()
        assert entry.error == "error_in_stream"
        assert [kind for _, kind, _ in world.evidence] == [Kind.ERROR_IN_STREAM]

    run(test)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (event("") + event(None, "stop") + DONE, Kind.NO_TOKENS),
        (event("one") + DONE, Kind.NO_FINISH_REASON),
    ],
)
def test_an_answer_of_zero_tokens_and_an_end_without_a_reason_are_evidence(body: bytes, kind: Kind) -> None:
    async def lies(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + chunk(body) + b"0\r\n\r\n")

    async def test(world: World) -> None:
        engine = await world.engine(lies)
        world.table(model("m", engine))

        assert (await world.chat(stream=True)).body == body
        await world.recorded()
        assert [told for _, told, _ in world.evidence] == [kind]

    run(test)


def test_a_stream_that_ends_in_silence_is_mended() -> None:
    """An engine whose answer ends by closing looks whole when it dies; its words tell that it is not."""

    async def closes(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event("one") + event("two")[:20])
        writer.close()
        await asyncio.Event().wait()

    async def test(world: World) -> None:
        engine = await world.engine(closes)
        world.table(model("m", engine))

        answer = await world.chat(stream=True)

        assert answer.whole
        assert answer.body.startswith(event("one") + b'data: {"error"')
        assert answer.events[-1] == "[DONE]"
        (entry,) = await world.recorded()
        assert entry.error == "cut"
        assert [kind for _, kind, _ in world.evidence] == [Kind.CLOSED]

    run(test)


def test_a_client_that_leaves_cancels_the_engine_and_is_recorded() -> None:
    """Row 34 of the faults."""

    async def long(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(HEAD + chunk(event("one")))
        await asyncio.Event().wait()

    async def test(world: World) -> None:
        engine = await world.engine(long)
        world.table(model("m", engine))
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.head()
        await client.until(b"one")

        client.close()

        (entry,) = await world.recorded()
        assert (entry.ended_by, entry.error, entry.status) == (EndedBy.CLIENT, "client_gone", 200)
        assert not world.evidence
        assert world.ledger.in_flight == 0

    run(test)
