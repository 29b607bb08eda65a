"""`modelsupd logs`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from modelsupd.cli.place import WRONG_USE, Place, Stop, target_argument
from modelsupd.cli.tail import Tail
from modelsupd.control.why import exit_words
from modelsupd.control.words import clock, count, either, parsed
from modelsupd.runtime.paths import runs_in_state, state_name

#: How often a log that is followed is looked at, in seconds: well below what a person notices.
_PAUSE_S = 0.1

#: A terminal would obey these; TAB it may. What is not UTF-8 is shown as it is by whatever reads a pipe.
_OBEYED = bytes(byte for byte in (*range(0x20), 0x7F) if chr(byte) != "\t")
_SHOWN = bytes.maketrans(_OBEYED, b"?" * len(_OBEYED))


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written, and with the runs that follow.")
@click.option("--run", "run", type=click.IntRange(min=1), metavar="N", help="That run, in place of the last one.")
@target_argument
@click.pass_obj
def logs(place: Place, follow: bool, run: int | None, target: str) -> None:
    """Show what an engine wrote, stdout and stderr together, each line with the time at which it came (UTC).

    It is the last run's, ended or not; 'modelsupd events MODEL' tells which runs there were. No daemon is needed.

    \b
    Examples:
      modelsupd logs qwen
      modelsupd logs -f qwen/0
      modelsupd logs --run 6 qwen/0 | grep -i error

    \b
    Exit status: 0 shown, 2 no such model or run.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    known = place.known(target)
    readers = [_Reader(known.state_dir, name, run, prefixed=len(known.names) > 1) for name in known.names]
    if run is None and not follow and not any(reader.run for reader in readers):
        raise Stop(f"{either(known.names)}: there is no log yet", WRONG_USE)
    for reader in readers:
        reader.read()
    while follow and not all(reader.over for reader in readers):
        sys.stdout.flush()
        time.sleep(_PAUSE_S)
        for reader in readers:
            reader.read()
    for reader in readers:
        reader.finish()


class _Reader:
    """Shows the log of one replica: of the run that was asked for, or of the last one and those that follow it."""

    def __init__(self, state_dir: Path, name: str, run: int | None, *, prefixed: bool) -> None:
        runs = runs_in_state(state_dir, name)
        if run is not None and run not in runs:
            kept = f"kept are {either([str(number) for number in runs])}" if runs else "there is none"
            raise Stop(f"there is no log of run {run} of {name}; {kept}", WRONG_USE)
        self.run = run or (runs[-1] if runs else 0)
        self._fixed = run is not None
        self._state_dir, self._name = state_dir, name
        self._prefix = f"{name}: ".encode() if prefixed else b""
        self._tail = self._open() if self.run else None

    @property
    def over(self) -> bool:
        """Tell whether nothing can follow: the run that was asked for has ended."""
        return self._fixed and self._exit() is not None

    def read(self) -> None:
        """Show what can be read now."""
        while True:
            # In this order: a run that follows is begun only when this one has written all it will.
            following = self._following()
            if self._tail is not None:
                self._show(self._tail.lines())
            if following is None:
                return
            self.finish()
            self.run = following
            self._tail = self._open()
            self._say(f"run {following} of {self._name}")

    def finish(self) -> None:
        """Show what is left of this run, and how it ended."""
        if self._tail is None:
            return
        rest = self._tail.rest()
        if rest:
            self._show([rest])
        self._tail.__exit__()
        self._tail = None
        sys.stdout.flush()
        ended = self._exit()
        if ended is not None:
            self._say(_ending(self._name, self.run, ended))

    def _following(self) -> int | None:
        if self._fixed:
            return None
        return next((number for number in runs_in_state(self._state_dir, self._name) if number > self.run), None)

    def _open(self) -> Tail:
        return Tail(self._directory())

    def _directory(self) -> Path:
        return self._state_dir / "runs" / state_name(self._name, self.run)

    def _exit(self) -> Mapping[str, Any] | None:
        try:
            found = json.loads((self._directory() / "exit.json").read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _show(self, lines: Iterable[bytes]) -> None:
        out = sys.stdout.buffer
        terminal = sys.stdout.isatty()
        for line in lines:
            out.write(self._prefix + (line.translate(_SHOWN) if terminal else line) + b"\n")

    def _say(self, words: str) -> None:
        """Say something about the log beside it, so that a pipe gets the log alone."""
        sys.stdout.flush()
        click.echo(f"--- {words}", err=True)


def _ending(name: str, run: int, ended: Mapping[str, Any]) -> str:
    moment = parsed(ended.get("at"))
    when = f" at {clock(moment)}" if moment else ""
    lost = ended.get("log_lost_bytes")
    missing = f"; {count(lost, 'byte')} of its log were lost, the disk was full" if lost else ""
    return f"run {run} of {name} ended{when}: {exit_words(ended)}{missing}"
