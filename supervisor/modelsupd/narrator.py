"""Says what happens, for people: one line for each change of phase, through structlog to stderr.

A rule: the log can never hold up or break what it tells of. A terminal may be gone, a pipe full, a disk full; lines
that nobody takes are dropped, and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from typing import Any

import structlog

from modelsupd.core.events import Event
from modelsupd.core.phases import Backoff, Clearing, Failed, Fault, Killing, Replica, phase_name
from modelsupd.weights.base import MOVED_ASIDE, FileDone

log = structlog.get_logger("modelsupd")

#: Lines that wait for a reader; beyond that they are dropped.
WAITING_LINES = 10_000

#: How long the end waits for what has not been written yet, in seconds.
FLUSH_S = 1.0


class Sink:
    """A text file to structlog; a thread of its own writes, and nobody waits for it."""

    def __init__(self, fd: int) -> None:
        """Write to `fd`, from the first line on."""
        self._fd = fd
        self._lines: queue.Queue[str] = queue.Queue(WAITING_LINES)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> int:
        """Take a text; never blocks and never raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="log", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self._dropped += 1
        return len(text)

    def flush(self) -> None:
        """Do nothing: structlog flushes after each line, and that must not wait."""

    def wait(self, timeout_s: float) -> None:
        """Wait until all is written, at most so long."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: not self._lines.unfinished_tasks, timeout_s)

    def _work(self) -> None:
        while True:
            text = self._lines.get()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                text = f"({dropped} lines of log were dropped: nobody took them)\n{text}"
            data = text.encode(errors="backslashreplace")
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                self._dropped += 1
            self._lines.task_done()


_sinks: list[Sink] = []


def configure(level: str, environment: Mapping[str, str] = os.environ) -> None:
    """Set up the log. Under systemd the journal adds the time; colours only for a terminal without NO_COLOR."""
    processors: list[Any] = [structlog.processors.add_log_level]
    if "JOURNAL_STREAM" not in environment:
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if sys.stderr.isatty() else "iso"))
    colours = sys.stderr.isatty() and not environment.get("NO_COLOR")
    processors += [
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=28, sort_keys=False),
    ]
    sink = Sink(sys.stderr.fileno())
    _sinks.append(sink)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sink),  # type: ignore[arg-type] # it only writes and flushes
        cache_logger_on_first_use=True,
    )


def flush() -> None:
    """Wait a moment for lines that are not written yet, before the process goes."""
    for sink in _sinks:
        sink.wait(FLUSH_S)


class Narrator:
    """Tells changes of phase; what stays in its phase is told only when it is called stuck."""

    def changed(self, before: Replica | None, after: Replica, _event: Event | str) -> None:
        """Take note of a published change."""
        phase = phase_name(after.phase)
        if before is not None and phase_name(before.phase) == phase and not _newly_stuck(before, after):
            if before.reason != after.reason:
                log.debug("unchanged", replica=after.name, phase=phase, why=after.reason)
            return
        tell = log.info
        if isinstance(after.phase, Failed) or _newly_stuck(before, after):
            tell = log.error
        elif isinstance(after.phase, Backoff) or isinstance(getattr(after.phase, "cause", None), Fault):
            tell = log.warning
        known = {"run": after.last_run or None, "pid": after.process.pid if after.process else None}
        tell(phase, replica=after.name, **{key: value for key, value in known.items() if value}, why=after.reason)

    def file_done(self, replicas: frozenset[str], done: FileDone) -> None:
        """Tell what became of one file of weights."""
        tell = log.error if done.outcome == MOVED_ASIDE else log.info
        about: dict[str, Any] = {"replica": ", ".join(sorted(replicas)), "file": done.path, "bytes": done.size_bytes}
        tell(f"weights {done.outcome}", **about, **({"why": done.words} if done.words else {}))


def _newly_stuck(before: Replica | None, after: Replica) -> bool:
    if not isinstance(after.phase, Killing | Clearing) or not after.phase.stuck:
        return False
    return before is None or not getattr(before.phase, "stuck", False)
