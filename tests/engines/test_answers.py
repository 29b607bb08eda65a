"""What counts as proof, answer by answer; and that no answer and no log makes an adapter raise."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupd.core.events import Exit, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Engine, ModelSpec
from modelsupd.engines.base import adapter, read_generation

LLAMA = adapter(Engine.LLAMA_CPP)
COMMAND = adapter(Engine.COMMAND)


def chat(message: dict[str, object], **more: object) -> dict[str, object]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "length"}], **more}


@pytest.mark.parametrize(
    ("answer", "outcome", "evidence"),
    [
        ({"usage": {"completion_tokens": 4}}, Outcome.TOKENS, "4 tokens generated"),
        ({"choices": [{"text": ""}], "usage": {"completion_tokens": 1}}, Outcome.TOKENS, "1 token generated"),
        ({"timings": {"predicted_n": 2}}, Outcome.TOKENS, "2 tokens generated"),
        (
            chat({"content": "hi"}, usage={"completion_tokens": 0}),
            Outcome.TOKENS,
            "1 piece of text generated, tokens not counted by the engine",
        ),
        (chat({"content": None, "reasoning_content": "hm"}), Outcome.TOKENS, "1 piece of text"),
        (chat({"content": None, "tool_calls": [{"id": "1"}]}), Outcome.TOKENS, "1 piece of text"),
        ({"data": [{"embedding": [0.0, -1, 2.5]}]}, Outcome.TOKENS, "1 embedding of 3 numbers"),
        ({"data": [{"embedding": "AACAPw=="}]}, Outcome.TOKENS, "1 embedding, encoded"),
        (chat({"content": ""}), Outcome.NO_TOKENS, "zero tokens: no text, finish_reason length"),
        (chat({"content": ""}, usage={"completion_tokens": True}), Outcome.NO_TOKENS, "zero tokens"),
        ({"choices": []}, Outcome.NO_TOKENS, "zero tokens: neither choices nor an embedding"),
        ({"data": [{"embedding": []}]}, Outcome.NO_TOKENS, "zero tokens"),
        ({"data": [{"embedding": [None, None]}]}, Outcome.NO_TOKENS, "zero tokens: the embedding holds no numbers"),
        ({"data": [{"embedding": [float("nan")]}]}, Outcome.NO_TOKENS, "the embedding holds no numbers"),
        ({"error": {"message": "out of slots", "code": 500}}, Outcome.FAILED, "200 with an error: out of slots"),
        ([], Outcome.FAILED, "answered 200 with no JSON object: []"),
    ],
)
def test_generation(answer: object, outcome: Outcome, evidence: str) -> None:
    found = read_generation(200, json.dumps(answer).encode())
    assert found.outcome is outcome
    assert evidence in found.evidence


@pytest.mark.parametrize(
    ("status", "body", "outcome", "evidence"),
    [
        (503, b'{"error":{"message":"Loading model","code":503}}', Outcome.LOADING, "answered 503: Loading model"),
        (503, b'{"error":{"message":"no slot available"}}', Outcome.BUSY, "answered 503: no slot available"),
        (503, b"", Outcome.BUSY, "answered 503: no body"),
        (429, b'{"error":"slow down"}', Outcome.BUSY, "answered 429: slow down"),
        (404, b'{"error":{"message":"The model `x` does not exist."}}', Outcome.FAILED, "The model `x` does not"),
        (422, b'{"detail":[{"loc":["body"]}]}', Outcome.FAILED, "answered 422: [{'loc'"),
        (500, b"<html>\n\x00boom", Outcome.FAILED, "answered 500: <html> boom"),
        (401, b'{"error":{"message":"Invalid API Key"}}', Outcome.FAILED, "answered 401: Invalid API Key"),
    ],
)
def test_refusals_of_every_probe(status: int, body: bytes, outcome: Outcome, evidence: str) -> None:
    for engine in (LLAMA, COMMAND):
        for kind in (ProbeKind.START, ProbeKind.ALIVE, ProbeKind.GENERATION):
            if status == 404 and kind is ProbeKind.ALIVE and engine is COMMAND:
                continue
            found = engine.read(kind, status, body)
            assert found.outcome is outcome
            assert evidence in found.evidence


METRICS = b"""# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 26
llamacpp:prompt_tokens_cached_total 3
llamacpp:tokens_predicted_total 1.5e+06
llamacpp:n_decode_total 48
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
llamacpp:n_busy_slots_per_decode nan
"""


def test_llama_metrics_are_read() -> None:
    found = LLAMA.read(ProbeKind.ALIVE, 200, METRICS)
    assert found.outcome is Outcome.ANSWERED
    assert (found.delivered, found.in_flight) == (26 + 1_500_000 + 48, 3)
    assert found.evidence == "1500000 tokens generated, 26 read, 3 requests in flight"


def test_an_answer_without_counters_is_an_answer() -> None:
    found = LLAMA.read(ProbeKind.ALIVE, 200, b'{"status":"ok"}')
    assert (found.outcome, found.delivered, found.in_flight) == (Outcome.ANSWERED, None, None)


def test_a_server_without_the_path_answers_all_the_same() -> None:
    assert COMMAND.read(ProbeKind.ALIVE, 200, b"").outcome is Outcome.ANSWERED
    found = COMMAND.read(ProbeKind.ALIVE, 404, b"not found")
    assert found.outcome is Outcome.ANSWERED
    assert "set health.alive_path" in found.evidence


@given(status=st.integers(100, 599), body=st.binary(max_size=300))
def test_reading_bytes_never_raises(status: int, body: bytes) -> None:
    for engine in (LLAMA, COMMAND):
        for kind in ProbeKind:
            assert engine.read(kind, status, body).evidence


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("choices", "usage", "message", "data", "embedding", "error", "completion_tokens", "text")),
            inner,
        )
    ),
    max_leaves=20,
)


@given(answer=JSON)
def test_reading_json_of_any_shape_never_raises(answer: object) -> None:
    found = read_generation(200, json.dumps(answer).encode())
    assert found.outcome in (Outcome.TOKENS, Outcome.NO_TOKENS, Outcome.FAILED)
    assert "\n" not in found.evidence


def test_a_deep_nest_is_no_answer() -> None:
    assert read_generation(200, b'{"a":' + b"[" * 200_000).outcome is Outcome.FAILED


@given(log=st.text(max_size=400), code=st.integers(0, 255))
def test_reading_a_log_never_raises(log: str, code: int) -> None:
    for engine in (LLAMA, COMMAND):
        failure = engine.classify(Exit(code=code), log)
        assert failure.kind is FailureClass.CRASH
        assert "\n" not in failure.detail
        engine.progress(log)


def test_requests_are_plain_json() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="w")
    request = LLAMA.request(ProbeKind.START, "qwen3:8b", spec)
    assert request is not None
    assert (request.method, request.path) == ("POST", "/v1/completions")
    assert json.loads(request.body) == {
        "model": "qwen3:8b",
        "prompt": "Hello",
        "max_tokens": 4,
        "temperature": 0,
        "stream": False,
        "cache_prompt": False,
    }
