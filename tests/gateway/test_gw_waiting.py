"""Requests that wait: for their turn, for a model that loads, and in vain."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from gw_world import GOOD_STREAM, HEAD, TICK_S, Asked, Client, World, chunk, http, model, run, said, talks, whole_answer
from modelsupd.gateway.base import Availability, EndedBy
from modelsupd.gateway.service import Ways
from waiting import auntil


class Gate:
    """An engine that answers when it is let to."""

    def __init__(self) -> None:
        self.open = asyncio.Semaphore(0)
        self.inside = 0
        self.most = 0

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await self.open.acquire()
        self.inside -= 1
        await talks(asked, writer)


@pytest.mark.parametrize("limit", [1, 2])
def test_no_more_than_the_limit_are_with_the_engine_and_the_rest_come_in_order(limit: int) -> None:
    async def test(world: World) -> None:
        gate = Gate()
        engine = await world.engine(gate)
        world.table(model("m", engine, max_concurrent=limit))
        clients: list[Client] = []
        for index in range(6):
            clients.append(await world.open("/v1/chat/completions", said(n=index)))
            await auntil(lambda: len(engine.asked) + world.queued() == len(clients))

        for _ in clients:
            gate.open.release()
        answers = [await client.rest() for client in clients]

        assert [answer.status for answer in answers] == [200] * 6
        assert gate.most == limit
        # Two that are sent at the same time may overtake each other on the way.
        order = [asked.json["n"] for asked in engine.asked]
        assert all(abs(number - place) < limit for place, number in enumerate(order))
        queued = [entry.queue_s > 0 for entry in await world.recorded(6)]
        assert queued.count(True) == 6 - limit
        assert world.queued() == 0

    run(test)


def test_a_full_queue_is_429_with_the_time_to_come_again() -> None:
    """Row 31 of the faults, in small."""

    async def test(world: World) -> None:
        gate = Gate()
        engine = await world.engine(gate)
        world.table(model("m", engine, max_concurrent=1, max_queued=2))
        waiting = [await world.open("/v1/chat/completions", said()) for _ in range(3)]
        await auntil(lambda: engine.asked and world.queued() == 2)

        answer = await world.chat()

        assert (answer.status, answer.headers["retry-after"]) == (429, "3")
        assert answer.json["error"]["code"] == "queue_full"
        assert "2 requests wait" in answer.json["error"]["message"]
        assert (await world.ask("/health", method="GET")).status == 200
        for client in waiting:
            gate.open.release()
            assert (await client.rest()).status == 200

    run(test)


def test_a_turn_that_does_not_come_in_time_is_429_with_the_position() -> None:
    async def test(world: World) -> None:
        gate = Gate()
        engine = await world.engine(gate)
        world.table(model("m", engine, max_concurrent=1, queue_timeout_s=0.1))
        first = await world.open("/v1/chat/completions", said())
        await auntil(lambda: engine.asked)

        answer = await world.chat()

        assert answer.status == 429
        assert "number 1 of those that wait" in answer.json["error"]["message"]
        gate.open.release()
        assert (await first.rest()).status == 200

    run(test)


def test_a_client_that_leaves_the_queue_makes_room_at_once() -> None:
    async def test(world: World) -> None:
        gate = Gate()
        engine = await world.engine(gate)
        world.table(model("m", engine, max_concurrent=1))
        first = await world.open("/v1/chat/completions", said())
        await auntil(lambda: engine.asked)
        second = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.queued() == 1)

        second.close()

        await auntil(lambda: world.queued() == 0)
        (entry,) = await world.recorded()
        assert (entry.ended_by, entry.error, entry.status, entry.run) == (EndedBy.CLIENT, "client_gone", 0, "")
        gate.open.release()
        assert (await first.rest()).status == 200
        assert len(engine.asked) == 1

    run(test)


def test_a_request_waits_for_a_model_that_loads() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", availability=Availability.LOADING, reason="loading: 62 %"))
        client = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.queued() == 1)

        world.table(model("m", engine))

        assert (await client.rest()).status == 200

    run(test)


@pytest.mark.parametrize(
    ("availability", "reason"),
    [(Availability.FAILED, "failed: out of GPU memory"), (Availability.DOWN, "stopped by an operator")],
)
def test_a_model_that_will_not_be_there_is_503_at_once_with_the_reason(availability: Availability, reason: str) -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=availability, reason=reason))

        answer = await world.chat()

        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        assert reason in answer.json["error"]["message"]

    run(test)


def test_a_model_that_fails_while_it_is_waited_for_is_503() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.queued() == 1)

        world.table(model("m", availability=Availability.FAILED, reason="failed: bad flag"))

        answer = await client.rest()
        assert answer.status == 503
        assert "bad flag" in answer.json["error"]["message"]

    run(test)


def test_a_model_that_goes_while_it_is_waited_for_is_404() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.queued() == 1)

        world.table()

        assert (await client.rest()).status == 404

    run(test)


def test_a_load_that_takes_too_long_is_503_with_how_far_it_is() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING, reason="loading: 62 %", start_wait_s=0.1))

        answer = await world.chat()

        assert (answer.status, answer.headers["retry-after"]) == (503, "3")
        assert "loading: 62 %" in answer.json["error"]["message"]

    run(test)


WARM = Ways(tick_s=TICK_S, warm_after_s=0.05)


def test_a_streaming_client_that_waits_is_kept_warm_by_comments() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", availability=Availability.LOADING, reason="loading: 62 %"))
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.head()
        assert client.headers["content-type"].startswith("text/event-stream")
        await client.until(b": loading: 62 %\n\n")
        await client.until(b": loading: 62 %\n\n: loading: 62 %\n\n")

        world.table(model("m", engine))

        answer = await client.rest()
        assert answer.whole
        assert answer.events[-1] == "[DONE]"
        assert answer.body.count(b'"error"') == 0
        (entry,) = await world.recorded()
        assert (entry.status, entry.error) == (200, "")

    run(test, ways=WARM)


def test_a_streaming_client_is_not_kept_warm_where_that_is_turned_off() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING, start_wait_s=0.1))

        answer = await world.chat(stream=True)

        assert answer.status == 503

    run(test, ways=Ways(tick_s=TICK_S, warm_after_s=0))


def test_after_a_comment_a_failure_is_an_event() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.until_comment()

        world.table(model("m", availability=Availability.FAILED, reason="failed: bad weights"))

        answer = await client.rest()
        assert answer.whole
        error, done = answer.events
        assert "bad weights" in json.loads(error)["error"]["message"]
        assert done == "[DONE]"
        (entry,) = await world.recorded()
        assert (entry.status, entry.error) == (200, "model_not_ready")

    run(test, ways=WARM)


def test_after_a_comment_an_engine_s_refusal_is_an_event_with_its_words() -> None:
    async def refuses(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.write(http(b'{"error": {"message": "too many tokens", "type": "BadRequestError", "code": 400}}', 400))

    async def test(world: World) -> None:
        engine = await world.engine(refuses)
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.until_comment()

        world.table(model("m", engine))

        answer = await client.rest()
        assert answer.whole
        assert json.loads(answer.events[0])["error"]["message"] == "too many tokens"
        assert not world.evidence

    run(test, ways=WARM)


def test_after_a_comment_a_dead_engine_is_still_made_up_for() -> None:
    async def dies(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        writer.transport.abort()

    async def test(world: World) -> None:
        bad, good = await world.engine(dies), await world.engine(talks)
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.until_comment()

        world.table(model("m", bad, good))

        answer = await client.rest()
        assert answer.whole
        assert answer.events[-1] == "[DONE]"
        assert answer.body.count(b'"error"') == 0
        assert len(world.evidence) == 1

    run(test, ways=WARM)


def test_after_a_comment_an_answer_that_was_compressed_unasked_reaches_nobody() -> None:
    """The client was told of no coding when its stream began: it would read bytes of gzip as events."""

    async def compresses(asked: Asked, writer: asyncio.StreamWriter) -> None:
        assert "accept-encoding" not in asked.headers
        head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")
        writer.write(head + chunk(gzip.compress(GOOD_STREAM)) + b"0\r\n\r\n")

    async def test(world: World) -> None:
        bad, good = await world.engine(compresses), await world.engine(talks)
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said(stream=True), headers={"Accept-Encoding": "gzip"})
        await client.until_comment()

        world.table(model("m", bad, good))

        answer = await client.rest()
        assert answer.whole
        assert answer.events[-1] == "[DONE]"
        assert answer.body.count(b'"error"') == 0
        assert [kind for _, kind, _ in world.evidence] == ["bad-answer"]

    run(test, ways=WARM)


def test_a_client_that_leaves_while_it_is_kept_warm_is_dropped() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING))
        client = await world.open("/v1/chat/completions", said(stream=True))
        await client.until_comment()

        client.close()

        (entry,) = await world.recorded()
        assert entry.ended_by is EndedBy.CLIENT
        assert world.queued() == 0

    run(test, ways=WARM)


def test_a_request_that_lost_its_engine_goes_before_those_that_have_only_come() -> None:
    async def test(world: World) -> None:
        first = await world.engine(_dies_once_told)
        world.table(model("m", first, max_concurrent=1))
        old = await world.open("/v1/chat/completions", said(n=0))
        await auntil(lambda: first.asked)
        new = await world.open("/v1/chat/completions", said(n=1))
        await auntil(lambda: world.queued() == 1)
        world.table(model("m", availability=Availability.LOADING))

        await first.die()
        await auntil(lambda: world.queued() == 2)
        second = await world.engine(talks)
        world.table(model("m", second, number=2, max_concurrent=1))

        assert [(await client.rest()).status for client in (old, new)] == [200, 200]
        assert [asked.json["n"] for asked in second.asked] == [0, 1]

    run(test)


async def _dies_once_told(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
    await asyncio.Event().wait()


def test_an_answer_that_is_no_stream_is_never_begun_by_a_comment() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", availability=Availability.LOADING, start_wait_s=5.0))
        plain = await world.open("/v1/chat/completions", said())
        stream = await world.open("/v1/chat/completions", said(stream=True))
        await stream.until_comment()

        world.table(model("m", engine))

        assert (await plain.rest()).body == whole_answer()

    run(test, ways=WARM)
