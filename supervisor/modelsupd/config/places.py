"""Where state and sockets live: the defaults for root, under systemd, and for a plain user."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelsupd.errors import ModelsupdError

if TYPE_CHECKING:
    from modelsupd.core.spec import Problem

#: `sun_path` of a unix socket holds 108 bytes, the NUL at its end included (unix(7)).
SUN_PATH_BYTES = 108

#: The longest path below the runtime directory: 12 hex digits of the replica's hash, a run number of 10 digits.
_LONGEST_SOCKET = f"runs/{'0' * 12}-{'0' * 10}/engine.sock"

#: The same where vLLM runs, whose processes talk through sockets that are named by a UUID. No replica lives to see a
#: million runs, and four bytes are what some home directories need.
LONGEST_OF_VLLM = f"runs/{'0' * 12}-{'0' * 6}/{'0' * 36}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the defaults depend on. `system_file` stands in for /etc/modelsupd/models.toml where it is given."""

    environ: Mapping[str, str]
    uid: int
    user: str
    home: Path
    cwd: Path
    linger_dir: Path = Path("/var/lib/systemd/linger")
    system_file: Path | None = None

    @classmethod
    def current(cls) -> Host:
        """Return this process's own. Raises ModelsupdError where the working directory is no more."""
        uid = os.getuid()
        home = os.environ.get("HOME", "")
        try:
            entry = pwd.getpwuid(uid)
            user, home = entry.pw_name, home or entry.pw_dir
        except KeyError:
            user = ""  # containers run users that no table knows; such a one does not linger
        try:
            cwd = Path.cwd()
        except FileNotFoundError:
            raise ModelsupdError(
                "cannot look for models.toml: the working directory was removed; cd elsewhere"
            ) from None
        return cls(environ=dict(os.environ), uid=uid, user=user, home=Path(home or "/"), cwd=cwd)

    @property
    def lingers(self) -> bool:
        """Tell whether this user's processes and runtime directory outlive the last logout (loginctl(1))."""
        return bool(self.user) and (self.linger_dir / self.user).exists()


@dataclass(frozen=True, slots=True)
class Directories:
    """`state_dir` is kept across reboots, `runtime_dir` holds sockets and facts about live runs. Both absolute."""

    state_dir: Path
    runtime_dir: Path


def directories(
    declared: tuple[str | None, str | None],
    host: Host,
    *,
    state_dir: Path | None = None,
    runtime_dir: Path | None = None,
) -> Directories:
    """Return both directories: the command line's, else the environment's, else the file's, else the defaults.

    `declared` is what the file says of state and runtime directory.
    """
    state = _first(host, state_dir, "MODELSUPD_STATE_DIR", declared[0]) or _default_state(host)
    runtime = _first(host, runtime_dir, "MODELSUPD_RUNTIME_DIR", declared[1]) or _default_runtime(host, state)
    return Directories(state, runtime)


def socket_path_problem(places: Directories, declared: str | None, longest: str = _LONGEST_SOCKET) -> Iterator[Problem]:
    """Yield a problem when an engine's socket below the runtime directory could not be bound.

    `declared` is what the file says of that directory, `longest` the longest path below it.
    """
    from modelsupd.core.spec import Problem  # noqa: PLC0415 - it takes long to import, and `status` does without

    needed = len(os.fsencode(places.runtime_dir / longest)) + 1
    if needed > SUN_PATH_BYTES:
        room = SUN_PATH_BYTES - len(longest) - 2
        used = len(os.fsencode(places.runtime_dir))
        value = declared or str(places.runtime_dir)
        why = f"too long for unix sockets below it: {used} bytes, at most {room}; set a shorter one with --runtime-dir"
        yield Problem(("daemon", "runtime_dir"), value, why)


def _first(host: Host, flag: Path | None, variable: str, declared: str | None) -> Path | None:
    # What the file says is absolute already: relative to the file, not to the working directory.
    for value in (flag, host.environ.get(variable), declared):
        if value:
            return host.cwd / value
    return None


def _default_state(host: Host) -> Path:
    given = host.environ.get("STATE_DIRECTORY", "").partition(":")[0]  # by systemd; several are joined with colons
    if given:
        return Path(given)
    if host.uid == 0:
        return Path("/var/lib/modelsupd")
    # The XDG base directory specification has relative values ignored.
    home = host.environ.get("XDG_STATE_HOME", "")
    return (Path(home) if home.startswith("/") else host.home / ".local" / "state") / "modelsupd"


def _default_runtime(host: Host, state: Path) -> Path:
    given = host.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    if host.uid == 0:
        return Path("/run/modelsupd")
    # Without linger this directory is removed at the last logout, under the feet of engines that go on.
    xdg = host.environ.get("XDG_RUNTIME_DIR", "")
    return Path(xdg) / "modelsupd" if xdg.startswith("/") and host.lingers else state / "run"
