"""What the verbs about weights share: which models are meant, how an interruption ends one, how the lock is written."""

from __future__ import annotations

import difflib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelsupd.cli.owner import as_owner
from modelsupd.cli.place import WRONG_USE, Place, Stop

if TYPE_CHECKING:
    from modelsupd.config import Config
    from modelsupd.core.spec import ModelSpec
    from modelsupd.weights.base import Part, Pinned, Settings
    from modelsupd.weights.lock import Lock

#: What is said after the lock was changed.
TAKE_OVER = "'modelsupd reload' has a running daemon take it over; engines that run go on with what they loaded"

#: What huggingface_hub is told before it is imported: bars and bytes are ours.
_FOR_HUB = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}


@dataclass(frozen=True, slots=True)
class Model:
    """A declared model with the parts that it loads, and what the lock says of each."""

    name: str
    spec: ModelSpec
    parts: tuple[Part, ...]
    locked: tuple[Pinned | None, ...]

    @property
    def of_hub(self) -> Model:
        """Return the model with nothing but the parts that come from a hub."""
        from modelsupd.weights.base import HubSource  # noqa: PLC0415 - `--help` does without

        both = [pair for pair in zip(self.parts, self.locked, strict=True) if isinstance(pair[0].source, HubSource)]
        return Model(self.name, self.spec, tuple(part for part, _ in both), tuple(locked for _, locked in both))


def meant(config: Config, names: Sequence[str]) -> tuple[Model, ...]:
    """Return the models that are meant by names or aliases, each once; all where none is named. Raises Stop."""
    from modelsupd.weights.sources import parts  # noqa: PLC0415 - `--help` does without

    declared = config.declaration.models
    by_name = {alias: name for name, spec in declared.items() for alias in (name, *spec.aliases)}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        near = difflib.get_close_matches(unknown[0], by_name, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"declared are {', '.join(declared) or 'none'}"
        raise Stop(f"there is no model '{unknown[0]}' in '{config.path}'; {hint}", WRONG_USE)
    found = []
    for name in dict.fromkeys(by_name[name] for name in names) if names else declared:
        loaded = parts(declared[name])
        found.append(Model(name, declared[name], loaded, tuple(config.lock.of(part) for part in loaded)))
    return tuple(found)


# Interruptions


class Interruption(threading.Event):
    """Set by the first SIGINT or SIGTERM; `number` is which one it was."""

    number = signal.SIGINT

    @property
    def status(self) -> int:
        """Return the exit status that says so."""
        return 128 + self.number


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Yield an event that the first interruption sets, so that work ends in order; the second ends it at once."""
    stop = Interruption()

    def interrupted(number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.number = signal.Signals(number)
        stop.set()

    before = {number: signal.signal(number, interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def told(doing: str = "") -> Iterator[None]:
    """End the command with the words of an error of weights, or of a file system.

    `doing` stands before what does not say itself what cannot be done.
    """
    from modelsupd.weights.base import WeightsError  # noqa: PLC0415 - `--help` does without

    try:
        yield
    except WeightsError as error:
        raise Stop(str(error) if str(error).startswith("cannot ") else f"{doing}{error}") from error
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise Stop(f"cannot use '{error.filename}': {(error.strerror or str(error)).lower()}") from error


def prepare(settings: Settings) -> None:
    """Make ready for jobs in this process: the state directory, and what huggingface_hub reads when it is imported."""
    with told():
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(_FOR_HUB)


def whole_here(
    model: Model, settings: Settings, report: Callable[[Any], None], stop: Interruption
) -> tuple[Pinned, ...]:
    """Verify what of a model is here, and keep that it is whole; return what each part is. No hub is asked.

    Raises Stopped, and WeightsError where something is missing or wrong.
    """
    from modelsupd.weights.base import WeightsError  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.job import carry_out  # noqa: PLC0415 - the same
    from modelsupd.weights.look import look  # noqa: PLC0415 - the same
    from modelsupd.weights.wire import Job  # noqa: PLC0415 - the same

    here = replace(settings, offline=True)
    try:
        return carry_out(Job(model.parts, model.locked, here, model.spec.engine), report, stop)
    except WeightsError as error:
        # The job says what it could not fetch; nobody wanted it to.
        seen = look(model.parts, model.locked, here, model.spec.engine)
        raise WeightsError(error.kind, seen.todo or str(error)) from error


# Between root and the owner of the state directory


def plain(pinned: Sequence[Pinned]) -> list[dict[str, Any]]:
    """Return entries as JSON can hold them."""
    return [asdict(one) for one in pinned]


def from_plain(entries: Sequence[Mapping[str, Any]]) -> tuple[Pinned, ...]:
    """Return what `plain` made."""
    from modelsupd.weights.records import pinned_of_json  # noqa: PLC0415 - `--help` does without

    return tuple(pinned_of_json(entry) for entry in entries)


# The lock


def refuse_unwritable(lock_file: Path) -> None:
    """Raise Stop where the lock could not be written in the end, before anything is fetched for it."""
    folder = lock_file.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        why = "you may not write there" if folder.is_dir() else "there is no such folder"
        raise Stop(f"cannot write '{lock_file}': {why}; 'modelsupd pull --locked' writes nothing")


def write_lock(config: Config, change: Callable[[Lock], Lock]) -> tuple[str, ...]:
    """Change the lock as it is now, and return what is different then, in lines; () where nothing is."""
    from modelsupd.config.weights import lock_file  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights import lock as locks  # noqa: PLC0415 - the same
    from modelsupd.weights.lockdiff import diff  # noqa: PLC0415 - the same

    path = lock_file(config.path)
    old = locks.read(path)
    new = change(old)
    if locks.written(new) == locks.written(old):
        return ()
    _checked(new)

    def write() -> None:
        try:
            locks.write(path, new)
        except OSError as error:
            raise Stop(f"cannot write '{path}': {(error.strerror or str(error)).lower()}") from error

    as_owner(path.resolve().parent, write)
    return tuple(line for one in diff(old, new) for line in str(one).split("\n"))


def _checked(lock: Lock) -> None:
    """Raise Stop for entries that could not be read again: what the owner's process said is not believed."""
    from modelsupd.errors import describe  # noqa: PLC0415 - `--help` does without
    from modelsupd.weights.lock import entry_of, pinned_of  # noqa: PLC0415 - the same

    problems: list[Any] = []
    for entry in lock.entries:
        pinned_of(entry_of(entry), ("source",), problems)
    if problems:
        raise Stop(f"cannot lock what was found: {describe(problems[0])}")


# Arguments


def complete_models(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the models of the configuration that begin with what was typed; nothing where it cannot be read."""
    place = Place(ctx.find_root().params.get("config_file"))
    try:
        return [name for name in place.declared() if name.startswith(incomplete)]
    except Exception:  # noqa: BLE001 - whoever presses TAB is not helped by an error on the screen
        return []


models_argument = click.argument("models", metavar="[MODEL]...", nargs=-1, shell_complete=complete_models)
json_option = click.option("--json", "as_json", is_flag=True, help="Print what scripts rely on.")


def print_json(document: object) -> None:
    """Print a document on one line."""
    click.echo(json.dumps(document))
