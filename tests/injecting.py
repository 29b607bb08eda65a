"""Faults put into running processes from outside: failing system calls, scarce resources, sleeps in the kernel."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from waiting import until


@contextmanager
def strace(pid: int, place: Path, *injections: str) -> Iterator[Path]:
    """Inject into a process, its threads and its later children; yield the file that names what was injected."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace to make system calls fail")
    said = place / "strace"
    said.write_bytes(b"")
    words = [word for injection in injections for word in ("-e", f"inject={injection}")]
    calls = ",".join(injection.split(":", 1)[0] for injection in injections)
    command = ["strace", "-f", "-qq", "-o", str(said), "-e", f"trace={calls}", *words, "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
    tasks = Path(f"/proc/{pid}/task")

    def attached() -> bool:
        try:
            return all(f"TracerPid:\t{tracer.pid}\n" in (task / "status").read_text() for task in tasks.iterdir())
        except (FileNotFoundError, ProcessLookupError):  # a thread has just ended
            return False

    try:
        until(lambda: tracer.poll() is not None or attached())
        if tracer.poll() is not None:
            pytest.skip("needs the right to trace our own processes")
        yield said
    finally:
        tracer.terminate()
        tracer.communicate()


@contextmanager
def limited(pid: int, what: int, limit: int) -> Iterator[None]:
    """Lower a soft limit of a process, such as resource.RLIMIT_NOFILE."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


def highest_descriptor(pid: int) -> int:
    return max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())


@contextmanager
def cgroup(controller: str, name: str) -> Iterator[Path]:
    """Yield a new cgroup of a version 1 controller; skip where none can be made."""
    top = Path("/sys/fs/cgroup") / controller
    own = [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if controller in line]
    home = top / own[0].lstrip("/") if own and (top / own[0].lstrip("/")).is_dir() else top
    group = home / f"modelsupd-test-{name}-{os.getpid()}"
    if not (top / "cgroup.procs").exists() or not os.access(home, os.W_OK):
        pytest.skip(f"needs the v1 {controller} cgroup, writable")
    group.mkdir()
    try:
        yield group
    finally:
        if controller == "freezer":
            (group / "freezer.state").write_text("THAWED")

        def empty() -> bool:
            for pid in (group / "cgroup.procs").read_text().split():
                try:
                    (home / "cgroup.procs").write_text(pid)
                except OSError:
                    continue  # it has ended meanwhile, or is about to
            return not (group / "cgroup.procs").read_text()

        until(empty)
        group.rmdir()


class DeafFileSystem:
    """A FUSE mount that answers nobody: who looks at it sleeps in the kernel, and SIGKILL does not end that.

    The kernel waits for the answer to a request that the server has taken, whatever signals come (fs/fuse/dev.c,
    request_wait_answer). `wake` lets go of everyone.
    """

    def __init__(self, place: Path) -> None:
        """Mount it below `place`; skip where that cannot be done."""
        self.path = place / "deaf"
        self.path.mkdir()
        try:
            self._fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            pytest.skip("needs /dev/fuse")
        options = f"fd={self._fd},rootmode=40000,user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"deaf", os.fsencode(self.path), b"fuse", 0, options):
            os.close(self._fd)
            pytest.skip(f"needs the right to mount: {os.strerror(ctypes.get_errno())}")
        #: Threads whose request was taken and is not answered.
        self.waiting: set[int] = set()
        self._serving = threading.Thread(target=self._serve, daemon=True)
        self._serving.start()

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._fd, 1 << 20)
            except OSError:  # unmounted
                return
            _length, opcode, unique, _node, _uid, _gid, caller = struct.unpack_from("<IIQQIII", request)
            if opcode != 26:
                self.waiting.add(caller)
            else:
                _major, minor = struct.unpack_from("<II", request, 40)
                body = struct.pack("<IIIIHHI", 7, min(minor, 31), 0, 0, 1, 1, 4096).ljust(64, b"\0")
                os.write(self._fd, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)

    def wake(self) -> None:
        """Unmount: every request ends with an error; harmless when done again."""
        if self._fd >= 0:
            subprocess.run(["umount", "--force", "--lazy", self.path], check=True)
            self._serving.join(10)
            os.close(self._fd)
            self._fd = -1
