"""The gateway's real process for tests, with a daemon's end of the link and a fake engine behind it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gateway_daemon import Daemon
from modelsupd.gateway import settings
from modelsupd.gateway.base import Model, Run
from modelsupd.gateway.settings import Settings
from waiting import auntil, until

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"


def prepared(folder: Path, **changes: Any) -> Settings:  # noqa: ANN401 - fields of any type
    """Return settings for a gateway whose daemon and state are in `folder`."""
    made = Settings(run="gateway/0#1", daemon_socket=str(folder / "gateway.sock"), state_dir=str(folder))
    return replace(made, **changes)


class Gateway:
    """One process."""

    def __init__(
        self, folder: Path, given: Settings, name: str = "g", *, log_fd: int | None = None, wrapped: Sequence[str] = ()
    ) -> None:
        self.admin = folder / f"{name}.sock"
        self.log_path = folder / f"{name}.log"
        settings_path = folder / f"{name}.json"
        settings.write(settings_path, given)
        argv = (
            *wrapped,
            sys.executable,
            "-I",
            "-m",
            "modelsupd.gateway",
            "--settings",
            str(settings_path),
            "--admin",
            str(self.admin),
        )
        with self.log_path.open("wb") as file:
            log = file.fileno() if log_fd is None else log_fd
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def ask(self, path: str) -> bytes:
        """Return what the admin socket answers."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(str(self.admin))
            client.sendall(f"GET {path} HTTP/1.1\r\n\r\n".encode())
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        return answer.partition(b"\r\n\r\n")[2]

    def health(self) -> dict[str, Any]:
        """Return what it says of itself; {} while it does not answer yet."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.ask("/health"))
            assert isinstance(found, dict)
            return found
        return {}

    def descriptors(self) -> int:
        """Return how many files it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def wait_accepting(self, *, accepting: bool = True) -> None:
        until(lambda: self.health().get("accepting") is accepting, what=lambda: self.log)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def engine(folder: Path, name: str = "e", **faults: object) -> Iterator[Run]:
    """Run a fake engine, and yield it as something to route to."""
    path = folder / f"{name}.sock"
    words = [word for key, value in faults.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    process = subprocess.Popen(
        (sys.executable, "-S", FAKE_ENGINE, "--uds", path, *words),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: _connects(path), what="the engine listens")
        yield Run("qwen/0", 1, f"unix:{path}")
    finally:
        process.kill()
        process.wait()


def _connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@contextlib.asynccontextmanager
async def linked(folder: Path, gateways: list[Gateway]) -> AsyncIterator[Daemon]:
    """Be the daemon of gateways; when it is over, all of them are ended."""
    daemon = Daemon(folder)
    daemon.listen()
    try:
        yield daemon
    finally:
        daemon.close()
        for gateway in gateways:
            gateway.close()


async def serving(daemon: Daemon, gateway: Gateway, listening: socket.socket, *models: Model) -> None:
    """Wait for a gateway's hello, and have it serve."""
    await auntil(lambda: daemon.hellos or gateway.process.poll() is not None, what=lambda: gateway.log)
    assert daemon.hellos, gateway.log
    daemon.welcome(*models, sockets=[listening])
    await asyncio.to_thread(gateway.wait_accepting)


class Client(http.client.HTTPConnection):
    """A client of the address that a socket listens on."""

    def __init__(self, listening: socket.socket, key: str = "") -> None:
        host, port = listening.getsockname()[:2]
        super().__init__(host, port, timeout=20)
        self._key = key

    def chat(self, model: str = "qwen", **fields: object) -> http.client.HTTPResponse:
        """Send a chat request, and return its answer, whose body is not read yet."""
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        headers = {"content-type": "application/json"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        self.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return self.getresponse()


def tokens(body: bytes) -> int:
    """Return how many tokens an answer that did not stream says it has."""
    count = json.loads(body)["usage"]["completion_tokens"]
    assert isinstance(count, int)
    return count
