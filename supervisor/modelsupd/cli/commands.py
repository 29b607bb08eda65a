"""`modelsupd start`, `stop`, `restart` and `reload`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from modelsupd.cli.place import REFUSED, Place, Stop, target_argument
from modelsupd.control.client import Client
from modelsupd.control.words import duration, printable

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5
_TIMEOUT_S = 600.0

Row = Mapping[str, Any]

_wait_options: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--wait/--no-wait", default=True, show_default=True, help="Return when it is done, or when asked for."
    ),
    click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        default=_TIMEOUT_S,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait. What was asked for goes on after that.",
    ),
)


def _with_options(verb: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_wait_options):
        verb = option(verb)
    return verb


@click.command()
@target_argument
@_with_options
@click.pass_obj
def start(place: Place, target: str, wait: bool, timeout_s: float) -> None:
    """Start a model, or one of its replicas, and keep it up from now on, across reboots too.

    A failed replica is tried again at once, with a clean sheet.

    \b
    Examples:
      modelsupd start qwen
      modelsupd start qwen/1
      modelsupd start --timeout 3600 "qwen3:235b"

    \b
    Exit status: 0 every replica meant is ready (with --no-wait: it was asked for), 1 refused, failed or not in time,
    2 no such model, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    client = place.client()
    names = client.command("start", target)
    _conclude(client, names, _Aim("start", "ready", {}), timeout_s if wait else None)


@click.command()
@target_argument
@_with_options
@click.pass_obj
def stop(place: Place, target: str, wait: bool, timeout_s: float) -> None:
    """Stop a model, or one of its replicas, and keep it down from now on, across reboots too.

    Requests in flight may finish (stop.drain_timeout_s), then SIGTERM, then SIGKILL.

    \b
    Examples:
      modelsupd stop qwen
      modelsupd stop --no-wait qwen/0

    \b
    Exit status: 0 nothing of it runs any more (with --no-wait: it was asked for), 1 refused or not in time,
    2 no such model, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    client = place.client()
    names = client.command("stop", target)
    _conclude(client, names, _Aim("stop", "stopped", {}), timeout_s if wait else None)


@click.command()
@target_argument
@_with_options
@click.pass_obj
def restart(place: Place, target: str, wait: bool, timeout_s: float) -> None:
    """End the present run of a model, or of one of its replicas, and start a new one.

    Replicas of a model are restarted at the same time; name them one by one to keep the model served meanwhile.

    \b
    Examples:
      modelsupd restart qwen
      modelsupd restart qwen/0 && modelsupd restart qwen/1

    \b
    Exit status: 0 the new runs are ready (with --no-wait: they were asked for), 1 refused, failed or not in time,
    2 no such model, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    client = place.client()
    before = _rows(client)
    names = client.command("restart", target)
    _conclude(client, names, _Aim("restart", "ready", before), timeout_s if wait else None)


@click.command()
@click.pass_obj
def reload(place: Place) -> None:
    """Have the daemon read its configuration again.

    Replicas whose engine would be started differently are replaced, others are not touched. With an invalid file
    nothing changes, and all that is wrong with it is told.

    \b
    Examples:
      modelsupd check && modelsupd reload

    \b
    Exit status: 0 done, 1 refused, 2 the configuration cannot be used, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    changes = place.client().reload()
    for change in changes or ["nothing changes"]:
        click.echo(change)


@dataclass(frozen=True, slots=True)
class _Aim:
    """What is waited for: the phase `wanted`, for a restart in a later run than `before`."""

    verb: str
    wanted: str
    before: Mapping[str, Row]

    def reached(self, name: str, row: Row | None) -> bool:
        if row is None:  # forgotten, because the configuration no longer has it
            return self.wanted == "stopped"
        return bool(row["phase"] == self.wanted) and (row["run"] or 0) >= self._least_run(name)

    def hopeless(self, row: Row | None) -> str:
        """Return why it is not worth waiting any more, '' while it is."""
        if row is None:
            return "it is gone: the configuration no longer has it"
        if self.wanted == "ready" and row["phase"] in ("failed", "stopped"):
            return f"it {'has failed' if row['phase'] == 'failed' else 'was stopped'}: {row['reason']}"
        return ""

    def _least_run(self, name: str) -> int:
        row = self.before.get(name)
        if row is None:
            return 0
        # A run that was only about to start serves as the new one.
        return (row["run"] or 0) + (0 if row["phase"] in ("resolving", "waiting", "spawning") else 1)


def _rows(client: Client) -> dict[str, Row]:
    return {row["name"]: row for model in client.status()["models"] for row in model["replicas"]}


def _conclude(client: Client, names: Sequence[str], aim: _Aim, timeout_s: float | None) -> None:
    """Say what comes of a command; exit with 1 if not all of it is good."""
    if timeout_s is None:
        for name in names:
            click.echo(f"{name}: {aim.verb} asked for")
        return
    began_at = time.monotonic()
    left, pause_s = list(names), _FIRST_PAUSE_S
    told: dict[str, str] = {}
    failed = False
    while True:
        rows = _rows(client)
        for name in list(left):
            row = rows.get(name)
            trouble = "" if aim.reached(name, row) else aim.hopeless(row)
            if trouble:
                failed = True
                click.echo(f"{name}: cannot {aim.verb} it: {printable(trouble)}; 'modelsupd why {name}'", err=True)
            elif aim.reached(name, row):
                click.echo(_success(name, row, time.monotonic() - began_at))
            else:
                _tell_progress(name, row, told)
                continue
            left.remove(name)
        if not left:
            sys.exit(REFUSED if failed else 0)
        if time.monotonic() - began_at >= timeout_s:
            raise Stop(_late(left, rows, aim, timeout_s))
        time.sleep(pause_s)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)


def _success(name: str, row: Row | None, took_s: float) -> str:
    if row is None:
        return f"{name}: gone"
    if row["phase"] == "ready":
        return f"{name}: ready after {duration(took_s)}: run {row['run']}, pid {row['pid']}, at {row['endpoint']}"
    return f"{name}: {row['phase']} after {duration(took_s)}"


def _tell_progress(name: str, row: Row | None, told: dict[str, str]) -> None:
    """Show a person that waits what changes; a script that waits is only told the end."""
    if row is None or not sys.stderr.isatty():
        return
    words = f"{name}: {row['phase']}: {printable(row['reason'])}"
    if told.get(name) != words:
        told[name] = words
        click.echo(words, err=True)


def _late(left: Sequence[str], rows: Mapping[str, Row], aim: _Aim, timeout_s: float) -> str:
    lines = [f"not {aim.wanted} within {duration(timeout_s)}; what was asked for goes on:"]
    for name in left:
        row = rows.get(name)
        lines.append(f"  {name}: {row['phase']}: {printable(row['reason'])}" if row else f"  {name}: gone")
    return "\n".join(lines)
