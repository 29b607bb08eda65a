"""`modelsupd export` and `modelsupd import`: a model's weights in one file, for hosts without a network."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import REFUSED, Place, Stop
from modelsupd.cli.progress import Counting, teller
from modelsupd.cli.stock import (
    Interruption,
    Model,
    complete_models,
    interruptible,
    json_option,
    meant,
    plain,
    prepare,
    told,
    whole_here,
)

if TYPE_CHECKING:
    from modelsupd.config import Config
    from modelsupd.weights.base import Pinned, Settings
    from modelsupd.weights.lock import Key


@click.command()
@json_option
@click.argument("model", metavar="MODEL", shell_complete=complete_models)
@click.argument("file", metavar="FILE.tar", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def export(place: Place, as_json: bool, model: str, file: Path) -> None:
    """Write all that a model loads to one file, to be taken to a host without a network.

    Every file is checked against its digest on the way, and FILE.tar appears when all of it is there. What is exported
    has to be whole; no hub is asked.

    \b
    Examples:
      modelsupd pull qwen && modelsupd export qwen qwen.tar
      modelsupd import qwen.tar              (there, with the same models.toml and models.lock)

    \b
    Exit status: 0 written, 1 it could not be, 2 no such model, or the configuration cannot be used, 130 interrupted.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    from modelsupd.weights.kept import replacing  # noqa: PLC0415 - `--help` does without

    config = place.config()
    (chosen,) = meant(config, [model])
    target = Path.cwd() / file
    if not target.parent.is_dir():
        raise Stop(f"cannot write '{target}': there is no such folder")
    try:
        # Opened before root gives up what it may: the file is the caller's, what is read the service's.
        with replacing(target, mode=0o644) as out:
            as_owner(config.state_dir, lambda: _export(chosen, config.weights, out, target, as_json=as_json))
    except OSError as error:
        raise Stop(f"cannot write '{target}': {(error.strerror or str(error)).lower()}") from error


def _export(model: Model, settings: Settings, out: BinaryIO, target: Path, *, as_json: bool) -> None:
    from modelsupd.weights.archive import write  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.base import Stopped, size_words  # noqa: PLC0415 - the same
    from modelsupd.weights.resolved import placed  # noqa: PLC0415 - the same

    if not model.parts:
        raise Stop(f"cannot export '{model.name}': it loads no weights")
    prepare(settings)
    with interruptible() as stop, teller(as_json=as_json) as tell, told(f"cannot export '{model.name}': "):
        tell.begin(model.name)
        try:
            found = whole_here(model, settings, tell, stop)
            sources = [
                (of, {pin.path: path for pin, path in placed(part, of, settings)})
                for part, of in zip(model.parts, found, strict=True)
            ]
            total = sum(pin.size_bytes for of in found for pin in of.files)
            moved = Counting(f"exporting to {target.name}", tell, total)
            moved(0)
            size = write(sources, out, target, moved, stop)
        except Stopped:
            sys.exit(stop.status)
        tell.say(
            f"{model.name}: exported to '{target}' ({size_words(size)})",
            type="exported",
            model=model.name,
            path=str(target),
            size_bytes=size,
        )


@click.command(name="import")
@json_option
@click.argument("file", metavar="FILE.tar", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def import_(place: Place, as_json: bool, file: Path) -> None:
    """Take in what 'modelsupd export' wrote; no hub is asked.

    Everything is verified on arrival, against the archive's own digests and against models.lock, before any of it gets
    its name. Files of a hub come to lie in its cache, local files at the paths that models.toml declares, where nothing
    may be in their place.

    \b
    Examples:
      modelsupd import qwen.tar && modelsupd start qwen

    \b
    Exit status: 0 all of it is here and whole, 1 it is not what it should be, or a model needs more, 2 the
    configuration cannot be used, 130 interrupted.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    path = Path.cwd() / file
    try:
        archive = path.open("rb", buffering=0)
    except OSError as error:
        raise Stop(f"cannot read '{path}': {(error.strerror or str(error)).lower()}") from error
    with archive:
        answer = as_owner(config.state_dir, lambda: _import(config, archive, as_json=as_json))
    sys.exit(answer)


def _import(config: Config, archive: BinaryIO, *, as_json: bool) -> int:
    from modelsupd.weights.arrival import take_in  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.base import Stopped  # noqa: PLC0415 - the same
    from modelsupd.weights.lock import key_of  # noqa: PLC0415 - the same

    prepare(config.weights)
    parts = [part for model in meant(config, ()) for part in model.parts]
    with interruptible() as stop, teller(as_json=as_json) as tell, told():
        moved = Counting("importing", tell, os.fstat(archive.fileno()).st_size)
        tell.begin(Path(archive.name).name)
        try:
            found = take_in(archive, config.weights, parts=parts, lock=config.lock, progress=moved, stop=stop)
            status = 0
            by_key = {key_of(one): one for one in found}
            for one in found:
                count = "1 file" if len(one.files) == 1 else f"{len(one.files)} files"
                tell.say(f"{one.source}: {count}, verified", type="source", **plain([one])[0])
            for model in meant(config, ()):
                status = max(status, _arrived(model, by_key, config.weights, tell.say, stop))
        except Stopped:
            sys.exit(stop.status)
    return status


def _arrived(
    model: Model,
    found: Mapping[Key, Pinned],
    settings: Settings,
    say: Any,  # noqa: ANN401 - Teller.say
    stop: Interruption,
) -> int:
    """Say what a model has got by it, and keep that it is whole; return the exit status."""
    from modelsupd.weights.base import WeightsError  # noqa: PLC0415 - `--help` does without

    arrived = [found.get((str(part.source), part.allow, part.ignore)) for part in model.parts]
    if not any(arrived):
        return 0
    wanted = tuple(here or locked for here, locked in zip(arrived, model.locked, strict=True))
    try:
        whole_here(replace(model, locked=wanted), settings, lambda _: None, stop)
    except WeightsError as error:
        say(f"{model.name}: not whole yet: {error}", type="model", model=model.name, whole=False, words=str(error))
        return REFUSED
    say(f"{model.name}: whole", type="model", model=model.name, whole=True, words="")
    return 0
