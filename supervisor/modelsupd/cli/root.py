"""The verbs. Each lives in a module that is imported when the verb is used."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from modelsupd import __version__
from modelsupd.cli.place import Place

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
    "plan": "plan:plan",
    "pull": "pull:pull",
    "list": "listing:list_",
    "verify": "verify:verify",
    "lock": "pull:lock",
    "export": "archives:export",
    "import": "archives:import_",
    "gc": "gc:gc",
    "gpu": "gpu:gpu",
    "key": "keys:key",
    "reap": "reap:reap",
    "journal": "journal:journal",
    "completion": "completion:completion",
}


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
