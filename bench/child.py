"""The tiny engine, compiled; the socket on which it tells of itself; and a daemon that runs it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hosts import Host
from modelsupd.control.client import Client
from waiting import until

SOURCE = Path(__file__).parent / "child.c"

#: Memory: where the runtime directory lies in production (/run), and where it must not cost a disk anything here.
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it

_CREDENTIALS = struct.Struct("3i")


def cache_dir() -> Path:
    """Return where what the benches need is kept: beside the engines, outside the checkout."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "modelsupd" / "bench"


@contextmanager
def place() -> Iterator[Path]:
    """Yield a directory of its own on a real disk, with a short path; it is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="b", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def compiled(into: Path) -> Path:
    """Compile the engine into a directory, linked statically so that its own start costs as little as can be."""
    target = into / "child"
    subprocess.run(["cc", "-O2", "-D_GNU_SOURCE", "-static", "-o", target, SOURCE], check=True)
    return target


@dataclass(frozen=True, slots=True)
class Told:
    """What a child said: the word, when in nanoseconds since 1970, and its pid as we see it."""

    word: str
    at_ns: int
    pid: int


class Bell:
    """The datagram socket on which children tell of themselves."""

    def __init__(self, path: Path) -> None:
        """Bind it; a child in another PID namespace is named by the pid that it has in ours."""
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(str(path))
        path.chmod(0o777)

    def close(self) -> None:
        """Take no more."""
        self._socket.close()

    def next(self, word: str, timeout_s: float = 20.0) -> Told:
        """Return the next thing of that kind that is told; other kinds are passed over. TimeoutError: none came."""
        self._socket.settimeout(timeout_s)
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(256, socket.CMSG_SPACE(_CREDENTIALS.size))
            said, _, at_ns = data.decode().partition(" ")
            if said == word:
                return Told(said, int(at_ns), _CREDENTIALS.unpack(ancillary[0][2])[0])


#: A crash is followed by a start at once, as often as the bench wants one.
AT_ONCE = """
[models.{name}.restart]
healthy_after_s = 0
max_crashes = 1000000
window_s = 1
[models.{name}.stop]
drain_timeout_s = 0
"""


def model(name: str, child: Path, bell: Path, *, replicas: int = 1, delay_ms: int = 0, extra: str = "") -> str:
    """Return the declaration of a model that children serve."""
    command = [str(child), str(bell), "{socket}", str(delay_ms)]
    head = f"[models.{name}]\nengine = 'command'\nreplicas = {replicas}\ncommand = {json.dumps(command)}\n"
    return head + extra + AT_ONCE.format(name=name)


class Daemon(Host):
    """A daemon with its state on a real disk and its runtime directory in memory, as an installed one has them."""

    def __init__(self, place: Path, models: str) -> None:
        """Prepare; `start` starts it."""
        super().__init__(place, models)
        if MEMORY.is_dir():
            self.runtime = Path(tempfile.mkdtemp(prefix="b", dir=MEMORY))
            self.client = Client(self.runtime)
            self.declare(models)

    @property
    def pid(self) -> int:
        """The daemon's pid."""
        assert self.daemon is not None  # noqa: S101 - it was started
        return self.daemon.pid

    def rows(self) -> list[dict[str, object]]:
        """Return the status of every replica."""
        return [dict(row) for each in self.client.status()["models"] for row in each["replicas"]]

    def until_ready(self, count: int, timeout_s: float = 60.0) -> list[dict[str, object]]:
        """Wait until that many replicas are ready; return their status."""

        def ready() -> list[dict[str, object]]:
            rows = [row for row in self.rows() if row["phase"] == "ready"]
            return rows if len(rows) == count else []

        until(ready, timeout_s=timeout_s, what=f"{count} replicas are ready")
        return ready()


@contextmanager
def daemon(place: Path, models: str, *, start: bool = True) -> Iterator[Daemon]:
    """Run a daemon; it and its engines are gone afterwards."""
    made = Daemon(place, models)
    try:
        if start:
            made.start(env={"PYTHONOPTIMIZE": ""})
        yield made
    finally:
        if not made.ended():
            made.stop(timeout_s=60)
        made.reap()
        shutil.rmtree(made.runtime, ignore_errors=True)
