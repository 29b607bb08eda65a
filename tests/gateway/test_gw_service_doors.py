"""Who is let in, and what the gateway answers itself."""

from __future__ import annotations

import pytest

from gw_world import TICK_S, World, model, run, said, talks
from modelsupd.core.routing import AutoRule
from modelsupd.gateway.api import Cors
from modelsupd.gateway.base import Availability
from modelsupd.gateway.keys import Principal, Refusal
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.service import Ways


class _Key(Principal):
    """Somebody who may use little."""

    left = 0

    def __init__(self, name: str, *models: str, admin: bool = False, refusal: Refusal | None = None) -> None:
        super().__init__()
        self.name = name
        self.admin = admin
        self.models = models
        self.refusal = refusal

    def may_use(self, *names: str) -> bool:
        return not self.models or any(name in self.models for name in names)

    def enter(self, now: float) -> Refusal | None:  # noqa: ARG002 - the key's, which keeps no time here
        return self.refusal

    def leave(self) -> None:
        _Key.left += 1


KEYS: dict[str, Principal | Refusal] = {
    "": Refusal(401, "missing_api_key", "a key is needed"),
    "bad": Refusal(401, "invalid_api_key", "this key is not known here"),
    "one": _Key("one", "one"),
    "busy": _Key("busy", refusal=Refusal(429, "rate_limit_exceeded", "too many", 12.0)),
    "admin": _Key("admin", admin=True),
}


def check(headers: Headers) -> Principal | Refusal:
    return KEYS[headers.get("x-api-key")]


def key(name: str) -> dict[str, str]:
    return {"x-api-key": name}


def test_keys_decide_who_is_served_and_with_what() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("one", engine, aliases=("uno",)), model("two", engine))
        _Key.left = 0

        nobody = await world.ask("/v1/chat/completions", said("one"))
        unknown = await world.ask("/v1/chat/completions", said("one"), headers=key("bad"))
        mine = await world.ask("/v1/chat/completions", said("uno"), headers=key("one"))
        theirs = await world.ask("/v1/chat/completions", said("two"), headers=key("one"))
        none = await world.ask("/v1/chat/completions", said("three"), headers=key("one"))
        busy = await world.ask("/v1/chat/completions", said("one"), headers=key("busy"))

        assert [answer.status for answer in (nobody, unknown, mine, theirs, none, busy)] == [
            401,
            401,
            200,
            403,
            404,
            429,
        ]
        assert nobody.headers["www-authenticate"].startswith("bearer")
        assert busy.headers["retry-after"] == "12"
        assert "'one'" in none.json["error"]["message"]
        assert "'two'" not in none.json["error"]["message"]
        entries = await world.recorded(6)
        assert [entry.key for entry in entries] == ["", "", "one", "one", "one", "busy"]
        assert entries[-1].error == "rate_limit_exceeded"
        assert _Key.left == 1
        assert "x-api-key" not in engine.asked[0].headers

    run(test, check=check)


def test_the_health_of_the_gateway_needs_no_key() -> None:
    async def test(world: World) -> None:
        world.table(model("m", availability=Availability.LOADING))
        assert (await world.ask("/health", method="GET")).json == {"status": "ok"}
        not_ready = await world.ask("/ready", method="GET")
        assert (not_ready.status, not_ready.headers["retry-after"]) == (503, "3")
        world.table(model("m"))
        assert (await world.ask("/ready", method="GET")).json == {
            "status": "ready",
            "ready": 1,
            "startable": 0,
            "models": 1,
        }

    run(test, check=check)


def test_models_are_listed_with_their_state_as_far_as_the_key_goes() -> None:
    async def test(world: World) -> None:
        world.table(
            model("one", context_length=4096, capabilities=("tools",)),
            model("org/two:8b", availability=Availability.LOADING, reason="loading: 62 %"),
        )
        listed = await world.ask("/v1/models", method="GET", headers=key("admin"))
        data = listed.json["data"]
        assert [(each["id"], each["state"], each["context_length"]) for each in data] == [
            ("one", "ready", 4096),
            ("org/two:8b", "loading", None),
        ]
        assert (listed.json["object"], listed.json["first_id"], listed.json["has_more"]) == ("list", "one", False)
        mine = await world.ask("/v1/models", method="GET", headers=key("one"))
        assert [each["id"] for each in mine.json["data"]] == ["one"]
        for path in ("/v1/models/org/two:8b", "/v1/models/org%2Ftwo%3A8b"):
            found = await world.ask(path, method="GET", headers=key("admin"))
            assert (found.status, found.json["reason"]) == (200, "loading: 62 %")
        assert (await world.ask("/v1/models/org/two:8b", method="GET", headers=key("one"))).status == 404
        assert (await world.ask("/v1/models", method="GET")).status == 401
        assert [(entry.key, entry.asked, entry.status) for entry in await world.recorded(6)] == [
            ("admin", "", 200),
            ("one", "", 200),
            ("admin", "org/two:8b", 200),
            ("admin", "org/two:8b", 200),
            ("one", "", 404),
            ("", "", 401),
        ]

    run(test, check=check)


def test_an_engine_s_own_pages_need_an_admin_key() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("org/m", engine))

        refused = await world.ask("/upstream/org/m/slots?x=1", method="GET", headers=key("one"))
        moved = await world.ask("/upstream/org/m", method="GET", headers=key("admin"))
        passed = await world.ask("/upstream/org/m/slots?x=1", method="GET", headers=key("admin"))
        missing = await world.ask("/upstream/x/slots", method="GET", headers=key("admin"))

        assert (refused.status, missing.status) == (403, 404)
        assert (moved.status, moved.headers["location"]) == (308, "/upstream/org/m/")
        assert (passed.status, engine.asked[0].path) == (200, "/slots?x=1")
        assert len(engine.asked) == 1
        world.table(model("org/m", availability=Availability.LOADING))
        assert (await world.ask("/upstream/org/m/", method="GET", headers=key("admin"))).status == 503

    run(test, check=check)


@pytest.mark.parametrize(("path", "shape"), [("/v1/messages", "anthropic"), ("/v1/responses", "openai")])
def test_errors_have_the_shape_of_the_api(path: str, shape: str) -> None:
    async def test(world: World) -> None:
        world.table()
        answer = (await world.ask(path, said())).json
        assert (answer.get("type") == "error") == (shape == "anthropic")
        assert "message" in answer["error"]

    run(test)


def test_pages_of_other_origins_do_not_get_an_engine_to_work() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", engine))

        def origin(name: str) -> dict[str, str]:
            return {"Origin": name}

        theirs = await world.ask("/v1/chat/completions", said(), headers=origin("https://evil.example"))
        assert theirs.status == 403
        assert not engine.asked
        own = await world.ask("/v1/chat/completions", said(), headers=origin("http://gateway"))
        assert own.status == 200
        ours = await world.ask("/v1/chat/completions", said(), headers=origin("https://a.example"))
        assert (ours.status, ours.headers["access-control-allow-origin"]) == (200, "https://a.example")
        asks = {**origin("https://a.example"), "Access-Control-Request-Headers": "authorization"}
        first = await world.ask("/v1/chat/completions", method="OPTIONS", headers=asks)
        assert (first.status, first.headers["access-control-allow-headers"]) == (200, "authorization")
        assert "POST".lower() in first.headers["access-control-allow-methods"]
        refused = await world.ask("/v1/models", method="OPTIONS", headers=origin("https://evil.example"))
        assert refused.status == 403

    run(test, ways=Ways(tick_s=TICK_S, cors=Cors(("https://a.example",))))


def test_auto_is_a_model_that_can_do_it() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(
            model("vectors", engine, capabilities=("embedding",)),
            model("small", engine, context_length=600),
            model("eyes", engine, capabilities=("images",)),
        )

        async def chosen(**fields: object) -> str:
            answer = await world.ask("/v1/chat/completions", {**said("auto"), **fields})
            return str(engine.asked[-1].json["model"]) if answer.status == 200 else str(answer.status)

        assert await chosen() == "small"
        assert await chosen(max_tokens=1000) == "eyes"
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        assert await chosen(messages=[{"role": "user", "content": [image]}]) == "eyes"
        assert await chosen(tools=[{"type": "function"}]) == "503"
        assert await chosen(messages=[{"role": "user", "content": "word " * 200}]) == "eyes"
        answer = await world.ask("/v1/embeddings", {"model": "auto", "input": "x"})
        assert (answer.status, engine.asked[-1].json["model"]) == (200, "vectors")
        entry = world.entries[0]
        assert (entry.asked, entry.model) == ("auto", "small")

    rules = (AutoRule(models=("eyes",), prompt_over=200),)
    run(test, ways=Ways(tick_s=TICK_S, auto=rules))


@pytest.mark.parametrize(("header", "ways"), [("X-Session-Id", Ways()), ("X-Chat", Ways(session_headers=(b"x-chat",)))])
def test_a_session_stays_with_its_replica(header: str, ways: Ways) -> None:
    async def test(world: World) -> None:
        engine = await world.engine(talks)
        world.table(model("m", *[engine] * 4))
        for name in ("a", "b", "c"):
            runs = set()
            for _ in range(4):
                answer = await world.ask("/v1/chat/completions", said(), headers={header: name})
                runs.add(answer.headers["x-modelsupd-run"])
            assert len(runs) == 1

    run(test, ways=ways)


def test_a_form_and_a_query_name_their_model() -> None:
    async def test(world: World) -> None:
        engine = await world.engine(_says_ok)
        world.table(model("whisper", engine, aliases=("large",)))
        part = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nlarge\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}

        sound = await world.ask("/v1/audio/transcriptions", part, headers=kind)
        voices = await world.ask("/v1/audio/voices?model=large", method="GET")
        nameless = await world.ask("/v1/audio/voices", method="GET")

        too_long = await world.ask(f"/v1/audio/voices?model={'x' * 257}", method="GET")

        assert (sound.status, voices.status, nameless.status, too_long.status) == (200, 200, 400, 400)
        assert b"must not be longer than 256 characters" in too_long.body
        assert b"\r\nwhisper\r\n" in engine.asked[0].body
        assert engine.asked[1].path == "/v1/audio/voices?model=large"

    run(test)


async def _says_ok(asked: object, writer: object) -> None:  # noqa: ARG001 - whatever it is asked
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")  # type: ignore[attr-defined] # a stream
