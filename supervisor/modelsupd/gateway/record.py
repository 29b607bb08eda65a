"""The record of requests: one JSON object a line in `STATE/gateway/access.log`, written after the last byte.

Two rules: whatever became of the client, its request has its line; and nothing of a prompt or an answer is ever in one.
The loop makes a line and goes on; a thread of its own writes it, and where the disk cannot keep up, or is full, lines
are dropped and counted, and the count stands in the record as soon as that can be written again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelsupd.gateway.base import Api, EndedBy

VERSION = 1

#: Lines that may wait for the disk, some 20 MB. More are dropped.
MAX_WAITING = 50_000

_GATHER_S = 0.05
_DIRECTORY_MODE = 0o700
_FILE_MODE = 0o600


@dataclass(slots=True, kw_only=True)
class Entry:
    """What is recorded of a request. Times in seconds; None where there was no such thing.

    `asked` is the model's name in the request, `model` the one that served; `run` is `Run.key`. `error` is a class of
    errors, such as `queue_full` or `stalled`, and no text of an engine.
    """

    id: str
    at: float
    """Wall clock, as `time.time`, when the request began."""
    api: Api | str
    method: str = "POST"
    key: str = ""
    asked: str = ""
    model: str = ""
    run: str = ""
    status: int = 0
    stream: bool = False
    queue_s: float = 0.0
    ttft_s: float | None = None
    duration_s: float = 0.0
    tokens_in: int | None = None
    tokens_out: int | None = None
    events: int = 0
    finish_reason: str | None = None
    ended_by: EndedBy | str = EndedBy.GATEWAY
    bytes_in: int = 0
    bytes_out: int = 0
    retries: int = 0
    error: str = ""

    def line(self) -> str:
        """Return it as it stands in the file, newline included."""
        # Numbers and words of ours are written straight, which takes a third of the time of json.dumps.
        return (
            f'{{"v":{VERSION},"at":"{_rfc3339(self.at)}","id":{_quoted(self.id)},"key":{_quoted(self.key)},'
            f'"api":"{self.api}","method":{_quoted(self.method)},"asked":{_quoted(self.asked)},'
            f'"model":{_quoted(self.model)},"run":{_quoted(self.run)},"status":{self.status},'
            f'"stream":{"true" if self.stream else "false"},"queue_s":{self.queue_s:.6f},'
            f'"ttft_s":{_seconds(self.ttft_s)},"duration_s":{self.duration_s:.6f},'
            f'"tokens_in":{_count(self.tokens_in)},"tokens_out":{_count(self.tokens_out)},"events":{self.events},'
            f'"finish_reason":{"null" if self.finish_reason is None else _quoted(self.finish_reason)},'
            f'"ended_by":"{self.ended_by}","bytes_in":{self.bytes_in},"bytes_out":{self.bytes_out},'
            f'"retries":{self.retries},"error":{_quoted(self.error) if self.error else "null"}}}\n'
        )


_quoted = json.encoder.encode_basestring_ascii


def _count(value: int | None) -> str:
    return "null" if value is None else str(value)


def _seconds(value: float | None) -> str:
    return "null" if value is None else f"{value:.6f}"


class _Second:
    """The current second in words: thousands of lines share one."""

    second = -1
    words = ""


def _rfc3339(at: float) -> str:
    second = int(at)
    if second != _Second.second:
        _Second.words = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        _Second.second = second
    return f"{_Second.words}.{int((at - second) * 1000):03d}Z"


class AccessLog:
    """Writes the record. `put` is called on the loop, everything else waits for the disk and is not."""

    def __init__(self, path: Path, *, max_bytes: int, files: int) -> None:
        """Write to `path`, rotated before it grows beyond `max_bytes`, with `files` older ones as `path.1` and on."""
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._waiting: deque[str] = deque()
        self._wanted = threading.Event()
        self._written = threading.Condition()
        self._put = 0
        self._done = 0
        self._ending = threading.Event()
        self._descriptor: int | None = None
        self._untold = 0
        self._dropped_by_loop = 0
        self._dropped_by_disk = 0
        self.trouble = ""
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Return how many lines were lost so far."""
        return self._dropped_by_loop + self._dropped_by_disk

    def put(self, entry: Entry) -> None:
        """Record a request that has ended."""
        if len(self._waiting) >= MAX_WAITING:
            self._dropped_by_loop += 1
            return
        self._waiting.append(entry.line())
        self._put += 1
        if not self._wanted.is_set():
            self._wanted.set()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what was put so far is written or dropped; tell whether that was in time."""
        goal = self._put
        with self._written:
            return self._written.wait_for(lambda: self._done >= goal, timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what waits, and end."""
        self._ending.set()
        self._wanted.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            # What comes meanwhile is written with it: one wake-up and one write for many lines.
            self._ending.wait(_GATHER_S)
            self._wanted.clear()
            ending = self._ending.is_set()
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            self._write(lines)
            with self._written:
                self._done += len(lines)
                self._written.notify_all()
            if ending and not self._waiting:
                break
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _write(self, lines: Sequence[str]) -> None:
        missing = self.dropped - self._untold
        told = f'{{"v":{VERSION},"at":"{_now()}","dropped":{missing}}}\n' if missing else ""
        data = (told + "".join(lines)).encode("ascii", errors="replace")
        try:
            self._make_room(len(data))
            assert self._descriptor is not None  # noqa: S101 - room was made in it
            _write_whole(self._descriptor, data)
        except OSError as error:
            self.trouble = f"cannot write '{self._path}': {(error.strerror or str(error)).lower()}"
            self._dropped_by_disk += len(lines)
            self._close()
            return
        self.trouble = ""
        self._untold += missing

    def _make_room(self, data_bytes: int) -> None:
        """Have the file open, and rotated where it would grow too large.

        While one gateway takes over from another both write to it, and either may rotate it.
        """
        if self._descriptor is None or not self._is_current():
            self._open()
        size_bytes = self._size_bytes()
        if size_bytes == 0 or size_bytes + data_bytes <= self._max_bytes:
            return
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self._is_current():
                self._rotate()
            self._open()
        finally:
            os.close(folder)

    def _size_bytes(self) -> int:
        assert self._descriptor is not None  # noqa: S101 - it was opened just now
        return os.fstat(self._descriptor).st_size

    def _is_current(self) -> bool:
        """Tell whether what is open is what stands at the path."""
        try:
            return self._descriptor is not None and os.path.samestat(os.fstat(self._descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        self._close()
        self._path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._path, flags, _FILE_MODE)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _rotate(self) -> None:
        if self._files == 0:
            self._path.unlink(missing_ok=True)
            return
        for number in range(self._files, 0, -1):
            older = self._path if number == 1 else self._numbered(number - 1)
            with contextlib.suppress(FileNotFoundError):
                older.rename(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _write_whole(descriptor: int, data: bytes) -> None:
    """Write all of it, or take back what was written, so that every line that is there can be read."""
    written = os.write(descriptor, data)
    if written < len(data):
        end_bytes = os.lseek(descriptor, 0, os.SEEK_CUR)
        if os.fstat(descriptor).st_size == end_bytes:  # else somebody else has written since
            os.ftruncate(descriptor, end_bytes - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
