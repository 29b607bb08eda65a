"""`modelsupd check` and `modelsupd schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import Place
from modelsupd.control.words import count
from modelsupd.errors import ConfigError

if TYPE_CHECKING:
    from modelsupd.config import Config
    from modelsupd.core.spec import Problem

#: How long an engine may take to print its flags; vLLM takes ten seconds on a quiet machine, once for each version.
_HELP_TIMEOUT_S = 120.0


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(place: Place, file: Path | None) -> None:
    """Check a configuration, by default the one that 'run' would use, and tell everything that is wrong with it.

    Flags of vLLM are held against those of the version that is installed, which it is asked for once: that takes it ten
    seconds.

    \b
    Examples:
      modelsupd check
      modelsupd check ./new.toml && mv new.toml models.toml && modelsupd reload

    \b
    Exit status: 0 it can be used (there may be warnings), 2 it cannot.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.config import check as examine  # noqa: PLC0415 - it imports pydantic, which --help does without

    config = examine(file or place.config_file)
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    if found := _drift(config):
        raise ConfigError(config.path, found)
    models = config.declaration.models.values()
    replicas = sum(model.replicas for model in models if isinstance(model.replicas, int))
    per_gpu = sum(not isinstance(model.replicas, int) for model in models)
    more = f", {count(per_gpu, 'model')} with one per GPU" if per_gpu else ""
    click.echo(f"{config.path}: {count(len(models), 'model')} with {count(replicas, 'replica')}{more}: can be used")


def _drift(config: Config) -> list[Problem]:
    """Return which flags of models the versions of their engines would not take that are installed here."""
    from modelsupd.core.spec import Problem  # noqa: PLC0415 - it takes long to import, and --help does without
    from modelsupd.runtime import installed  # noqa: PLC0415 - the same

    def ask() -> list[tuple[list[str], object, str]]:
        return [
            (["models", name, *found.path], found.value, found.why)
            for name, model in config.declaration.models.items()
            for found in installed.problems(
                model, config.declaration.engines.get(model.engine), config.state_dir, timeout_s=_HELP_TIMEOUT_S
            )
        ]

    told: list[tuple[list[str], object, str]] = as_owner(config.state_dir, ask) if config.state_dir.exists() else ask()
    return [Problem(tuple(path), value, why) for path, value, why in told]


@click.command()
def schema() -> None:
    """Print the JSON Schema of models.toml, which editors use for completion and checks.

    \b
    Examples:
      modelsupd schema > models.schema.json       (and '#:schema ./models.schema.json' as first line of models.toml)
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.config import schema as generate  # noqa: PLC0415 - it imports pydantic, which --help does without

    click.echo(json.dumps(generate(), indent=2))
