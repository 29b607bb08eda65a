"""`modelsupd completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete verbs, options and the names of models.

    \b
    Examples:
      modelsupd completion bash > /etc/bash_completion.d/modelsupd
      modelsupd completion zsh > "${fpath[1]}/_modelsupd"
      modelsupd completion fish > ~/.config/fish/completions/modelsupd.fish
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101 - the choices above are those that click knows
    click.echo(kind(ctx.find_root().command, {}, "modelsupd", "_MODELSUPD_COMPLETE").source())
