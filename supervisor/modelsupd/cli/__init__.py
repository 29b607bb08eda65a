"""The command line. Each verb lives in a module that is imported when the verb is used, so that `status` starts fast.

Exit status: 0 all is well, 1 it is not or was refused, 2 wrong use or configuration, 3 there is no daemon.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from modelsupd import __version__
from modelsupd.cli.place import Place, exit_status

#: Verb → where it is, in the order in which the help lists them.
VERBS = {
    "run": "run:run",
    "status": "status:status",
    "start": "commands:start",
    "stop": "commands:stop",
    "restart": "commands:restart",
    "logs": "logs:logs",
    "events": "events:events",
    "why": "why:why",
    "show": "show:show",
    "check": "check:check",
    "schema": "check:schema",
    "reload": "commands:reload",
    "reap": "reap:reap",
    "journal": "journal:journal",
    "completion": "completion:completion",
}

_BROKEN_PIPE = 141
_INTERRUPTED = 130


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"modelsupd.cli.{module}"), name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration.  [default: $MODELSUPD_CONFIG, ./models.toml, /etc/modelsupd/models.toml]",
)
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where journal and logs are, over $MODELSUPD_STATE_DIR and the configuration.",
)
@click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where sockets and live runs are, over $MODELSUPD_RUNTIME_DIR and the configuration.",
)
@click.version_option(__version__, prog_name="modelsupd", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config_file: Path | None, state_dir: Path | None, runtime_dir: Path | None) -> None:
    """Keep local LLM engines alive, and prove that they generate.

    'modelsupd run' supervises what models.toml declares; the other verbs ask that daemon, or read what it recorded.
    A model is named as in models.toml, one of its replicas as MODEL/N.

    \b
    Examples:
      modelsupd check                 is models.toml right?
      modelsupd run                   supervise, in the foreground
      modelsupd status                what runs, and is it ready?
      modelsupd why qwen              why is it as it is, and what happens next?
      modelsupd logs -f qwen          what does its engine say?

    \b
    Exit status: 0 all is well, 1 it is not or was refused, 2 wrong use or configuration, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    ctx.obj = Place(config_file, state_dir, runtime_dir)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; only a defect of ours shows a traceback."""
    try:
        status = cli.main(args=arguments, prog_name="modelsupd", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except Exception as error:
        known = exit_status(error)
        if known is None:
            raise
        click.echo(f"modelsupd: {error}", err=True)
        sys.exit(known)
    sys.exit(status if isinstance(status, int) else 0)
