"""Runs an engine as an adapter describes it, without shim or daemon: what those add is filled in here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import llama_server
from hosts import alive, held_port
from modelsupd.core.events import Exit, Failure, Outcome, ProbeKind
from modelsupd.core.spec import ModelSpec
from modelsupd.engines.base import Adapter, Files, adapter
from modelsupd.runtime.probe import Result, probe
from modelsupd.runtime.shim import debris
from waiting import PATIENCE_S, until


@dataclass
class Running:
    """An engine's process and how to talk to it."""

    name: str
    spec: ModelSpec
    process: subprocess.Popen[bytes]
    endpoint: str
    log_path: Path

    @property
    def adapter(self) -> Adapter:
        return adapter(self.spec.engine)

    @property
    def socket_path(self) -> str:
        return self.endpoint.removeprefix("unix:")

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def probe(self, kind: ProbeKind, timeout_s: float = 5.0) -> Result:
        return asyncio.run(probe(self.adapter, kind, self.name, self.spec, self.endpoint, timeout_s))

    def wait_ready(self) -> None:
        until(lambda: self.probe(ProbeKind.START)[0] is Outcome.TOKENS, what=f"the engine generates: {self.log()}")

    def classify(self) -> Failure:
        code = self.process.wait(PATIENCE_S)
        how = Exit(code=code) if code >= 0 else Exit(signal=-code)
        return self.adapter.classify(how, self.log())

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(self.socket_path)
        return client

    def post(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Send a request and return the connection, its answer unread."""
        client = self.connect()
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        client.sendall(head.encode() + data)
        return client


@contextmanager
def running(
    name: str, spec: ModelSpec, folder: Path, *, binary: str | None = None, address_space_kib: int | None = None
) -> Iterator[Running]:
    """Start the engine in `folder`, yield it, and leave nothing of it behind."""
    command = adapter(spec.engine).command(
        name, spec, binary=binary or adapter(spec.engine).binary(spec, None), files=Files.declared(spec)
    )
    with held_port() as port:
        values = {"{socket}": f"{folder}/e.sock", "{host}": "127.0.0.1", "{port}": str(port), "{tmp}": str(folder)}
        values |= {"{run_dir}": str(folder), "{cache_dir}": f"{folder}/cache"}

        def fill(text: str) -> str:
            for key, value in values.items():
                text = text.replace(key, value)
            return text

        argv = [fill(word) for word in command.argv]
        if address_space_kib:
            argv = ["sh", "-c", 'ulimit -v "$0"; exec "$@"', str(address_space_kib), *argv]
        env = {key: fill(value) for key, value in command.env.items()}
        log_path = folder / "engine.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        endpoint = f"unix:{folder}/e.sock" if command.listen == "unix" else f"http://127.0.0.1:{port}"
        try:
            yield Running(name, spec, process, endpoint, log_path)
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill an engine and whatever it has started, and remove what they shared, as its shim would."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    group = [pid for pid in pids if session_of(pid) == process.pid]
    shared = debris.shared_by(group)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    until(lambda: not any(alive(pid) for pid in group), what=f"{group} are gone")
    debris.remove(shared)


def session_of(pid: int) -> int:
    """Return the session of a process, 0 for one that is gone."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def real_binary() -> str:
    """Return the real llama-server; a test that needs it fails by name without it."""
    found = llama_server.find()
    if found is None:
        pytest.fail("there is no llama-server on PATH or in the cache: run 'make engines' first")
    return str(found)
