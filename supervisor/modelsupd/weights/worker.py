"""`python -m modelsupd.weights.worker`: carries out one job for the daemon, in a process that may be killed.

It holds what must not be in the daemon: huggingface_hub, hours of hashing and of waiting for a network, and the reading
of files that anybody may have made. It ends when it is told to, and when its daemon is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from typing import BinaryIO

from modelsupd.core.events import Failure, FailureClass
from modelsupd.weights.base import FileDone, Progress, Stopped, WeightsError
from modelsupd.weights.job import carry_out
from modelsupd.weights.verdicts import Verdicts
from modelsupd.weights.wire import Finished, Report, read_job, report_line

#: Engines and whoever is served by them come first.
NICENESS = 10

#: How long an orderly end may take once the worker is told to stop, in seconds.
STOP_WITHIN_S = 5.0

#: Pause between two reports of progress, in seconds.
REPORT_EVERY_S = 0.2


class _Reporter:
    """Writes reports; of progress no more than people can read, and the last of it however long nothing follows."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._kept: Progress | None = None

    def __call__(self, report: Report) -> None:
        with self._lock:
            if isinstance(report, Progress):
                left_s = self._next_at - time.monotonic()
                if left_s > 0:
                    self._keep(report, left_s)
                    return
                self._next_at = time.monotonic() + REPORT_EVERY_S
            elif isinstance(report, FileDone):
                self._next_at = 0.0
            self._kept = None
            self._write(report)

    def _keep(self, progress: Progress, left_s: float) -> None:
        """Tell it when it is time, unless there is something newer by then."""
        if self._kept is None:
            timer = threading.Timer(left_s, self._tell_kept)
            timer.daemon = True
            timer.start()
        self._kept = progress

    def _tell_kept(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # that the daemon is gone is seen elsewhere
            kept, self._kept = self._kept, None
            if kept is not None:
                self._next_at = time.monotonic() + REPORT_EVERY_S
                self._write(kept)

    def _write(self, report: Report) -> None:
        self._out.write(report_line(report))
        self._out.flush()


def main() -> int:
    """Read the job from stdin, write reports to stdout, return the exit status."""
    # Reports go where stdout went; what a library prints must not get between them.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.nice(NICENESS)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: _end(stop))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to handle
    line = _line()
    threading.Thread(target=_until_daemon_is_gone, args=(stop,), daemon=True).start()
    report = _Reporter(out)
    try:
        job = read_job(line)
        carry_out(job, report, stop)
        Verdicts(job.settings.state_dir).prune()
        finished = Finished()
    except Stopped:
        finished = Finished(Failure(FailureClass.UNREACHABLE, "cannot go on: told to stop; what was fetched is kept"))
    except WeightsError as error:
        finished = Finished(error.failure)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 - whatever it is, the daemon must hear of it
        finished = Finished(Failure(FailureClass.INTERNAL, f"cannot make the weights whole: {error!r}"))
    report(finished)
    return 0 if finished.failure is None else 1


def _line() -> bytes:
    """Return the first line of stdin, and nothing of what may follow."""
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(0, 1 << 16)):
        line += piece
    return line


def _until_daemon_is_gone(stop: threading.Event) -> None:
    # Not by `sys.stdin`, whose lock would hold up the interpreter's end.
    while os.read(0, 4096):
        pass
    _end(stop)


def _end(stop: threading.Event) -> None:
    """Stop in order, or without it when that takes too long: whatever is on disk then is taken up from there."""
    if not stop.is_set():
        stop.set()
        timer = threading.Timer(STOP_WITHIN_S, os._exit, (1,))
        timer.daemon = True
        timer.start()


if __name__ == "__main__":
    sys.exit(main())
