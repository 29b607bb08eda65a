"""The moment from which an engine could serve until everyone is told that it is ready.

The child tells when its socket listens; ready is when a client that follows the daemon's events reads the record, so
probe, decision, sync and publication are all in it. The floor, in turn with it: a loop that does nothing but ask the
same child for a token every millisecond.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

import child
import measure

#: Loading times in ms → how many runs of each. Those up to a second are what a fast engine takes.
LOADS_MS = {0: 80, 50: 80, 200: 80, 700: 80, 3000: 10}
FAST_MS = 1000

_ASK = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"


class Ready:
    """Follows a daemon's events; tells when each replica was called ready."""

    def __init__(self, host: child.Daemon) -> None:
        """Follow from here on."""
        self._seen: dict[str, SimpleQueue[int]] = {row: SimpleQueue() for row in (f"m{ms}/0" for ms in LOADS_MS)}
        self._events = host.client.events(follow=True)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        # The end of the daemon, with the bench, ends this too.
        with contextlib.suppress(Exception):
            for record in self._events:
                state = record.get("state") or {}
                if state.get("phase", {}).get("name") == "ready":
                    self._seen[record["replica"]].put(time.time_ns())

    def next(self, replica: str) -> int:
        """Return when the replica was next called ready, in nanoseconds since 1970."""
        return self._seen[replica].get(timeout=30)


def floor(program: Path, bell: child.Bell, path: Path, load_ms: int) -> float:
    """Return the overshoot, in seconds, of asking once a millisecond."""
    with subprocess.Popen([program, bell.path, path, str(load_ms)]) as started:
        try:
            while not _answers(path):
                time.sleep(0.001)
            ready_ns = time.time_ns()
            return (ready_ns - bell.next("serves").at_ns) / 1e9
        finally:
            started.kill()
            started.wait()
            path.unlink()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
            client.sendall(_ASK)
            return b"completion_tokens" in client.recv(4096)
        except OSError:
            return False


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading("readiness: it could serve -> it is called ready")
    ours: dict[int, list[float]] = {ms: [] for ms in LOADS_MS}
    floors: dict[int, list[float]] = {ms: [] for ms in LOADS_MS}
    with child.place() as place, contextlib.ExitStack() as stack:
        program = child.compiled(place)
        bells = {ms: stack.enter_context(contextlib.closing(child.Bell(place / f"bell{ms}"))) for ms in LOADS_MS}
        bare = stack.enter_context(contextlib.closing(child.Bell(place / "bell")))
        models = "".join(child.model(f"m{ms}", program, bells[ms].path, delay_ms=ms) for ms in LOADS_MS)
        host = stack.enter_context(child.daemon(place, models))
        ready = Ready(host)
        pids = {}
        for ms in LOADS_MS:
            pids[ms] = bells[ms].next("serves").pid
            ready.next(f"m{ms}/0")
        for number in itertools.count():
            todo = [ms for ms, wanted in LOADS_MS.items() if number < min(runs or wanted, wanted)]
            if not todo:
                break
            for ms in todo:
                time.sleep(0.02)
                os.kill(pids[ms], signal.SIGKILL)
                served = bells[ms].next("serves")
                pids[ms] = served.pid
                ours[ms].append((ready.next(f"m{ms}/0") - served.at_ns) / 1e9)
                floors[ms].append(floor(program, bare, place / "engine", ms))
    fast = [ms for ms in LOADS_MS if ms <= FAST_MS]
    rows: dict[str, Sequence[float]] = {
        "modelsupd, up to 1 s to load": [each for ms in fast for each in ours[ms]],
        "asked every ms": [each for ms in fast for each in floors[ms]],
    }
    measure.compare(rows, "modelsupd, up to 1 s to load")
    for ms in LOADS_MS:
        print(
            f"  {f'of these {ms} ms to load' if ms in fast else f'{ms} ms to load':28} {measure.milliseconds(ours[ms])}"
        )
