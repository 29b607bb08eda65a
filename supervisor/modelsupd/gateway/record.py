"""The record of requests: one JSON object a line in `STATE/gateway/access.log`, written after the last byte.

Two rules: whatever became of the client, its request has its line; and nothing of a prompt or an answer is ever in one.
The loop makes a line and goes on; a thread of its own writes it, and where the disk cannot keep up, or is full, lines
are dropped and counted, and the count stands in the record as soon as that can be written again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from modelsupd.gateway.base import Api, EndedBy

VERSION: Final = 1

#: Lines that may wait for the disk, some 20 MB. More are dropped.
MAX_WAITING: Final = 50_000

_GATHER_S: Final = 0.05
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


class Entry:
    """What is recorded of a request. Times in seconds; None where there was no such thing.

    `at` is the wall clock, as `time.time`, when the request began. `asked` is the model's name in the request, `model`
    the one that served; `run` is `Run.key`. `error` is a class of errors, such as `queue_full` or `stalled`, and no
    text of an engine.
    """

    def __init__(  # noqa: PLR0913 - the fields of a record, each named where it is given
        self,
        *,
        id: str,  # noqa: A002 - it is called so in the record
        at: float,
        api: Api | str,
        method: str = "POST",
        key: str = "",
        asked: str = "",
        model: str = "",
        run: str = "",
        status: int = 0,
        stream: bool = False,
        queue_s: float = 0.0,
        ttft_s: float | None = None,
        duration_s: float = 0.0,
        tokens_in: int | None = None,
        tokens_out: int | None = None,
        events: int = 0,
        finish_reason: str | None = None,
        ended_by: EndedBy | str = EndedBy.GATEWAY,
        bytes_in: int = 0,
        bytes_out: int = 0,
        retries: int = 0,
        error: str = "",
    ) -> None:
        """Record this; what is known later is set later."""
        self.id = id
        self.at = at
        self.api: str = api
        self.method = method
        self.key = key
        self.asked = asked
        self.model = model
        self.run = run
        self.status = status
        self.stream = stream
        self.queue_s = queue_s
        self.ttft_s = ttft_s
        self.duration_s = duration_s
        self.tokens_in = tokens_in
        self.tokens_out = tokens_out
        self.events = events
        self.finish_reason = finish_reason
        self.ended_by: str = ended_by
        self.bytes_in = bytes_in
        self.bytes_out = bytes_out
        self.retries = retries
        self.error = error

    def line(self) -> str:
        """Return it as it stands in the file, newline included."""
        # Written straight, by one template, in a fifth of the time of json.dumps: it is done for every request.
        second = int(self.at)
        milliseconds = str(1000 + int((self.at - second) * 1000))[1:]
        tokens_in, tokens_out = self.tokens_in, self.tokens_out
        who = _who(self.key, self.method, self.asked, self.model, self.run)
        return (
            f'{_BEGIN}"at":"{_second(second)}.{milliseconds}Z","id":{_quoted(self.id)},"api":"{self.api}",{who}'
            f',"status":{self.status},"stream":{"true" if self.stream else "false"}'
            f',"queue_s":{_seconds(self.queue_s)},"ttft_s":{_seconds(self.ttft_s)}'
            f',"duration_s":{_seconds(self.duration_s)}'
            f',"tokens_in":{"null" if tokens_in is None else str(tokens_in)}'
            f',"tokens_out":{"null" if tokens_out is None else str(tokens_out)}'
            f',"events":{self.events},"finish_reason":{_word(self.finish_reason)},"ended_by":"{self.ended_by}"'
            f',"bytes_in":{self.bytes_in},"bytes_out":{self.bytes_out},"retries":{self.retries}'
            f',"error":{_word(self.error or None)}}}\n'
        )


_BEGIN: Final = f'{{"v":{VERSION},'
_MILLION: Final = 1_000_000


def _seconds(value: float | None) -> str:
    """Return seconds with six digits, in words; compiled, a fifth of the time that formatting a float takes."""
    if value is None:
        return "null"
    if not 0.0 <= value < 1e9:  # noqa: PLR2004 - thirty years; no clock tells that, and no number is lost if one does
        return f"{value:.6f}"
    microseconds = int(value * 1e6 + 0.5)
    whole = microseconds // _MILLION
    return f"{whole}.{str(_MILLION + microseconds - whole * _MILLION)[1:]}"


def _quoted(value: str) -> str:
    quoted: str = _encode(value)
    return quoted


_encode: Final = json.encoder.encode_basestring_ascii


@functools.lru_cache(maxsize=512)
def _who(key: str, method: str, asked: str, model: str, run: str) -> str:
    """Return what many requests have in common, in words."""
    return (
        f'"key":{_quoted(key)},"method":{_quoted(method)},"asked":{_quoted(asked)},'
        f'"model":{_quoted(model)},"run":{_quoted(run)}'
    )


def _word(value: str | None) -> str:
    if value is None:
        return "null"
    return '"stop"' if value == "stop" else _quoted(value)


@functools.lru_cache(maxsize=8)
def _second(second: int) -> str:
    """Return a second in words: thousands of lines share one."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


class AccessLog:
    """Writes the record. `put` is called on the loop, everything else waits for the disk and is not."""

    def __init__(self, path: Path, *, max_bytes: int, files: int, max_waiting: int = MAX_WAITING) -> None:
        """Write to `path`, rotated before it grows beyond `max_bytes`, with `files` older ones as `path.1` and on."""
        self._max_waiting = max_waiting
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
        self._writer = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Return how many lines were lost so far."""
        return self._dropped_by_loop + self._dropped_by_disk

    def put(self, entry: Entry) -> None:
        """Record a request that has ended."""
        if len(self._waiting) >= self._max_waiting:
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
        self._writer.join(timeout_s)

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
