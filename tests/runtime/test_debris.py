"""What a killed run leaves in /dev/shm goes with it, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

import running
from modelsupd.runtime.shim import debris
from running import PYTHON, Site, alive
from waiting import auntil

#: Makes a file there, keeps it open or mapped alone, says so, and waits.
HOLDS = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
os.ftruncate(fd, 4096)
held = mmap.mmap(fd, 4096)
if sys.argv[2] != "open":
    os.close(fd)
if sys.argv[2] == "renamed":
    os.rename(sys.argv[1], sys.argv[1] + "-")
    os.link(sys.argv[1] + "-", sys.argv[1])
    os.unlink(sys.argv[1] + "-")
os.write(1, b"there\\n")
time.sleep(1000)
"""


@pytest.fixture
def name() -> Iterator[Path]:
    path = Path(debris.SHM) / f"modelsupd-test-{uuid.uuid4().hex}"
    yield path
    path.unlink(missing_ok=True)


def there(path: Path) -> bool:
    return path.exists()


def opened(path: Path) -> BinaryIO:
    return path.open("rb")


@pytest.mark.parametrize("how", ["open", "mapped", "renamed"])
def test_a_killed_run_leaves_none_of_it(how: str, name: Path) -> None:
    async def scenario(site: Site) -> None:
        process = await site.processes.spawn(site.launch(*PYTHON, HOLDS, str(name), how))
        await site.said("there")
        assert there(name)
        site.processes.kill("tiny/0", 1)
        ended = await site.processes.wait("tiny/0", 1)
        assert ended.cleared
        assert not alive(process.pid)
        assert not there(name)
        assert f"removed {name}, which the run left behind" in site.log()

    running.run(scenario)


def test_what_the_children_of_a_dead_leader_hold_goes_too(name: Path) -> None:
    leader = (
        "import os, sys, time\nos.fork() or os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\ntime.sleep(1000)"
    )

    async def scenario(site: Site) -> None:
        process = await site.processes.spawn(site.launch(*PYTHON, leader, "-c", HOLDS, str(name), "open"))
        await site.said("there")
        os.kill(process.pid, signal.SIGKILL)
        assert (await site.processes.wait("tiny/0", 1)).cleared
        await auntil(lambda: not there(name), what="it is removed")

    running.run(scenario)


def test_what_someone_else_has_open_stays(name: Path) -> None:
    async def scenario(site: Site) -> None:
        await site.processes.spawn(site.launch(*PYTHON, HOLDS, str(name), "open"))
        await site.said("there")
        with opened(name):
            # Opened by this very process, which is none of the run's.
            site.processes.kill("tiny/0", 1)
            assert (await site.processes.wait("tiny/0", 1)).cleared
            assert there(name)

    running.run(scenario)


def test_a_file_that_took_its_name_stays(name: Path) -> None:
    name.write_bytes(b"x")
    with name.open("rb"):
        found = debris.shared_by([os.getpid()])
        assert found[str(name)] == (name.stat().st_dev, name.stat().st_ino)
        assert debris.remove(found) == [str(name)], "what only this process has open, which asks, is no one's"
    name.write_bytes(b"another")
    device, inode = name.stat().st_dev, name.stat().st_ino
    for other in ((device, inode + 1), (device + 1, inode)):
        assert debris.remove({str(name): other}) == []
    assert name.exists()


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_what_was_there_before_the_run_stays(how: str, name: Path) -> None:
    """As weights that lie in memory, which are the operator's."""
    name.write_bytes(bytes(4096))

    async def scenario(site: Site) -> None:
        await site.processes.spawn(site.launch(*PYTHON, HOLDS, str(name), how))
        await site.said("there")
        site.processes.kill("tiny/0", 1)
        assert (await site.processes.wait("tiny/0", 1)).cleared
        assert there(name)
        assert "removed" not in site.log()

    running.run(scenario)


def test_nobody_is_looked_at_where_there_is_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(debris, "SHM", f"{tmp_path}/")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert debris.shared_by([child.pid]) == {}
    child.communicate(b"\n")
    assert debris.remove({}) == []
