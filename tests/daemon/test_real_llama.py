"""The daemon on a real llama-server with a tiny model: what breaks at night, and what must follow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import llama_server
import tiny_gguf
from hosts import QUICK, STEADY, alive, host, settled, streaming, whys
from waiting import until

pytestmark = pytest.mark.real


@pytest.fixture(scope="session")
def weights() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="w")) / "tiny.gguf"
    tiny_gguf.write(path, context_length=200_000)  # or that is where a stream ends, whatever ctx_size is
    yield settled(path)
    path.unlink()


@pytest.fixture(scope="session")
def binary() -> str:
    found = llama_server.find()
    if found is None:
        pytest.fail("there is no llama-server on PATH or in the cache: run 'make engines' first")
    return str(found)


def model(binary: str, weights: Path, *, ctx_size: int = 512, limits: str = STEADY, extra: str = "") -> str:
    return (
        f"[models.m]\nengine = 'llama.cpp'\nbinary = '{binary}'\nweights = '{weights}'\n{extra}\n"
        f"[models.m.args]\nctx_size = {ctx_size}\n{limits.format(name='m')}"
    )


def test_it_generates_and_leaves_nothing(place: Path, binary: str, weights: Path) -> None:
    with host(place, model(binary, weights)) as daemon:
        ready = daemon.until_phase("ready")
        stream = streaming(ready["endpoint"], tokens=8)
        text = b"".join(iter(lambda: stream.recv(65536), b""))
        stream.close()
        assert b"[DONE]" in text
        assert daemon.stop() == 0
        assert not alive(ready["pid"])


def test_killed_it_serves_again(place: Path, binary: str, weights: Path) -> None:
    with host(place, model(binary, weights)) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2)
        streaming(again["endpoint"], tokens=2).close()
        why = daemon.run("why", "m")
        assert "signal 9" in why.stdout


def test_stopped_it_is_judged_hung_in_time_and_replaced(place: Path, binary: str, weights: Path) -> None:
    with host(place, model(binary, weights, limits=QUICK)) as daemon:
        first = daemon.until_phase("ready")
        stopped_at = time.monotonic()
        os.kill(first["pid"], signal.SIGSTOP)
        until(lambda: not alive(first["pid"]), timeout_s=10)
        # hang_after_s + one probe_timeout_s, and as much for the machine.
        assert time.monotonic() - stopped_at < 2 * (2 + 1)
        daemon.until_phase("ready", run=2)
        assert "hung: no answer" in whys(daemon)


def test_truncated_weights_never_reach_the_engine(place: Path, binary: str, weights: Path) -> None:
    cut = settled(place / "cut.gguf", weights.read_bytes()[: weights.stat().st_size // 2])
    with host(place, model(binary, cut, limits=STEADY + "recheck_s = 0.2\n")) as daemon:
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-weights: ")
        assert str(cut) in failed["reason"]
        assert failed["run"] == 1
        assert failed["restarts"] == 0
        assert not daemon.run("logs", "m").stdout, "no engine was started"
        # Whole weights in the same place are noticed without anyone asking.
        settled(cut, weights.read_bytes())
        daemon.until_phase("ready")


def test_what_only_the_engine_can_refuse_fails_at_once_with_its_own_line(
    place: Path, binary: str, weights: Path
) -> None:
    strange = settled(place / "strange.gguf", weights.read_bytes().replace(b"llama.", b"lamma.", 40))
    with host(place, model(binary, strange)) as daemon:
        failed = daemon.until_phase("failed")
        assert "error loading model" in failed["reason"] or "key not found in model" in failed["reason"]
        assert failed["run"] == 1
        assert failed["restarts"] == 0
        seq = daemon.client.status()["daemon"]["journal"]["seq"]
        waited_from = time.monotonic()
        until(lambda: time.monotonic() - waited_from > 2, what="time in which a restart loop would show")
        assert daemon.client.status()["daemon"]["journal"]["seq"] == seq


def test_a_context_too_large_for_memory_is_classified(place: Path, binary: str, weights: Path) -> None:
    limited = place / "llama-server"
    limited.write_text(f'#!/bin/sh\nulimit -v 2000000\nexec {binary} "$@"\n')
    limited.chmod(0o755)
    with host(place, model(str(limited), weights, ctx_size=50_000_000)) as daemon:
        until(lambda: "out-of-memory:" in whys(daemon))
        assert "backoff" in {record["state"]["phase"]["name"] for record in daemon.records() if record.get("state")}


def test_a_stream_in_flight_is_finished(place: Path, binary: str, weights: Path) -> None:
    patient = STEADY.replace("drain_timeout_s = 2", "drain_timeout_s = 30")
    with host(place, model(binary, weights, limits=patient)) as daemon:
        ready = daemon.until_phase("ready")
        stream = streaming(ready["endpoint"], tokens=300)
        daemon.send(signal.SIGTERM)
        text = b"".join(iter(lambda: stream.recv(65536), b""))
        stream.close()
        assert b"[DONE]" in text
        assert daemon.daemon is not None
        assert daemon.daemon.wait(20) == 0


def test_a_stream_that_does_not_end_is_cut(place: Path, binary: str, weights: Path) -> None:
    with host(place, model(binary, weights, ctx_size=200_000)) as daemon:
        ready = daemon.until_phase("ready")
        stream = streaming(ready["endpoint"], tokens=190_000)
        signalled_at = time.monotonic()
        assert daemon.stop() == 0
        # drain_timeout_s + term_timeout_s, and four seconds for the machine: the shim alone would wait for twelve.
        assert time.monotonic() - signalled_at < 2 + 2 + 4
        assert "requests were still in flight after 2 s" in whys(daemon)
        assert not alive(ready["pid"])
        stream.close()


def test_a_killed_daemon_leaves_it_generating_and_the_next_adopts_it(place: Path, binary: str, weights: Path) -> None:
    # Nobody reads the stream until the next daemon is there: where three tests share two cores, that is a hang of 2 s.
    patient = model(binary, weights, ctx_size=8192)
    with host(place, patient) as daemon:
        first = daemon.until_phase("ready")
        stream = streaming(first["endpoint"], tokens=2000)
        daemon.stop(signal.SIGKILL)
        daemon.start()
        again = daemon.until_phase("ready")
        assert (again["pid"], again["run"]) == (first["pid"], first["run"])
        text = b"".join(iter(lambda: stream.recv(65536), b""))
        stream.close()
        assert b"[DONE]" in text, "the stream outlived the daemon that started its engine"


def test_a_killed_shim_takes_it_along(place: Path, binary: str, weights: Path) -> None:
    with host(place, model(binary, weights)) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["shim_pid"], signal.SIGKILL)
        daemon.until_phase("ready", run=2)
        assert not alive(first["pid"])


def test_the_demo_ends_with_streamed_tokens(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(llama_server.__file__).parent / "demo.py"), "--once"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "MODELSUPD_DEMO_DIR": str(place / "demo")},
    )
    assert done.returncode == 0, done.stderr
    assert "pieces streamed" in done.stderr
    assert done.stdout.strip()


def test_what_show_prints_runs_by_hand(place: Path, binary: str, weights: Path) -> None:
    with host(place, model(binary, weights)) as daemon:
        daemon.until_phase("ready")
        assert daemon.run("stop", "m").returncode == 0
        daemon.until_phase("stopped")
        shown = daemon.run("show", "--argv", "m")
        assert shown.returncode == 0, shown.stderr
        by_hand = shown.stdout.strip().splitlines()[-1].replace("engine.sock", "by-hand.sock")
        socket_path = next(word for word in by_hand.split() if word.endswith("by-hand.sock"))
        Path(socket_path).parent.mkdir(parents=True, exist_ok=True)
        started = subprocess.Popen(
            ["sh", "-c", f"exec {by_hand}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            until(lambda: answers(socket_path))
        finally:
            started.kill()
            started.wait()


def answers(socket_path: str) -> bool:
    try:
        streaming(f"unix:{socket_path}", tokens=2).close()
    except OSError:
        return False
    return True
