"""The daemon on the real server of llama-cpp-python with a tiny model: one request at a time, one lock for all."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import llama_cpp_python
import tiny_gguf
from gateway_client import Client, behind, limits
from hosts import QUICK, STEADY, Host, alive, host, whys
from waiting import until

pytestmark = pytest.mark.real

#: Probes as often as can be, a token asked for all the time, and no patience: use of CPU puts no verdict off, so that
#: what is delivered has to.
HASTY = QUICK.replace("hang_after_s = 2", "hang_after_s = 2\nbusy_limit_s = 0\nprove_every_s = 0.2").replace(
    "probe_timeout_s = 1", "probe_timeout_s = 0.3"
)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("w") / "tiny.gguf"
    tiny_gguf.write(path)
    return path


@pytest.fixture(scope="session")
def python() -> str:
    found = llama_cpp_python.find()
    if found is None:
        pytest.fail("there is no llama-cpp-python in the cache: run 'make engines' first")
    return str(found)


def model(python: str, weights: Path, *, n_ctx: int = 512, limits: str = STEADY, extra: str = "") -> str:
    return (
        f"[engines.llama-cpp-python]\npython = '{python}'\n"
        f"[models.m]\nengine = 'llama-cpp-python'\nweights = '{weights}'\n{extra}\n"
        f"[models.m.args]\nn_ctx = {n_ctx}\n{limits.format(name='m')}"
    )


#: Without its content type a body is not read, and each answer ends its connection.
HEADERS = {"Connection": "close", "Content-Type": "application/json"}


class Stream:
    """A chat that is being streamed; its first event has come."""

    def __init__(self, endpoint: str, tokens: int) -> None:
        where = endpoint.removeprefix("http://")
        self.connection = http.client.HTTPConnection(where, timeout=60)
        asked = {"model": "m", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "x"}]}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(asked), HEADERS)
        self.answer = self.connection.getresponse()
        self.first = self.answer.readline()
        assert self.first.startswith(b"data:"), self.first

    def events(self) -> Iterator[str]:
        """Yield what comes, until the connection ends."""
        for line in (self.first, *self.answer):
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip().decode()
        self.connection.close()

    def close(self) -> None:
        self.answer.close()
        self.connection.close()


def is_whole(events: list[str], tokens: int) -> bool:
    """Tell whether a stream came to its own end: all its tokens, a finish_reason, and [DONE]."""
    if not events or events[-1] != "[DONE]":
        return False
    chunks = [json.loads(event)["choices"][0] for event in events[:-1]]
    texts = [chunk for chunk in chunks if chunk["delta"].get("content") is not None]
    return chunks[-1]["finish_reason"] == "length" and len(texts) == tokens


def test_it_generates_and_leaves_nothing(place: Path, python: str, weights: Path) -> None:
    with host(
        place, model(python, weights, limits=STEADY.replace("term_timeout_s = 2", "term_timeout_s = 30"))
    ) as daemon:
        # What the daemon is started with does not reach the engine: HOST and PORT would win over its flags.
        ready = daemon.until_phase("ready")
        assert "token" in ready["reason"]
        assert is_whole(list(Stream(ready["endpoint"], tokens=8).events()), 8)
        assert daemon.stop() == 0
        assert not alive(ready["pid"])
        # It ends by its own SIGTERM, which is no failure when it was asked for, and not by SIGKILL.
        assert "killed by signal 15" in whys(daemon)
        assert "crash" not in whys(daemon)


def test_no_variable_of_the_daemon_reaches_it(place: Path, python: str, weights: Path) -> None:
    leaked = {
        "HOST": "203.0.113.1",
        "PORT": "1",
        "CONFIG_FILE": "/nonexistent",
        "N_CTX": "0",
        "interrupt_requests": "1",
    }
    with host(place, model(python, weights), env=leaked) as daemon:
        daemon.until_phase("ready")


def test_killed_it_serves_again(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights)) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2)
        Stream(again["endpoint"], tokens=2).close()
        assert "signal 9" in daemon.run("why", "m").stdout


def test_stopped_it_is_judged_hung_in_time_and_replaced(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights, limits=QUICK)) as daemon:
        first = daemon.until_phase("ready")
        stopped_at = time.monotonic()
        os.kill(first["pid"], signal.SIGSTOP)
        until(lambda: not alive(first["pid"]), timeout_s=10)
        # hang_after_s + one probe_timeout_s, and as much for the machine.
        assert time.monotonic() - stopped_at < 2 * (2 + 1)
        daemon.until_phase("ready", run=2)
        assert "hung: no answer" in whys(daemon)


def test_stopped_in_the_middle_of_a_stream_it_is_judged_hung_too(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights, n_ctx=32768, limits=HASTY)) as daemon:
        first = daemon.until_phase("ready")
        stream = Stream(first["endpoint"], tokens=30000)
        os.kill(first["pid"], signal.SIGSTOP)
        until(lambda: not alive(first["pid"]), timeout_s=10)
        stream.close()
        daemon.until_phase("ready", run=2)


def test_truncated_weights_never_reach_the_engine(place: Path, python: str, weights: Path) -> None:
    cut = place / "cut.gguf"
    cut.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with host(place, model(python, cut)) as daemon:
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-weights: ")
        assert str(cut) in failed["reason"]
        assert (failed["run"], failed["restarts"]) == (1, 0)
        # Whole weights in the same place are noticed without anyone asking.
        daemon.declare(model(python, cut, limits=STEADY + "recheck_s = 0.2\n"))
        assert daemon.run("reload").returncode == 0
        cut.write_bytes(weights.read_bytes())
        daemon.until_phase("ready")


def test_probes_neither_cut_a_stream_nor_take_it_for_a_hang(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights, n_ctx=4096, limits=HASTY)) as daemon:
        ready = daemon.until_phase("ready")
        began_at = time.monotonic()
        events = list(Stream(ready["endpoint"], tokens=3000).events())
        took_s = time.monotonic() - began_at
        assert is_whole(events, 3000)
        assert took_s > 2 * 2 + 0.3, f"{took_s:.1f} s: too short for a verdict to fall within, let it send more"
        after = daemon.until_phase("ready")
        assert (after["pid"], after["run"], after["restarts"]) == (ready["pid"], 1, 0)


def test_a_queue_longer_than_a_probe_waits_is_no_hang(place: Path, python: str, weights: Path) -> None:
    # A request is served as a whole: nothing is delivered for as long as one takes.
    limits = HASTY.replace("hang_after_s = 2", "hang_after_s = 4")
    with host(place, model(python, weights, n_ctx=2048, limits=limits)) as daemon:
        ready = daemon.until_phase("ready")
        until_at = time.monotonic() + 6
        served = [0] * 6

        def client(number: int) -> None:
            while time.monotonic() < until_at:
                connection = http.client.HTTPConnection(ready["endpoint"].removeprefix("http://"), timeout=30)
                asked = {"model": "m", "max_tokens": 400, "prompt": f"{number} x"}
                connection.request("POST", "/v1/completions", json.dumps(asked), HEADERS)
                answer = json.loads(connection.getresponse().read())
                assert answer["choices"][0]["finish_reason"] == "length"
                served[number] += 1
                connection.close()

        clients = [threading.Thread(target=client, args=(number,)) for number in range(len(served))]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        assert all(served), served
        after = daemon.until_phase("ready")
        assert (after["pid"], after["run"], after["restarts"]) == (ready["pid"], 1, 0)


def test_a_client_that_does_not_read_takes_nobody_elses_answer_away(place: Path, python: str, weights: Path) -> None:
    """The engine waits for it and holds its only lock, so that no probe gets a token either."""
    endless = {"model": "m", "stream": True, "max_tokens": 60_000, "messages": [{"role": "user", "content": "x"}]}
    hasty = HASTY.replace("hang_after_s = 2", "hang_after_s = 6")
    small = "limits.stream_buffer_bytes = 65536\n"
    declared = behind(model(python, weights, n_ctx=65536, limits=hasty), limits(), more=small)
    with host(place, declared) as daemon, socket.socket() as idle:
        daemon.until_phase("ready")
        client = Client(daemon)
        # So that the kernel keeps little of what is not read.
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)
        idle.connect((client.host, int(client.port)))
        body = json.dumps(endless).encode()
        idle.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        idle.sendall(b"content-length: %d\r\n\r\n" % len(body) + body)
        assert idle.recv(12) == b"HTTP/1.1 200"
        assert json.loads(client.text())["choices"]
        client.close()
        log = daemon.state / "gateway" / "access.log"
        until(lambda: log.exists() and '"ended_by":"client"' in log.read_text())
        assert daemon.replica()["run"] == 1


def test_a_stream_in_flight_is_finished(place: Path, python: str, weights: Path) -> None:
    patient = STEADY.replace("drain_timeout_s = 2", "drain_timeout_s = 30")
    with host(place, model(python, weights, n_ctx=2048, limits=patient)) as daemon:
        stream = Stream(daemon.until_phase("ready")["endpoint"], tokens=1000)
        daemon.send(signal.SIGTERM)
        assert is_whole(list(stream.events()), 1000)
        assert daemon.daemon is not None
        assert daemon.daemon.wait(20) == 0


def test_a_stream_that_does_not_end_is_cut(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights, n_ctx=65536)) as daemon:
        ready = daemon.until_phase("ready")
        stream = Stream(ready["endpoint"], tokens=30000)
        signalled_at = time.monotonic()
        assert daemon.stop() == 0
        # drain_timeout_s + term_timeout_s, and four seconds for the machine: the shim alone would wait for twelve.
        assert time.monotonic() - signalled_at < 2 + 2 + 4
        assert not alive(ready["pid"])
        stream.close()


def test_a_killed_daemon_leaves_it_streaming_and_the_next_adopts_it(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights, n_ctx=4096, limits=HASTY)) as daemon:
        first = daemon.until_phase("ready")
        stream = Stream(first["endpoint"], tokens=2000)
        # It is read all the time: an engine that waits for its client delivers nothing, and has one lock for all.
        with ThreadPoolExecutor(1) as reader:
            events = reader.submit(lambda: list(stream.events()))
            daemon.stop(signal.SIGKILL)
            daemon.start()
            again = daemon.until_phase("ready")
            assert (again["pid"], again["run"]) == (first["pid"], first["run"])
            assert is_whole(events.result(), 2000), "the stream outlived the daemon that started its engine"
        assert daemon.replica()["run"] == 1


def test_an_interpreter_without_it_is_told_and_noticed_when_it_has_it(place: Path, python: str, weights: Path) -> None:
    limits = STEADY + "recheck_s = 0.2\n"
    extra = f"env.PYTHONPATH = '{place}/site'"
    with host(place, model("python3", weights, limits=limits, extra=extra)) as daemon:
        failed = daemon.until_phase("failed")
        assert "has no llama_cpp" in failed["reason"]
        assert "pip install 'modelsupd[llama-cpp]'" in failed["reason"]
        install(python, place / "site")
        daemon.until_phase("ready")


def install(python: str, site: Path) -> None:
    """Make every package of that interpreter's environment importable from `site` as well."""
    [packages] = (Path(python).parent.parent / "lib").glob("python3*/site-packages")
    site.symlink_to(packages)


def by_hand(daemon: Host) -> str:
    return daemon.run("show", "--argv", "m").stdout.strip()


def test_what_show_prints_is_what_runs(place: Path, python: str, weights: Path) -> None:
    with host(place, model(python, weights)) as daemon:
        ready = daemon.until_phase("ready")
        port = ready["endpoint"].rpartition(":")[2]
        words = Path(f"/proc/{ready['pid']}/cmdline").read_bytes().decode().split("\0")[:-1]
        assert words[:3] == [python, "-m", "llama_cpp.server"]
        assert words[words.index("--port") + 1] == port
        assert words[words.index("--interrupt_requests") + 1] == "false"
        assert " ".join(words[1:]) in by_hand(daemon)
