"""`modelsupd gpu list`, `quarantine` and `release`: the host's GPUs, and which of them are used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from modelsupd.cli.place import Place
from modelsupd.cli.screen import aligned
from modelsupd.control.words import printable, size

COLUMNS = ("GPU", "UUID", "NAME", "STATE", "TOTAL", "USED", "CLAIMED", "OTHERS", "REPLICAS", "REASON")


@click.group()
def gpu() -> None:
    """Show the host's GPUs, keep one from being used, or let it be used again.

    A GPU is put into quarantine by itself when it is lost, reports an error that only a reset ends, or when the memory
    of a run that is gone does not come back. Nothing is placed on it then; what runs there goes on.

    \b
    Examples:
      modelsupd gpu list
      modelsupd gpu quarantine 3 --why "fan is replaced"
      modelsupd gpu release GPU-5f1c1b0e
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped


@gpu.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print what the status document holds of GPUs.")
@click.pass_obj
def list_(place: Place, as_json: bool) -> None:
    """List the GPUs: what is in use, what is claimed, by whom, and why one is not used.

    \b
    Exit status: 0 all can be used, 1 one cannot, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    told = place.client().gpus()
    rows = told["gpus"]
    if as_json:
        click.echo(json.dumps(rows))
    else:
        for line in table(rows) if rows else ["no GPU is known", *told["notes"]]:
            click.echo(line)
        for row in rows:
            for line in advice(row):
                click.echo(line)
    raise SystemExit(0 if all(row["state"] == "ok" for row in rows) else 1)


@gpu.command()
@click.argument("target", metavar="GPU")
@click.option("--why", default="", metavar="WORDS", help="Shown wherever it is told that it is not used.")
@click.pass_obj
def quarantine(place: Place, target: str, why: str) -> None:
    """Place nothing on a GPU any more, until it is released, across restarts and reboots. What runs there goes on.

    GPU is its index, its UUID, or the beginning of that.

    \b
    Exit status: 0 done, 1 refused, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    click.echo(
        f"{place.client().gpu('quarantine', target, why)}: nothing is placed on it until 'modelsupd gpu release'"
    )


@gpu.command()
@click.argument("target", metavar="GPU")
@click.pass_obj
def release(place: Place, target: str) -> None:
    """Let a GPU be used again.

    One whose memory has not come back is released by itself when it does; released before, it is taken at its word:
    what is still in use there counts as others' memory.

    \b
    Exit status: 0 done, 1 refused, 3 there is no daemon.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    click.echo(f"{place.client().gpu('release', target)}: may be used again")


def table(rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return the GPUs as lines."""
    return [*aligned([COLUMNS, *(_cells(row) for row in rows)])]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sizes = (size(row[f"{name}_bytes"]) for name in ("total", "used", "claimed", "foreign"))
    names = ", ".join(row["replicas"]) or "-"
    return (str(row["index"]), row["uuid"], row["name"], row["state"], *sizes, names, printable(row["reason"]))


def advice(row: Mapping[str, Any]) -> Sequence[str]:
    """Return how a GPU that is not used can be had back."""
    if row["state"] == "lost":
        reset = f"nvidia-smi --gpu-reset -i {row['uuid']}"
        return [f"GPU {row['index']}: reset it ({reset}) or reboot, then 'modelsupd gpu release {row['index']}'"]
    if row["state"] != "quarantined":
        return []
    if row["pids"]:
        pids = " ".join(map(str, row["pids"]))
        return [
            f"GPU {row['index']}: 'kill -9 {pids}', as root if need be; it is released by itself once that is gone",
            f"GPU {row['index']}: a process that withstands even that hangs in the driver: reset the GPU, or reboot",
        ]
    return [f"GPU {row['index']}: 'modelsupd gpu release {row['index']}' when it can be used again"]
