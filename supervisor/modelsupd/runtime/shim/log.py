r"""Writes an engine's output to files that stay within a size.

1. Nothing that the disk does stops the reading: an engine must never wait for its log. What cannot be written is
   counted, and said in the log once there is room again.
2. Bytes go through untouched. Only each line's start gets a time stamp and a space; a `\r` starts no line.
"""

# ruff: noqa: PTH103, PTH104, PTH108, PTH118 - no pathlib in the shim: strings keep it small

from __future__ import annotations

import contextlib
import os
import struct
import time

COUNTERS = struct.Struct("<QQ")
"""What the counters file holds: bytes read from the engine, and bytes of log lost."""


def stamp(now: float) -> bytes:
    """Return a point in time (seconds since 1970) as RFC 3339, UTC, in milliseconds, and a space."""
    milliseconds = int(now * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return b"%s.%03dZ " % (whole.encode(), milliseconds % 1000)


class Log:
    """The log of one run: `log`, and up to `files` older ones, `log.1` the newest of them."""

    def __init__(self, directory: str, max_bytes: int, files: int, counters: str | None = None) -> None:
        """Write below `directory`, made if needed; keep count in the file `counters`, for the daemon to read."""
        self.read_bytes = 0
        self.lost_bytes = 0
        self._directory = directory
        self._path = os.path.join(directory, "log")
        self._max_bytes = max_bytes
        self._files = files
        self._fd = -1
        self._size = 0
        self._stream_in_line = False  # whether the last byte read was within a line
        self._file_in_line = False  # whether the last byte written was
        self._gap_bytes = 0  # lost since the last successful write
        self._gap_why = ""
        self._counters_path = counters
        self._counters = -1

    def feed(self, data: bytes) -> None:
        """Take what was read from the engine."""
        if not data:
            return
        self.read_bytes += len(data)
        mark = stamp(time.time())
        fresh = not self._stream_in_line or self._gap_bytes > 0
        self._stream_in_line = not data.endswith(b"\n")
        body = data if self._stream_in_line else data[:-1]
        body = body.replace(b"\n", b"\n" + mark)
        self._put((mark if fresh else b"") + body + (b"" if self._stream_in_line else b"\n"))
        self._count()

    def say(self, text: str) -> None:
        """Write lines of the shim's own."""
        mark = stamp(time.time())
        lines = [mark + b"modelsupd: " + line.encode() + b"\n" for line in text.splitlines()]
        self._put((b"\n" if self._file_in_line else b"") + b"".join(lines))
        # What the engine was in the middle of goes on in a line of its own.
        self._stream_in_line = False
        self._count()

    def close(self) -> None:
        """Close the files; what was lost to the very end stands in `lost_bytes`."""
        for fd in (self._fd, self._counters):
            if fd >= 0:
                os.close(fd)
        self._fd = self._counters = -1

    def _count(self) -> None:
        if self._counters_path is None:
            return
        with contextlib.suppress(OSError):
            if self._counters < 0:
                self._counters = os.open(self._counters_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.pwrite(self._counters, COUNTERS.pack(self.read_bytes, self.lost_bytes), 0)

    def _put(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if not self._open():
                self._lose(len(data) - at)
                return
            end = self._fitting(data, at)
            if end > at and not self._write(data if end - at == len(data) else data[at:end]):
                self._lose(len(data) - end)
                return
            at = end
            if at < len(data) and not self._rotate():
                self._lose(len(data) - at)
                return

    def _fitting(self, data: bytes, at: int) -> int:
        """Return up to where `data` goes into the current file: if it can be, to the end of a line."""
        room = max(0, self._max_bytes - self._size)
        if len(data) - at <= room:
            return len(data)
        newline = data.rfind(b"\n", at, at + room)
        if newline >= 0:
            return newline + 1
        # No line ends in what fits. A line that has not begun goes to the next file; a longer one is divided.
        return at if self._size and not self._file_in_line else at + room

    def _open(self) -> bool:
        if self._fd >= 0:
            return True
        try:
            os.makedirs(self._directory, 0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            self._gap_why = (error.strerror or str(error)).lower()
            return False
        return True

    def _write(self, data: bytes) -> bool:
        if self._gap_bytes:
            words = f"modelsupd: {self._gap_bytes} bytes of log were lost: {self._gap_why}\n".encode()
            notice = (b"\n" if self._file_in_line else b"") + stamp(time.time()) + words
            if not self._write_all(notice):
                self._lose(len(data))
                return False
            self._gap_bytes = 0
        return self._write_all(data, count=True)

    def _write_all(self, data: bytes, *, count: bool = False) -> bool:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:] if done else data)
        except OSError as error:
            self._gap_why = (error.strerror or str(error)).lower()
            if count:
                self._lose(len(data) - done)
        if done:
            self._size += done
            self._file_in_line = data[done - 1] != ord("\n")
        return done == len(data)

    def _lose(self, size: int) -> None:
        self.lost_bytes += size
        self._gap_bytes += size

    def _rotate(self) -> bool:
        """Move `log` to `log.1` and so on, the oldest away; return False if that cannot be done."""
        os.close(self._fd)
        self._fd = -1
        try:
            if self._files == 0:
                os.unlink(self._path)
            for number in range(self._files, 0, -1):
                source = f"{self._path}.{number - 1}" if number > 1 else self._path
                with contextlib.suppress(FileNotFoundError):
                    os.rename(source, f"{self._path}.{number}")
        except OSError as error:
            self._gap_why = (error.strerror or str(error)).lower()
            return False
        self._file_in_line = False
        return True
