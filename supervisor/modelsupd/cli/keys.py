"""`modelsupd key add`, `list` and `revoke`: the keys of the gateway's clients."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import Place, Stop
from modelsupd.cli.screen import aligned
from modelsupd.gateway import keyfile
from modelsupd.gateway.keyfile import Key

_COLUMNS = ("NAME", "KEY", "MODELS", "CONCURRENT", "PER MINUTE", "ADMIN", "CREATED", "STATE")


@click.group()
def key() -> None:
    """Make, list and revoke the keys of the gateway's clients.

    Without any key the gateway serves whoever reaches it, which is this host alone unless [gateway] says more. The
    first key ends that. A change counts within a second; no daemon is needed for it.

    \b
    Examples:
      modelsupd key add alice
      modelsupd key add ci --models 'qwen*' --rpm 60 --concurrent 4
      modelsupd key list
      modelsupd key revoke alice
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped


@key.command()
@click.argument("name")
@click.option("--models", "globs", multiple=True, metavar="GLOB", help="Only models like this; may be repeated.")
@click.option("--admin", is_flag=True, help="Also an engine's own pages, below /upstream/MODEL/.")
@click.option("--rpm", type=click.IntRange(min=1, max=60000), metavar="N", help="Requests begun per minute, at most.")
@click.option("--concurrent", type=click.IntRange(min=1), metavar="N", help="Requests in flight, at most.")
@click.pass_obj
def add(place: Place, name: str, globs: Sequence[str], admin: bool, rpm: int | None, concurrent: int | None) -> None:
    """Make a key and print it. It is shown this once and kept nowhere.

    \b
    Exit status: 0 made, 1 refused.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    models = tuple(part for glob in globs for part in glob.split(",") if part)
    fresh = Key(
        name=name,
        digest="",
        prefix="",
        models=models,
        admin=admin,
        max_concurrent=concurrent or 0,
        requests_per_minute=rpm or 0,
        created=_now(),
    )
    folder = place.directories().state_dir
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Stop(f"cannot use '{folder}': {(error.strerror or str(error)).lower()}") from error
    made = as_owner(folder, lambda: keyfile.add(folder / keyfile.NAME, fresh))
    click.echo(made)
    click.echo(f"this is the only time that key '{name}' is shown", err=True)


@key.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="As JSON, without anything secret.")
@click.pass_obj
def list_(place: Place, as_json: bool) -> None:
    """List the keys by their first characters, revoked ones too.

    \b
    Exit status: 0.
    """  # noqa: D301 - the same
    folder = place.directories().state_dir
    rows = as_owner(folder, lambda: [_row(each) for each in keyfile.read(folder / keyfile.NAME)])
    if as_json:
        click.echo(json.dumps({"keys": rows}, indent=2))
        return
    if not rows:
        click.echo("there are no keys: whoever reaches the gateway is served")
        return
    for line in aligned([_COLUMNS, *(_cells(row) for row in rows)]):
        click.echo(line)


@key.command()
@click.argument("name")
@click.pass_obj
def revoke(place: Place, name: str) -> None:
    """Let a key count no more. Answers that it is getting already are finished.

    \b
    Exit status: 0 revoked, 1 there is no such key.
    """  # noqa: D301 - the same
    folder = place.directories().state_dir
    gone = as_owner(folder, lambda: keyfile.revoke(folder / keyfile.NAME, name, _now()).prefix)
    click.echo(f"revoked key '{name}' ({gone}…)")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _row(each: Key) -> dict[str, object]:
    return {
        "name": each.name,
        "prefix": each.prefix,
        "models": list(each.models),
        "max_concurrent": each.max_concurrent,
        "requests_per_minute": each.requests_per_minute,
        "admin": each.admin,
        "created": each.created,
        "revoked": each.revoked,
    }


def _cells(row: dict[str, object]) -> tuple[str, ...]:
    models = row["models"]
    return (
        str(row["name"]),
        f"{row['prefix']}…",
        ",".join(models) if isinstance(models, list) and models else "all",
        str(row["max_concurrent"] or "-"),
        str(row["requests_per_minute"] or "-"),
        "yes" if row["admin"] else "-",
        str(row["created"]),
        f"revoked {row['revoked']}" if row["revoked"] else "active",
    )
