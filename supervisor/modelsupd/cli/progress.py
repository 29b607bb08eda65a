"""How far fetching and verifying has come: bars on a terminal, plain lines elsewhere, events for programs."""

from __future__ import annotations

import json
import sys
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

from modelsupd.control.words import printable, progress_words
from modelsupd.weights.base import MOVED_ASIDE, FileDone, Progress, size_words

if TYPE_CHECKING:
    from rich.progress import Progress as Rows
    from rich.progress import TaskID

_BARS_EVERY_S, _EVENTS_EVERY_S, _LINES_EVERY_S = 0.05, 0.5, 10.0


def teller(*, as_json: bool) -> Teller:
    """Return what tells of progress on this stdout."""
    if as_json:
        return Events()
    if not sys.stdout.isatty():
        return Lines()
    from rich.console import Console  # noqa: PLC0415 - only where a person looks

    return Lines() if Console().is_dumb_terminal else Bars()


class Teller(ABC):
    """Takes the reports of one command's jobs, from any thread, and shows no more of them than can be read."""

    every_s: float

    def __init__(self) -> None:
        """Begin with nothing to tell."""
        self.model = ""
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._doing = ("", 0)
        self._began = (0.0, 0)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the screen as it should be."""
        sys.stdout.flush()

    def begin(self, model: str) -> None:
        """Tell from now on about this model."""
        with self._lock:
            self.model, self._doing = model, ("", 0)

    def __call__(self, report: Progress | FileDone) -> None:
        """Take a report."""
        with self._lock:
            if isinstance(report, FileDone):
                self.file(report)
                self._next_at = 0.0
                return
            now = time.monotonic()
            if (report.doing, report.total_bytes) != self._doing:
                self._doing, self._began = (report.doing, report.total_bytes), (now, report.done_bytes)
                self.stage(report)
                self._next_at = now + self.every_s
            elif now >= self._next_at or report.done_bytes == report.total_bytes:
                self._next_at = now + self.every_s
                self.moved(report, self._rate(report, now))

    def _rate(self, report: Progress, now: float) -> float | None:
        began_at, began_bytes = self._began
        return (report.done_bytes - began_bytes) / (now - began_at) if now - began_at >= 1 else None

    @abstractmethod
    def say(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - what JSON can hold
        """Tell people `words`, programs `facts`."""

    @abstractmethod
    def stage(self, progress: Progress) -> None:
        """Tell that something else is being done now."""

    @abstractmethod
    def moved(self, progress: Progress, rate: float | None) -> None:
        """Tell how far it has come; `rate` in bytes a second."""

    @abstractmethod
    def file(self, done: FileDone) -> None:
        """Tell what became of a file."""

    def fail(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Tell why something is not done, on stderr for people."""
        del facts
        click.echo(words, err=True)


class Lines(Teller):
    """One line for each thing that happens, and one now and then for how far it has come."""

    every_s = _LINES_EVERY_S

    def say(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Print them."""
        del facts
        click.echo(words)
        sys.stdout.flush()

    def stage(self, progress: Progress) -> None:
        """Print what is done now."""
        self.say(f"{self.model}: {progress.doing} ({size_words(progress.total_bytes)})")

    def moved(self, progress: Progress, rate: float | None) -> None:
        """Print how far it is."""
        if progress.done_bytes < progress.total_bytes:
            told = Progress(progress.doing, progress.done_bytes, progress.total_bytes, rate)
            self.say(f"{self.model}: {progress_words(told)}")

    def file(self, done: FileDone) -> None:
        """Print it."""
        self.say(f"{self.model}: {_file_words(done)}")


class Events(Teller):
    """One JSON object a line."""

    every_s = _EVENTS_EVERY_S

    def say(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Print the facts alone."""
        del words
        if facts:
            click.echo(json.dumps(facts))
            sys.stdout.flush()

    def stage(self, progress: Progress) -> None:
        """Print it as progress."""
        self.moved(progress, None)

    def moved(self, progress: Progress, rate: float | None) -> None:
        """Print how far it is."""
        self.say("", type="progress", model=self.model, **(asdict(progress) | {"rate": rate}))

    def file(self, done: FileDone) -> None:
        """Print it."""
        self.say("", type="file", model=self.model, **asdict(done))

    def fail(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Print the words on stderr too, where a person may look for them."""
        super().fail(words)
        self.say("", type="error", model=self.model, words=words, **facts)


class Silence(Teller):
    """Nothing at all, where only the end counts."""

    every_s = _LINES_EVERY_S

    def say(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Say nothing."""

    def stage(self, progress: Progress) -> None:
        """Say nothing."""

    def moved(self, progress: Progress, rate: float | None) -> None:
        """Say nothing."""

    def file(self, done: FileDone) -> None:
        """Say nothing."""


class Bars(Teller):
    """A bar for each file that is on its way, and one for all that was begun."""

    every_s = _BARS_EVERY_S

    def __init__(self) -> None:
        """Take the terminal."""
        super().__init__()
        from rich.console import Console  # noqa: PLC0415 - only where a person looks
        from rich.progress import (  # noqa: PLC0415 - the same
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._console = Console(highlight=False)
        self._rows: Rows = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._files: dict[str, TaskID] = {}
        self._total: TaskID | None = None
        self._before = (0, 0)
        self._last = (0, 0)

    def __enter__(self) -> Self:
        """Begin."""
        self._rows.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back; the bar of the total stays, as it is."""
        self._clear()
        self._rows.__exit__(kind, error, trace)

    def say(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Print them above the bars."""
        del facts
        self._rows.print(words, markup=False, soft_wrap=True)

    def fail(self, words: str, /, **facts: Any) -> None:  # noqa: ANN401 - the same
        """Print them above the bars as well: stderr is most likely the same terminal."""
        if sys.stderr.isatty():
            self.say(words)
        else:
            super().fail(words, **facts)

    def stage(self, progress: Progress) -> None:
        """Say what is done now, and add it to the total."""
        self._clear()
        self._before = (self._before[0] + self._last[0], self._before[1] + self._last[1])
        self.say(f"{self.model}: {progress.doing} ({size_words(progress.total_bytes)})")
        self.moved(progress, None)

    def moved(self, progress: Progress, rate: float | None) -> None:
        """Move the bars; the rate is rich's own."""
        del rate
        self._last = progress.done_bytes, progress.total_bytes
        done, total = (before + last for before, last in zip(self._before, self._last, strict=True))
        if self._total is None:
            self._total = self._rows.add_task("total", total=total)
        self._rows.update(self._total, completed=done, total=total)
        if progress.file:
            task = self._files.get(progress.file)
            if task is None:
                task = self._rows.add_task(printable(progress.file), total=progress.file_total_bytes)
                self._files[progress.file] = task
            self._rows.update(task, completed=progress.file_done_bytes)

    def file(self, done: FileDone) -> None:
        """Say what became of a file, and take its bar away."""
        if (task := self._files.pop(done.path, None)) is not None:
            self._rows.remove_task(task)
        self.say(f"{self.model}: {_file_words(done)}")

    def _clear(self) -> None:
        for task in self._files.values():
            self._rows.remove_task(task)
        self._files.clear()


class Counting:
    """Counts bytes for a teller, from any thread."""

    def __init__(self, doing: str, tell: Teller, total: int = 0) -> None:
        """Begin with none of `total`."""
        self.total = total
        self._doing, self._tell, self._done, self._lock = doing, tell, 0, threading.Lock()

    def __call__(self, by_bytes: int) -> None:
        """Take so many bytes more."""
        with self._lock:
            self._done = min(self._done + by_bytes, self.total)
            progress = Progress(self._doing, self._done, self.total)
        if progress.total_bytes:
            self._tell(progress)


def _file_words(done: FileDone) -> str:
    said = printable(f"{done.outcome} {done.path}")
    if done.outcome == MOVED_ASIDE:
        return f"{said}: {printable(done.words)}"
    return f"{said} ({size_words(done.size_bytes)})"
