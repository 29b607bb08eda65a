"""The admin API on a real socket: what it answers, to whom, and how it goes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from control_world import MemoryPort, Tape
from modelsupd.control.client import ApiError, Client, NoDaemon, Unanswered
from modelsupd.control.secrets import MASK, masked_argv, masked_names, shown_spec
from modelsupd.control.server import serve
from modelsupd.core.events import StopAsked
from modelsupd.core.spec import Problem
from modelsupd.errors import ConfigError, ModelsupdError
from waiting import auntil

T = TypeVar("T")


@contextlib.asynccontextmanager
async def served(place: Path) -> AsyncIterator[tuple[MemoryPort, Client]]:
    tape = Tape("tiny/0")
    tape.up(0)
    port = MemoryPort(place, tape, Tape("org/qwen:8b/0"))
    close = await serve(port, port.runtime_dir)
    try:
        yield port, Client(port.runtime_dir)
    finally:
        await close()


def run(place: Path, test: Callable[[MemoryPort, Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with served(place) as (port, client):
            await asyncio.wait_for(test(port, client), 30)

    uvloop.run(main())


async def asked(call: Callable[..., T], *arguments: Any, **options: Any) -> T:  # noqa: ANN401 - those of any call
    """Call the blocking client where it does not hold up the server."""
    return await asyncio.to_thread(call, *arguments, **options)


def test_version_status_and_targets(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        version = await asked(client.version)
        assert version == {
            "version": "1.2.3",
            "pid": os.getpid(),
            "state_dir": str(port.state_dir),
            "runtime_dir": str(port.runtime_dir),
        }
        status = await asked(client.status)
        assert [model["name"] for model in status["models"]] == ["tiny", "org/qwen:8b"]
        assert await asked(client.targets, "org/qwen:8b") == ["org/qwen:8b/0"]
        assert await asked(client.targets, "org/qwen:8b/0") == ["org/qwen:8b/0"]
        assert await asked(client.targets, "gpt") == ["tiny/0", "org/qwen:8b/0"]

    run(place, test)


def test_the_socket_is_private_and_gone_afterwards(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        assert stat.S_IMODE(client.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(port.runtime_dir.stat().st_mode) == 0o700

    run(place, test)
    assert list((place / "run").iterdir()) == []


def test_a_stale_socket_is_removed_and_anything_else_is_not(place: Path) -> None:
    (place / "run").mkdir(mode=0o700)
    path = place / "run" / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async def test(_port: MemoryPort, client: Client) -> None:
        assert (await asked(client.status))["daemon"]["state"] == "running"

    run(place, test)
    path.write_text("precious")
    with pytest.raises(ModelsupdError, match="a file of that name is there and is no socket"):
        run(place, test)
    assert path.read_text() == "precious"


def test_commands_carry_who_asked(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        assert await asked(client.command, "stop", "org/qwen:8b") == ["org/qwen:8b/0"]
        assert port.commands == [("stop", "org/qwen:8b", pwd.getpwuid(os.getuid()).pw_name)]

    run(place, test)


def test_a_plan_is_of_the_replicas_meant(place: Path) -> None:
    async def test(_port: MemoryPort, client: Client) -> None:
        rows = await asked(client.plan, "tiny")
        assert rows == [
            {
                "name": "tiny/0",
                "verdict": "runs",
                "gpus": [],
                "evicts": [],
                "closes": [],
                "why": "is ready: generates: 4 tokens in 20 ms",
            }
        ]
        assert [row["name"] for row in await asked(client.plan, "gpt")] == ["tiny/0", "org/qwen:8b/0"]
        status, message = await asyncio.to_thread(error_of, client.plan, "tinny")
        assert (status, message) == (404, "there is no model or replica 'tinny'; did you mean 'tiny'?")
        status, message = await asyncio.to_thread(error_of, client._ask, "GET", "/v1/plan", {})
        assert (status, message) == (400, "cannot tell what is meant: 'target' is missing")

    run(place, test)


def error_of(call: Callable[..., object], *arguments: object) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        call(*arguments)
    return caught.value.status, str(caught.value)


def test_refusals_are_honest(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        status, message = await asked(error_of, client.command, "start", "tinny")
        assert status == 404
        assert "did you mean 'tiny'" in message
        port.refusal = "cannot start 'tiny': the daemon is stopping"
        assert await asked(error_of, client.command, "start", "tiny") == (409, port.refusal)
        port.read_only = "no space left on device"
        port.refusal = "cannot take commands now: the journal cannot be written: no space left on device"
        assert await asked(error_of, client.command, "stop", "tiny") == (503, port.refusal)
        status, message = await asked(error_of, client.command, "explode", "tiny")
        assert (status, message) == (400, "cannot carry out 'explode': there are start, stop, restart")
        assert (await asked(error_of, client.command, "stop", ""))[0] == 400
        port.reloads = [ConfigError(Path("m.toml"), [Problem(("models", "a"), 1, "bad"), Problem(("b",), 2, "worse")])]
        status, message = await asked(error_of, client.reload)
        assert status == 422
        assert message.splitlines()[0] == "cannot use m.toml: 2 problems"
        port.reloads = [("a/0: new",)]
        assert await asked(client.reload) == ["a/0: new"]
        port.reloads = [RuntimeError("oops")]
        assert (await asked(error_of, client.reload))[0] == 500

    run(place, test)


def exchange(path: Path, request: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(5)
        raw.connect(str(path))
        raw.sendall(request)
        return b"".join(iter(lambda: raw.recv(65536), b""))


def test_what_makes_no_sense_gets_an_answer_in_the_same_shape(place: Path) -> None:
    async def test(_port: MemoryPort, client: Client) -> None:
        for request, status in (
            (b"GET /v2/status HTTP/1.0\r\n\r\n", b"404"),
            (b"GET /v1/command HTTP/1.0\r\n\r\n", b"405"),
            (b"POST /v1/command HTTP/1.0\r\nContent-Length: 3\r\n\r\n{x}", b"400"),
            (b"POST /v1/command HTTP/1.0\r\nContent-Length: 2\r\n\r\n[]", b"400"),
            (b"POST /v1/command HTTP/1.0\r\nContent-Length: 999999\r\n\r\n" + b"x" * 999999, b"413"),
            (b"GET /v1/events?after=x HTTP/1.0\r\n\r\n", b"400"),
        ):
            answer = await asked(exchange, client.path, request)
            assert status in answer.split(b"\r\n", 1)[0], answer
            assert b'{"error": {"message": "cannot' in answer or status in (b"405", b"413")
            assert b'{"error": {"message": "' in answer

    run(place, test)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_other_users_are_refused(place: Path) -> None:
    program = (
        "import os, sys\n"
        "from modelsupd.control.client import Client, ApiError\n"
        "from pathlib import Path\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: Client(Path(sys.argv[1])).status()\n"
        "except ApiError as error: print(error.status, error)\n"
    )

    async def test(port: MemoryPort, client: Client) -> None:
        # As if somebody had opened up the directory: the kernel's word on who asks still counts.
        for path, mode in ((place, 0o755), (port.runtime_dir, 0o755), (client.path, 0o666)):
            path.chmod(mode)
        done = await asked(
            subprocess.run, [sys.executable, "-c", program, str(port.runtime_dir)], capture_output=True, text=True
        )
        assert done.stdout.startswith("403 cannot take this from nobody: only root may ask"), done.stderr

    run(place, test)


def test_show_masks_what_may_be_secret(place: Path) -> None:
    async def test(_port: MemoryPort, client: Client) -> None:
        shown = (await asked(client.show, "tiny"))[0]
        assert shown["env"] == {"PATH": "/bin", "HOME": "/tmp", "API_TOKEN": "********"}
        assert shown["argv"] == ["/bin/serve", "--api-key", "********", "it's"]
        assert shown["masked"] == ["API_TOKEN"]
        assert shown["spec"]["env"] == {"API_TOKEN": "********"}
        assert "hidden" not in str(shown)
        revealed = (await asked(client.show, "tiny", reveal=True))[0]
        assert {revealed["env"]["API_TOKEN"], revealed["spec"]["env"]["API_TOKEN"], revealed["argv"][2]} == {"hidden"}
        assert revealed["masked"] == []

    run(place, test)


def test_masking() -> None:
    assert masked_names(["PATH", "HF_TOKEN", "OWN"], ["OWN", "OTHER"]) == {"HF_TOKEN", "OWN"}
    assert masked_argv(["x", "--api-key=s", "--hf-token", "s", "--max-tokens", "4"]) == [
        "x", "--api-key=********", "--hf-token", "********", "--max-tokens", "4",
    ]  # fmt: skip
    assert masked_argv(["x", "--token", "--flag"]) == ["x", "--token", "--flag"]
    spec = {"command": ("x", "--api-key", "s"), "args": {"hf_token": "s", "max_tokens": 4}, "env": {"A": "s"}}
    assert shown_spec(spec, {"A": MASK}, reveal=False) == {
        "command": ["x", "--api-key", MASK], "args": {"hf_token": MASK, "max_tokens": 4}, "env": {"A": MASK},
    }  # fmt: skip
    assert shown_spec(spec, {"A": "s"}, reveal=True) == spec


def test_events_that_are_there_end_and_those_that_are_followed_do_not(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        past = await asked(lambda: list(client.events()))
        assert [record["seq"] for record in past] == [1, 2, 3, 4, 5]
        assert [record["seq"] for record in await asked(lambda: list(client.events(after_seq=3)))] == [4, 5]
        assert await asked(lambda: list(client.events(after_seq=5))) == []
        tiny = await asked(lambda: list(client.events(target="tiny/0")))
        assert {record["replica"] for record in tiny} == {"tiny/0"}
        following = client.events(after_seq=4, target="tiny", follow=True)
        first = asyncio.create_task(asyncio.to_thread(next, following))
        await auntil(lambda: len(port._waiting) > 0, what="somebody follows")
        port.append(StopAsked("ada"), 10)
        assert (await first)["why"] == "stop asked for by ada"
        await asked(following.close)  # type: ignore[attr-defined]  # it is a generator
        await auntil(lambda: not port._waiting, what="that the follower went away is noticed")

    run(place, test)


def test_a_follower_does_not_hold_up_the_end(place: Path) -> None:
    async def main() -> None:
        async with served(place) as (port, client):
            lines: list[dict[str, Any]] = []
            follower = asyncio.create_task(asyncio.to_thread(lambda: lines.extend(client.events(follow=True))))
            await auntil(lambda: len(port._waiting) > 0, what="somebody follows")
        with contextlib.suppress(Unanswered):
            await asyncio.wait_for(follower, 5)
        assert len(port._waiting) == 0

    uvloop.run(main())


def test_nobody_there(place: Path) -> None:
    client = Client(place)
    with pytest.raises(NoDaemon, match=r"nobody listens on '.*/control.sock'; start one with 'modelsupd run'"):
        client.status()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(client.path))
        with pytest.raises(NoDaemon):
            client.status()


def test_somebody_else_there(place: Path) -> None:
    client = Client(place)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(client.path))
        other.listen()

        def answer(text: bytes) -> threading.Thread:
            def serve_once() -> None:
                connection, _ = other.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(text)

            thread = threading.Thread(target=serve_once)
            thread.start()
            return thread

        for text, words in (
            (b"220 smtp\r\n", "it is no daemon of ours"),
            (b"HTTP/1.0 200 OK\r\n\r\n{", "cannot understand what answers"),
            (b"", "it is no daemon of ours"),
        ):
            thread = answer(text)
            with pytest.raises(Unanswered, match=words):
                client.status()
            thread.join()
        thread = answer(b"HTTP/1.0 500 Oops\r\n\r\n<html>")
        with pytest.raises(ApiError, match="HTTP status 500: <html>"):
            client.status()
        thread.join()


def test_a_follower_is_answered_at_once_and_may_wait_for_long(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        def head() -> bytes:
            with socket.socket(socket.AF_UNIX) as raw:
                raw.settimeout(5)
                raw.connect(str(client.path))
                raw.sendall(b"GET /v1/events?after=6&follow=1 HTTP/1.0\r\n\r\n")
                return raw.recv(65536)

        assert (await asked(head)).startswith(b"HTTP/1.0 200 OK")
        await auntil(lambda: not port._waiting, what="that the follower went away is noticed")

    run(place, test)


def test_gpus_are_told_and_commanded(place: Path) -> None:
    async def test(port: MemoryPort, client: Client) -> None:
        port.cards = [{"uuid": "GPU-0"}]
        assert await asked(client.gpus) == {"gpus": [{"uuid": "GPU-0"}], "notes": ["nvidia: no driver"]}
        assert (await asked(client.status))["gpus"] == [{"uuid": "GPU-0"}]
        assert await asked(client.gpu, "quarantine", "0", "fan") == "GPU-0"
        assert port.gpu_commands == [("quarantine", "0", pwd.getpwuid(os.getuid()).pw_name, "fan")]
        with pytest.raises(ApiError, match="cannot carry out 'burn' on a GPU: there are quarantine, release"):
            await asked(client.gpu, "burn", "0")

    run(place, test)
