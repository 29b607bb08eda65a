"""The faults of the fake engine, seen through the probes: each does what its name says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

import fake_engine
from engine_process import Running, running
from hosts import fake
from modelsupd.core.events import FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, ModelSpec
from waiting import PATIENCE_S, until

Start = Callable[..., AbstractContextManager[Running]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Return what starts a fake engine with faults; its socket is removed after each."""
    binary = str(fake_engine.install(tmp_path))

    def begin(**faults: Argument) -> AbstractContextManager[Running]:
        (tmp_path / "e.sock").unlink(missing_ok=True)
        spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="any.gguf", args=faults)
        return running("m", spec, tmp_path, binary=binary)

    return begin  # type: ignore[return-value]  # a generator function's return is the iterator that pytest wants


def change(engine: Running, **faults: object) -> None:
    with engine.post("/fake", faults) as client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def outcomes(engine: Running) -> set[Outcome]:
    """Probe until tokens come; return every outcome on the way."""
    seen = set[Outcome]()

    def generates() -> bool:
        seen.add(engine.probe(ProbeKind.START)[0])
        return Outcome.TOKENS in seen

    until(generates)
    return seen


def received(engine: Running) -> bytes:
    """Return all that comes on a stream of four tokens."""
    with engine.post("/v1/chat/completions", {"messages": [], "stream": True, "max_tokens": 4}) as client:
        data = b""
        while (more := client.recv(65536)) and not data.endswith(b"0\r\n\r\n"):
            data += more
            if b"\r\n0\r\n\r\n" in data:
                break
        return data


def test_loading_is_503_then_ready(start: Start) -> None:
    with start(load_s=1000) as engine:
        until(lambda: engine.probe(ProbeKind.START)[0] is Outcome.LOADING)
        until(lambda: "load_tensors: " in engine.log())
        fake(engine.endpoint, load_s=0.001)
        assert outcomes(engine) <= {Outcome.LOADING, Outcome.TOKENS}


def test_loading_may_be_refusal_without_progress(start: Start) -> None:
    with start(load_s=1000, load_mode="refuse") as engine:
        until(lambda: "load_tensors: " in engine.log())
        assert engine.probe(ProbeKind.START)[0] is Outcome.REFUSED
    with start(load_s=0.2, load_mode="refuse", load_silent=True) as engine:
        assert outcomes(engine) <= {Outcome.REFUSED, Outcome.TOKENS}
        assert "load_tensors: " not in engine.log()


def test_faults_are_switched_at_run_time(start: Start) -> None:
    with start() as engine:
        engine.wait_ready()
        change(engine, zero_tokens=True)
        assert engine.probe(ProbeKind.GENERATION)[0] is Outcome.NO_TOKENS
        change(engine, zero_tokens=False, busy=429)
        assert engine.probe(ProbeKind.GENERATION)[0] is Outcome.BUSY
        change(engine, busy=0, hang="completions")
        assert engine.probe(ProbeKind.GENERATION, 0.2)[0] is Outcome.TIMED_OUT
        assert engine.probe(ProbeKind.ALIVE)[0] is Outcome.ANSWERED
        change(engine, hang="loop", burn=True)
        assert engine.probe(ProbeKind.ALIVE, 0.2)[0] is Outcome.TIMED_OUT
        with engine.connect() as client:
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        change(engine, hang="", burn=False)
        assert engine.probe(ProbeKind.GENERATION)[0] is Outcome.TOKENS
        with engine.post("/fake", {"no_such": 1}) as client:
            assert client.recv(100).startswith(b"HTTP/1.1 400")


def test_streams_break_in_each_way(start: Start) -> None:
    with start() as engine:
        engine.wait_ready()
        whole = received(engine)
        assert b'"finish_reason": "length"' in whole
        assert b"[DONE]" in whole
        change(engine, stream_fault="error")
        assert b'"InternalServerError"' in received(engine)
        change(engine, stream_fault="cut")
        assert b"[DONE]" not in received(engine)
        change(engine, stream_fault="null-finish")
        assert b'"finish_reason": "length"' not in received(engine)


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"exit_code": 7, "exit_after_requests": 0}, 7),
        ({"exit_after_s": 0.05}, 0),
        ({"exit_after_s": 0.05, "exit_signal": 6}, -6),
    ],
)
def test_it_exits_on_its_own(faults: dict[str, Argument], code: int, start: Start) -> None:
    with start(**faults) as engine:
        assert engine.process.wait(10) == code
        assert engine.classify().kind is FailureClass.CRASH


def test_it_exits_after_requests_and_in_mid_stream(start: Start) -> None:
    with start(exit_code=3, exit_after_requests=2) as engine:
        until(lambda: engine.probe(ProbeKind.START)[0] is Outcome.TOKENS)
        engine.probe(ProbeKind.GENERATION)
        assert engine.process.wait(10) == 3
    with start(exit_after_chunks=2, exit_signal=9) as engine:
        until(lambda: engine.probe(ProbeKind.START)[0] is Outcome.TOKENS)
        with suppress(ConnectionError):
            assert b"[DONE]" not in received(engine)
        assert engine.process.wait(10) == -9


def test_last_words_are_classified(start: Start) -> None:
    with start(say="error: invalid argument: --x", exit_after_requests=0, exit_code=1) as engine:
        assert engine.classify().kind is FailureClass.BAD_FLAG


def test_sigterm_may_be_ignored_or_swallowed_while_loading(start: Start) -> None:
    with start(term="ignore") as engine:
        engine.wait_ready()
        engine.process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            engine.process.wait(0.2)
    with start(load_s=1000, term_loading="swallow") as engine:
        until(lambda: engine.probe(ProbeKind.START)[0] is Outcome.LOADING)
        engine.process.terminate()
        until(lambda: fake(engine.endpoint)["counts"]["terms"] == 1)
        fake(engine.endpoint, load_s=0.001)
        engine.wait_ready()
    with start(load_s=1000) as engine:
        until(lambda: "loading model" in engine.log())
        engine.process.terminate()
        assert engine.process.wait(PATIENCE_S) == -signal.SIGTERM


@pytest.mark.parametrize("how", ["session", "setsid"])
def test_an_orphan_is_left_behind(how: str, start: Start) -> None:
    with start(orphan=how) as engine:
        until(lambda: re.search(r"orphan (\d+)", engine.log()))
        orphan = int(re.findall(r"orphan (\d+)", engine.log())[0])
        try:
            assert (os.getsid(orphan) == os.getsid(engine.process.pid)) is (how == "session")
            engine.process.kill()
            engine.process.wait()
            os.kill(orphan, 0)
        finally:
            os.kill(orphan, signal.SIGKILL)


def test_it_floods_the_log(start: Start) -> None:
    with start(flood_bytes=1_000_000, flood_line_bytes=1000) as engine:
        until(lambda: engine.log_path.stat().st_size >= 1_000_000)
        engine.wait_ready()
