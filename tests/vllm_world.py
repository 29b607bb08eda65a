"""A daemon on a real vLLM with a tiny random Llama, and what its processes are."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import tiny_llama
import vllm_cpu
from hosts import Host, alive
from modelsupd.runtime.shim import debris
from waiting import until

#: A start takes half a minute on two quiet cores, nearly all of it imports, and several times that on busy ones.
START_S = 240.0

LIMITS = """
[models.m.health]
probe_interval_s = 0.5
probe_timeout_s = 3
hang_after_s = 4
prove_every_s = 3
[models.m.stop]
drain_timeout_s = 30
term_timeout_s = 30
load_term_timeout_s = 1
[models.m.restart]
backoff_initial_s = 0.05
[models.m.gateway]
start_wait_s = 60
"""


def interpreter() -> str:
    """Return an interpreter that has vLLM; a test that needs it is skipped by name where there can be none."""
    found = vllm_cpu.find()
    if found is None:
        why = vllm_cpu.unfit()
        if why:
            pytest.skip(f"there can be no vLLM here: {why}")
        pytest.skip("there is no vLLM in the cache; 'make engines' says why it could not be set up")
    return str(found)


def weights(folder: Path, context_length: int = 2048) -> Path:
    """Write the model as if long ago: what was written just now is not believed to stay as it is."""
    tiny_llama.write(folder, context_length=context_length)
    for file in folder.iterdir():
        os.utime(file, (1_000_000_000, 1_000_000_000))
    return folder


def model(python: str, folder: Path, *, args: str = "", extra: str = "", limits: str = LIMITS) -> str:
    """Return a configuration with a gateway and one model; `args` are further flags."""
    return (
        f"[gateway]\nlisten = '127.0.0.1:0'\n[engines.vllm]\npython = '{python}'\n"
        f"[models.m]\nengine = 'vllm'\nweights = '{folder}'\n{extra}\n"
        "[models.m.args]\nenforce_eager = true\nmax_num_seqs = 4\n"
        f"{args or 'kv_cache_memory_bytes = 67108864'}\n{limits}"
    )


def _children(pid: int) -> dict[int, str]:
    """Return the children of a process and what they are called, without those that have just ended.

    While vLLM loads, it runs one small program after another, to ask for processors and libraries.
    """
    found = {}
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            with suppress(OSError):
                found[child] = Path(f"/proc/{child}/comm").read_text().strip()
    return found


class Tree:
    """The processes of one run of vLLM."""

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.all = {leader: "leader"}
        below = [leader]
        while below:
            children = _children(below.pop())
            self.all |= children
            below += children
        self.shared = debris.shared_by(self.all)

    def named(self, name: str) -> int:
        """Return the pid of the process of that name; /proc/PID/comm holds its first 15 characters."""
        (found,) = [pid for pid, comm in self.all.items() if comm == name[:15]]
        return found

    @property
    def core(self) -> int:
        return self.named("VLLM::EngineCore")

    @property
    def worker(self) -> int:
        return self.named("VLLM::Worker")

    def left(self) -> dict[int, str]:
        """Return those that still live."""
        return {pid: comm for pid, comm in self.all.items() if alive(pid)}

    def left_in_memory(self) -> list[str]:
        """Return what is still in /dev/shm of what they had there when they were looked at."""
        return [path for path in self.shared if Path(path).exists()]


def ask(endpoint: str, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, bytes]:
    """Ask an engine on its socket."""
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(endpoint.removeprefix("unix:"))
    try:
        connection.request(method, path, json.dumps(body or {}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Stream:
    """A chat that is streamed through the gateway; its first event has come."""

    def __init__(self, daemon: Host, tokens: int) -> None:
        def listens() -> bool:
            told = daemon.client.status()["gateway"]
            return bool(told["listen"]) and any(run["accepts"] for run in told["runs"])

        until(listens, what=daemon.said)
        self.connection = http.client.HTTPConnection(daemon.client.status()["gateway"]["listen"][0], timeout=60)
        asked: dict[str, object] = {"model": "m", "stream": True, "max_tokens": tokens}
        asked["messages"] = [{"role": "user", "content": "x"}]
        headers = {"Content-Type": "application/json"}
        asked["stream_options"] = {"include_usage": True}
        self.connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        self.first = self.answer.readline()

    def events(self) -> Iterator[str]:
        """Yield what comes, until the connection ends."""
        for line in (self.first, *self.answer):
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip().decode()
        self.connection.close()

    def ending(self) -> tuple[str, int, str]:
        """Read to the end; return the finish_reason, how many tokens vLLM counted, and the last event."""
        events = list(self.events())
        chunks = [json.loads(event) for event in events if event != "[DONE]"]
        reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk.get("choices", ())]
        # Not by the number of events: when the client is slow, several tokens come in one.
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks if chunk.get("usage")]
        return (reasons or [""])[-1] or "", (counts or [0])[-1], (events or [""])[-1]


def keep_help(known: Path, daemon: Host) -> None:
    """Let a fresh installation know what vLLM said of its flags when another one asked it, as one that ran before."""
    if known.exists():
        (daemon.state / "engines").mkdir(parents=True, mode=0o700, exist_ok=True)
        shutil.copytree(known, daemon.state / "engines", dirs_exist_ok=True)
