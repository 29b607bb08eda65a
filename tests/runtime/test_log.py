"""What becomes of an engine's output: stamped, rotated, lost only where the disk is full, and never waited for."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupd.runtime.rundir import RunDir
from modelsupd.runtime.shim import log as log_module
from modelsupd.runtime.shim.log import COUNTERS, Log, stamp
from running import PYTHON, Site, alive, run
from waiting import auntil

STAMP = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "


def unstamped(data: bytes) -> bytes:
    return re.sub(rb"(?m)^" + STAMP, b"", data)


def everything(directory: Path) -> bytes:
    """Return all that is kept, oldest first."""
    names = sorted((int(path.suffix[1:] or 0), path) for path in directory.glob("log*"))
    return b"".join(path.read_bytes() for _, path in reversed(names))


def test_a_stamp_is_rfc_3339_in_utc() -> None:
    assert stamp(0) == b"1970-01-01T00:00:00.000Z "
    assert stamp(1792540800.0625) == b"2026-10-21T00:00:00.062Z "
    assert stamp(951782399.9996) == b"2000-02-28T23:59:59.999Z "


def test_each_line_gets_one_stamp(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 1 << 20, 1)
    for part in (b"one\ntw", b"o\n", b"\n", b"10%\r20%\r", b"done\nno end"):
        log.feed(part)
    log.close()
    data = (tmp_path / "log").read_bytes()
    assert unstamped(data) == b"one\ntwo\n\n10%\r20%\rdone\nno end"
    assert len(re.findall(STAMP, data)) == 5
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


@settings(deadline=None, max_examples=150)
@given(parts=st.lists(st.binary(max_size=400), max_size=30), max_bytes=st.integers(64, 600))
def test_no_byte_is_changed_and_no_file_too_big(parts: list[bytes], max_bytes: int) -> None:
    """With room for all rotations, what was written is what was read; a divided line has no stamp in its middle."""
    parts = [part.replace(b"Z ", b"Z_") for part in parts]  # so that nothing in them looks like a stamp
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "stamp", lambda _: b"<Z ")
        directory = Path(os.environ.get("TMPDIR", "/tmp")) / f"msd-log-{os.getpid()}"
        log = Log(str(directory), max_bytes, 999)
        try:
            for part in parts:
                log.feed(part)
            log.close()
            files = list(directory.glob("log*"))
            assert all(path.stat().st_size <= max_bytes for path in files)
            stream = b"".join(parts)
            wanted = re.sub(rb"(?m)^(?=[\s\S])", b"<Z ", stream) if stream else b""
            assert everything(directory) == wanted
            assert log.read_bytes == len(stream)
        finally:
            for path in directory.glob("*"):
                path.unlink()
            if directory.exists():
                directory.rmdir()


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    for files in (0, 1, 3):
        directory = tmp_path / str(files)
        log = Log(str(directory), 4096, files)
        for number in range(2000):
            log.feed(b"line %d\n" % number)
        log.close()
        assert len(list(directory.iterdir())) == files + 1
        kept = unstamped(everything(directory)).splitlines()
        assert kept[-1] == b"line 1999"
        assert kept == [b"line %d" % number for number in range(2000 - len(kept), 2000)]  # no gap, whole lines


def test_a_line_longer_than_a_file_is_divided(tmp_path: Path) -> None:
    log = Log(str(tmp_path), 4096, 2)
    log.feed(b"x" * 100_000 + b"\nend\n")
    log.close()
    assert all(path.stat().st_size <= 4096 for path in tmp_path.iterdir())
    assert unstamped(everything(tmp_path)).endswith(b"xxx\nend\n")


def test_what_cannot_be_written_is_counted_and_said(tmp_path: Path) -> None:
    """With the folder in the way of a file at first, and gone later."""
    directory = tmp_path / "run"
    directory.write_text("in the way")
    log = Log(str(directory), 4096, 1, str(tmp_path / "counters"))
    log.feed(b"lost\nlost too")
    lost = log.lost_bytes
    assert lost > 0
    assert COUNTERS.unpack((tmp_path / "counters").read_bytes()) == (13, lost)
    directory.unlink()
    log.feed(b"here again\n")
    log.feed(b"and on\n")
    log.close()
    data = (directory / "log").read_bytes()
    assert unstamped(data).splitlines() == [
        b"modelsupd: %d bytes of log were lost: file exists" % lost,
        b"here again",
        b"and on",
    ]
    assert len(re.findall(STAMP, data)) == 3


FULL_DISK = """
import os, subprocess, sys
from modelsupd.runtime.shim.log import Log
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", sys.argv[1]], check=True)
log = Log(sys.argv[1], 1 << 20, 2)
filler = sys.argv[1] + "/filler"
for _ in range(100): log.feed(b"before\\n" * 10)
with open(filler, "wb", buffering=0) as file:
    try:
        while True: file.write(bytes(4096))
    except OSError: pass
for _ in range(1000): log.feed(b"while it is full\\n" * 10)
lost = log.lost_bytes
assert lost > 100_000, lost
os.unlink(filler)
for _ in range(10): log.feed(b"after\\n")
assert log.lost_bytes == lost
log.close()
lines = open(sys.argv[1] + "/log", "rb").read().splitlines()
print(sum(b"bytes of log were lost: no space left on device" in line for line in lines))
print(sum(line.endswith(b"Z after") for line in lines), sum(line.endswith(b"Z before") for line in lines))
print(str(lost).encode() in b"".join(lines))
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """On a real file system that is full, in a mount namespace of its own."""
    unshare = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    if subprocess.run([*unshare, sys.executable, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("needs a private mount namespace")
    command = [*unshare, sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "10", "1000", "True"], done.stderr


FLOOD = """
import os, sys
size, piece = int(sys.argv[1]), eval(sys.argv[2])
view = memoryview(piece)
while size > 0:
    size -= os.write(1, view)
"""


@pytest.mark.parametrize(
    ("megabytes", "piece"),
    [
        pytest.param(
            200, "(b'a log line of some seventy bytes, as engines print them by the hour %d\\n' * 900)", id="lines"
        ),
        pytest.param(100, "b'x' * 65536", id="one line"),
        pytest.param(20, "(bytes(range(256)) + b'\\x00\\xff\\xfe\\r') * 200", id="bytes that are no text"),
        pytest.param(4, "b'\\n' * 65536", id="empty lines"),
    ],
)
def test_a_flood_at_full_speed(megabytes: int, piece: str) -> None:
    """It is read to the end, the disk stays bounded, and the daemon notices nothing."""

    async def test(site: Site) -> None:
        size = megabytes << 20
        before = time.process_time()
        launch = site.launch(*PYTHON, FLOOD, str(size), piece, log_max_bytes=1 << 20, log_files=2)
        await site.processes.spawn(launch)
        ended = await site.processes.wait("tiny/0", 1)
        assert time.process_time() - before < 0.2
        assert (ended.exit.code, ended.cleared) == (0, True)
        said = json.loads((site.place().state / "exit.json").read_text())
        assert said["log_bytes"] >= size
        assert said["log_lost_bytes"] == 0
        sizes = [path.stat().st_size for path in site.place().state.glob("log*")]
        assert len(sizes) == 3
        assert all(each <= 1 << 20 for each in sizes)

    run(test)


def test_an_engine_writes_on_when_its_daemon_and_then_its_shim_are_stopped() -> None:
    """A stopped daemon costs nothing; a stopped shim holds the engine up only until it goes on."""

    async def test(site: Site) -> None:
        program = "import os, time\nwhile True: os.write(1, b'y' * 65536)"
        started = await site.processes.spawn(site.launch(*PYTHON, program))

        def read() -> int:
            return site.processes.vitals("tiny/0", 1).log_bytes

        await auntil(lambda: read() > 1 << 20)
        os.kill(started.shim_pid, signal.SIGSTOP)
        before = read()
        os.kill(started.shim_pid, signal.SIGCONT)
        await auntil(lambda: read() > before + (4 << 20))
        os.kill(started.shim_pid, signal.SIGTERM)  # obeyed in the middle of the flood
        assert (await site.processes.wait("tiny/0", 1)).exit.signal == signal.SIGTERM

    run(test)


def test_an_engine_that_closes_its_output_lives_on() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch("sh", "-c", "echo bye; exec sleep 1000 >&- 2>&-"))
        await site.said("bye")
        used = site.processes.vitals("tiny/0", 1).cpu_s
        await asyncio.sleep(0)
        assert alive(started.pid)
        assert site.processes.vitals("tiny/0", 1).cpu_s - used < 0.5
        site.processes.terminate("tiny/0", 1)
        assert (await site.processes.wait("tiny/0", 1)).cleared

    run(test)


def test_a_tail_is_whole_while_the_log_is_rotated(tmp_path: Path) -> None:
    place = RunDir(tmp_path, tmp_path)
    assert place.log_tail(100) == ""
    for name, text in (("log", "4\n"), ("log.1", "3\n"), ("log.2", "2\n")):
        (tmp_path / name).write_text(text)
    (tmp_path / "log.2").rename(tmp_path / "log.3")
    assert place.log_tail(100) == "2\n3\n4\n"
    (tmp_path / "log.1").rename(tmp_path / "log.2")
    assert place.log_tail(100) == "2\n3\n4\n"
    (tmp_path / "log").rename(tmp_path / "log.1")
    assert place.log_tail(100) == "2\n3\n4\n"
    (tmp_path / "log").hardlink_to(tmp_path / "log.1")  # as for who reads `log` before it is renamed, and `log.1` after
    assert place.log_tail(100) == "2\n3\n4\n"


def test_the_tail_is_whole_lines_and_reaches_into_the_older_file() -> None:
    async def test(site: Site) -> None:
        program = "for i in range(400): print('line', i)"
        await site.processes.spawn(site.launch(*PYTHON, program, log_max_bytes=4096))
        await site.processes.wait("tiny/0", 1)
        for size in (100, 1000, 6000):
            tail = site.processes.log_tail("tiny/0", 1, size)
            assert size - 60 < len(tail) <= size
            numbers = [int(line.rsplit(" ", 1)[1]) for line in tail.splitlines()]
            assert numbers == list(range(400 - len(numbers), 400))

    run(test)
