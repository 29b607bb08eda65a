"""`modelsupd journal`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from modelsupd.cli.owner import become_owner
from modelsupd.cli.place import REFUSED, Place, Stop
from modelsupd.control.words import count, either, size


@click.group()
def journal() -> None:
    """Look after the journal, the record from which a daemon recovers and 'why' and 'events' are answered.

    \b
    Examples:
      modelsupd journal verify
      modelsupd journal repair            say what is damaged and what a repair would lose
      modelsupd journal repair --yes      do it; the damaged files are kept
      modelsupd journal export | jq .
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped


@journal.command()
@click.pass_obj
def verify(place: Place) -> None:
    """Read every byte of every segment, and tell what is there. A daemon may run meanwhile.

    \b
    Exit status: 0 nothing that was synced is bad (a torn tail is no damage), 1 something is.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.runtime.journal import repair as mending  # noqa: PLC0415 - needed by these two verbs only

    directory = _directory(place)
    with _told(directory):
        report = mending.verify(directory)
    for segment in report.segments:
        records = count(segment.records, "record")
        numbers = f", {segment.first_seq} to {segment.last_seq}" if segment.first_seq is not None else ""
        click.echo(f"{segment.name}: {segment.status}: {records}{numbers}, {size(segment.size_bytes)}")
        for note in segment.notes:
            click.echo(f"  {note}")
    if report.damaged:
        raise Stop(f"the journal in '{directory}' is damaged; 'modelsupd journal repair' says what would be lost")
    click.echo("the journal is not damaged" if report.segments else f"there is no journal in '{directory}'")


@journal.command()
@click.option("--yes", is_flag=True, help="Do it, having read what would be lost.")
@click.pass_obj
def repair(place: Place, yes: bool) -> None:
    """Say what is damaged and what a repair would lose; with --yes, repair it. The damaged files are kept.

    Root does it as the user that the state directory belongs to.

    \b
    Exit status: 0 not damaged, or repaired; 1 damaged and not repaired, or a daemon runs.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.runtime.journal import repair as mending  # noqa: PLC0415 - needed by these two verbs only
    from modelsupd.runtime.paths import LockedError, hold  # noqa: PLC0415 - the same

    directory = _directory(place)
    if not directory.is_dir():
        raise Stop(f"there is no journal in '{directory}'")
    try:
        become_owner(directory.parent)
        # The plan must still hold when it is carried out, so that nobody may write in between.
        lock = hold(directory.parent)
    except LockedError as error:
        raise Stop(f"cannot repair the journal: {error}") from error
    except OSError as error:
        why = f"{(error.strerror or str(error)).lower()}: '{error.filename}'"
        raise Stop(f"cannot repair the journal: {why}") from error
    try:
        with _told(directory):
            plan = mending.plan_repair(directory)
        click.echo(str(plan))
        if plan.patches and yes:
            with _told(directory):
                kept = mending.apply_repair(plan)
            click.echo(f"repaired; what was damaged is kept as {either(kept)}")
        elif plan.patches:
            click.echo("nothing was changed; --yes repairs it", err=True)
            sys.exit(REFUSED)
    finally:
        os.close(lock)


@journal.command()
@click.pass_obj
def export(place: Place) -> None:
    """Print every record as JSON, one a line, oldest first, the snapshots included.

    \b
    Exit status: 0 done, 1 the journal is damaged; what comes before the damage was printed.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    for record in place.history(place.directories().state_dir):
        click.echo(json.dumps(record))


def _directory(place: Place) -> Path:
    return place.directories().state_dir / "journal"


@contextmanager
def _told(directory: Path) -> Iterator[None]:
    """End the command with what the journal's own errors say."""
    from modelsupd.runtime.journal import Damaged  # noqa: PLC0415 - needed by two verbs only
    from modelsupd.runtime.journal.repair import Unrepairable  # noqa: PLC0415 - the same

    try:
        yield
    except (Damaged, Unrepairable) as error:
        raise Stop(str(error)) from error
    except OSError as error:
        raise Stop(f"cannot read '{directory}': {(error.strerror or str(error)).lower()}") from error
