"""`modelsupd verify`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import REFUSED, Place
from modelsupd.cli.progress import Counting, Silence, Teller, teller
from modelsupd.cli.stock import (
    Interruption,
    Model,
    interruptible,
    json_option,
    meant,
    models_argument,
    prepare,
    print_json,
    told,
    whole_here,
)

if TYPE_CHECKING:
    from modelsupd.weights.base import Settings
    from modelsupd.weights.verifying import Checked, Verification


@click.command()
@click.option("--deep", is_flag=True, help="Read every file to its end again, also those that did not change since.")
@json_option
@models_argument
@click.pass_obj
def verify(place: Place, deep: bool, as_json: bool, models: Sequence[str]) -> None:
    """Check every file of models against the lock, the hub's digests and its own format; by default of all models.

    A file that did not change since it was read to its end is not read again, unless --deep says so. Nothing is fetched
    or moved, and no hub is asked: of what is bad or missing 'modelsupd pull' takes care. Where nobody said by a digest
    which content a file should have, only its structure can be checked, and that is said.

    \b
    Examples:
      modelsupd verify
      modelsupd verify --deep qwen
      modelsupd verify --json | jq -r '.models[].files[] | select(.outcome == "bad") | .path'

    \b
    Exit status: 0 an engine may be started on all of it, 1 something is bad or missing, 2 no such model, or the
    configuration cannot be used, 130 interrupted.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    chosen = meant(config, models)
    document = as_owner(config.state_dir, lambda: _verify(chosen, config.weights, deep=deep, as_json=as_json))
    if as_json:
        print_json(document)
    else:
        _summarise(document)
    sys.exit(0 if all(model["whole"] for model in document["models"]) else REFUSED)


def _verify(models: Sequence[Model], settings: Settings, *, deep: bool, as_json: bool) -> dict[str, Any]:
    from modelsupd.weights.base import Stopped  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.verifying import Verification, unread_bytes  # noqa: PLC0415 - the same

    prepare(settings)
    since = time.time() if deep else 0.0
    rows = []
    # The document is what programs get; in between they get nothing.
    with interruptible() as stop, Silence() if as_json else teller(as_json=False) as tell:
        for model in models:
            tell.begin(model.name)
            moved = Counting("verifying", tell)
            how = Verification(settings, model.spec.engine, deep, since, moved, stop)
            try:
                with told():
                    moved.total = unread_bytes(list(zip(model.parts, model.locked, strict=True)), how)
                    moved(0)
                    rows.append(_model(model, how, tell, stop))
            except Stopped:
                sys.exit(stop.status)
    return {"models": rows}


def _model(model: Model, how: Verification, tell: Teller, stop: Interruption) -> dict[str, Any]:
    """Check one model; say what each file is, and return it."""
    from modelsupd.weights import verifying  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.base import WeightsError  # noqa: PLC0415 - the same

    files: list[Checked] = []
    trouble = ""
    try:
        for part, locked in zip(model.parts, model.locked, strict=True):
            found = verifying.verify(part, locked, how)
            files += found
            for one in found:
                tell.say(f"{model.name}: {_words(one)}")
        if all(one.outcome in verifying.GOOD for one in files):
            # Whether they are all that the engine needs, too.
            whole_here(model, how.settings, lambda _: None, stop)
    except WeightsError as error:
        trouble = str(error)
        tell.fail(f"{model.name}: {trouble}")
    whole = not trouble and all(one.outcome in verifying.GOOD for one in files)
    return {"name": model.name, "whole": whole, "words": trouble, "files": [_plain(one) for one in files]}


def _words(one: Checked) -> str:
    from modelsupd.control.words import printable  # noqa: PLC0415 - for people
    from modelsupd.weights.verifying import Outcome  # noqa: PLC0415 - the same

    name = one.path or one.source
    if one.outcome is Outcome.OK:
        return printable(f"{name}: ok, {one.actual}" + (f"; its structure {one.words}" if one.words else ""))
    if one.outcome is Outcome.BAD and one.expected != one.actual and one.expected and one.actual:
        return printable(f"{name}: bad, expected {one.expected}, found {one.actual}; {one.words}")
    digest = f", {one.actual}" if one.actual and one.outcome is Outcome.STRUCTURE else ""
    return printable(f"{name}: {one.outcome}{digest}" + (f"; {one.words}" if one.words else ""))


def _plain(one: Checked) -> dict[str, Any]:
    from dataclasses import asdict  # noqa: PLC0415 - beside what it is used for

    return asdict(one)


def _summarise(document: Mapping[str, Any]) -> None:
    count = Counter(file["outcome"] for model in document["models"] for file in model["files"])
    total = sum(count.values())
    said = ", ".join(f"{number} {outcome}" for outcome, number in count.items())
    click.echo(f"{total} {'file' if total == 1 else 'files'}: {said}" if total else "no model loads any weights")
    bad = [model["name"] for model in document["models"] if not model["whole"]]
    if bad:
        click.echo(
            f"an engine may not be started on {', '.join(bad)}; 'modelsupd pull' fetches what a hub has", err=True
        )
