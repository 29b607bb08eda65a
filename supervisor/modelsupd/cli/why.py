"""`modelsupd why`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from modelsupd.cli.place import Place, target_argument, timeline
from modelsupd.control.client import NoDaemon
from modelsupd.control.why import explain, story
from modelsupd.control.words import printable


@click.command()
@target_argument
@click.pass_obj
def why(place: Place, target: str) -> None:
    """Say why a model is as it is: what is the case and since when, what led there, and what happens next.

    It is told from the journal, with or without a daemon: exits with the engine's own line, verdicts with their
    evidence, operators' commands with who gave them.

    \b
    Examples:
      modelsupd why qwen
      modelsupd why qwen/0

    \b
    Exit status: 0 told, 1 the journal is damaged, 2 no such model.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    known = place.known(target)
    rows: dict[str, Mapping[str, Any]] = {}
    if known.running:
        try:
            status = place.client().status()
        except NoDaemon:  # it went just now; the journal tells the rest
            status = {"models": []}
        rows = {row["name"]: row for model in status["models"] for row in model["replicas"]}
    reading = place.reading(known.state_dir)
    told = []
    for name in known.names:
        state = reading.states.get(name)
        if state is None:
            told.append(f"{name} is known to the daemon, and nothing about it is recorded yet.")
            continue
        records = place.history(known.state_dir)
        text = explain(
            name,
            state,
            story(records, name),
            timeline(reading.start),
            running=known.running,
            row=rows.get(name),
        )
        told.append("\n".join(printable(line) for line in text.split("\n")))
    click.echo("\n\n".join(told))
