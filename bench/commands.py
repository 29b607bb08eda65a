"""`modelsupd status` against an interpreter that does nothing, as whole processes, in turn.

The same interpreter for all. The table is measured on a terminal, where rich draws it, and into a pipe.
"""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Sequence

import child
import measure

RUNS = 320
REPLICAS = 8

#: What the installed script does.
_SCRIPT = "import sys; from modelsupd.cli import main; sys.exit(main())"


def to_pipe(command: Sequence[str]) -> None:
    """Run it and read what it says."""
    subprocess.run(command, stdout=subprocess.PIPE, check=True)


class Terminal:
    """A terminal that someone reads."""

    def __init__(self) -> None:
        """Open one."""
        ours, self.theirs = pty.openpty()
        threading.Thread(target=self._read, args=(ours,), daemon=True).start()

    @staticmethod
    def _read(fd: int) -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 65536):
                pass

    def run(self, command: Sequence[str]) -> None:
        """Run a command on it."""
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
        subprocess.run(command, stdin=self.theirs, stdout=self.theirs, env=environment, check=True)


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading("commands: whole processes")
    with (
        child.place() as place,
        contextlib.closing(child.Bell(place / "bell")) as bell,
        child.daemon(place, child.model("m", child.compiled(place), bell.path, replicas=REPLICAS)) as host,
    ):
        host.until_ready(REPLICAS)
        status = [sys.executable, "-c", _SCRIPT, "--config", str(host.config), "status"]
        terminal = Terminal()
        ways = {
            "status --json": lambda: to_pipe([*status, "--json"]),
            "status, the table": lambda: terminal.run(status),
            "status, into a pipe": lambda: to_pipe(status),
            "python -c pass": lambda: to_pipe([sys.executable, "-c", "pass"]),
        }
        rows: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs or RUNS):
            for name, way in ways.items():
                rows[name].append(measure.timed(way))
    floor = measure.median(rows["python -c pass"])
    for name, seconds in rows.items():
        ratio = f"{measure.median(seconds) / floor:5.2f}x python -c pass"
        print(f"  {name:28} {measure.milliseconds(seconds)}   {ratio}")
