"""`modelsupd show`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import WRONG_USE, Place, Stop, target_argument
from modelsupd.cli.stock import json_option, meant, print_json
from modelsupd.control.client import NoDaemon
from modelsupd.control.secrets import MASK, masked_argv, masked_names, shown_spec
from modelsupd.errors import ModelsupdError

if TYPE_CHECKING:
    from modelsupd.config import Config
    from modelsupd.engines.base import Files

#: What a shim fills in, and what stands for it where there is no run to fill it in for.
_BY_HAND = {
    "{socket}": "./engine.sock",
    "{host}": "127.0.0.1",
    "{port}": "8000",
    "{tmp}": ".",
    "{run_dir}": ".",
    "{cache_dir}": "./cache",
}

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


@click.command()
@click.option("--argv", is_flag=True, help="Print only the command with its environment, for a shell.")
@click.option("--reveal", is_flag=True, help="Print values that may be secrets, too.")
@json_option
@target_argument
@click.pass_obj
def show(place: Place, argv: bool, reveal: bool, as_json: bool, target: str) -> None:
    """Show how a model is declared, with every limit that applies, how its engine is started, and its weights.

    With --argv the exact command and environment are printed, quoted for a shell, so that the engine can be run by
    hand. Values of [models.MODEL.env], and others whose names look secret, are masked without --reveal. Without a
    daemon it is told from the configuration. Of the weights it is told from their headers what they are, how much
    memory they and the cache for the declared context will take, and which digest each file has to have.

    \b
    Examples:
      modelsupd show qwen
      modelsupd show --argv qwen/0
      modelsupd show --argv --reveal qwen/0 > run-qwen.sh
      modelsupd show --json qwen | jq '.weights.qwen[0].claim.ram_bytes'

    \b
    Exit status: 0 shown, 2 no such model, or the configuration cannot be used.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    try:
        replicas = place.client().show(target, reveal=reveal)
    except NoDaemon:
        replicas = [_from_config(place, target, reveal=reveal)]
        click.echo(
            "no daemon is running: this is from the configuration, with a place for the socket made up", err=True
        )
    if as_json:
        print_json(_document(place, replicas))
        return
    described: set[str] = set()
    for position, replica in enumerate(replicas):
        if position:
            click.echo()
        if not argv and replica["model"] not in described:
            described.add(replica["model"])
            click.echo("\n".join(_toml(replica["model"], replica["spec"])) + "\n")
        if not argv or len(replicas) > 1:
            click.echo(f"# {replica['name']}")
        click.echo(command_line(replica["env"], replica["argv"]))
    if not argv:
        for name in sorted(described):
            _show_weights(place, name)
    masked = sorted({name for replica in replicas for name in replica["masked"]})
    if masked:
        click.echo(f"masked: {', '.join(masked)}; --reveal shows them", err=True)


def command_line(env: Mapping[str, str], argv: list[str]) -> str:
    """Return a command with its environment, and nothing else of the environment, for a shell."""
    words = ["env -i", *(f"{name}={shlex.quote(value)}" for name, value in sorted(env.items())), shlex.join(argv)]
    return " \\\n  ".join(words)


def _document(place: Place, replicas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = sorted({replica["model"] for replica in replicas})
    return {"replicas": replicas, "weights": {name: _weights(place, name) for name in names}}


def _show_weights(place: Place, name: str) -> None:
    parts = _weights(place, name)
    if parts:
        from modelsupd.cli.sizes import lines  # noqa: PLC0415 - needed by nothing else

        click.echo("\n" + "\n".join(lines(parts)))


def _weights(place: Place, name: str) -> list[dict[str, Any]] | None:
    """Return what is known of a model's weights; None, and it is said, where the file does not have it (any more)."""
    from modelsupd.cli.sizes import weights_of  # noqa: PLC0415 - needed by nothing else

    try:
        config = place.config()
        (model,) = meant(config, [name])
    except (ModelsupdError, Stop) as error:
        click.echo(f"weights are not shown: {error}", err=True)
        return None
    found: list[dict[str, Any]] = as_owner(config.state_dir, lambda: weights_of(model, config.weights))
    return found


def _from_config(place: Place, target: str, *, reveal: bool) -> dict[str, Any]:
    from modelsupd.engines.base import adapter  # noqa: PLC0415 - with a daemon it is not needed

    config = place.config()
    declaration = config.declaration
    model = target.rpartition("/")[0] if target not in declaration.models else target
    names = {alias: name for name, spec in declaration.models.items() for alias in (name, *spec.aliases)}
    name = names.get(target) or names.get(model)
    if name is None:
        raise Stop(f"there is no model '{target}'; declared are {', '.join(declaration.models) or 'none'}", WRONG_USE)
    spec = declaration.models[name]
    engine = adapter(spec.engine)
    binary = engine.binary(spec, declaration.engines.get(spec.engine))
    command = engine.command(name, spec, binary=shutil.which(binary) or binary, files=_files(config, name))
    masked = masked_names(command.env, spec.env)
    argv = [_filled(word) for word in command.argv]
    env = {key: MASK if key in masked and not reveal else _filled(value) for key, value in command.env.items()}
    from dataclasses import asdict  # noqa: PLC0415 - the same

    return {
        "name": f"{name}/0" if target in names else target,
        "model": name,
        "argv": argv if reveal else masked_argv(argv),
        "env": env,
        "masked": [] if reveal else sorted(masked),
        "spec": shown_spec(asdict(spec), env, reveal=reveal),
    }


def _files(config: Config, name: str) -> Files:
    """Return what the engine would be given, whole or not."""
    from modelsupd.cli.sizes import paths_of  # noqa: PLC0415 - needed by nothing else
    from modelsupd.engines.base import Files  # noqa: PLC0415 - with a daemon it is not needed

    (model,) = meant(config, [name])
    paths = as_owner(config.state_dir, lambda: paths_of(model, config.weights))
    one = {role: next(iter(of_role), None) for role, of_role in paths.items()}
    return Files(one.get("weights"), one.get("mmproj"), one.get("draft"), tuple(paths.get("lora", ())))


def _filled(text: str) -> str:
    for mark, value in _BY_HAND.items():
        text = text.replace(mark, value)
    return text


def _toml(model: str, spec: Mapping[str, Any]) -> Iterator[str]:
    """Yield a model's entry as it could stand in models.toml, with all that applies."""
    path = f"models.{_key(model)}"
    yield f"[{path}]"
    tables = []
    for key, value in spec.items():
        if isinstance(value, dict):
            tables.append((key, value))
        elif value is not None and value != []:
            yield f"{_key(key)} = {_value(value)}"
    for key, table in tables:
        given = {name: value for name, value in table.items() if value is not None}
        if given:
            yield f"[{path}.{_key(key)}]"
            yield from (f"{_key(name)} = {_value(value)}" for name, value in given.items())


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _value(key)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)
