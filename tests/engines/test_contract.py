"""The same expectations of the fake engine and of the real llama-server.

What the other tests believe of the fake is worth as much as what is asserted here of both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import fake_engine
import tiny_gguf
from engine_process import Running, real_binary, running
from modelsupd.core.events import FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, HealthLimits, ModelSpec, ProbeRequest
from waiting import until

BOTH = ["fake", pytest.param("real", marks=pytest.mark.real)]

#: Long enough for a stream that is still going when the test has done what it wants to do to it.
CONTEXT = 32768


class Kind:
    """One of the two, and what a declaration needs so that both do the same."""

    def __init__(self, name: str, folder: Path) -> None:
        self.real = name == "real"
        self.binary = real_binary() if self.real else str(fake_engine.install(folder))
        self.weights = folder / "tiny.gguf"
        tiny_gguf.write(self.weights, context_length=CONTEXT)

    def spec(self, health: HealthLimits | None = None, **args: Argument) -> ModelSpec:
        slow: dict[str, Argument] = {} if self.real else {"token_s": 0.001}
        return ModelSpec(
            engine=Engine.LLAMA_CPP,
            weights=str(self.weights),
            args={"ctx_size": CONTEXT, "parallel": 1, **slow, **args},
            health=health or HealthLimits(),
        )


@pytest.fixture(params=BOTH)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Kind:
    return Kind(request.param, tmp_path)


@pytest.fixture
def engine(kind: Kind, tmp_path: Path) -> Iterator[Running]:
    with running("qwen3:8b", kind.spec(), tmp_path, binary=kind.binary) as one:
        one.wait_ready()
        # A request is in flight until a moment after its answer.
        until(lambda: one.probe(ProbeKind.ALIVE)[3] == 0)
        yield one


def stream(engine: Running) -> Iterator[dict[str, object]]:
    """Ask for a long chat and yield its events; the connection closes with the iterator."""
    ask = {"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": CONTEXT - 100}
    with engine.post("/v1/chat/completions", ask) as client, client.makefile("rb") as lines:
        for line in lines:
            if line.startswith(b"data: {"):
                yield json.loads(line.removeprefix(b"data: "))


def test_generates_under_its_own_name(engine: Running) -> None:
    outcome, evidence, _, _, took_s = engine.probe(ProbeKind.START)
    assert (outcome, evidence) == (Outcome.TOKENS, "POST /v1/completions: 4 tokens generated")
    assert 0 < took_s < 5
    with engine.post("/v1/completions", {"prompt": "hi", "max_tokens": 1}) as client:
        received = b""
        while b'"qwen3:8b"' not in received:
            piece = client.recv(65536)
            assert piece, received
            received += piece


def test_chat_generates_too(kind: Kind, tmp_path: Path) -> None:
    spec = kind.spec(HealthLimits(probe_request=ProbeRequest.CHAT, probe_tokens=3))
    with running("m", spec, tmp_path, binary=kind.binary) as engine:
        engine.wait_ready()
        assert engine.probe(ProbeKind.GENERATION)[1] == "POST /v1/chat/completions: 3 tokens generated"


def test_embedding_counts_as_generation(kind: Kind, tmp_path: Path) -> None:
    pooled: dict[str, Argument] = {"pooling": "mean"} if kind.real else {}  # or llama.cpp has none to hand out
    spec = kind.spec(None, embedding=True, **pooled)
    with running("m", spec, tmp_path, binary=kind.binary) as engine:
        engine.wait_ready()
        assert engine.probe(ProbeKind.GENERATION)[1].startswith("POST /v1/embeddings: 1 embedding of ")


def test_counters_grow_with_what_is_delivered(engine: Running) -> None:
    outcome, _, before, in_flight, _ = engine.probe(ProbeKind.ALIVE)
    assert outcome is Outcome.ANSWERED
    assert in_flight == 0
    engine.probe(ProbeKind.GENERATION)
    _, _, after, _, _ = engine.probe(ProbeKind.ALIVE)
    assert before is not None
    assert after is not None
    assert after >= before + 4


def test_a_stream_is_in_flight_and_delivers_until_its_client_goes(engine: Running) -> None:
    events = stream(engine)
    said = [next(events) for _ in range(5)]
    assert any(event["choices"][0]["delta"].get("content") for event in said)  # type: ignore[index]  # JSON of any shape
    _, _, before, in_flight, _ = engine.probe(ProbeKind.DRAIN)
    assert in_flight == 1
    until(lambda: (engine.probe(ProbeKind.ALIVE)[2] or 0) > (before or 0), what="tokens are delivered")
    events.close()  # type: ignore[attr-defined]  # it is a generator
    until(lambda: engine.probe(ProbeKind.DRAIN)[3] == 0, what="the request is let go")


def test_a_stream_ends_with_a_reason_and_done(engine: Running) -> None:
    ask = {"prompt": "hi", "stream": True, "max_tokens": 3}
    received = b""
    with engine.post("/v1/completions", ask) as client:
        while b"[DONE]" not in received:
            piece = client.recv(65536)
            assert piece, received
            received += piece
    assert b'"finish_reason":"length"' in received.replace(b" ", b"")


def test_an_unknown_path_is_answered_404(engine: Running) -> None:
    with engine.post("/v1/nothing", {}) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 404")


def test_a_stopped_engine_times_out_and_comes_back(engine: Running) -> None:
    os.kill(engine.process.pid, signal.SIGSTOP)
    for kind in (ProbeKind.ALIVE, ProbeKind.GENERATION):
        outcome, evidence, delivered, _, took_s = engine.probe(kind, timeout_s=0.2)
        assert (outcome, delivered) == (Outcome.TIMED_OUT, None)
        assert evidence.endswith("no answer within 0.2 s")
        assert 0.2 <= took_s < 5, "sooner than without a word on it"
    os.kill(engine.process.pid, signal.SIGCONT)
    assert engine.probe(ProbeKind.GENERATION)[0] is Outcome.TOKENS


def test_sigterm_when_idle_ends_it_and_leaves_the_socket_file(engine: Running) -> None:
    engine.process.terminate()
    assert engine.process.wait(30) == 0
    assert Path(engine.socket_path).exists()
    assert engine.probe(ProbeKind.ALIVE)[0] is Outcome.REFUSED


def stays(engine: Running, kind: Kind, for_s: float) -> bool:
    """Tell whether the engine outlives a SIGTERM that came while a stream was in flight.

    llama-server nearly always does, until its client goes. On a busy machine it was seen to end at once, three times of
    a hundred: that is why a drain comes before the SIGTERM, and is not left to the engine.
    """
    try:
        engine.process.wait(for_s)
    except subprocess.TimeoutExpired:
        return True
    assert kind.real
    return False


def test_sigterm_with_a_stream_waits_for_the_client_to_go(engine: Running, kind: Kind) -> None:
    events = stream(engine)
    next(events)
    engine.process.terminate()
    stays(engine, kind, 0.5)
    events.close()  # type: ignore[attr-defined]  # it is a generator
    # llama-server nearly always goes now as well. It was seen to stay for ten seconds, which is why SIGKILL comes last.
    if not kind.real:
        assert engine.process.wait(10) == 0


def test_a_second_sigterm_ends_it_at_once(engine: Running, kind: Kind) -> None:
    events = stream(engine)
    next(events)
    engine.process.terminate()
    if stays(engine, kind, 0.3):
        engine.process.terminate()
        # llama-server calls exit(1) with its threads running, which now and then ends in one signal or another. It may
        # also have been about to end by the first SIGTERM, for which see `stays`.
        assert engine.process.wait(30) != 0 or kind.real
    events.close()  # type: ignore[attr-defined]  # it is a generator


def test_a_stale_socket_file_is_an_address_in_use(kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "e.sock").touch()
    with running("m", kind.spec(), tmp_path, binary=kind.binary) as engine:
        failure = engine.classify()
    assert engine.process.returncode == 1
    assert failure.kind is FailureClass.ADDRESS_IN_USE
    assert "couldn't bind HTTP server socket" in failure.detail


def test_a_flag_it_does_not_know_is_a_bad_flag(kind: Kind, tmp_path: Path) -> None:
    with running("m", kind.spec(no_such_flag=3), tmp_path, binary=kind.binary) as engine:
        failure = engine.classify()
    assert engine.process.returncode == 1
    assert (failure.kind, failure.detail) == (FailureClass.BAD_FLAG, "error: invalid argument: --no-such-flag")


def test_progress_is_told_in_its_own_words(engine: Running) -> None:
    progress = engine.adapter.progress(engine.log())
    assert progress is not None
    assert "listening on unix://" in progress or "model loaded" in progress
