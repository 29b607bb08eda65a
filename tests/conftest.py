"""What holds for every test: directories with short paths, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Container, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import pure
from waiting import until

#: The files that take longest with real engines, the longest first. They begin in this order, so that none of them is
#: left for the end, when nothing else is there to be done meanwhile.
LONGEST = [
    "sim/test_sim.py",
    "systemd/test_unit.py",
    "daemon/test_real_llama_cpp_python.py",
    "daemon/test_real_vllm.py",
    "daemon/test_gateway.py",
    "daemon/test_daemon_weights.py",
    "daemon/test_real_llama.py",
    "faults/test_signals.py",
    "daemon/test_real_gateway.py",
    "cli/test_cli_daemon.py",
    "hostile/test_time.py",
    "faults/test_disk.py",
    "engines/test_llama_cpp_python_real.py",
]


def _parent() -> Path:
    """Return where to make the tests' directories: in memory, if programs may be started there and there is room.

    A daemon's runtime directory is in memory anyway, on a machine with systemd. And a disk that others keep busy has
    writers wait for seconds, which no test of ours is about: those that are bring a disk of their own.
    """
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        return Path("/tmp")
    there = os.statvfs(memory)
    fits = there.f_bavail * there.f_frsize >= MEMORY_BYTES and not there.f_flag & os.ST_NOEXEC
    return memory if fits else Path("/tmp")


#: How much memory has to be free for the tests' directories to lie there, in bytes; most of it is never touched.
MEMORY_BYTES = 4 << 30

#: Everything that this test process makes lies below one short path, by which what it leaves behind is found. A unix
#: socket's path has room for 107 bytes.
ROOT = Path(tempfile.mkdtemp(prefix="m", dir=_parent()))
ROOT.chmod(0o755)
tempfile.tempdir = str(ROOT)
os.environ["TMPDIR"] = str(ROOT)
os.environ["PYTEST_DEBUG_TEMPROOT"] = str(ROOT)

# Of Hypothesis: the same examples in every run, for what others come upon is for `make fuzz` and not for a change of
# something else; and no clock, by which an example is slow when the machine did something else for 0.2 s.
settings.register_profile(
    "tests", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

# A shell that runs the suite in the background has SIGINT ignored, and whatever the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pids() -> set[int]:
    """Return the processes that there are."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 - before each test, and fast


def ours(others: Container[int] = ()) -> dict[int, str]:
    """Return the living processes that were started below ROOT, other than this one and those: pid → command line."""
    found = {}
    mark = f"{ROOT}/".encode()
    for pid in pids():
        if pid in others or pid == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - many small files, opened fast
                words = file.read()
            with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123 - the same
                environment = file.read()
        except OSError:
            continue
        # A process without a command line is a zombie or a kernel thread.
        if words and (mark in words or mark in environment):
            found[pid] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def held() -> set[str]:
    """Return what of ours still listens on a unix socket, and the file locks that this process still holds."""
    sockets = {line.split()[-1] for line in Path("/proc/net/unix").read_text().splitlines() if f" {ROOT}/" in line}
    locks = {line for line in Path("/proc/locks").read_text().splitlines() if line.split()[4:5] == [str(os.getpid())]}
    return sockets | locks


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    before, held_before = pids(), held()
    yield
    try:
        until(lambda: not ours(before) and not held() - held_before, timeout_s=3)
    except AssertionError:
        processes, things = ours(before), held() - held_before
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        pytest.fail(f"left behind: processes {processes}, sockets and locks {things}")


@pytest.fixture
def place() -> Iterator[Path]:
    """Return a fresh directory with a short path."""
    path = Path(tempfile.mkdtemp(prefix="p"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files of LONGEST go first."""
    begins = {Path(__file__).parent / name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begins.get(item.path, len(begins)))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """See that what is to be pure is."""
    if not pure.is_pure(pyfuncitem.path):
        return (yield)
    with pure.watched(pyfuncitem.name):
        return (yield)


def pytest_sessionfinish() -> None:
    """Remove what the tests wrote."""
    shutil.rmtree(ROOT, ignore_errors=True)
