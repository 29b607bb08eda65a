"""`modelsupd pull` and `modelsupd lock`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import REFUSED, Place, Stop
from modelsupd.cli.progress import Teller, teller
from modelsupd.cli.stock import (
    TAKE_OVER,
    Interruption,
    Model,
    from_plain,
    interruptible,
    json_option,
    meant,
    models_argument,
    plain,
    prepare,
    print_json,
    refuse_unwritable,
    told,
    write_lock,
)

if TYPE_CHECKING:
    from modelsupd.config import Config
    from modelsupd.weights.base import Part, Pinned, Settings
    from modelsupd.weights.lock import Lock

_SHORT = 12  # digits by which people tell commits apart


@click.command()
@click.option("--locked", is_flag=True, help="Take only what models.lock names, and never write it.")
@json_option
@models_argument
@click.pass_obj
def pull(place: Place, locked: bool, as_json: bool, models: Sequence[str]) -> None:
    """Fetch what models load from a hub, verify it, and lock it; by default for all models.

    What is here and whole is not fetched again, and a fetch goes on where an earlier one ended. What the lock names is
    taken as it is there, the rest as the hub has it now; models.lock, beside models.toml, then names it too. Files of
    this host are not touched: 'modelsupd lock MODEL' locks those. Root works as the user that the state directory
    belongs to, and writes the lock itself.

    \b
    Examples:
      modelsupd pull
      modelsupd pull qwen && modelsupd reload
      modelsupd pull --locked                (in scripts: fails where the hub differs from the lock)
      modelsupd pull --json qwen | jq -r 'select(.type == "file") | .path'

    \b
    Exit status: 0 all is whole, 1 something is not, 2 no such model, or the configuration cannot be used,
    130 interrupted; what was fetched is kept.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    chosen = meant(config, models)
    if locked:
        _refuse_unlocked(chosen)
    elif any(model.of_hub.parts for model in chosen):
        _refuse_unwritable(config)
    answer = as_owner(config.state_dir, lambda: _pull(chosen, config.weights, as_json=as_json))
    if not locked:
        _lock(config, lambda lock: lock.holding(from_plain(answer["entries"])), as_json=as_json)
    if not as_json and answer["status"] >= 128:  # noqa: PLR2004 - of a signal
        click.echo("interrupted: what was fetched is kept, and the same command goes on from there", err=True)
    sys.exit(answer["status"])


@click.command()
@click.option("--upgrade", is_flag=True, help="Lock what the hub has now and what the files of this host are now.")
@click.option("--yes", is_flag=True, help="With --upgrade: do it without asking.")
@json_option
@models_argument
@click.pass_obj
def lock(place: Place, upgrade: bool, yes: bool, as_json: bool, models: Sequence[str]) -> None:
    """Lock every file of models, those of this host too; by default of all models.

    What is locked stays as it is; the rest is fetched, verified and added to models.lock. Without MODEL, entries that
    no model names any more are taken out. With --upgrade it is shown what would change, and when that is wanted it is
    fetched, verified and locked.

    \b
    Examples:
      modelsupd lock qwen
      modelsupd lock --upgrade qwen
      modelsupd lock --upgrade --yes && modelsupd reload

    \b
    Exit status: 0 locked, or nothing to upgrade; 1 something cannot be, or an upgrade was not wanted; 2 no such model,
    or the configuration cannot be used; 130 interrupted.
    """  # noqa: D301 - \b is click's mark for lines that are not to be wrapped
    config = place.config()
    chosen = meant(config, models)
    _refuse_unwritable(config)
    wanted = as_owner(config.state_dir, lambda: _resolve(chosen, config.weights, upgrade=upgrade, as_json=as_json))
    pins = [[None if one is None else from_plain([one])[0] for one in entries] for entries in wanted]
    if upgrade and not _is_wanted(config, chosen, pins, yes=yes, as_json=as_json):
        return
    models_wanted = [
        Model(model.name, model.spec, model.parts, tuple(of_model))
        for model, of_model in zip(chosen, pins, strict=True)
    ]
    answer = as_owner(config.state_dir, lambda: _pull(models_wanted, config.weights, as_json=as_json, local=True))
    named = [part for model in meant(config, ()) for part in model.parts]

    def change(old: Lock) -> Lock:
        new = old.holding(from_plain(answer["entries"]))
        return new if models else new.only(named)

    _lock(config, change, as_json=as_json, shown=upgrade)
    sys.exit(answer["status"])


def _refuse_unwritable(config: Config) -> None:
    from modelsupd.config.weights import lock_file  # noqa: PLC0415 - `--help` does without

    refuse_unwritable(lock_file(config.path))


def _refuse_unlocked(models: Sequence[Model]) -> None:
    missing = [
        f"'{part.source}' of {model.name}"
        for model in models
        for part, pinned in zip(model.of_hub.parts, model.of_hub.locked, strict=True)
        if pinned is None and part.sha256 is None
    ]
    if missing:
        raise Stop(
            f"cannot pull with --locked: the lock has no entry for {', '.join(missing)}; 'modelsupd pull' adds it"
        )


def _lock(config: Config, change: Callable[[Lock], Lock], *, as_json: bool, shown: bool = False) -> None:
    """Write the lock and say what is different then, unless that was shown before."""
    from modelsupd.config.weights import lock_file  # noqa: PLC0415 - `--help` does without

    lines = write_lock(config, change)
    path = lock_file(config.path)
    if as_json:
        print_json({"type": "lock", "path": str(path), "changed": bool(lines), "changes": lines})
    elif lines:
        click.echo(f"wrote '{path}'" + ("" if shown else ":"))
        click.echo("\n".join([*(f"  {line}" for line in lines if not shown), TAKE_OVER]))


# As the owner of the state directory


def _pull(models: Sequence[Model], settings: Settings, *, as_json: bool, local: bool = False) -> dict[str, Any]:
    """Make models whole; return what they are, as far as that went well, and the exit status."""
    from modelsupd.weights.base import Stopped, WeightsError  # noqa: PLC0415 - `--help` does without

    prepare(settings)
    entries: list[Pinned] = []
    status = 0
    with interruptible() as stop, teller(as_json=as_json) as tell:
        for model in models:
            tell.begin(model.name)
            try:
                entries += _whole(model if local else model.of_hub, settings, tell, stop)
            except Stopped:
                status = stop.status
                break
            except WeightsError as error:
                tell.fail(f"{model.name}: {error}", kind=str(error.kind))
                status = REFUSED
    return {"entries": plain(entries), "status": status}


def _whole(model: Model, settings: Settings, tell: Teller, stop: Interruption) -> tuple[Pinned, ...]:
    """Make one model whole, and look at it again. Raises WeightsError, Stopped."""
    from modelsupd.weights.base import WeightsError, size_words  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.job import carry_out  # noqa: PLC0415 - the same
    from modelsupd.weights.look import look  # noqa: PLC0415 - the same
    from modelsupd.weights.wire import Job  # noqa: PLC0415 - the same

    if not model.parts:
        where = "nothing to pull: it loads nothing from a hub"
        tell.say(f"{model.name}: {where}", type="model", model=model.name, whole=True, size_bytes=0, sources=[])
        return ()
    found = carry_out(Job(model.parts, model.locked, settings, model.spec.engine), tell, stop)
    seen = look(model.parts, found, settings, model.spec.engine)
    if seen.failure is not None or seen.todo:
        from modelsupd.core.events import FailureClass  # noqa: PLC0415 - only where it went wrong

        kind, words = FailureClass.UNREACHABLE, f"cannot keep it whole: {seen.todo}; something else changes the files"
        if seen.failure is not None:
            kind, words = seen.failure.kind, seen.failure.detail
        raise WeightsError(kind, words)
    size = sum(part.size_bytes for part in seen.whole if part)
    commits = "".join(f", {one.source} at {one.commit[:_SHORT]}" for one in found if one.commit)
    tell.say(
        f"{model.name}: whole, {size_words(size)}{commits}",
        type="model",
        model=model.name,
        whole=True,
        size_bytes=size,
        sources=[{"source": one.source, "commit": one.commit, "files": len(one.files)} for one in found],
    )
    return found


def _resolve(
    models: Sequence[Model], settings: Settings, *, upgrade: bool, as_json: bool
) -> list[list[dict[str, Any] | None]]:
    """Return what is to be locked of each part: as it is locked or is now; None where fetching will tell."""
    from modelsupd.weights.base import Stopped  # noqa: PLC0415 - `--help` does without

    prepare(settings)
    found: list[list[dict[str, Any] | None]] = []
    with interruptible() as stop, teller(as_json=as_json) as tell, told():
        try:
            for model in models:
                tell.begin(model.name)
                now = [
                    locked if locked and not upgrade else _now(part, settings, tell, stop, upgrade=upgrade)
                    for part, locked in zip(model.parts, model.locked, strict=True)
                ]
                found.append([None if one is None else plain([one])[0] for one in now])
        except Stopped:
            sys.exit(stop.status)
    return found


def _now(part: Part, settings: Settings, tell: Teller, stop: Interruption, *, upgrade: bool) -> Pinned | None:
    """Return what a part is now: as the hub lists it, or the files of this host with their digests."""
    from modelsupd.weights import hub  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.base import HubSource  # noqa: PLC0415 - the same
    from modelsupd.weights.resolved import pinned  # noqa: PLC0415 - the same
    from modelsupd.weights.verifying import digested  # noqa: PLC0415 - the same

    if isinstance(part.source, HubSource):
        if not upgrade:
            return None
        listing = hub.listing(part.source, settings, stop=stop)
        return pinned(part, listing.commit or "", listing.files)
    return digested(part, settings, tell, stop)


def _is_wanted(
    config: Config,
    models: Sequence[Model],
    pins: Sequence[Sequence[Pinned | None]],
    *,
    yes: bool,
    as_json: bool,
) -> bool:
    """Show what an upgrade would change, and tell whether it is wanted; exit with 1 where it is not."""
    from modelsupd.weights.lock import Lock  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.lockdiff import Change, diff  # noqa: PLC0415 - the same

    old = config.lock.only(part for model in models for part in model.parts)
    changes = diff(old, Lock().holding(one for of_model in pins for one in of_model if one))
    if as_json:
        print_json({"type": "upgrade", "changes": [_shown(change) for change in changes]})
    elif not changes:
        click.echo("nothing changes")
    else:
        for change in changes:
            click.echo(str(change))
        fetched = sum(Change(change.old, change.new).fetched_bytes for change in changes)
        from modelsupd.weights.base import size_words  # noqa: PLC0415 - the same

        click.echo(f"{size_words(fetched)} that the lock does not have yet")
    if not changes:
        return False
    if yes or (not as_json and sys.stdin.isatty() and click.confirm("Fetch, verify and lock this?")):
        return True
    click.echo("nothing was changed; --yes does it", err=True)
    sys.exit(REFUSED)


def _shown(change: Any) -> Mapping[str, Any]:  # noqa: ANN401 - a Change, which `--help` does without
    both = {"old": change.old, "new": change.new}
    return {
        "source": (change.new or change.old).source,
        **{key: plain([one])[0] if one else None for key, one in both.items()},
        "fetched_bytes": change.fetched_bytes,
    }
