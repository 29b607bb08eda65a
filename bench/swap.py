"""Two models that start on demand and of which one fits at a time: from the request for the other to its first byte.

The real gateway and daemon; engines that load at once, so that what is measured is ours. What the engines' own stop and
start take is measured in turn with it, as bare processes: started until they answer a request for a token, and sent
SIGTERM until they are gone. Ours is what is left of a swap without that. Once on a GPU, of which the tests' fake driver
tells, and once without, where the models exclude each other.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import child
import measure
from fake_gpus import GIB, Cards
from idle import cpu_s
from waiting import until

SWAPS = 320
#: Between a swap and the next: what follows a readiness, and the end of the one that went, is not measured.
PAUSE_S = 0.05
_MODELS = ("a", "b")

_DEMAND = """
[models.{name}.demand]
residence_s = 0
{more}
"""
_GATEWAY = "[gateway]\nlisten = '127.0.0.1:0'\n"


def model(name: str, command: Sequence[str], gpu_gib: int) -> str:
    """Return the declaration of one of the two: on a GPU that has no room for both, or in a group of which one runs."""
    head = f"[models.{name}]\nengine = 'command'\nstart = 'on-demand'\ncommand = {json.dumps(command)}\n"
    if gpu_gib:
        more, claims = "", f"gpus = 1\nplacement.vram_bytes = {gpu_gib * GIB}\n"
    else:
        more, claims = "group = 'g'\nexcludes = ['g']\n", ""
    return head + claims + _DEMAND.format(name=name, more=more)


class Bare:
    """The engine without a supervisor."""

    def __init__(self, command: Sequence[str], path: Path) -> None:
        """`path` is where it listens."""
        self._command, self._path = command, path
        self.took_s: list[float] = []

    def round(self) -> None:
        """Start it until it generates, and end it until it is gone; both together are what it takes."""
        began_at = time.perf_counter()
        pid = os.posix_spawn(self._command[0], list(self._command), {"CUDA_VISIBLE_DEVICES": "GPU-0"})
        while not _generates(self._path):
            time.sleep(0.0001)
        started_s = time.perf_counter() - began_at
        time.sleep(PAUSE_S)
        ended_at = time.perf_counter()
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        self.took_s.append(started_s + time.perf_counter() - ended_at)
        self._path.unlink()


_ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


def _generates(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
            client.sendall(_ASK)
            return b"completion_tokens" in client.recv(4096)
        except OSError:
            return False


class Client:
    """One client on one connection to the gateway."""

    def __init__(self, host: child.Daemon) -> None:
        """Connect once the gateway takes connections."""

        def listening() -> str:
            told = host.client.status()["gateway"]
            accepts = any(run["accepts"] for run in told["runs"])
            return str(told["listen"][0]) if accepts and told["listen"] else ""

        until(lambda: bool(listening()), timeout_s=20, what="the gateway takes connections")
        name, _, port = listening().rpartition(":")
        self._socket = socket.create_connection((name, int(port)), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, name: str) -> tuple[float, float]:
        """Ask a model; return when that was, and when the first byte of the answer was there."""
        body = json.dumps({"model": name, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        asked_at = time.monotonic()
        self._socket.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        got = self._socket.recv(65536)
        came_at = time.monotonic()
        while b"completion_tokens" not in got:
            more = self._socket.recv(65536)
            if not more:
                raise RuntimeError(f"no answer of {name} but {got!r}")
            got += more
        return asked_at, came_at

    def close(self) -> None:
        """Let go of the gateway."""
        self._socket.close()


#: What is recorded on the way, in order, and what has happened by then. Of `old` the one that goes.
_STEPS = {
    ("new", "Demanded"): "the daemon knows that somebody waits",
    ("new", "Resolved"): "recorded; program and weights looked at",
    ("old", "Evicted"): "recorded; decided who gives way",
    ("old", "Probed"): "recorded; nothing of it is in flight",
    ("old", "Exited"): "recorded; SIGTERM, its engine and its shim are gone",
    ("old", "Cleared"): "recorded; its memory is back",
    ("new", "Placed"): "recorded; the new one has its place",
    ("new", "Spawned"): "recorded; the new engine's process is there",
    ("new", "Probed"): "recorded; it generates",
}
_BYTE = "recorded, published; the first byte is with the client"


def steps(records: Sequence[Mapping[str, Any]], swaps: Sequence[tuple[str, float, float]]) -> dict[str, list[float]]:
    """Return how long each step of the swaps took, in seconds; a swap is the model asked for, from when until when."""
    found: dict[str, list[float]] = {}
    for name, asked_at, came_at in swaps:
        at = asked_at
        for record in records:
            if asked_at <= record["at"] <= came_at and "event" in record:
                who = "new" if record["replica"] == f"{name}/0" else "old"
                words = _STEPS.get((who, record["event"]["type"]))
                if words is not None:
                    found.setdefault(words, []).append(record["at"] - at)
                    at = record["at"]
        found.setdefault(_BYTE, []).append(came_at - at)
    return found


@contextlib.contextmanager
def _daemon(place: Path, config: str) -> Iterator[tuple[child.Daemon, Client]]:
    with child.daemon(place, config) as host:
        client = Client(host)
        try:
            yield host, client
        finally:
            client.close()


def swap(title: str, place: Path, count: int, config: str, bare: Bare, tidy: Callable[[], object]) -> None:
    """Measure and print one kind of swap."""
    place.mkdir()
    seen: list[tuple[str, float, float]] = []
    with _daemon(place, config) as (host, client):
        for name in _MODELS:
            client.ask(name)
        before_s = cpu_s(host.pid)
        for _number, name in zip(range(count), itertools.cycle(_MODELS), strict=False):
            time.sleep(PAUSE_S)
            tidy()
            seen.append((name, *client.ask(name)))
            bare.round()
        used_s = (cpu_s(host.pid) - before_s) / count
        records = [record for record in host.records() if record.get("kind") == "replica"]
    runs = max(record["run"] for record in records if record["replica"] == "a/0")
    whole = [came_at - asked_at for _name, asked_at, came_at in seen]
    floor = measure.median(bare.took_s)
    print(f"  {title}: {len(whole)} swaps, run {runs} of a/0")
    print(f"    {'request to first byte':58} {measure.milliseconds(whole)}")
    print(f"    {'the engine bare: stop and start':58} {measure.milliseconds(bare.took_s)}")
    print(f"    {'ours: less the median of that':58} {measure.milliseconds([each - floor for each in whole])}")
    print(f"    {'CPU of the daemon, a swap':58} {used_s * 1e3:12.2f} ms")
    for words, seconds in steps(records, seen).items():
        print(f"      {words:56} {measure.milliseconds(seconds)}")


def main(runs: int = 0) -> None:
    """Measure and print; `runs` is swaps."""
    count = runs or SWAPS
    measure.heading("swap: a request for B while A is ready and idle -> B's first byte")
    with child.place() as place:
        program, bell = child.compiled(place), str(place / "nobody")
        bare_folder = place / "bare"
        (bare_folder / "alloc").mkdir(parents=True)

        def bare() -> Bare:
            command = [str(program), bell, str(place / "bare.sock"), "0", str(bare_folder), str(6 * GIB)]
            return Bare(command, place / "bare.sock")

        cards = Cards(place / "cards", 8)
        command = [str(program), bell, "{socket}", "0", str(cards.folder), str(6 * GIB)]

        def forget_the_dead() -> None:
            for path in (cards.folder / "alloc").iterdir():
                if not Path(f"/proc/{path.name.partition('.')[0]}").exists():
                    path.unlink()

        on_gpu = "".join(model(name, command, 6) for name in _MODELS)
        config = f"{_GATEWAY}[gpus]\nnvml = '{cards.nvml}'\n#\n{on_gpu}"
        swap("on one GPU", place / "g", count, config, bare(), forget_the_dead)
        command = [str(program), bell, "{socket}", "0"]
        grouped = "".join(model(name, command, 0) for name in _MODELS)
        swap("without GPUs, of a group one at a time", place / "e", count, _GATEWAY + grouped, bare(), lambda: None)
