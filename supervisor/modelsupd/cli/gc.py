"""`modelsupd gc`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import Place
from modelsupd.cli.stock import json_option, meant, print_json, told

if TYPE_CHECKING:
    from modelsupd.config import Config
    from modelsupd.weights.base import Pinned, Settings
    from modelsupd.weights.gc import Plan


@click.command()
@click.option("--yes", is_flag=True, help="Remove it; without this it is only listed.")
@click.option("--all", "everything", is_flag=True, help="Also what other tools put into the cache.")
@json_option
@click.pass_obj
def gc(place: Place, yes: bool, everything: bool, as_json: bool) -> None:
    """List what the hub's cache holds and no model and no lock names any more; with --yes, remove it.

    Other tools may share the cache, so only what modelsupd fetched itself is meant, unless --all says otherwise. What
    was moved aside because it was wrong is listed and never removed: it is evidence, and yours to throw away.

    \b
    Examples:
      modelsupd gc
      modelsupd gc --yes

    \b
    Exit status: 0 listed or removed, 1 it could not be, 2 the configuration cannot be used.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    document = as_owner(config.state_dir, lambda: _collect(config, yes=yes, everything=everything))
    if as_json:
        print_json(document)
    else:
        click.echo("\n".join(_lines(document)))


def _collect(config: Config, *, yes: bool, everything: bool) -> dict[str, Any]:
    from modelsupd.weights import folders  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.gc import carry_out, plan  # noqa: PLC0415 - the same
    from modelsupd.weights.verdicts import Verdicts  # noqa: PLC0415 - the same

    settings = config.weights
    kept, spared = _kept(config, settings)
    with told():
        found = plan(settings, kept, spared=spared, everything=everything)
        removed = None
        if yes:
            removed = carry_out(found, settings)
            Verdicts(settings.state_dir).prune()
            folders.prune(settings.state_dir)
    return _plain(found) | {"removed_bytes": removed}


def _kept(config: Config, settings: Settings) -> tuple[list[Pinned], set[str]]:
    """Return what locks and records name of all declared sources, and the repositories of those that nobody knows."""
    from modelsupd.weights.base import HubSource  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.records import Records  # noqa: PLC0415 - the same

    kept, spared = list(config.lock.entries), set()
    records = Records(settings.state_dir)
    for model in meant(config, ()):
        for part, locked in zip(model.parts, model.locked, strict=True):
            record = records.get(part)
            if record is not None:
                kept.append(record.pinned)
            elif locked is None and isinstance(part.source, HubSource):
                spared.add(part.source.repo)
    return kept, spared


def _plain(plan: Plan) -> dict[str, Any]:
    return {
        "garbage": [
            {
                "repo": one.repo,
                "files": [{"commit": commit, "path": path} for commit, path in one.files],
                "blobs": len(one.blobs),
                "partial": len(one.partial),
                "size_bytes": one.size_bytes,
            }
            for one in plan.garbage
        ],
        "size_bytes": plan.size_bytes,
        "quarantined": [asdict(one) | {"path": str(one.path), "origin": str(one.origin)} for one in plan.quarantined],
        "shared": plan.shared,
    }


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    from modelsupd.control.words import count, printable  # noqa: PLC0415 - for people; --json does without
    from modelsupd.weights.base import size_words  # noqa: PLC0415 - the same

    for one in document["garbage"]:
        commits = sorted({file["commit"] for file in one["files"]})
        of = f"{count(len(one['files']), 'file')} of {count(len(commits), 'commit')}" if commits else "nothing filed"
        partial = f", {count(one['partial'], 'file')} fetched in part" if one["partial"] else ""
        yield f"{one['repo']}: {of}{partial}, {size_words(one['size_bytes'])}"
    if document["shared"]:
        yield f"{count(document['shared'], 'file')} lie in the store that repositories share: 'hf cache' knows of them"
    for one in document["quarantined"]:
        where = f"'{one['path']}' ({size_words(one['size_bytes'])})"
        yield printable(f"moved aside, yours to remove: {where}, {one['at']}: {one['why']}")
    if document["removed_bytes"] is not None:
        yield f"removed {size_words(document['removed_bytes'])}"
    elif document["garbage"]:
        yield f"{size_words(document['size_bytes'])} can be given back; nothing was removed: --yes does it"
    else:
        yield "nothing to remove"
