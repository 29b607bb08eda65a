"""`modelsupd events`."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from modelsupd.cli.place import Place, complete
from modelsupd.control.client import NoDaemon
from modelsupd.control.why import sentence
from modelsupd.control.words import clock, parsed, printable

#: How much of the past is shown before what is followed, as `tail` has it.
_TAIL = 10

Record = Mapping[str, Any]


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Begin with the last ten, and go on with each new one.")
@click.option("--json", "as_json", is_flag=True, help="Print the records of the journal as they are, one a line.")
@click.argument("target", metavar="[MODEL[/N]]", required=False, shell_complete=complete)
@click.pass_obj
def events(place: Place, follow: bool, as_json: bool, target: str | None) -> None:
    """Show what happened, from the journal; with or without a daemon, but --follow needs one.

    \b
    Examples:
      modelsupd events qwen
      modelsupd events --follow
      modelsupd events --json | jq 'select(.event.type == "Exited") | .event.exit'

    \b
    Exit status: 0 done, 1 the journal is damaged, 2 no such model, 3 --follow without a daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    if follow:
        for record in _following(place, target):
            _show(record, as_json=as_json)
            sys.stdout.flush()
        return
    names, state_dir = _meant(place, target)
    for record in _worth(place.history(state_dir), names):
        _show(record, as_json=as_json)


def _meant(place: Place, target: str | None) -> tuple[tuple[str, ...] | None, Path]:
    """Return the replicas that are meant, None for all, and where the journal is."""
    if target is not None:
        known = place.known(target)
        return known.names, known.state_dir
    try:
        return None, Path(place.client().version()["state_dir"])
    except NoDaemon:
        return None, place.directories().state_dir


def _following(place: Place, target: str | None) -> Iterator[Record]:
    client = place.client()
    state_dir = Path(client.version()["state_dir"])
    names = client.targets(target) if target is not None else None
    past = deque(_worth(place.history(state_dir), names), maxlen=_TAIL)
    yield from past
    seen = past[-1]["seq"] if past else 0
    yield from client.events(after_seq=seen, target=target, follow=True)


def _worth(records: Iterable[Record], names: Iterable[str] | None) -> Iterator[Record]:
    wanted = None if names is None else set(names)
    for record in records:
        if record["kind"] != "snapshot" and (wanted is None or record.get("replica") in wanted):
            yield record


def _show(record: Record, *, as_json: bool) -> None:
    click.echo(json.dumps(record) if as_json else words(record))


def words(record: Record) -> str:
    """Return a record as a line for people."""
    moment = parsed(record.get("wall"))
    stamp = clock(moment) if moment else "at an unknown time"
    if record["kind"] != "replica":
        return f"{stamp}  {printable(sentence(record))}"
    state = record.get("state")
    phase = state["phase"]["name"] if state else "gone"
    run = f"#{record['run']}" if record["run"] else ""
    return f"{stamp}  {record['replica']}{run}  {phase}  {printable(sentence(record))}"
