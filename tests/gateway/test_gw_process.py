"""The gateway's process: it outlives its daemon, is replaced without a loss, and ends when its last answer is out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from gateway_daemon import Daemon, listening_socket
from gateway_process import Client, Gateway, engine, linked, prepared, serving, tokens
from hosts import fake
from modelsupd.gateway import keyfile, wire
from modelsupd.gateway.base import Availability, Model, Run
from modelsupd.gateway.keyfile import Key
from waiting import auntil

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

#: More tokens than any test waits for; an engine that is told to make no pauses any more is through at once.
ENDLESS = 2000


def model(*runs: Run) -> Model:
    return Model(name="qwen", availability=Availability.READY, runs=runs, aliases=("gpt-4o-mini",))


def records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "gateway" / "access.log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def in_thread(act: Callable[[], Any]) -> Coroutine[Any, Any, Any]:
    return asyncio.to_thread(act)


def test_it_serves_what_the_daemon_tells_it_records_and_counts(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                await in_thread(lambda: _ask_twice(listening))
                await auntil(lambda: len(records(tmp_path)) == 2)
                await auntil(lambda: _told(daemon, "qwen/0#1").requests == 2)
                # It may have been told while it was under way.
                await auntil(lambda: _told(daemon, "qwen/0#1").in_flight == 0)
            plain, streamed = records(tmp_path)
            assert (plain["model"], plain["run"], plain["status"], plain["api"]) == ("qwen", "qwen/0#1", 200, "chat")
            assert plain["tokens_out"] > 0
            assert (streamed["asked"], streamed["model"], streamed["stream"]) == ("gpt-4o-mini", "qwen", True)
            assert streamed["ttft_s"] <= streamed["duration_s"]
            health = gateway.health()
            assert [health[name] for name in ("accepting", "in_flight", "table_seq", "daemon")] == [True, 0, 1, True]
            text = gateway.ask("/metrics").decode()
            assert 'modelsupd_gateway_requests_total{code="200",model="qwen",replica="qwen/0"} 2.0' in text
            told = _told(daemon, "qwen/0#1")
            assert told.events > 1
            assert told.last_delivery_at is not None

    asyncio.run(main())


def _ask_twice(listening: socket.socket) -> None:
    with contextlib.closing(Client(listening)) as client:
        answer = client.chat()
        assert tokens(answer.read()) > 0
        assert answer.headers["x-modelsupd-run"] == "qwen/0#1"
        assert b"[DONE]" in client.chat("gpt-4o-mini", stream=True).read()


def _told(daemon: Daemon, run: str) -> wire.Traffic:
    reports = [message for message in daemon.messages if isinstance(message, wire.TrafficReport)]
    return next(
        (each for report in reversed(reports) for each in report.traffic if each.run == run), wire.Traffic(run=run)
    )


def test_it_goes_on_without_its_daemon_and_tells_the_next_one_all(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path, token_s=0.05) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                client = Client(listening)
                stream = await in_thread(lambda: client.chat(stream=True, max_tokens=8))
                daemon.leave()
                await auntil(lambda: gateway.health()["daemon"] is False)
                assert b"[DONE]" in await in_thread(stream.read)
                assert tokens(await in_thread(lambda: client.chat(max_tokens=2).read())) > 0
                client.close()
                daemon.listen()
                await auntil(lambda: len(daemon.hellos) == 2)
                again = daemon.hellos[1]
                assert (again.run, again.pid, again.listening) == ("gateway/0#1", gateway.process.pid, True)
                assert again.traffic[0].requests == 2
                (passed,) = daemon.sockets
                assert passed.getsockname() == listening.getsockname()
                daemon.welcome(seq=2)
                await auntil(lambda: gateway.health()["table_seq"] == 2)
                assert gateway.health()["accepting"] is True

    asyncio.run(main())


def test_it_is_replaced_and_nobody_is_refused_and_no_stream_is_broken(tmp_path: Path) -> None:
    async def main() -> None:
        old = Gateway(tmp_path, prepared(tmp_path), "old")
        started = [old]
        async with linked(tmp_path, started) as daemon:
            with engine(tmp_path, token_s=0.05) as run, listening_socket() as listening:
                await serving(daemon, old, listening, model(run))
                client = Client(listening)
                stream = await in_thread(lambda: client.chat(stream=True, max_tokens=ENDLESS))
                end = threading.Event()
                served: list[Any] = []
                asking = threading.Thread(target=_ask_until, args=(listening, end, served))
                asking.start()
                try:
                    new = Gateway(tmp_path, prepared(tmp_path, run="gateway/0#2"), "new")
                    started.append(new)
                    await auntil(lambda: len(daemon.hellos) == 2)
                    assert daemon.hellos[1].sockets == 0
                    daemon.welcome(model(run), seq=5, sockets=[listening])
                    await in_thread(new.wait_accepting)
                    daemon.channels[0].send(wire.Drain())
                    await in_thread(lambda: old.wait_accepting(accepting=False))
                    old.terminate()
                    count = len(served)
                    await auntil(lambda: len(served) > count + 20)
                    fake(run.endpoint, token_s=0)
                    assert b"[DONE]" in await in_thread(stream.read)
                    client.close()
                    assert await in_thread(lambda: old.process.wait(10)) == 0
                finally:
                    end.set()
                    await in_thread(asking.join)
                assert set(served) == {200}

    asyncio.run(main())


def _ask_until(listening: socket.socket, end: threading.Event, served: list[Any]) -> None:
    """Ask for the list of models, by one new connection after another."""
    while not end.is_set():
        try:
            with contextlib.closing(Client(listening)) as client:
                client.request("GET", "/v1/models")
                served.append(client.getresponse().status)
        except OSError as error:
            served.append(error)


def test_sigterm_lets_answers_finish_and_leaves_the_address_as_it_was(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path, token_s=0.05) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                streaming, idle = Client(listening), Client(listening)
                stream = await in_thread(lambda: streaming.chat(stream=True, max_tokens=ENDLESS))
                await in_thread(lambda: idle.chat(max_tokens=1).read())
                for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
                    gateway.process.send_signal(number)
                await auntil(lambda: gateway.health().get("accepting") is False)
                fake(run.endpoint, token_s=0)
                assert b"[DONE]" in await in_thread(stream.read)
                assert await in_thread(lambda: gateway.process.wait(10)) == 0
                streaming.close()
                idle.close()
                with socket.create_connection(listening.getsockname(), 5):
                    pass  # the socket itself still listens, for the next gateway
        assert [line["error"] for line in records(tmp_path)] == [None, None]

    asyncio.run(main())


def test_a_failure_is_told_to_the_daemon_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                gone = Run("qwen/1", 3, f"unix:{tmp_path}/nobody.sock")
                await serving(daemon, gateway, listening, model(gone, run))
                with contextlib.closing(Client(listening)) as client:
                    for _ in range(2):
                        assert (await in_thread(client.chat)).read()
                await auntil(lambda: daemon.of(wire.Evidence))
                (evidence,) = daemon.of(wire.Evidence)
                assert isinstance(evidence, wire.Evidence)
                assert (evidence.run, evidence.kind) == ("qwen/1#3", wire.Kind.REFUSED)

    asyncio.run(main())


def test_a_draining_run_gets_nothing_and_its_connections_are_closed(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                with contextlib.closing(Client(listening)) as client:
                    await in_thread(lambda: client.chat(max_tokens=1).read())
                assert _connections(f"{tmp_path}/e.sock") == 1
                draining = Run(run.replica, run.run, run.endpoint, draining=True)
                daemon.channel.send(wire.Models(seq=2, changed=(model(draining),)))
                await auntil(lambda: _connections(f"{tmp_path}/e.sock") == 0, 2.0)

    asyncio.run(main())


def _connections(path: str) -> int:
    """Return how many connections a unix socket has (proc(5): state 03 is connected)."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(row[-1] == path and row[5] == "03" for row in rows)


def test_a_key_that_is_made_counts_within_a_second(tmp_path: Path) -> None:
    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                with contextlib.closing(Client(listening)) as client:
                    assert client.chat().read()
                    key = keyfile.add(tmp_path / keyfile.NAME, Key(name="alice", digest="", prefix=""))
                    await auntil(lambda: _status(client) == 401, 3.0)
                with contextlib.closing(Client(listening, key)) as client:
                    assert _status(client) == 200
                await auntil(lambda: records(tmp_path)[-1]["key"] == "alice")
        assert key not in _all_text(tmp_path)

    asyncio.run(main())


def _all_text(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def _status(client: Client) -> int:
    answer = client.chat(max_tokens=1)
    answer.read()
    return answer.status


def test_beyond_loopback_nobody_is_served_without_keys_unless_it_is_said_so(tmp_path: Path) -> None:
    async def main(status: int, folder: Path, *, told: bool) -> None:
        gateway = Gateway(folder, prepared(folder, open_to_network=told))
        async with linked(folder, [gateway]) as daemon:
            with engine(folder) as run, socket.socket() as listening:
                listening.bind(("0.0.0.0", 0))  # noqa: S104 - that is what is tested
                listening.listen()
                await serving(daemon, gateway, listening, model(run))
                with contextlib.closing(Client(listening)) as client:
                    assert await in_thread(lambda: _status(client)) == status

    for name, told, status in (("a", False, 401), ("b", True, 200)):
        (tmp_path / name).mkdir()
        asyncio.run(main(status, tmp_path / name, told=told))


def test_it_speaks_tls(tmp_path: Path) -> None:
    if subprocess.run(["which", "openssl"], capture_output=True, check=False).returncode:
        pytest.skip("there is no openssl to make a certificate")
    names = {name: tmp_path / f"{name}.pem" for name in ("cert", "key")}
    _certify(names, "first")

    async def main() -> None:
        given = prepared(tmp_path, tls_cert=str(names["cert"]), tls_key=str(names["key"]))
        gateway = Gateway(tmp_path, given)
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                name, answer = await in_thread(lambda: _over_tls(listening))
                assert b"first" in name
                assert answer.startswith(b"HTTP/1.1 200 OK")

    asyncio.run(main())


def test_a_gateway_that_goes_serves_whom_it_has_taken_in_and_still_shakes_hands_with(tmp_path: Path) -> None:
    """No other gateway can take it any more; over a long way a handshake lasts some tenths of a second."""
    if subprocess.run(["which", "openssl"], capture_output=True, check=False).returncode:
        pytest.skip("there is no openssl to make a certificate")
    names = {name: tmp_path / f"{name}.pem" for name in ("cert", "key")}
    _certify(names, "first")

    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path, tls_cert=str(names["cert"]), tls_key=str(names["key"])))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                before = gateway.descriptors()
                with socket.create_connection(listening.getsockname(), 10) as plain:
                    await auntil(lambda: gateway.descriptors() > before, what="it is taken in")
                    gateway.terminate()
                    await auntil(lambda: gateway.health().get("accepting") is not True)
                    _, answer = await in_thread(lambda: _asked_over_tls(plain))
                assert answer.startswith(b"HTTP/1.1 200 OK")
                assert await in_thread(lambda: gateway.process.wait(10)) == 0

    asyncio.run(main())


def _certify(names: dict[str, Path], subject: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", f"/CN={subject}", "-out", names["cert"], "-keyout", names["key"]],
        check=True, capture_output=True,
    )  # fmt: skip


def _over_tls(listening: socket.socket) -> tuple[bytes, bytes]:
    with socket.create_connection(listening.getsockname(), 10) as plain:
        return _asked_over_tls(plain)


def _asked_over_tls(plain: socket.socket) -> tuple[bytes, bytes]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(plain, server_hostname="x") as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
        return client.getpeercert(binary_form=True) or b"", answer


def test_it_may_open_as_many_files_as_there_may_be(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, prepared(tmp_path))

    async def main() -> None:
        async with linked(tmp_path, [gateway]) as daemon:
            await auntil(lambda: daemon.hellos, what=lambda: gateway.log)
            soft, hard = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
            assert soft == hard
            assert gateway.health()["accepting"] is False

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"v": 7}', "it is of version 7, and this is 1"),
        (
            '{"v": 1, "run": "g", "daemon_socket": "x", "state_dir": "y", "tls_cert": "/n", "tls_key": "/n"}',
            "certificate",
        ),
    ],
)
def test_settings_that_cannot_be_used_end_it_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "s.json").write_text(text)
    ended = subprocess.run(
        [sys.executable, "-I", "-m", "modelsupd.gateway", "--settings", tmp_path / "s.json", "--admin", tmp_path / "a"],
        capture_output=True, text=True, timeout=20, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_log_that_nobody_reads_holds_nobody_up(tmp_path: Path) -> None:
    """A shim that is stopped leaves the pipe of its engine's log full."""
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writable, b"x" * 65536):
            pass
    os.set_blocking(writable, True)

    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path), log_fd=writable)
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path) as run, listening_socket() as listening:
                await serving(daemon, gateway, listening, model(run))
                daemon.leave()
                await auntil(lambda: gateway.health()["daemon"] is False)
                with contextlib.closing(Client(listening)) as client:
                    assert await in_thread(lambda: _status(client)) == 200
                gateway.process.send_signal(signal.SIGTERM)
                assert await in_thread(lambda: gateway.process.wait(10)) == 0

    asyncio.run(main())
    os.close(readable)
    os.close(writable)
