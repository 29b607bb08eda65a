"""The daemon on a real vLLM, on CPU, with a tiny random Llama.

A start takes half a minute, so each test is a story that goes on with the run that the fault before it led to.
"""

from __future__ import annotations

import os
import re
import signal
import tempfile
import time
from pathlib import Path

import pytest

from hosts import Host, alive, host, whys
from modelsupd.runtime.shim.tree import TOKEN_NAME
from vllm_world import START_S, Stream, Tree, ask, interpreter, keep_help, model, weights
from waiting import until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def python() -> str:
    return interpreter()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("w") / "tiny")


@pytest.fixture(scope="module")
def known(python: str, tiny: Path) -> Path:
    """Return what the installed vLLM says of its flags, asked by `modelsupd check` of an installation of its own."""
    place = Path(tempfile.mkdtemp(prefix="k"))  # short, as sockets need it
    first = Host(place, model(python, tiny))
    first.state.mkdir()
    began_at = time.monotonic()
    done = first.run("check", timeout_s=150)
    asked_s = time.monotonic() - began_at
    assert done.returncode == 0, done.stderr
    (kept,) = (first.state / "engines").iterdir()
    again_at = time.monotonic()
    assert first.run("check").returncode == 0
    assert time.monotonic() - again_at < asked_s / 2, "the second time it is not asked again"
    assert kept.exists()
    return first.state / "engines"


def test_flags_that_the_installed_version_does_not_know_are_an_error_of_the_file(
    place: Path, python: str, tiny: Path, known: Path
) -> None:
    drifted = model(python, tiny, args="disable_log_requests = true\nmax_model_len = true\nnum_lookahead_slots = 2")
    with host(place, drifted, start=False) as daemon:
        keep_help(known, daemon)
        done = daemon.run("check")
        assert done.returncode == 2
        assert "models.m.args.disable_log_requests = true: is no flag of the installed vLLM" in done.stderr
        assert "models.m.args.max_model_len = true: takes a value" in done.stderr
        assert "models.m.args.num_lookahead_slots = 2: is no flag" in done.stderr
        daemon.start()
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-flag: args.disable_log_requests")
        assert (failed["run"], failed["restarts"]) == (1, 0)


def test_truncated_weights_never_reach_it(place: Path, python: str, known: Path) -> None:
    folder = weights(place / "cut")
    shard = folder / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size // 2)
    with host(place, model(python, folder), start=False) as daemon:
        keep_help(known, daemon)
        daemon.start()
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-weights: ")
        assert shard.name in failed["reason"]
        assert (failed["run"], failed["restarts"]) == (1, 0)


def test_it_generates_outlives_the_daemon_and_drains(place: Path, python: str, tiny: Path, known: Path) -> None:
    with host(place, model(python, tiny), start=False) as daemon:
        keep_help(known, daemon)
        daemon.start()
        told = set()

        def loading() -> bool:
            replica = daemon.replica()
            told.add(replica["reason"])
            return replica["phase"] in ("ready", "failed")

        until(loading, timeout_s=START_S, what=daemon.said)
        ready = daemon.until_phase("ready")
        assert "4 tokens generated" in ready["reason"]
        tree = Tree(ready["pid"])
        assert tree.core
        assert tree.worker
        # Named after its model, and on none but its own socket.
        assert ask(ready["endpoint"], "GET", "/v1/models")[1].count(b'"id":"m"') == 1
        words = Path(f"/proc/{ready['pid']}/environ").read_bytes().decode().split("\0")
        assert f"VLLM_RPC_BASE_PATH={Path(ready['endpoint'].removeprefix('unix:')).parent}" in words
        for pid in tree.all:
            mark = TOKEN_NAME.encode() + b"="
            assert mark in Path(f"/proc/{pid}/environ").read_bytes(), f"{tree.all[pid]} cannot be told to be ours"

        # Killed while vLLM streams, the daemon comes back to the same run, and the stream has not noticed.
        stream = Stream(daemon, tokens=1200)
        daemon.stop(signal.SIGKILL)
        daemon.start()
        again = daemon.until_phase("ready")
        assert (again["pid"], again["run"]) == (ready["pid"], 1)
        assert stream.ending() == ("length", 1200, "[DONE]")
        assert daemon.replica()["run"] == 1

        # SIGTERM of the daemon lets the stream come to its own end.
        stream = Stream(daemon, tokens=600)
        daemon.send(signal.SIGTERM)
        assert stream.ending() == ("length", 600, "[DONE]")
        assert daemon.daemon is not None
        assert daemon.daemon.wait(60) == 0
        assert tree.left() == {}
        assert "exit code 0" in whys(daemon)
        assert "crash" not in whys(daemon)
        assert tree.left_in_memory() == []


def test_hung_killed_and_dead_inside_it_is_replaced_whole(place: Path, python: str, tiny: Path, known: Path) -> None:
    with host(place, model(python, tiny), start=False) as daemon:
        keep_help(known, daemon)
        daemon.start()
        first = daemon.until_phase("ready", timeout_s=START_S)

        # A stopped worker: politeness goes on, generation does not.
        tree = Tree(first["pid"])
        assert any("/psm_" in path for path in tree.shared), tree.shared
        stopped_at = time.monotonic()
        os.kill(tree.worker, signal.SIGSTOP)
        assert ask(first["endpoint"], "GET", "/health")[0] == 200
        until(lambda: not alive(first["pid"]), timeout_s=30, what=lambda: f"{daemon.replica()}")
        # prove_every_s until it is asked for a token, hang_after_s, a probe each before and after, and the machine.
        assert time.monotonic() - stopped_at < 3 + 4 + 2 * 3 + 3
        until(lambda: not tree.left(), timeout_s=5, what=lambda: str(tree.left()))
        assert "hung: no answer" in whys(daemon)
        daemon.until_phase("starting", run=2)
        assert tree.left_in_memory() == [], "what was killed has left nothing in memory"

        # The server killed: what it leaves behind is gone before the next start.
        second = daemon.until_phase("ready", run=2, timeout_s=START_S)
        tree = Tree(second["pid"])
        os.kill(tree.leader, signal.SIGKILL)
        daemon.until_phase("starting", run=3)
        assert (tree.left(), tree.left_in_memory()) == ({}, [])
        assert "killed by signal 9" in whys(daemon)

        # Its engine killed: the server exits with 0, which nobody had asked it to.
        third = daemon.until_phase("ready", run=3, timeout_s=START_S)
        tree = Tree(third["pid"])
        os.kill(tree.core, signal.SIGKILL)
        daemon.until_phase("starting", run=4)
        assert "exit code 0; " in whys(daemon)
        assert (tree.left(), tree.left_in_memory()) == ({}, [])
        assert daemon.replica()["restarts"] == 3

        # Stopped while it loads, where it swallows SIGTERM: it is gone within load_term_timeout_s and a moment.
        loading = daemon.until_phase("starting", run=4)
        until(lambda: "VLLM::EngineCor" in Tree(loading["pid"]).all.values(), timeout_s=START_S)
        tree = Tree(loading["pid"])
        asked_at = time.monotonic()
        daemon.client.command("stop", "m")
        daemon.until_phase("stopped")
        assert time.monotonic() - asked_at < 1 + 3
        assert (tree.left(), tree.left_in_memory()) == ({}, [])


def test_a_cache_too_small_is_failed_at_once_with_its_own_advice(
    place: Path, python: str, tiny: Path, known: Path
) -> None:
    with host(place, model(python, tiny, args="kv_cache_memory_bytes = 524288"), start=False) as daemon:
        keep_help(known, daemon)
        daemon.start()
        failed = daemon.until_phase("failed", timeout_s=START_S)
        assert failed["reason"].startswith("bad-flag: ValueError: To serve at least one request")
        fits = re.search(r"the estimated maximum model length is (\d+)", failed["reason"])
        assert fits is not None
        assert 0 < int(fits[1]) < 2048
        assert (failed["run"], failed["restarts"]) == (1, 0)
