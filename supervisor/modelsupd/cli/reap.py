"""`modelsupd reap`."""

from __future__ import annotations

import sys

import click

from modelsupd.cli.owner import become_owner
from modelsupd.cli.place import REFUSED, Place, Stop
from modelsupd.control.words import either

#: Between SIGTERM and SIGKILL: what `stop.term_timeout_s` is by default.
_TERM_TIMEOUT_S = 10.0


@click.command()
@click.pass_obj
def reap(place: Place) -> None:
    """End every engine that a daemon left behind; needs no daemon, and refuses to work beside one.

    Only processes of this state directory's installation are touched. They get SIGTERM, and SIGKILL after 10 s.
    Root does it as the user that the state directory belongs to.

    \b
    Examples:
      modelsupd reap
      modelsupd --state-dir /var/lib/modelsupd --runtime-dir /run/modelsupd reap

    \b
    Exit status: 0 nothing is left, 1 refused, or something withstood SIGKILL.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.runtime.reap import ReapRefusedError, reap as end_all  # noqa: I001, PLC0415 - one import, needed by no other verb

    places = place.directories()
    try:
        become_owner(places.state_dir, places.runtime_dir)
        result = end_all(places.runtime_dir, places.state_dir, term_timeout_s=_TERM_TIMEOUT_S, report=click.echo)
    except ReapRefusedError as error:
        raise Stop(str(error)) from error
    except OSError as error:
        raise Stop(f"cannot reap: {(error.strerror or str(error)).lower()}: '{error.filename}'") from error
    if result.left:
        sys.exit(REFUSED)
    click.echo(f"ended {either(result.ended)}" if result.ended else "nothing to end")
