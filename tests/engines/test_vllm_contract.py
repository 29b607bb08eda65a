"""The same expectations of what looks like vLLM and of the real one.

A real start takes half a minute, so the real one is shared by all tests that leave it running; one of them ends it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import fake_engine
import vllm_world
from engine_process import Running, running
from hosts import first_token
from modelsupd.core.events import FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, ModelSpec
from modelsupd.engines import vllm_flags as flags
from modelsupd.engines import vllm_help
from modelsupd.engines.base import Drifting, adapter
from waiting import until

BOTH = ["fake", pytest.param("real", marks=pytest.mark.real)]


class Kind:
    """One of the two, and what a declaration needs so that both do the same."""

    def __init__(self, name: str) -> None:
        self.real = name == "real"
        self.folder = Path(tempfile.mkdtemp(prefix="v"))  # short, as sockets need it
        self.python = vllm_world.interpreter() if self.real else str(fake_engine.install_vllm(self.folder))
        self.weights = vllm_world.weights(self.folder / "tiny", 8192)

    def place(self, name: str) -> Path:
        place = self.folder / name
        place.mkdir()
        return place

    def spec(self, **args: Argument) -> ModelSpec:
        slow: dict[str, Argument] = {} if self.real else {"token_s": 0.001}
        real: dict[str, Argument] = {"kv_cache_memory_bytes": 67108864} if self.real else {}
        return ModelSpec(
            engine=Engine.VLLM, weights=str(self.weights), args={"enforce_eager": True, **slow, **real, **args}
        )

    def running(self, name: str, **args: Argument) -> AbstractContextManager[Running]:
        return running("qwen3:8b", self.spec(**args), self.place(name), binary=self.python)


@pytest.fixture(scope="module", params=BOTH)
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


@pytest.fixture(scope="module")
def engine(kind: Kind) -> Iterator[Running]:
    with kind.running("ready") as one:
        until(lambda: one.probe(ProbeKind.START)[0] is Outcome.TOKENS, vllm_world.START_S, one.log)
        yield one


def test_it_generates_under_its_own_name_and_no_other(engine: Running) -> None:
    assert engine.probe(ProbeKind.START)[1] == "POST /v1/completions: 4 tokens generated"
    asked = {"prompt": "hi", "max_tokens": 1}
    status, body = vllm_world.ask(engine.endpoint, "POST", "/v1/completions", {"model": "qwen3:8b", **asked})
    assert (status, json.loads(body)["model"]) == (200, "qwen3:8b")
    assert vllm_world.ask(engine.endpoint, "POST", "/v1/completions", {"model": "another", **asked})[0] == 404


def test_counters_grow_with_what_is_delivered(engine: Running) -> None:
    # They are told after the answer.
    until(lambda: engine.probe(ProbeKind.ALIVE)[3] == 0)
    outcome, _, before, _, _ = engine.probe(ProbeKind.ALIVE)
    assert outcome is Outcome.ANSWERED
    engine.probe(ProbeKind.GENERATION)
    until(lambda: (engine.probe(ProbeKind.ALIVE)[2] or 0) >= (before or 0) + 4)


def stream(engine: Running) -> socket.socket:
    # Eight answers at once: on a quiet machine one alone is over too soon to be looked at.
    ask = {"model": "qwen3:8b", "prompt": "hi", "stream": True, "max_tokens": 8000, "n": 8}
    client = engine.post("/v1/completions", ask)
    first_token(client)
    return client


def test_a_stream_is_in_flight_until_its_client_goes(engine: Running) -> None:
    def was_seen() -> bool:
        """Tell whether a stream was looked at while it went on; on a busy machine it may be over by then."""
        looks = []

        def over_or_delivers() -> bool:
            _, _, delivered, in_flight, _ = engine.probe(ProbeKind.ALIVE)
            looks.append((in_flight or 0, delivered or 0))
            return looks[-1][0] == 0 or looks[-1][1] > looks[0][1]

        with stream(engine):
            until(over_or_delivers, timeout_s=60, what="tokens are delivered")
        return looks[0][0] >= 1 and looks[-1][1] > looks[0][1]

    until(was_seen)
    until(lambda: engine.probe(ProbeKind.ALIVE)[3] == 0, what="the request is let go")


def test_progress_is_told_in_its_own_words(engine: Running) -> None:
    assert engine.adapter.progress(engine.log()) is not None
    assert "Starting to load model" in engine.log()


def test_health_is_answered(engine: Running) -> None:
    with engine.post("/health", {}) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 ")


def test_sigterm_with_a_stream_cuts_it_and_nearly_always_ends_it_with_exit_0(engine: Running, kind: Kind) -> None:
    with stream(engine) as client:
        engine.process.terminate()
        client.settimeout(10)
        rest = b""
        # The real one was seen to stay, its engine gone and the stream open, which is why SIGKILL comes last.
        with contextlib.suppress(TimeoutError) if kind.real else contextlib.nullcontext():
            while piece := client.recv(65536):
                rest += piece
            assert engine.process.wait(60) == 0
            assert engine.probe(ProbeKind.ALIVE)[0] is Outcome.REFUSED
        assert b'"length"' not in rest.replace(b" ", b""), "it was cut"
    assert Path(engine.socket_path).exists()


def test_while_it_loads_nobody_listens_and_sigterm_is_swallowed(kind: Kind) -> None:
    slow: dict[str, Argument] = {} if kind.real else {"load_s": 60}
    begun = "Initializing a V1 LLM engine" if kind.real else "Starting to load model"
    with kind.running("loading", **slow) as engine:
        until(lambda: begun in engine.log(), vllm_world.START_S, engine.log)
        assert engine.probe(ProbeKind.START)[0] is Outcome.REFUSED
        engine.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            engine.process.wait(3 if kind.real else 0.3)


def test_a_stale_socket_file_is_an_address_in_use(kind: Kind) -> None:
    place = kind.place("stale")
    (place / "e.sock").touch()
    with running("m", kind.spec(), place, binary=kind.python) as engine:
        assert engine.process.wait(vllm_world.START_S) == 1
        assert engine.classify().kind is FailureClass.ADDRESS_IN_USE, engine.log()


def test_a_flag_it_does_not_know_is_a_bad_flag(kind: Kind) -> None:
    with kind.running("flag", no_such_flag=3) as engine:
        assert engine.process.wait(vllm_world.START_S) == 2
        failure = engine.classify()
        assert failure.kind is FailureClass.BAD_FLAG, engine.log()
        assert "unrecognized arguments: --no-such-flag" in failure.detail


@pytest.mark.real
def test_every_flag_in_the_tables_exists() -> None:
    vllm = adapter(Engine.VLLM)
    assert isinstance(vllm, Drifting)
    done = subprocess.run([vllm_world.interpreter(), *vllm.help], capture_output=True, text=True, check=True)
    known = vllm_help.read(done.stdout)
    assert len(known) > 300
    owned = set(flags.OWNED) - {"model_tag"}  # positional
    for names in (owned, set(flags.SHORT.values()), set(flags.ELSEWHERE.values()), flags.KV_SIZE, flags.WHOLE):
        assert names - known.keys() == set()
    assert set(flags.PARALLEL) <= known.keys()
    # Of what may be given, nothing else begins an owned flag, or it would be refused for no reason.
    beginnings = {name for name in known for own in owned if own.startswith(name) and name not in flags.OWNED}
    assert beginnings <= flags.WHOLE, beginnings
