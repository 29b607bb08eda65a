"""Faults from outside: SIGKILL, a disk that is really full, a sync that really fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from journal_world import LIMITS, body, folded, own
from modelsupd.runtime.journal import Journal, history, read, verify

HERE = Path(__file__).parent
PROGRAM = [sys.executable, str(HERE.parent / "journal_program.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent.parent / 'supervisor'}"}


def _told(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def _run(*command: str) -> list[dict[str, Any]]:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return _told(done.stdout)


def test_a_killed_writer_loses_nothing_that_it_told(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    lives: list[list[dict[str, Any]]] = []
    for life in range(6):
        # Unbuffered: what a buffer holds when the lines are counted is nothing that `communicate` returns.
        process = subprocess.Popen(
            [*PROGRAM, "endless", str(directory)], env=ENVIRONMENT, stdout=subprocess.PIPE, bufsize=0
        )
        try:
            assert process.stdout is not None
            told = [json.loads(process.stdout.readline()) for _ in range(20 + 37 * life)]
        finally:
            process.kill()
            rest = process.communicate()[0]
        told += [json.loads(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]
        lives.append([item for item in told if "seq" in item])
        last = lives[-1][-1]["seq"]
        assert read(directory).seq >= last
        assert len(own(history(directory, after_seq=last))) <= 1, "at most the one in flight more"
    records = {record["seq"]: record for record in history(directory)}
    assert sorted(records) == list(range(1, len(records) + 1))
    for life_records in lives:
        for item in life_records:
            assert own([records[item["seq"]]]) == [body(item["number"])]
    assert not verify(directory).damaged


def _mount_namespace() -> list[str]:
    for flags in ("-m", "-rm"):
        probe = ["unshare", flags, "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
        if shutil.which("unshare") and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            return ["unshare", flags, "sh", "-c"]
    pytest.skip("no private mount namespace can be made here")


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec "$@"'
    told = _run(*_mount_namespace(), mount, "sh", *PROGRAM, "full", f"{tmp_path}/journal")
    free, first, spent, recovered, count = told
    assert free["free"] < 4096
    assert first["read_only"].startswith("no space left on device: the journal lives on its reserve, ")
    assert first["normal"] is False
    assert spent["why"] == "no space left on device"
    assert spent["on_reserve"] > 64 * 1024 // 140
    assert recovered == {"normal": True, "after": None}
    assert count["done"] == count["kept"]


def test_a_sync_that_really_fails(tmp_path: Path) -> None:
    """Whichever fdatasync fails: the segment is given up, the record goes to a new one, nothing is lost."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    for n in (1, 2, 11, 20):
        directory = tmp_path / str(n)
        inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"]
        inject += ["-e", f"inject=fdatasync:error=EIO:when={n}"]
        told = _run(*inject, *PROGRAM, "some", str(directory))
        assert told[-1] == {"normal": True, "read_only": None}
        assert [item["number"] for item in told[:-1] if "seq" in item] == list(range(20))
        assert own(history(directory)) == [body(number) for number in range(20)]
        assert len(list(directory.glob("*.seg"))) == 2


def test_all_syncs_fail(tmp_path: Path) -> None:
    """Nothing is acknowledged that is not durable, and a later daemon goes on."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    directory = tmp_path / "journal"
    inject = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]
    told = _run(*inject, "-e", "inject=fdatasync,fsync:error=EIO:when=6+", *PROGRAM, "some", str(directory))
    acknowledged = [body(item["number"]) for item in told if "seq" in item]
    assert 0 < len(acknowledged) < 20
    assert {item["refused"] for item in told if "refused" in item} == {"input/output error"}
    assert told[-1] == {"normal": False, "read_only": "input/output error: nothing can be recorded"}
    journal, reading = Journal.open(directory, LIMITS)
    assert journal.read_only is None
    journal._store.close()
    assert reading.states in [folded(acknowledged)[0], folded([*acknowledged, body(len(acknowledged))])[0]]
    assert not verify(directory).damaged
