"""`modelsupd check` and `modelsupd schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from modelsupd.cli.place import Place
from modelsupd.control.words import count


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def check(place: Place, file: Path | None) -> None:
    """Check a configuration, by default the one that 'run' would use, and tell everything that is wrong with it.

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
    models = config.declaration.models.values()
    replicas = sum(model.replicas for model in models if isinstance(model.replicas, int))
    per_gpu = sum(not isinstance(model.replicas, int) for model in models)
    more = f", {count(per_gpu, 'model')} with one per GPU" if per_gpu else ""
    click.echo(f"{config.path}: {count(len(models), 'model')} with {count(replicas, 'replica')}{more}: can be used")


@click.command()
def schema() -> None:
    """Print the JSON Schema of models.toml, which editors use for completion and checks.

    \b
    Examples:
      modelsupd schema > models.schema.json       (and '#:schema ./models.schema.json' as first line of models.toml)
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.config import schema as generate  # noqa: PLC0415 - it imports pydantic, which --help does without

    click.echo(json.dumps(generate(), indent=2))
