"""A real daemon in its own process, with its own directories, and the engines that it runs."""

from __future__ import annotations

import errno
import http.client
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from modelsupd.control.client import Client, NoDaemon, Unanswered
from modelsupd.runtime.journal import history
from waiting import until

#: A mount namespace of the test's own, for root and for others.
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]

FAKE = Path(__file__).parent / "fake_engine.py"

#: Limits that make a test quick; a test that is about one of them sets its own.
QUICK = """
[models.{name}.health]
probe_interval_s = 0.2
probe_timeout_s = 1
hang_after_s = 2
[models.{name}.stop]
drain_timeout_s = 2
term_timeout_s = 2
kill_timeout_s = 5
[models.{name}.restart]
backoff_initial_s = 0.05
"""

#: The same for an engine that takes both cores of a machine that others use too, and is not to be judged hung for that.
STEADY = QUICK.replace("hang_after_s = 2\n", "hang_after_s = 30\n")


def fake_model(name: str = "m", *flags: str, extra: str = "", limits: str = QUICK) -> str:
    """Return the declaration of a model that the fake engine serves."""
    command = [sys.executable, "-E", "-S", str(FAKE), "--uds", "{socket}", *flags]
    return f"[models.{name}]\nengine = 'command'\ncommand = {json.dumps(command)}\n{extra}\n{limits.format(name=name)}"


def small_gguf(seed: int = 0, size_bytes: int = 4096) -> bytes:
    """Return a GGUF file of one tensor: built as the format demands, and nothing that an engine could run."""
    name, values = b"t", size_bytes // 4
    metadata = struct.pack("<Q20sIQ5s", 20, b"general.architecture", 8, 5, b"llama")
    tensor = struct.pack("<Q1sIQIQ", len(name), name, 1, values, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + metadata + tensor
    data = random.Random(seed).randbytes(values * 4)  # noqa: S311 - the same bytes each time, for no secret
    return head + bytes(-len(head) % 32) + data


def settled(path: Path, content: bytes | None = None) -> Path:
    """Write a file as if long ago: what was written just now is not believed to stay as it is."""
    if content is not None:
        path.write_bytes(content)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


class Watched(ABC):
    """A daemon seen through its admin API; `said` is its log."""

    client: Client

    @abstractmethod
    def said(self) -> str:
        """Return the daemon's log."""

    def where(self) -> str:
        """Return what may tell why the daemon does not do what it is waited for."""
        return self.said()

    def answers(self) -> bool:
        try:
            return bool(self.client.status()["daemon"]["state"] == "running")
        except (NoDaemon, Unanswered):
            return False

    def replica(self, name: str = "m/0") -> dict[str, Any]:
        """Return a replica's part of the status."""
        for model in self.client.status()["models"]:
            for replica in model["replicas"]:
                if replica["name"] == name:
                    return dict(replica)
        return {"phase": "unknown", "reason": "", "run": 0, "pid": None}

    def until_phase(
        self, *phases: str, name: str = "m/0", run: int | None = None, timeout_s: float = 60, traced: bool = False
    ) -> dict[str, Any]:
        """Wait until the replica is in one of these phases (and in that run, or a later one).

        A daemon each of whose system calls a tracer stops need not answer in time: that is told, and asked again.
        """
        seen: dict[str, Any] = {"phase": "unknown", "run": 0}

        def there() -> bool:
            try:
                seen.update(self.replica(name))
            except Unanswered as error:
                if not traced:
                    raise AssertionError(f"{error}: {self.where()}") from error
                warnings.warn(f"{error}: {self.where()}", stacklevel=3)
                return False
            return seen["phase"] in phases and (run is None or (seen["run"] or 0) >= run)

        until(there, timeout_s=timeout_s, what=lambda: f"in {phases}, but {seen}: {self.where()}")
        return seen


class Host(Watched):
    """A daemon under test. `models` is the part of models.toml below [daemon]."""

    def __init__(self, place: Path, models: str) -> None:
        self.place = place
        self.state = place / "state"
        self.runtime = place / "run"
        self.config = place / "models.toml"
        self.log = place / "daemon.log"
        self.declare(models)
        self.daemon: subprocess.Popen[bytes] | None = None
        self.client = Client(self.runtime)

    def declare(self, models: str) -> None:
        """Write models.toml."""
        self.config.write_text(
            f"[daemon]\nstate_dir = '{self.state}'\nruntime_dir = '{self.runtime}'\nmetrics_listen = ''\n{models}"
        )

    def command(self, *verb: str) -> list[str]:
        return [sys.executable, "-m", "modelsupd", "--config", str(self.config), *verb]

    def start(self, *, wrapped: Sequence[str] = (), env: dict[str, str] | None = None) -> None:
        """Start the daemon and wait until it answers."""
        with self.log.open("ab") as log:
            self.daemon = subprocess.Popen(
                [*wrapped, *self.command("run")], stdout=log, stderr=log, env={**os.environ, **(env or {})}
            )
        until(lambda: self.ended() or self.answers(), what=self.where, timeout_s=60)
        assert not self.ended(), self.said()

    def where(self) -> str:
        """Return what the daemon says, where in the kernel each of its threads is, and how busy the machine is."""
        pid = self.daemon.pid if self.daemon is not None else 0
        threads = {}
        for task in Path(f"/proc/{pid}/task").glob("*"):
            with suppress(OSError):  # it ends just now
                state = (task / "status").read_text().partition("State:")[2].split("\n")[0].strip()
                call = (task / "syscall").read_text().strip()
                threads[task.name] = f"{state}, {(task / 'wchan').read_text()}, {call}"
        how = "has ended" if self.ended() else "is there"
        busy = Path("/proc/loadavg").read_text().strip()
        return f"the daemon {how}; its threads: {threads}; the machine's load: {busy}; it said:\n{self.said()}"

    def ended(self) -> bool:
        return self.daemon is None or self.daemon.poll() is not None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        assert self.daemon is not None
        self.daemon.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Signal the daemon and return its exit status."""
        self.send(number)
        assert self.daemon is not None
        return self.daemon.wait(timeout_s)

    def run(self, *verb: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line."""
        return subprocess.run(self.command(*verb), capture_output=True, text=True, timeout=timeout_s, check=False)

    def reap(self) -> None:
        """End whatever is left, as an operator would after a daemon that is gone."""
        done = self.run("reap")
        assert done.returncode == 0, done.stderr + done.stdout

    def records(self) -> list[dict[str, Any]]:
        """Return the journal."""
        return list(history(self.state / "journal"))


@contextmanager
def host(place: Path, models: str, *, start: bool = True, **how: Any) -> Iterator[Host]:  # noqa: ANN401 - as of Host.start
    """Run a daemon; whatever the test does to it, nothing is left at the end."""
    under_test = Host(place, models)
    try:
        if start:
            under_test.start(**how)
        yield under_test
    finally:
        if not under_test.ended():
            under_test.send(signal.SIGCONT)
            under_test.send(signal.SIGTERM)
            try:
                under_test.daemon.wait(60)  # type: ignore[union-attr] # it has not ended, so it is there
            except subprocess.TimeoutExpired:
                under_test.daemon.kill()  # type: ignore[union-attr] # the same
                under_test.daemon.wait()  # type: ignore[union-attr] # the same
        under_test.reap()


@contextmanager
def held_port() -> Iterator[int]:
    """Yield a port of loopback that nobody else is given meanwhile, for a server that sets SO_REUSEADDR, as most do."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def alive(pid: int) -> bool:
    """Tell whether a process lives; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - one line of a file that may vanish
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def fake(endpoint: str, **settings: Any) -> dict[str, Any]:  # noqa: ANN401 - settings of any type
    """Change what is wrong with a running fake engine; return its state."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(endpoint.removeprefix("unix:"))
    connection.request("POST", "/fake", json.dumps(settings))
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def whys(under_test: Host) -> str:
    return "\n".join(record.get("why", "") for record in under_test.records())


def streaming(endpoint: str, tokens: int) -> socket.socket:
    """Ask for a stream and return the connection once the first token has come; OSError where none comes."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.settimeout(30)
        client.connect(endpoint.removeprefix("unix:"))
        asked = {"model": "m", "stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "x"}]}
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        first_token(client)
    except BaseException:
        client.close()
        raise
    return client


def first_token(client: socket.socket) -> None:
    """Read until the first event of the stream, and not a byte further: the rest may have come with it."""
    seen = b""
    while b"data:" not in seen:
        piece = client.recv(1)
        if not piece:
            raise ConnectionError(f"no stream but {seen!r}")
        seen += piece


def fill(path: Path) -> None:
    """Write until there is no space left."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017 - any other error is the test's own
