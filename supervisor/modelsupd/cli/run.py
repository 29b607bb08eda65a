"""`modelsupd run`."""

from __future__ import annotations

import os

import click

from modelsupd.cli.place import Place


@click.command()
@click.pass_obj
def run(place: Place) -> None:
    """Supervise what models.toml declares, in the foreground.

    Engines that an earlier daemon left running are adopted, not restarted. What an operator stopped stays stopped.

    \b
    Signals:
      SIGTERM, SIGINT   stop every engine, requests in flight may finish; once more skips that, a third time kills,
                        a fourth does not even wait for the disk
      SIGHUP            read the configuration again, like 'modelsupd reload'
      SIGUSR1           leave, engines go on and the next daemon adopts them

    \b
    Examples:
      modelsupd run
      modelsupd --config /etc/modelsupd/models.toml run

    \b
    Exit status: 0 after an orderly stop, 1 if it could not start or had to leave a process behind, 2 if the
    configuration cannot be used.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    file = Place(config.path, place.state_dir, place.runtime_dir)
    from modelsupd import narrator  # noqa: PLC0415 - no other verb needs the daemon's half of the program
    from modelsupd.daemon import run as supervise  # noqa: PLC0415 - the same

    status = supervise(config, file.config)
    narrator.flush()
    # At once: a thread that waits for a dead file system must not keep the process, and with it nothing is lost.
    os._exit(status)
