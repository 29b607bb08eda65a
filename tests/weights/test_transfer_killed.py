"""Downloads whose process, disk or machine fails in between."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hub_faults as faults
from fetching import KEY, MODEL, REPO, Forks, Target, noise
from hosts import NAMESPACE
from mock_hub import MockHub
from modelsupd.weights import download
from modelsupd.weights.base import Stopped
from modelsupd.weights.parts import PART_SUFFIX, RECORD_SUFFIX
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons, or kills a process many times

MIB = 1 << 20
KILLS = 50


@pytest.fixture
def hub() -> Iterator[MockHub]:
    with MockHub() as hub:
        yield hub


def add(hub: MockHub, data: bytes | Path) -> None:
    hub.add(REPO, {MODEL: data}, lfs={MODEL})


@pytest.mark.parametrize("parts", [1, 4])
def test_kill_9_at_any_moment_costs_no_more_than_what_was_under_way(hub: MockHub, place: Path, parts: int) -> None:
    """Some die before the first byte, some over the last one; who comes next goes on from what is there."""
    data = b"".join(noise(64 * MIB, seed) for seed in range(4))
    (place / "source").write_bytes(data)
    add(hub, place / "source")
    # Slower than it is read, so that what was sent was received too, but for little.
    hub.faults[KEY] = faults.Drip(piece=64 * 1024, every_s=0.0005 * parts)
    target = Target.of(hub, place, parts=parts, part_bytes=MIB)
    moments = random.Random(4)  # noqa: S311 - the same moments every time
    forks = Forks()
    killed, whole = 0, 1
    try:
        while killed < KILLS:
            sent_before, due_bytes = hub.body_bytes_sent, moments.randrange(2 * len(data) // KILLS)
            pid = forks.start(target)

            def due(pid: int = pid, until_sent: int = sent_before + due_bytes) -> bool:
                return hub.body_bytes_sent >= until_sent or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"

            until(due)
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(forks.reaped(pid))
            assert code in {0, -signal.SIGKILL}
            ended = code == 0
            assert target.final.read_bytes() == data if target.final.exists() else not ended
            killed, whole = killed + (not ended), whole + ended
            if ended:  # it was faster than the axe: from the start again
                target.final.unlink()
        assert os.waitstatus_to_exitcode(forks.reaped(forks.start(target))) == 0
    finally:
        forks.close()

    assert target.beside == [""]
    assert target.final.read_bytes() == data
    # Far below the 8 MiB for each part that are allowed, because without going on it would be 5 MiB for each kill. A
    # buffer of a MiB is what may be lost of each; the second one of a single part is what the kernel holds of it.
    assert hub.body_bytes_sent <= whole * len(data) + killed * max(parts, 2) * MIB


#: What a transfer does to files and folders.
CALLS = ["fallocate", "flock", "fsync", "mkdir", "pwrite64", "rename", "unlink", "write"]


@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=EIO", "error=ENOSPC"])
@pytest.mark.parametrize("call", CALLS)
def test_at_whatever_call_it_dies_or_fails_it_leaves_the_right_file_or_none(
    hub: MockHub, place: Path, call: str, fault: str
) -> None:
    """The n-th one of its kind, for each n that there is; then another process fetches as if nothing had been."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace to make system calls fail")
    data = noise(100_000)
    add(hub, data)
    # What stops at no other call is quicker, but was seen to kill nobody (strace 6.1).
    said, quick = place / "strace", [] if fault == "signal=SIGKILL" else ["--seccomp-bpf"]
    for number in range(1, 50):
        target = Target.of(hub, place / str(number), parts=1)
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={number}"]
        command = ["strace", "-f", *quick, "-qq", "-o", str(said), *inject, *target.command()]
        process = subprocess.run(command, input=b"\n", capture_output=True, check=False, timeout=30)
        if b"ptrace" in process.stderr:
            pytest.skip("needs the right to trace our own processes")
        if process.returncode != -signal.SIGKILL and "INJECTED" not in said.read_text():
            assert json.loads(process.stdout)["received"] == len(data)
            break
        assert json.loads(process.stdout or b"{}").get("error", "cannot").startswith("cannot")
        named = target.final.exists()
        assert not named or target.final.read_bytes() == data
        received = target.fetch().received_bytes
        if call == "fsync" and fault != "signal=SIGKILL" and not named:
            assert received == len(data), "what a sync failed for is not there for sure"
        assert target.beside == [""]
        assert target.final.read_bytes() == data
    assert 1 < number < 49


def half_done(hub: MockHub, place: Path) -> tuple[Target, int]:
    """Return a target of which something is there, and how much."""
    add(hub, noise(MIB))
    target = Target.of(hub, place, parts=1, attempts=1)
    hub.faults[KEY] = faults.Drop(after=700_000)
    with pytest.raises(Exception, match="broke the connection off"):
        target.fetch()
    hub.faults.clear()
    return target, sum(target.told)


@pytest.mark.parametrize("synced", [True, False])
def test_after_a_power_cut_only_what_was_synced_counts(hub: MockHub, place: Path, synced: bool) -> None:
    target, had = half_done(hub, place)
    record = target.final.with_name(target.final.name + RECORD_SUFFIX)
    lines = record.read_text().splitlines()
    head = json.loads(lines[0]) | {"boot": "another"}
    more = [json.dumps({"synced": [[0, 500_000]]})] if synced else []
    record.write_text("\n".join([json.dumps(head), *lines[1:], *more, '["torn']))

    target.told.clear()
    fetched = target.fetch()

    assert had == 700_000
    assert target.told[0] == (500_000 if synced else 0)
    assert fetched.received_bytes == MIB - target.told[0]


def test_what_came_is_synced_while_more_comes(hub: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_SYNC_BYTES", 200_000)
    monkeypatch.setattr(download, "_SEND_BYTES", 100_000)
    monkeypatch.setattr(download, "BUFFER_BYTES", 1000)
    add(hub, noise(MIB))
    target = Target.of(hub, place, parts=1, stall_timeout_s=60)
    hub.faults[KEY] = faults.Stall(after=700_000)
    record = target.final.with_name(target.final.name + RECORD_SUFFIX)

    def stop() -> None:
        until(lambda: "synced" in record.read_text() if record.exists() else False)
        target.stop.set()

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(Stopped):
        target.fetch()
    stopping.join()


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, b"{}\n[0,5]\n", b"\xff\n", b'{"v":1}\n'])
def test_a_record_that_is_none_counts_for_nothing(hub: MockHub, place: Path, damage: bytes) -> None:
    target, _ = half_done(hub, place)
    target.final.with_name(target.final.name + RECORD_SUFFIX).write_bytes(damage)
    assert target.fetch().received_bytes == MIB


def test_the_record_of_another_part_file_counts_for_nothing(hub: MockHub, place: Path) -> None:
    target, _ = half_done(hub, place)
    part = target.final.with_name(target.final.name + PART_SUFFIX)
    part.rename(place / "kept so that its inode is not given out again")
    part.write_bytes(b"\0" * MIB)
    assert target.fetch().received_bytes == MIB


def test_too_little_space_is_said_before_anything_is_asked_for(hub: MockHub, place: Path) -> None:
    add(hub, noise(MIB))
    target = Target.of(hub, place, min_free_bytes=1 << 60)
    with pytest.raises(Exception, match=r"cannot write .*: \d+ bytes of space are missing \(.* have to stay free\)"):
        target.fetch()
    assert hub.requests == []


class OnSmallDisk:
    """A process that fetches into a cache on a tmpfs of its own."""

    def __init__(self, target: Target, size_bytes: int, inject: str = "") -> None:
        cache = target.settings.cache_dir
        cache.mkdir()
        mount = f"mount -t tmpfs -o size={size_bytes} none {cache}"
        if subprocess.run([*NAMESPACE, "sh", "-c", mount], check=False, capture_output=True).returncode != 0:
            pytest.skip("no tmpfs can be mounted in a namespace here (user namespaces are off)")
        traced = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"inject={inject}"] if inject else []
        if traced and shutil.which("strace") is None:
            pytest.skip("needs strace to make system calls fail")
        command = [*NAMESPACE, "sh", "-c", f'{mount} && exec "$@"', "sh", *traced, *target.command()]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._cache = cache

    @property
    def cache(self) -> Path:
        """Return the cache as it is seen from outside of the process's namespace."""
        return Path(f"/proc/{self._process.pid}/root{self._cache}")

    def begin(self) -> None:
        """Let it fetch."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def outcome(self) -> dict[str, Any]:
        """Return how that went."""
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=10)


def test_a_disk_that_is_too_small_says_how_much_is_missing(hub: MockHub, place: Path) -> None:
    add(hub, noise(4 * MIB))
    target = Target.of(hub, place)
    disk = OnSmallDisk(target, 3 * MIB)
    try:
        disk.begin()
        answer = disk.outcome()
    finally:
        disk.close()
    assert answer["kind"] == "no-space"
    assert "bytes of space are missing (1.0 MiB" in str(answer["error"])
    assert hub.requests == []


def test_a_disk_that_fills_up_meanwhile_keeps_what_is_there_and_it_goes_on_later(hub: MockHub, place: Path) -> None:
    """On a file system that cannot set space aside; where it can, nobody takes away what is to come."""
    data = noise(4 * MIB)
    add(hub, data)
    filled = threading.Event()
    hub.faults[KEY] = faults.Pause(after=MIB, go=filled)
    target = Target.of(hub, place, parts=1)
    disk = OnSmallDisk(target, 6 * MIB, "fallocate:error=EOPNOTSUPP")
    try:
        until(lambda: os.path.ismount(disk.cache))
        disk.begin()
        until(lambda: hub.got(KEY))
        fill = disk.cache / "filler"
        fill.write_bytes(b"x" * (4 * MIB))
        filled.set()
        full = disk.outcome()
        fill.unlink()
        disk.begin()
        later = disk.outcome()
        there = (disk.cache / target.final.relative_to(target.settings.cache_dir)).read_bytes()
    finally:
        disk.close()
    assert full["kind"] == "no-space"
    assert "bytes of space are missing" in str(full["error"])
    assert "is kept" in str(full["error"])
    assert later["received"] <= 3 * MIB
    assert there == data
