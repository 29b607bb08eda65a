"""SIGKILL of an engine until its replacement has exec'd: ours, other supervisors, and the sync that ours includes.

All run at the same time, each with one child of the same program, and are taken in turn: each in every round, in an
order that changes. From one start of a child to its end lies more than a second, so that nobody takes it for one that
cannot start. The child itself tells when it began.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import child
import measure
import peers

RUNS = 320

#: Peers that need hundreds of milliseconds or more are asked less often; their median needs no 300 runs.
SLOW_S, SLOW_EVERY = 0.1, 8

OURS = "modelsupd"
SYNC = "one write + fdatasync"


class Subject:
    """A supervisor and its present child."""

    def __init__(self, peer: peers.Peer, ready: Callable[[], object] | None = None) -> None:
        """Wait for its first child; `ready` waits until the supervisor calls a child settled."""
        self.peer = peer
        self.ready = ready
        self.seconds: list[float] = []
        self.child = peer.bell.next("began")

    def strike(self) -> None:
        """Kill the child and note how long its replacement took to begin."""
        wait_s = self.child.at_ns / 1e9 + peers.SETTLED_S + random.uniform(0, 0.05) - time.time()  # noqa: S311 - no secret
        time.sleep(max(0, wait_s))
        if self.ready is not None:
            self.ready()
        killed_ns = time.time_ns()
        os.kill(self.child.pid, signal.SIGKILL)
        self.child = self.peer.bell.next("began")
        self.seconds.append((self.child.at_ns - killed_ns) / 1e9)


@contextlib.contextmanager
def ours(place: Path, program: Path) -> Iterator[Subject]:
    """Run our daemon with one model."""
    with (
        contextlib.closing(child.Bell(place / "bell")) as bell,
        child.daemon(place, child.model("m", program, bell.path)) as host,
    ):
        yield Subject(peers.Peer(OURS, bell), lambda: host.until_ready(1))


@contextlib.contextmanager
def all_of_them(place: Path) -> Iterator[list[Subject]]:
    """Run everything that can be had here; say what cannot."""
    program = child.compiled(place)
    with contextlib.ExitStack() as stack:
        (place / OURS).mkdir()
        subjects = [stack.enter_context(ours(place / OURS, program))]
        for start in peers.ALL:
            folder = place / start.__name__
            folder.mkdir()
            try:
                started = stack.enter_context(start(folder, program))
            except peers.Unavailable as error:
                print(f"  left out: {start.__name__}: {error}")
            else:
                subjects += [Subject(peer) for peer in started]
        yield subjects


def synced(file: int, at: int) -> float:
    """Return how long a record's worth of bytes takes to reach the disk."""

    def write() -> None:
        os.pwrite(file, b"x" * 700, at * 700)
        os.fdatasync(file)

    return measure.timed(write)


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading("restart: SIGKILL of an engine -> its replacement has exec'd")
    syncs: list[float] = []
    with child.place() as place, all_of_them(place) as subjects:
        file = os.open(place / "synced", os.O_WRONLY | os.O_CREAT, 0o600)
        for number in range(runs or RUNS):
            syncs.append(synced(file, number))
            for subject in random.sample(subjects, len(subjects)):
                if number % SLOW_EVERY == 0 or measure.median(subject.seconds) < SLOW_S:
                    subject.strike()
        os.close(file)
        rows: dict[str, Sequence[float]] = {subject.peer.name: subject.seconds for subject in subjects}
    measure.compare(rows | {SYNC: syncs}, OURS)
