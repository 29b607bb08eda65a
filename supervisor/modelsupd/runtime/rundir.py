"""The two directories of a run, and what stands in them.

| file | by whom | what |
|---|---|---|
| RUNTIME `spec.json` | daemon, before the spawn | all that the shim needs; holds the environment, so it is 0600 |
| RUNTIME `lock` | shim, for life | "a shim lives" |
| RUNTIME `run.json` | shim, once exec worked | who shim and engine are, and the endpoint |
| RUNTIME `counters` | shim | bytes of output read and lost |
| RUNTIME `backstop.json` | daemon, before SIGTERM | how long the shim waits for a follow-up |
| RUNTIME `void` | daemon, holding the lock | this run was given up: a late shim goes |
| STATE `log`, `log.1` … | shim | the engine's output |
| STATE `exit.json` | shim | how it ended; in RUNTIME if STATE cannot be written |
| STATE `tmp/` | engine | its TMPDIR |
| `cache/MODEL` of the state directory | engine | what it compiled, for its next runs; may be removed while none runs |
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelsupd.runtime import paths
from modelsupd.runtime.shim.log import COUNTERS
from modelsupd.runtime.shim.shim import write_json

_RUN_NAME = re.compile(r"[0-9a-f]{12}-[0-9]+")  # see paths.runtime_name


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):  # absent, or cut short by a power cut: either way nothing is known
        return None
    return value if isinstance(value, dict) else None


def _end_of(path: Path, max_bytes: int) -> tuple[int, bytes] | None:
    """Return the inode of a file and its last bytes, None if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
            return os.fstat(file.fileno()).st_ino, file.read(max_bytes)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class RunDir:
    """Where one run's files are."""

    runtime: Path
    state: Path

    @classmethod
    def of(cls, runtime_dir: Path, state_dir: Path, replica: str, run: int) -> RunDir:
        """Return the place of a run; nothing is made."""
        return cls(
            runtime_dir / "runs" / paths.runtime_name(replica, run),
            state_dir / "runs" / paths.state_name(replica, run),
        )

    @property
    def socket(self) -> Path:
        """Return where the engine's unix socket is."""
        return self.runtime / "engine.sock"

    def cache(self, replica: str) -> Path:
        """Return where the engine keeps what outlives its run, alike for all replicas of a model; nothing is made."""
        return self.state.parent.parent / "cache" / paths.cache_name(replica)

    def make(self) -> Path:
        """Make both directories; return the engine's TMPDIR.

        Raises FileExistsError where this run was begun before. If STATE cannot be written, the run goes on without a
        log and with its TMPDIR in RUNTIME: a full disk must not stop a restart.
        """
        paths.make_private(self.runtime.parent)
        self.runtime.mkdir(mode=0o700)
        try:
            paths.make_private(self.state.parent)
            paths.make_private(self.state)
            (self.state / "exit.json").unlink(missing_ok=True)  # of a run with this number before RUNTIME was lost
            return paths.make_private(self.state / "tmp")
        except OSError:
            return paths.make_private(self.runtime / "tmp")

    def unmake(self) -> None:
        """Remove what `make` made, as far as that goes, of a run that never was."""
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.state, ignore_errors=True)

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Write spec.json."""
        write_json(str(self.runtime / "spec.json"), spec)

    def read_spec(self) -> dict[str, Any] | None:
        """Return spec.json, None if there is none."""
        return _read_json(self.runtime / "spec.json")

    def write_backstop(self, backstop_s: float) -> None:
        """Tell the shim how long to wait for a follow-up to the next SIGTERM; a full disk leaves it as it was."""
        with contextlib.suppress(OSError):
            write_json(f"{self.runtime}/backstop.json", {"v": 1, "backstop_s": backstop_s})

    def read_run(self) -> dict[str, Any] | None:
        """Return run.json, None if the engine was never started."""
        return _read_json(self.runtime / "run.json")

    def read_exit(self) -> dict[str, Any] | None:
        """Return exit.json, None if the shim could not write it; the later one if a full disk parted them."""
        both = [_read_json(directory / "exit.json") for directory in (self.state, self.runtime)]
        return max((each for each in both if each is not None), key=lambda each: each["mono_s"], default=None)

    def log_bytes(self) -> int | None:
        """Return how many bytes of output the shim has read, None if that is not known."""
        try:
            raw = (self.runtime / "counters").read_bytes()
        except OSError:
            return None
        return int(COUNTERS.unpack(raw)[0]) if len(raw) == COUNTERS.size else None

    def log_tail(self, max_bytes: int) -> str:
        """Return the end of the log, whole lines, at most `max_bytes`; '' if there is none.

        A shim may be rotating it: then one of the names is missing, or leads to a file that was read by the one before.
        """
        parts: list[bytes] = []
        known: set[int] = set()
        wanted = max_bytes
        number = missing = 0
        while wanted > 0 and missing <= 1:
            found = _end_of(self.state / (f"log.{number}" if number else "log"), wanted)
            missing = missing + 1 if found is None else 0
            if found is not None and found[0] not in known:
                known.add(found[0])
                parts.insert(0, found[1])
                wanted -= len(found[1])
            number += 1
        tail = b"".join(parts)
        if wanted <= 0 and b"\n" in tail:  # it may begin in the middle of a line
            tail = tail.split(b"\n", 1)[1]
        return tail.decode("utf-8", "replace")

    def void(self) -> bool:
        """Give the run up, unless a shim lives: take the lock, mark the directory, let go. Return whether that worked.

        A directory that is gone is given up already.
        """
        try:
            fd = os.open(self.runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            # Nobody can start there any more, because a shim has to write; whoever lives there holds the lock.
            fd = os.open(self.runtime / "lock", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (self.runtime / "void").touch(mode=0o600)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        finally:
            os.close(fd)
        return True

    def lock_holders(self) -> tuple[int, ...]:
        """Return the pids that /proc/locks names for the lock file."""
        try:
            inode = (self.runtime / "lock").stat().st_ino
        except FileNotFoundError:
            return ()
        rows = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
        return tuple(int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].rpartition(":")[2] == str(inode))

    async def remove(self) -> None:
        """Remove what only a live run needs: the RUNTIME directory and the engine's TMPDIR. Log and exit.json stay."""
        kept = _read_json(self.runtime / "exit.json")
        if kept is not None and self.state.is_dir():
            with contextlib.suppress(OSError):
                write_json(str(self.state / "exit.json"), kept)
        away = self.runtime.with_name(f".{self.runtime.name}.gone")
        # Renamed first, so that a shim that is late by hours finds nothing rather than a directory without `void`.
        with contextlib.suppress(FileNotFoundError):
            self.runtime.rename(away)
        shutil.rmtree(away, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self.state / "exit.json.tmp").unlink()
        try:
            (self.state / "tmp").rmdir()
        except FileNotFoundError:
            pass
        except OSError:  # an engine left files there, maybe many
            await asyncio.to_thread(shutil.rmtree, self.state / "tmp", ignore_errors=True)


def all_in(runtime_dir: Path, state_dir: Path) -> list[tuple[str, int, RunDir]]:
    """Return replica, run and place of every run directory in RUNTIME that says whose it is."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for directory in sorted((runtime_dir / "runs").iterdir()):
            spec = _read_json(directory / "spec.json")
            if spec is not None and not directory.name.startswith("."):
                place = RunDir.of(runtime_dir, state_dir, spec["replica"], spec["run"])
                found.append((spec["replica"], spec["run"], place))
    return found


def sweep(runtime_dir: Path) -> None:
    """Remove directories that a daemon died over: while it made them, before spec.json, or while it removed them."""
    with contextlib.suppress(FileNotFoundError):
        for directory in (runtime_dir / "runs").iterdir():
            begun = _RUN_NAME.fullmatch(directory.name) and not (directory / "spec.json").exists()
            # Without a spec.json no shim gets further than the lock, and one that waits there finds `void`.
            if directory.name.endswith(".gone") or (begun and RunDir(directory, directory).void()):
                shutil.rmtree(directory, ignore_errors=True)
