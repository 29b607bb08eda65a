"""Paths, bodies, origins: what a request is for."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupd.core.routing import Need
from modelsupd.gateway import api, body
from modelsupd.gateway.api import Cors, NoTarget, Place, Target
from modelsupd.gateway.base import Api
from modelsupd.gateway.body import Asked, BodyError


@pytest.mark.parametrize(
    ("path", "spoken"),
    [
        ("/v1/chat/completions", Api.CHAT),
        ("/v1/completions", Api.COMPLETION),
        ("/v1/responses", Api.RESPONSES),
        ("/v1/messages", Api.MESSAGES),
        ("/v1/messages/count_tokens", Api.MESSAGES),
        ("/v1/embeddings", Api.OTHER),
        ("/v1/rerank", Api.OTHER),
        ("/v1/score", Api.OTHER),
        ("/v1/audio/transcriptions", Api.OTHER),
        ("/v1/audio/speech", Api.OTHER),
        ("/tokenize", Api.OTHER),
        ("/infill", Api.OTHER),
    ],
)
def test_what_engines_offer_passes(path: str, spoken: Api) -> None:
    assert api.find("POST", path) == Target(Place.ENGINE, spoken)
    assert api.api_of(path) is spoken


RULING = (
    "/sleep", "/wake_up", "/collective_rpc", "/slots", "/slots/0", "/props", "/lora-adapters", "/metrics",
    "/models/load", "/models/unload",
    "/server_info", "/scale_elastic_ep", "/reset_prefix_cache", "/docs", "/openapi.json", "/", "",
    "/v1/chat/completions/", "/V1/chat/completions", "/v1/audio/../../slots", "/v1/audio/a/b", "/v1/load_lora_adapter",
    "/v1/%63hat/completions", "//v1/completions", "/v1/responses/../models", "/upstream",
)  # fmt: skip


@pytest.mark.parametrize("path", RULING)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE"])
def test_nothing_else_does(method: str, path: str) -> None:
    found = api.find(method, path)
    if isinstance(found, Target):
        # `/models/load` is asked for as a model of that name, by GET; the gateway answers that itself.
        assert (method, found.place) == ("GET", Place.MODEL)
    else:
        assert found.status in (404, 405)


def test_a_wrong_method_says_which_there_are() -> None:
    assert api.find("GET", "/v1/chat/completions") == NoTarget(405, "this path takes POST", "POST")
    assert api.find("POST", "/health") == NoTarget(405, "this path takes GET, HEAD", "GET, HEAD")
    missing = api.find("POST", "/v2/chat")
    assert isinstance(missing, NoTarget)
    assert "/v1/chat/completions" in missing.words


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_every_path_is_for_something_known_or_for_nothing(path: str) -> None:
    for method in ("GET", "POST"):
        found = api.find(method, "/" + path)
        if isinstance(found, Target) and found.place is Place.ENGINE:
            assert ".." not in path
            assert "//" not in path


@pytest.mark.parametrize(
    ("rest", "found"),
    [
        ("m/slots", ("m", "/slots")),
        ("m", ("m", "")),
        ("m/", ("m", "/")),
        ("org/m/slots", ("org/m", "/slots")),
        ("org/x/slots", ("org", "/x/slots")),
        ("qwen3:8b/v1/models", ("qwen3:8b", "/v1/models")),
        ("qwen3%3A8b/v1/models", ("qwen3:8b", "/v1/models")),
        ("org%2Fm/slots", ("org/m", "/slots")),
        ("mm/slots", None),
        ("", None),
        ("m%2e%2e", None),
    ],
)
def test_an_engine_s_own_path(rest: str, found: tuple[str, str] | None) -> None:
    assert api.split_upstream(rest, ["m", "org", "org/m", "qwen3:8b"]) == found


@pytest.mark.parametrize(
    ("query", "found"),
    [("model=m", "m"), ("a=b&model=org%2Fm", "org/m"), ("", None), ("model=", None), ("&" * 1000, None), ("x=1", None)],
)
def test_the_model_in_a_query(query: str, found: str | None) -> None:
    assert api.model_in_query(query) == found


def test_origins() -> None:
    none, one, every = Cors(), Cors(("https://a.example",)), Cors(("*",))
    assert none.headers("https://a.example") == ()
    assert (b"access-control-allow-origin", b"https://a.example") in one.headers("https://a.example")
    assert one.headers("https://b.example") == ()
    assert every.allows("https://b.example")
    assert (b"access-control-allow-headers", b"authorization, x-a") in one.preflight(
        "https://a.example", "authorization, x-a"
    )
    assert (b"access-control-allow-headers", b"Authorization") in one.preflight("https://a.example", "a\x01b")
    assert api.same_origin("http://host:8080", "Host:8080")
    assert not api.same_origin("http://evil", "host:8080")
    assert not api.same_origin("null", "")


# Bodies

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
NESTED = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
KEYS = st.sampled_from(["model", "stream", "max_tokens", "messages", "Model", "mo\\del", 'mo"del', "tools"])
MEMBERS = st.lists(st.tuples(KEYS | st.text(max_size=8), NESTED), max_size=8)
SPACES = st.sampled_from(["", " ", "\n", "\t \r\n"])


def _written(key: str, *, escaped: bool) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"' if escaped and key.isascii() else json.dumps(key)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """JSON objects in all the ways in which one may be written, with the same key more than once."""
    space = draw(SPACES)
    members = [
        f"{space}{_written(key, escaped=draw(st.booleans()))}{space}:{space}"
        f"{json.dumps(value, ensure_ascii=draw(st.booleans()), indent=draw(st.none() | st.integers(0, 2)))}{space}"
        for key, value in draw(MEMBERS)
    ]
    return f"{space}{{{','.join(members) or space}}}{space}".encode(errors="surrogatepass")


def parsed(data: bytes) -> Asked | None:
    """Return what a parser makes of a body, None where it must be refused."""
    try:
        value = json.loads(data.decode())
    except ValueError:
        return None
    model = value.get("model")
    if not isinstance(value, dict) or (model is not None and not isinstance(model, str)):
        return None
    limits = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    silent = any(type(value.get(key)) is int and value[key] == 0 for key in limits)
    return Asked(model, value.get("stream") is True, silent)


@given(objects())
def test_walking_says_what_parsing_says(data: bytes) -> None:
    wanted = parsed(data)
    if wanted is None:
        return
    assert body.read_json(data) == wanted
    walked = body.walk_json(data)
    assert (walked.model, walked.stream) == (wanted.model, wanted.stream)
    assert walked.silent == wanted.silent or b"-0" in data


@given(objects(), st.text(min_size=1, max_size=10))
def test_renaming_changes_the_name_and_nothing_else(data: bytes, name: str) -> None:
    wanted = parsed(data)
    if wanted is None:
        return
    before, after = json.loads(data), json.loads(body.renamed_json(data, name))
    if "model" in before:
        before["model"] = name
    assert after == before


@given(st.binary(max_size=60) | st.text('{}[]":,\\ aamodel01', max_size=40).map(str.encode))
def test_no_body_is_too_broken_to_be_refused(data: bytes) -> None:
    for read in (body.read_json, body.walk_json):
        with contextlib.suppress(BodyError):
            assert isinstance(read(data), Asked)


@given(st.text('{}[]":,\\ amodel01', max_size=30).map(lambda text: '{"model":"m","x":' + text + "}"))
def test_what_parses_is_walked_to_the_same(text: str) -> None:
    wanted = None
    try:
        wanted = parsed(text.encode())
    except (ValueError, RecursionError, AttributeError):
        return
    if wanted is not None:
        assert body.walk_json(text.encode()).model == wanted.model


def test_a_body_with_megabytes_of_images_is_walked() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5_000_000}}
    data = json.dumps({"messages": [{"role": "user", "content": [image]}], "model": "m", "stream": True}).encode()
    assert len(data) > body.PARSED_BYTES
    assert body.read_json(data) == Asked("m", stream=True)
    assert json.loads(body.renamed_json(data, "other"))["model"] == "other"


@pytest.mark.parametrize(
    "data",
    [
        b'{"model":"m","x":' + b"[" * 2_000_000,
        b'{"model":"m","x":[' + b"[]," * 700_000 + b"1]}",
        b"{" + b'"a":1,' * 400_000 + b'"model":"m"}',
        b'{"model":"' + b"\\u0061" * 300_000 + b'"}',
        b'{"x":"' + b'\\"' * 1_000_000,
    ],
)
def test_a_body_made_to_be_slow_is_refused(data: bytes) -> None:
    with pytest.raises(BodyError):
        body.read_json(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expecting value"),
        (b"[]", "must be a JSON object"),
        (b'{"model": 1}', "'model' must be a string"),
        (b'{"model": "' + b"m" * 300 + b'"}', "must not be longer"),
        (b'{"model": "\xff"}', "no UTF-8 at byte 11"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number is too long"),
    ],
)
def test_an_error_says_what_is_wrong_and_nothing_of_the_body(data: bytes, words: str) -> None:
    with pytest.raises(BodyError, match=words):
        body.read_json(data)


def form(*parts: tuple[str, bytes], boundary: str = "xyz") -> tuple[bytes, str]:
    body_of = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
        for head, content in parts
    )
    return body_of + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def test_the_model_of_a_form() -> None:
    sound = ('name="file"; filename="model"', b"\x00\r\n--xy not the end\r\n" * 10)
    data, kind = form(sound, ('name="model"', b"whisper"), ('name="stream"', b"true"))
    assert body.read_form(data, kind) == Asked("whisper", stream=True)
    renamed = body.renamed_form(data, kind, "large-v3")
    assert body.read_form(renamed, kind).model == "large-v3"
    assert renamed == data.replace(b"whisper", b"large-v3")
    assert body.read_form(data, 'multipart/form-data; boundary="xyz"').model == "whisper"
    assert body.read_form(*form(sound)).model is None


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        form(('name="model"', b"a"), ('name="model"', b"b")),
        (form(('name="model"', b"a"))[0], "multipart/form-data"),
        (form(('name="model"', b"a"))[0], "multipart/form-data; boundary=other"),
        (form(('name="model"', b"a"))[0][:-10], "multipart/form-data; boundary=xyz"),
        form(('name="model"; name="file"', b"a")),
        form(*[('name="x"', b"")] * 100),
        (b"--xyz\r\n", "multipart/form-data; boundary=xyz"),
    ],
)
def test_a_form_that_can_be_read_in_two_ways_is_refused(data: bytes, kind: str) -> None:
    with pytest.raises(BodyError):
        body.read_form(data, kind)


@given(st.binary(max_size=80))
def test_no_form_is_too_broken_to_be_refused(data: bytes) -> None:
    for given_body in (data, b"--x\r\n" + data, form(('name="model"', data))[0]):
        with contextlib.suppress(BodyError):
            assert isinstance(body.read_form(given_body, "multipart/form-data; boundary=x"), Asked)


def needs(**fields: Any) -> Need:  # noqa: ANN401 - a body's fields
    return body.needs(json.dumps({"model": "auto", **fields}).encode())


def test_what_a_request_needs() -> None:
    text = {"messages": [{"role": "user", "content": "word " * 400}]}
    assert 500 <= needs(**text).prompt_tokens <= 550
    assert needs(**text, max_tokens=1000).context_tokens == needs(**text, max_tokens=1000).prompt_tokens + 1000
    assert not needs(**text).tools
    assert not needs(**text, tools=[]).tools
    assert not needs(**text, tools=None).tools
    assert needs(**text, tools=[{"type": "function"}]).tools
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    seen = needs(messages=[{"role": "user", "content": [image]}])
    assert seen.images
    assert seen.prompt_tokens < 1200
