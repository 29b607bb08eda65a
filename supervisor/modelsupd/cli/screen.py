"""The status as people see it: a table with rich on a terminal, plain columns for everything else."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modelsupd.control.words import clock, duration, parsed, printable, size

if TYPE_CHECKING:
    from rich.console import RenderableType

Document = Mapping[str, Any]

_COLOURS = {
    "ready": "green",
    "failed": "bold red",
    "backoff": "yellow",
    "killing": "yellow",
    "clearing": "yellow",
    "starting": "cyan",
    "spawning": "cyan",
    "resolving": "cyan",
    "waiting": "yellow",
    "asleep": "dim",
    "stopped": "dim",
}
_GPU_COLUMNS = ("GPU", "NAME", "STATE", "MEMORY", "USED", "CLAIMED", "OTHERS", "RUNS", "WHY")
_COLUMNS = ("REPLICA", "ENGINE", "PHASE", "RUN", "PID", "FOR", "RESTARTS")


def show_status(document: Document) -> None:
    """Print a status document."""
    now = datetime.now(UTC)
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415 - only where a person looks

        Console(highlight=False).print(_rendered(document, now))
    else:
        for line in plain(document, now):
            sys.stdout.write(f"{line}\n")


class Screen:
    """A terminal on which the status is kept up to date."""

    def __init__(self) -> None:
        """Take the terminal."""
        from rich.live import Live  # noqa: PLC0415 - only where a person looks

        self._live = Live(screen=True, auto_refresh=False)

    def __enter__(self) -> Self:
        """Begin."""
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the terminal back as it was."""
        self._live.__exit__(kind, error, trace)

    def update(self, document: Document) -> None:
        """Show a status document in place of the last one."""
        self._live.update(_rendered(document, datetime.now(UTC)), refresh=True)


def plain(document: Document, now: datetime) -> Iterator[str]:
    """Yield the lines of the plain form; one replica a line, so that other programs can pick one."""
    yield from _head(document, now)
    rows = [
        (*_cells(model, row, now), row["endpoint"] or "-", printable(row["reason"]))
        for model in document["models"]
        for row in model["replicas"]
    ]
    if rows:
        yield ""
        yield from aligned([(*_COLUMNS, "ENDPOINT", "REASON"), *rows])
    else:
        yield "no model is declared" if document["daemon"]["state"] == "running" else "nothing is recorded"
    if document["gpus"]:
        yield ""
        yield from aligned([_GPU_COLUMNS, *(_gpu_cells(row) for row in document["gpus"])])


def _head(document: Document, now: datetime) -> Iterator[str]:
    daemon = document["daemon"]
    if daemon["state"] == "running":
        since = parsed(daemon["since"])
        how_long = f", for {duration((now - since).total_seconds())}" if since else ""
        yield f"modelsupd {daemon['version']} is running, pid {daemon['pid']}{how_long}"
        if daemon["journal"]["read_only"] is not None:
            yield f"commands are refused: the journal cannot be written: {daemon['journal']['read_only']}"
        if document.get("gateway"):
            yield _gateway(document["gateway"])
    else:
        yield "no daemon is running; this is the last known state, and processes named here may be gone"


def _gateway(told: Mapping[str, Any]) -> str:
    """Return where clients reach the models, or why they do not."""
    if told["reason"]:
        return f"the gateway {printable(told['reason'])}"
    at = ", ".join(told["listen"])
    serving = next((run for run in told["runs"] if run["accepts"]), None)
    if serving is None:
        reasons = "; ".join(f"{run['name']} is {run['phase']}: {printable(run['reason'])}" for run in told["runs"])
        return f"the gateway at {at} takes no connection: {reasons or 'it is about to be started'}"
    return f"the gateway listens at {at}, pid {serving['pid']}"


def _cells(model: Mapping[str, Any], row: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    since = parsed(row["since"])
    how_long = duration((now - since).total_seconds()) if since else "-"
    run, pid = row["run"] or "-", row["pid"] or "-"
    return (row["name"], model["engine"] or "-", row["phase"], str(run), str(pid), how_long, str(row["restarts"]))


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield rows as lines with columns of one width each; of the last one nothing is padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1])).rstrip()


def _rendered(document: Document, now: datetime) -> RenderableType:
    from rich.console import Group  # noqa: PLC0415 - only where a person looks
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in _COLUMNS:
        table.add_column(column, no_wrap=column != "REPLICA")
    table.add_column("WHERE, AND WHY", overflow="fold")
    for model in document["models"]:
        for row in model["replicas"]:
            cells = [Text(cell) for cell in _cells(model, row, now)]
            cells[2].stylize(_COLOURS.get(row["phase"], "none"))
            table.add_row(*cells, Text("\n".join(text for text in (row["endpoint"], printable(row["reason"])) if text)))
    head = [Text(line) for line in _head(document, now)]
    when = Text(clock(now), style="dim")
    shown = [*head, when, Text(), table if table.row_count else Text("no model is declared")]
    return Group(*shown, *([Text(), _rendered_gpus(document["gpus"])] if document["gpus"] else []))


def _rendered_gpus(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table  # noqa: PLC0415 - only where a person looks
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in _GPU_COLUMNS:
        table.add_column(column, no_wrap=column not in ("RUNS", "WHY"), overflow="fold")
    for row in rows:
        cells = [Text(cell) for cell in _gpu_cells(row)]
        cells[2].stylize("green" if row["state"] == "ok" else "bold red")
        table.add_row(*cells)
    return table


def _gpu_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    total = row["total_bytes"]
    used, claimed, others = (f"{size(row[f'{name}_bytes'])}" for name in ("used", "claimed", "foreign"))
    names = ", ".join(row["replicas"]) or "-"
    return (str(row["index"]), row["name"], row["state"], size(total), used, claimed, others, names, row["reason"])
