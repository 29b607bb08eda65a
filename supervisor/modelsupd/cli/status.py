"""`modelsupd status`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from modelsupd.cli.place import Place, timeline
from modelsupd.cli.quick import code
from modelsupd.control.client import NoDaemon

_PAUSE_S = 1.0

Document = Mapping[str, Any]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the document that scripts rely on.")
@click.option("-w", "--watch", is_flag=True, help="Go on, and show every change, until interrupted.")
@click.pass_obj
def status(place: Place, as_json: bool, watch: bool) -> None:
    """Show what runs, and whether it is ready.

    Without a daemon the last known state is shown, and said to be that.

    \b
    Examples:
      modelsupd status
      modelsupd status --watch
      modelsupd status --json | jq -r '.models[] | select((.ready or .idle) | not) | .name'
      modelsupd status > /dev/null || echo "something is not ready"

    \b
    Exit status: 0 all that is wanted is ready, or starts on demand and nobody asks for it; 1 something is not; 3 there
    is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    document = look(place)
    if watch:
        _watch(place, document, as_json=as_json)
    elif as_json:
        click.echo(json.dumps(document))
    else:
        from modelsupd.cli.screen import show_status  # noqa: PLC0415 - for people; --json does without

        show_status(document)
    sys.exit(code(document))


def look(place: Place) -> Document:
    """Return the daemon's status or, without a daemon, the last known one."""
    try:
        return place.client().status()
    except NoDaemon:
        from modelsupd.control.status import last_known  # noqa: PLC0415 - with a daemon it is not needed

        reading = place.reading()
        engines = {name: str(entry["engine"]) for name, entry in place.declared().items() if "engine" in entry}
        wall = timeline(reading.start).wall
        return last_known(reading.states, reading.start, reading.seq, engines, wall)


def _watch(place: Place, document: Document, *, as_json: bool) -> None:
    shown: Document = {}
    try:
        if sys.stdout.isatty() and not as_json:
            from modelsupd.cli.screen import Screen  # noqa: PLC0415 - for people; --json does without

            with Screen() as screen:
                while True:
                    screen.update(document)
                    time.sleep(_PAUSE_S)
                    document = look(place)
        while True:
            if document != shown:
                _print_change(document, as_json=as_json)
                shown = document
            time.sleep(_PAUSE_S)
            document = look(place)
    except KeyboardInterrupt:
        sys.exit(code(document))


def _print_change(document: Document, *, as_json: bool) -> None:
    from modelsupd.cli.screen import show_status  # noqa: PLC0415 - for people

    if as_json:
        click.echo(json.dumps(document))
    else:
        show_status(document)
        click.echo()
    sys.stdout.flush()
