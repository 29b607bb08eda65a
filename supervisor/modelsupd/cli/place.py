"""What every verb needs: which directories are meant, the daemon's client, and what the journal tells without one.

Heavy modules are imported where they are needed only: the answer to `status` is a socket away and should feel like it.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelsupd.control.client import ApiError, Client, NoDaemon, Unanswered
from modelsupd.control.words import Timeline, parsed

if TYPE_CHECKING:
    from modelsupd.config import Config, Directories
    from modelsupd.runtime.journal import Reading

REFUSED, WRONG_USE, NO_DAEMON = 1, 2, 3

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NOT_FOUND, _UNUSABLE = 404, 422


class Stop(Exception):  # noqa: N818 - it ends the command and is no defect
    """Ends the command with these words and this exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        """Keep both."""
        super().__init__(message)
        self.status = status


def exit_status(error: Exception) -> int | None:
    """Return the exit status for an error whose words are meant for people, None for a defect of ours."""
    if isinstance(error, Stop):
        return error.status
    if isinstance(error, NoDaemon):
        return NO_DAEMON
    if isinstance(error, ApiError):
        return WRONG_USE if error.status in (_NOT_FOUND, _UNUSABLE) else REFUSED
    if isinstance(error, Unanswered):
        return REFUSED
    from modelsupd.errors import ConfigError, ModelsupdError  # noqa: PLC0415 - not needed while all goes well

    if isinstance(error, ModelsupdError):
        return WRONG_USE if isinstance(error, ConfigError) else REFUSED
    return None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of replicas: by a daemon (`running`), or by the journal that it left in `state_dir`."""

    names: tuple[str, ...]
    running: bool
    state_dir: Path


@dataclass(slots=True)
class Place:
    """The global options, and what they lead to."""

    config_file: Path | None = None
    state_dir: Path | None = None
    runtime_dir: Path | None = None

    def directories(self) -> Directories:
        """Return the directories; raises ConfigError where a named configuration cannot be read."""
        from modelsupd.config import directories  # noqa: PLC0415 - `completion` and `--help` do without

        return directories(self.config_file, state_dir=self.state_dir, runtime_dir=self.runtime_dir)

    def config(self) -> Config:
        """Read the whole configuration; raises ConfigError with all problems."""
        from modelsupd.config import load  # noqa: PLC0415 - the same

        return load(self.config_file, state_dir=self.state_dir, runtime_dir=self.runtime_dir)

    def client(self) -> Client:
        """Return the client of the daemon that would run here."""
        return Client(self.directories().runtime_dir)

    def reading(self, state_dir: Path | None = None) -> Reading:
        """Return what the newest segment of the journal says."""
        from modelsupd.runtime.journal import Damaged, read  # noqa: PLC0415 - with a daemon it is not needed

        directory = (state_dir or self.directories().state_dir) / "journal"
        try:
            return read(directory)
        except Damaged as error:
            raise Stop(str(error)) from error
        except OSError as error:
            raise Stop(f"cannot read '{directory}': {(error.strerror or str(error)).lower()}") from error

    def history(self, state_dir: Path) -> Iterator[Mapping[str, Any]]:
        """Yield all records of the journal, oldest first."""
        from modelsupd.runtime.journal import Damaged, history  # noqa: PLC0415 - the same

        directory = state_dir / "journal"
        try:
            yield from history(directory)
        except Damaged as error:
            raise Stop(str(error)) from error
        except OSError as error:
            raise Stop(f"cannot read '{directory}': {(error.strerror or str(error)).lower()}") from error

    def declared(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the models as they stand in the file, unchecked; {} where it cannot be read. For words only."""
        from modelsupd.config.file import locate, read  # noqa: PLC0415 - only without a daemon
        from modelsupd.config.places import Host  # noqa: PLC0415 - the same
        from modelsupd.errors import ConfigError  # noqa: PLC0415 - the same

        try:
            models = read(locate(self.config_file, Host.current())).get("models", {})
        except ConfigError:
            return {}
        return {name: entry for name, entry in models.items() if isinstance(entry, dict)}

    def known(self, target: str) -> Known:
        """Return the replicas that are meant by a model, an alias or a replica; raises for an unknown one."""
        client = self.client()
        try:
            names = tuple(client.targets(target))
            return Known(names, running=True, state_dir=Path(client.version()["state_dir"]))
        except NoDaemon:
            state_dir = self.directories().state_dir
        from modelsupd.control.why import names_of  # noqa: PLC0415 - only without a daemon

        states = self.reading(state_dir).states
        aliases = {name: entry.get("aliases") or () for name, entry in self.declared().items()}
        names = tuple(names_of(states, target, aliases))
        if not names:
            known = sorted({state["model"] for state in states.values()} | set(states))
            near = difflib.get_close_matches(target, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it knows {', '.join(known) or 'none'}"
            raise Stop(f"there is no model or replica '{target}' in the journal in '{state_dir}'; {hint}", WRONG_USE)
        return Known(names, running=False, state_dir=state_dir)


def timeline(start: Mapping[str, Any] | None) -> Timeline:
    """Return how the journal's instants are to be read: `start` is the record of the daemon that wrote them.

    Of this boot they are on the clock that still runs; of an earlier one they are put where that daemon started.
    """
    now = datetime.now(UTC)
    started = parsed((start or {}).get("wall"))
    if start is None or started is None or start.get("boot_id") == _BOOT_ID.read_text(encoding="ascii").strip():
        return Timeline(time.monotonic(), now, now)
    return Timeline(start["at"], started, now)


def complete(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Return the models and replicas that begin with what was typed; nothing where nobody knows any."""
    options = (ctx.find_root().params.get(name) for name in ("config_file", "state_dir", "runtime_dir"))
    place = Place(*options)
    try:
        try:
            status = place.client().status()
            names = [name for model in status["models"] for name in _names_in(model)]
        except NoDaemon:
            states = place.reading().states
            names = sorted({state["model"] for state in states.values()} | set(states))
    except Exception:  # noqa: BLE001 - whoever presses TAB is not helped by an error on the screen
        return []
    return [name for name in names if name.startswith(incomplete)]


def _names_in(model: Mapping[str, Any]) -> list[str]:
    return [model["name"], *(replica["name"] for replica in model["replicas"])]


#: The argument of the verbs that are about a model or one of its replicas.
target_argument = click.argument("target", metavar="MODEL[/N]", shell_complete=complete)
