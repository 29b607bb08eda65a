"""`modelsupd plan --want MODEL`: what would happen if a model were asked for now, and what would give way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from modelsupd.cli.place import Place, complete
from modelsupd.control.words import duration, printable

#: Verdicts after which there is nothing to wait for but the start itself.
_SERVED = frozenset({"runs", "starts", "evicts"})


@click.command()
@click.option(
    "--want",
    "target",
    required=True,
    metavar="MODEL[/N]",
    shell_complete=complete,
    help="The model, or one of its replicas, that would be asked for.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what the daemon answers.")
@click.pass_obj
def plan(place: Place, target: str, as_json: bool) -> None:
    """Show what would happen if a model were asked for now: where it would run, and what would give way, and why.

    Nothing is changed by it.

    \b
    Examples:
      modelsupd plan --want qwen
      modelsupd plan --want qwen --json

    Exit status: 0 it runs, starts at once, or when those that give way are gone; 1 it would wait; 2 there is no such
    model; 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    rows = place.client().plan(target)
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for row in rows:
            for line in lines(row):
                click.echo(line)
    raise SystemExit(0 if all(row["verdict"] in _SERVED for row in rows) else 1)


def lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield what would become of one replica, in words."""
    name, why = row["name"], printable(row["why"])
    match row["verdict"]:
        case "runs":
            yield f"{name} {why}"
        case "starts":
            yield f"{name} starts at once{' on ' + ' and '.join(row['gpus']) if row['gpus'] else ''}"
        case "evicts":
            yield f"{name} starts when these have given way:"
            for victim in row["evicts"]:
                yield f"  {_victim(victim)}"
        case _:
            yield f"{name} waits: {why}"


def _victim(victim: Mapping[str, Any]) -> str:
    idle = "in use" if victim["idle_s"] is None else f"idle for {duration(victim['idle_s'])}"
    start = "" if victim["start_s"] is None else f", its last start took {duration(victim['start_s'])}"
    return f"{victim['name']}: {idle}{start}"
