"""The command line. What scripts ask all the time is answered before anything is imported that it can do without.

Exit status: 0 all is well, 1 it is not or was refused, 2 wrong use or configuration, 3 there is no daemon.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from modelsupd.cli import quick

_BROKEN_PIPE = 141
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; only a defect of ours shows a traceback."""
    words = tuple(sys.argv[1:] if arguments is None else arguments)
    if "run" in words:
        # Until the daemon listens for it, SIGINT ends it as SIGTERM does. As an exception it may be lost, since Python
        # ignores one that is raised in a callback, or become another, in the middle of an import.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        status = quick.status(words)
        if status is None:
            status = _run(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    sys.exit(status)


def _run(words: Sequence[str]) -> int:
    """Run any verb; return the exit status."""
    import click  # noqa: PLC0415 - see above

    from modelsupd.cli.place import exit_status  # noqa: PLC0415 - the same
    from modelsupd.cli.root import cli  # noqa: PLC0415 - the same

    try:
        status = cli.main(args=words, prog_name="modelsupd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        known = exit_status(error)
        if known is None:
            raise
        click.echo(f"modelsupd: {error}", err=True)
        return known
    return status if isinstance(status, int) else 0
