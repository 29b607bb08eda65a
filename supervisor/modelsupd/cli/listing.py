"""`modelsupd list`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import Place
from modelsupd.cli.stock import Model, json_option, meant, models_argument, print_json, told

if TYPE_CHECKING:
    from pathlib import Path

    from modelsupd.weights.base import Part, Pin, Pinned, Settings

_COLUMNS = ("MODEL", "PART", "SOURCE", "COMMIT", "SIZE", "ON DISK", "LOCK", "STATE")
_COLOURS = {"whole": "green", "missing": "red", "bad": "bold red", "unverified": "yellow"}
_SHORT = 12
_BLOCK_BYTES = 512  # stat(2), st_blocks


@click.command(name="list")
@json_option
@models_argument
@click.pass_obj
def list_(place: Place, as_json: bool, models: Sequence[str]) -> None:
    """List what models load: source, commit, size, what of it is on disk, and whether an engine may be started on it.

    Nothing is read to its end and no hub is asked. The states: whole; unverified, which the next start or 'modelsupd
    verify' changes; missing, in part or all of it; bad.

    \b
    Examples:
      modelsupd list
      modelsupd list --json | jq -r '.models[] | select(.whole | not) | .name'

    \b
    Exit status: 0 listed, 2 no such model, or the configuration cannot be used.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    chosen = meant(config, models)
    document = as_owner(config.state_dir, lambda: _document(chosen, config.weights))
    if as_json:
        print_json(document)
    else:
        _show(document)


def _document(models: Sequence[Model], settings: Settings) -> dict[str, Any]:
    seen: dict[tuple[int, int], int] = {}
    rows = []
    with told():
        for model in models:
            both = zip(model.parts, model.locked, strict=True)
            parts = [_part(part, locked, settings, model.spec.engine, seen) for part, locked in both]
            rows.append({"name": model.name, "whole": all(one["state"] == "whole" for one in parts), "parts": parts})
    return {"models": rows, "on_disk_bytes": sum(seen.values()), "cache_dir": str(settings.cache_dir)}


def _part(
    part: Part, locked: Pinned | None, settings: Settings, engine: str, seen: dict[tuple[int, int], int]
) -> dict[str, Any]:
    """Return one row; `seen` collects the files on disk, each of which counts once for all models."""
    from modelsupd.weights.base import WeightsError  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.look import look  # noqa: PLC0415 - the same
    from modelsupd.weights.resolved import known, placed  # noqa: PLC0415 - the same

    try:
        of = known(part, locked, settings, engine)
        files = placed(part, of, settings) if of else ()
        missing, on_disk = _on_disk(files, seen)
        found = look([part], [locked], settings, engine)
        words = found.failure.detail if found.failure else found.todo
        state = _state(found.whole[0] is not None, of, missing, words, files, settings)
    except (WeightsError, OSError) as error:
        of, missing, on_disk, state, words = None, [], 0, "bad", str(error)
    return {
        "role": part.role,
        "source": str(part.source),
        "commit": of.commit if of else None,
        "files": len(of.files) if of else None,
        "size_bytes": sum(pin.size_bytes for pin in of.files) if of else None,
        "on_disk_bytes": on_disk,
        "locked": "models.lock" if locked else "sha256" if part.sha256 else None,
        "state": state,
        "missing": missing,
        "words": words,
    }


def _on_disk(files: Sequence[tuple[Pin, Path]], seen: dict[tuple[int, int], int]) -> tuple[list[str], int]:
    """Return which files are not there, and how much disk the others take."""
    missing, on_disk = [], 0
    for pin, path in files:
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(pin.path)
            continue
        on_disk += found.st_blocks * _BLOCK_BYTES
        seen[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK_BYTES
    return missing, on_disk


def _state(
    whole: bool,
    of: Pinned | None,
    missing: Sequence[str],
    words: str,
    files: Sequence[tuple[Pin, Path]],
    settings: Settings,
) -> str:
    from modelsupd.weights.base import identity_of  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.checking import differs  # noqa: PLC0415 - the same
    from modelsupd.weights.verdicts import Verdicts  # noqa: PLC0415 - the same

    if whole:
        return "whole"
    if of is None or missing:
        return "missing"
    verdicts = Verdicts(settings.state_dir)
    for pin, path in files:
        verdict = verdicts.get(identity_of(path.stat()))
        if verdict is not None and (verdict.structure == "bad" or (verdict.sha256 and differs(pin, verdict))):
            return "bad"
    return "bad" if words.startswith("cannot") else "unverified"


def _show(document: Mapping[str, Any]) -> None:
    from modelsupd.cli.screen import aligned  # noqa: PLC0415 - for people; --json does without
    from modelsupd.control.words import printable  # noqa: PLC0415 - the same
    from modelsupd.weights.base import size_words  # noqa: PLC0415 - the same

    rows = [_cells(model["name"], part) for model in document["models"] for part in model["parts"]]
    if not rows:
        click.echo("no model loads any weights")
        return
    for line, state in zip(aligned([_COLUMNS, *rows]), ("", *(row[-1] for row in rows)), strict=True):
        colour = _COLOURS.get(state.partition(" ")[0]) if sys.stdout.isatty() else None
        click.echo(f"{line[: -len(state)]}{_painted(state, colour)}" if state else line)
    for model in document["models"]:
        for part in model["parts"]:
            if part["state"] != "whole" and part["words"]:
                click.echo(f"{model['name']}: {printable(part['words'])}")
    click.echo(f"{size_words(document['on_disk_bytes'])} on disk, those of the hub below '{document['cache_dir']}'")


def _painted(text: str, colour: str | None) -> str:
    if colour is None or os.environ.get("NO_COLOR"):
        return text
    return click.style(text, fg=colour.removeprefix("bold "), bold=colour.startswith("bold ") or None)


def _cells(model: str, part: Mapping[str, Any]) -> tuple[str, ...]:
    from modelsupd.weights.base import size_words  # noqa: PLC0415 - for people

    state = part["state"]
    if part["missing"] and part["files"]:
        state = f"missing {len(part['missing'])} of {part['files']} files"
    return (
        model,
        part["role"],
        part["source"],
        part["commit"][:_SHORT] if part["commit"] else "-",
        "-" if part["size_bytes"] is None else size_words(part["size_bytes"]),
        size_words(part["on_disk_bytes"]),
        part["locked"] or "-",
        state,
    )
