"""A probe's outcome, of servers that do every wrong thing, byte by byte."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import uvloop

from canaries import connections_are_closed_once
from modelsupd.core.events import Outcome, ProbeKind
from modelsupd.core.spec import Engine, HealthLimits, ModelSpec
from modelsupd.engines.base import Request, adapter
from modelsupd.runtime import http
from modelsupd.runtime.probe import Result, probe
from waiting import auntil

T = TypeVar("T")


class Runner(Protocol):
    """What runs a coroutine: asyncio's or uvloop's `run`."""

    def __call__(self, main: Coroutine[Any, Any, T], /) -> T: ...


SPEC = ModelSpec(engine=Engine.COMMAND, command=("s", "{socket}"), health=HealthLimits())
GET = Request(method="GET", path="/x")
RUNNERS: dict[str, Runner] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture(params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Runner:
    """Return what runs a coroutine, on either event loop: the daemon's is uvloop."""
    return RUNNERS[request.param]


class Held:
    """Has a server wait with its answer."""

    def __init__(self) -> None:
        """Begin with nothing asked."""
        self.asked, self.go, self.sent = threading.Event(), threading.Event(), threading.Event()


@contextmanager
def server(path: Path, *pieces: bytes, close: bool = True, held: Held | None = None) -> Iterator[str]:
    """Serve one connection in a thread: read the request, send the pieces one by one; yield the endpoint."""
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.settimeout(10)
                client.recv(65536)
                if held is not None:
                    held.asked.set()
                    held.go.wait(10)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
                try:
                    for piece in pieces:
                        client.sendall(piece)
                    if held is not None:
                        held.sent.set()
                    if not close:
                        done.wait(10)
                except OSError:
                    pass  # the client had enough

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            done.set()
            thread.join(15)


def fetch(endpoint: str, timeout_s: float = 10.0) -> tuple[int, bytes]:
    return asyncio.run(http.fetch(endpoint, GET, timeout_s))


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [OK],
        [OK + OK],
        [OK + b"garbage"],
        [CHUNKED],
        [bytes([byte]) for byte in OK],
        [bytes([byte]) for byte in CHUNKED],
        [b"HTTP/1.1 100 Continue\r\n\r\n", OK],
    ],
)
@pytest.mark.parametrize("close", [True, False])
def test_answers_are_read(pieces: list[bytes], close: bool, tmp_path: Path) -> None:
    with server(tmp_path / "s", *pieces, close=close) as endpoint:
        assert fetch(endpoint) == (200, b"hi")


def test_without_a_length_the_end_of_the_connection_is_the_end_of_the_answer(tmp_path: Path) -> None:
    with server(tmp_path / "s", b"HTTP/1.0 200 OK\r\n\r\nhi") as endpoint:
        assert fetch(endpoint) == (200, b"hi")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "connection closed after no answer at all"),
        (b"HTTP/1.1 200", "connection closed after no answer at all"),
        (OK[:-1], "connection closed after 1 bytes of an answer 200"),
        (CHUNKED[:-5], "connection closed after 2 bytes of an answer 200"),
        (b"SSH-2.0-OpenSSH\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "more than 65536 bytes of headers"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n" + b"y" * 2_000_000, "more than 1048576 bytes"),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", ""),
    ],
)
def test_broken_answers_are_told(answer: bytes, words: str, tmp_path: Path) -> None:
    with server(tmp_path / "s", answer) as endpoint, pytest.raises(http.ProbeBrokenError) as error:
        fetch(endpoint)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"", "no answer within {:g} s"), (OK[:-1], "only 1 bytes of an answer 200 within {:g} s")],
)
def test_silence_times_out(answer: bytes, words: str, tmp_path: Path) -> None:
    said = []
    for timeout_s in (0.1, 1.0, 10.0):  # on a busy machine the server may come to its answer late
        path = tmp_path / f"{timeout_s}"
        with server(path, answer, close=False) as endpoint, pytest.raises(http.ProbeTimeoutError) as error:
            fetch(endpoint, timeout_s)
        said.append(str(error.value))
        if said[-1] == words.format(timeout_s):
            return
    pytest.fail(f"never {words!r}, but {said}")


def test_nobody_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(http.ProbeRefusedError, match="nobody listens yet"):
        fetch(f"unix:{tmp_path}/none")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    with pytest.raises(http.ProbeRefusedError, match="connection refused"):
        fetch(f"unix:{tmp_path}/stale")
    with socket.socket() as bound:  # bound and not listening, as vLLM's port while it loads
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(http.ProbeRefusedError, match="connection refused"):
            fetch(f"http://127.0.0.1:{bound.getsockname()[1]}")


def test_a_full_queue_of_connections_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first.connect(str(tmp_path / "s"))
        with pytest.raises(http.ProbeBrokenError, match="queue of connections is full"):
            fetch(f"unix:{tmp_path}/s")


def test_a_path_too_long_for_a_socket_is_told() -> None:
    with pytest.raises(http.ProbeBrokenError, match="cannot connect: AF_UNIX path too long"):
        fetch("unix:/" + "x" * 200)


def test_tcp_too(run: Runner) -> None:
    async def ask() -> tuple[int, bytes]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with listener:
            return await http.fetch(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}", GET, 10.0)

    assert run(ask()) == (200, b"hi")


def ask(endpoint: str, timeout_s: float = 2.0) -> Coroutine[Any, Any, Result]:
    return probe(adapter(Engine.COMMAND), ProbeKind.ALIVE, "m", SPEC, endpoint, timeout_s)


def test_outcomes(run: Runner, tmp_path: Path) -> None:
    assert run(ask(f"unix:{tmp_path}/none"))[:2] == (Outcome.REFUSED, "GET /v1/models: nobody listens yet")
    for number, (answer, close, outcome) in enumerate(
        [(OK, True, Outcome.ANSWERED), (b"x", True, Outcome.FAILED), (b"", False, Outcome.TIMED_OUT)]
    ):
        with server(tmp_path / str(number), answer, close=close) as endpoint:
            result = run(ask(endpoint, 0.2 if outcome is Outcome.TIMED_OUT else 10.0))
        assert result[0] is outcome
        assert result[4] < 1.5


def test_a_deadline_noticed_far_too_late_is_void(run: Runner, tmp_path: Path) -> None:
    async def without_cpu(endpoint: str) -> Result:
        asked = asyncio.ensure_future(ask(endpoint, 0.1))
        await asyncio.sleep(0.01)
        time.sleep(1.4)  # the fault: this process gets no CPU  # noqa: ASYNC251
        return await asked

    with server(tmp_path / "s", close=False) as endpoint:
        outcome, evidence, *_ = run(without_cpu(endpoint))
    assert outcome is Outcome.VOID
    assert "s late: no CPU here" in evidence


def test_an_answer_that_lay_there_while_we_had_no_cpu_counts(run: Runner, tmp_path: Path) -> None:
    held = Held()

    async def without_cpu(endpoint: str) -> Result:
        asked = asyncio.ensure_future(ask(endpoint, 0.5))
        await auntil(held.asked.is_set)
        held.go.set()
        assert held.sent.wait(10)
        time.sleep(0.6)  # the fault: the answer has come, and this process is away  # noqa: ASYNC251
        return await asked

    with server(tmp_path / "s", OK, held=held) as endpoint:
        outcome, evidence, *_ = run(without_cpu(endpoint))
    assert (outcome, evidence) == (Outcome.ANSWERED, "GET /v1/models: answered 200")


def test_want_of_descriptors_is_our_own_fault(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def starved() -> Result:
        held: list[socket.socket] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            while True:
                held.append(socket.socket())
        except OSError:
            return await ask(f"unix:{tmp_path}/s")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for one in held:
                one.close()

    outcome, evidence, *_ = asyncio.run(starved())
    assert outcome is Outcome.VOID
    assert "want of resources of our own" in evidence


def test_a_probe_that_the_engine_has_not_is_void() -> None:
    outcome, evidence, *_ = asyncio.run(probe(adapter(Engine.COMMAND), ProbeKind.DRAIN, "m", SPEC, "unix:/x", 1.0))
    assert (outcome, evidence) == (Outcome.VOID, "command has no drain probe")


def test_a_cancelled_probe_leaves_nothing_open(run: Runner, tmp_path: Path) -> None:
    async def cancel(endpoint: str) -> None:
        asked = asyncio.ensure_future(ask(endpoint, 10))
        await asyncio.sleep(0.05)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(10)
        run(cancel(f"unix:{tmp_path}/s"))
        client, _ = listener.accept()
        with client:
            client.settimeout(5)
            assert client.recv(1000).startswith(b"GET /v1/models HTTP/1.1")
            assert client.recv(1000) == b""


def test_a_connection_is_closed_once_whenever_a_probe_is_cancelled_or_its_engine_goes(
    run: Runner, tmp_path: Path
) -> None:
    run(connections_are_closed_once(tmp_path, lambda path: http.fetch(f"unix:{path}", GET, 5)))
