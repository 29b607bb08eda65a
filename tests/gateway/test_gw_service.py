"""What becomes of requests, end to end: real sockets, engines that fail in every way that real ones do."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from gw_world import GOOD_STREAM, Asked, World, http, model, run, said, talks, whole_answer
from modelsupd.gateway.base import Availability, EndedBy
from modelsupd.gateway.wire import Kind
from waiting import auntil


def test_an_answer_passes_as_it_is_and_is_recorded() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", engine))

        answer = await world.chat()

        assert (answer.status, answer.body) == (200, whole_answer())
        assert answer.headers["x-modelsupd-run"] == "m/0#1"
        (entry,) = await world.recorded()
        assert (entry.status, entry.model, entry.run, entry.error) == (200, "m", "m/0#1", "")
        assert (entry.tokens_in, entry.tokens_out, entry.finish_reason) == (7, 2, "stop")
        assert entry.ended_by is EndedBy.ENGINE
        assert entry.ttft_s is not None
        assert 0 <= entry.ttft_s <= entry.duration_s
        assert not world.evidence
        assert world.ledger.in_flight == 0

    run(test)


def test_a_stream_passes_as_it_is_with_headers_against_buffering() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", engine))

        answer = await world.chat(stream=True)

        assert answer.body == GOOD_STREAM
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["cache-control"] == "no-cache"
        (entry,) = await world.recorded()
        assert (entry.stream, entry.events, entry.finish_reason, entry.error) == (True, 4, "stop", "")

    run(test)


def test_a_request_id_is_kept_if_it_is_sane() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", engine))

        kept = await world.ask("/v1/chat/completions", said(), headers={"X-Request-Id": "mine-1"})
        made = await world.ask("/v1/chat/completions", said(), headers={"X-Request-Id": "no good"})

        assert kept.headers["x-request-id"] == "mine-1"
        assert made.headers["x-request-id"] not in ("", "no good")
        assert [entry.id for entry in await world.recorded(2)] == ["mine-1", made.headers["x-request-id"]]

    run(test)


def test_the_engine_is_asked_for_its_own_name() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", engine, aliases=("gpt-4o-mini",)))

        answer = await world.chat("gpt-4o-mini", stream_options={"x": "model"})

        assert answer.status == 200
        assert engine.asked[0].json["model"] == "m"
        assert engine.asked[0].json["stream_options"] == {"x": "model"}
        (entry,) = await world.recorded()
        assert (entry.asked, entry.model) == ("gpt-4o-mini", "m")

    run(test)


def test_an_unknown_model_is_404_with_the_known_ones() -> None:
    async def test(world: World) -> None:
        world.table(model("one"), model("two"))

        answer = await world.chat("three")

        assert answer.status == 404
        assert answer.json["error"]["code"] == "model_not_found"
        assert "'three'" in answer.json["error"]["message"]
        assert "'one', 'two'" in answer.json["error"]["message"]
        (entry,) = await world.recorded()
        assert (entry.status, entry.asked, entry.model) == (404, "three", "")

    run(test)


@pytest.mark.parametrize(
    ("body", "code"),
    [(b"", "model_missing"), (b"{", "invalid_body"), (b"[]", "invalid_body"), (b'{"model": 3}', "invalid_body")],
)
def test_a_body_that_names_no_model_is_400(body: bytes, code: str) -> None:
    async def test(world: World) -> None:
        world.table(model("m"))

        answer = await world.ask("/v1/chat/completions", body)

        assert (answer.status, answer.json["error"]["code"]) == (400, code)

    run(test)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/slots", 404),
        ("/sleep", 404),
        ("/collective_rpc", 404),
        ("/props", 404),
        ("/lora-adapters", 404),
        ("/metrics", 404),
        ("/v1/../slots", 404),
        ("/v1/chat/completions/", 404),
        ("/v1//chat/completions", 404),
        ("/v1/models", 405),
        ("/upstream/m/slots", 403),
    ],
)
def test_what_rules_an_engine_is_not_reached(path: str, status: int) -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", engine))

        answer = await world.ask(path, said())

        assert answer.status == status
        assert "error" in answer.json
        assert not engine.asked

    run(test)


def test_before_any_table_came_everything_but_health_is_503() -> None:
    async def test(world: World) -> None:
        answer = await world.chat()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await world.ask("/health", method="GET")).status == 200
        assert (await world.ask("/ready", method="GET")).status == 503

    run(test)


# Before the first byte


async def _dies(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
    writer.transport.abort()


def test_an_engine_that_dies_before_its_first_byte_is_made_up_for_by_another() -> None:
    async def test(world: World) -> None:
        bad = await world.engine(_dies)
        good = await world.engine(talks)
        world.table(model("m", bad, good))
        now = time.monotonic()
        world.service.desk.clock = lambda: now

        answer = await world.chat()

        assert (answer.status, answer.headers["x-modelsupd-run"]) == (200, "m/1#1")
        (entry,) = await world.recorded()
        assert (entry.retries, entry.error, entry.run) == (1, "", "m/1#1")
        assert [(who, kind) for who, kind, _ in world.evidence] == [("m/0#1", Kind.CLOSED)]
        # And the one that failed attracts no more of it while it is in doubt, which does not end as the clock stands.
        for _ in range(5):
            assert (await world.chat()).headers["x-modelsupd-run"] == "m/1#1"
        assert len(bad.asked) == 1

    run(test)


def test_an_engine_that_refuses_is_waited_for_until_it_is_there_again() -> None:
    async def test(world: World) -> None:
        dead = await world.engine(talks)
        good = await world.engine(talks)
        await dead.die()
        world.table(model("m", dead))

        client = await world.open("/v1/chat/completions", said())
        await auntil(lambda: world.evidence)
        world.table(model("m", availability=Availability.DOWN, reason="restarting"))
        await auntil(lambda: world.queued() == 1)
        world.table(model("m", availability=Availability.LOADING))
        world.table(model("m", good, number=2))

        answer = await client.rest()
        assert (answer.status, answer.headers["x-modelsupd-run"]) == (200, "m/0#2")
        (entry,) = await world.recorded()
        assert entry.retries == 1
        assert entry.queue_s > 0
        assert world.evidence[0][:2] == ("m/0#1", Kind.REFUSED)

    run(test)


def test_a_dead_engine_that_nothing_replaces_is_503_with_the_reason() -> None:
    async def test(world: World) -> None:
        dead = await world.engine(talks)
        await dead.die()
        world.table(model("m", dead, start_wait_s=0.1))

        answer = await world.chat()

        assert answer.status == 503
        assert "retry-after" in answer.headers
        assert "did not answer" in answer.json["error"]["message"]
        (entry,) = await world.recorded()
        assert (entry.status, entry.error, entry.run) == (503, "engine_failed", "m/0#1")

    run(test)


def test_a_5xx_of_a_dying_engine_is_retried() -> None:
    async def dying(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        error = {"error": {"message": "EngineCore encountered an issue", "type": "EngineDeadError", "code": 500}}
        writer.write(http(json.dumps(error).encode(), 500))

    async def test(world: World) -> None:
        bad = await world.engine(dying)
        good = await world.engine(talks)
        world.table(model("m", bad, good))

        assert (await world.chat()).status == 200
        assert [kind for _, kind, _ in world.evidence] == [Kind.DYING]
        assert "EngineCore" not in world.evidence[0][2]

    run(test)


def test_an_engine_that_accepts_and_never_answers_is_made_up_for() -> None:
    """Row 9 of the faults."""

    async def silent(asked: Asked, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001 - whatever it is asked
        await asyncio.Event().wait()

    async def test(world: World) -> None:
        bad = await world.engine(silent)
        good = await world.engine(talks)
        world.table(model("m", bad, good, first_byte_timeout_s=0.1))

        assert (await world.chat()).status == 200
        assert [kind for _, kind, _ in world.evidence] == [Kind.TIMEOUT]

        world.table(model("m", bad, first_byte_timeout_s=0.1, start_wait_s=0.1))
        answer = await world.chat()
        assert answer.status == 504
        assert world.ledger.in_flight == 0

    run(test)
