"""Reads models.toml.

Two rules: every problem is reported at once, each with its path, its value and why; what is not built yet, not known
or out of range is refused, never ignored and never clamped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelsupd.config.file import locate, read, read_daemon
from modelsupd.config.listen import listen_address
from modelsupd.config.paths import absolute
from modelsupd.config.places import Directories, Host, socket_path_problem
from modelsupd.config.places import directories as choose
from modelsupd.core.spec import DaemonSpec, Declaration, Problem
from modelsupd.errors import ConfigError, dotted

__all__ = ["Config", "Directories", "Host", "check", "directories", "load", "locate", "schema"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A models.toml that can be used.

    `path` is the file, `declaration` what it says, with the paths of weights and binaries absolute; `metrics_listen`
    is host and port, or None for no scrape; `warnings` are for the log, each a sentence.
    """

    path: Path
    declaration: Declaration
    state_dir: Path
    runtime_dir: Path
    metrics_listen: tuple[str, int] | None
    warnings: tuple[str, ...] = ()


def load(
    path: Path | None = None,
    *,
    state_dir: Path | None = None,
    runtime_dir: Path | None = None,
    host: Host | None = None,
) -> Config:
    """Read and check the file at `path`, or the one that `locate` finds.

    `state_dir` and `runtime_dir` are the command line's and win over environment, file and defaults. Raises
    ConfigError with all problems at once.
    """
    host = host or Host.current()
    file = locate(path, host)
    raw = read(file)
    problems: list[Problem] = []
    declaration = _validate(raw, problems)
    declaration = absolute(declaration, file.parent, host, problems)
    places = choose(declaration.daemon, host, state_dir=state_dir, runtime_dir=runtime_dir)
    problems.extend(socket_path_problem(places, declaration.daemon))
    listen = listen_address(declaration.daemon.metrics_listen, problems)
    if problems:
        raise ConfigError(file, problems)
    return Config(
        path=file,
        declaration=declaration,
        state_dir=places.state_dir,
        runtime_dir=places.runtime_dir,
        metrics_listen=listen,
        warnings=tuple(_warnings(file, declaration)),
    )


def schema() -> dict[str, Any]:
    """Return the JSON Schema of models.toml, for editors."""
    from modelsupd.config.json_schema import schema as generate  # noqa: PLC0415 - see _validate

    return generate()


def _validate(raw: Mapping[str, Any], problems: list[Problem]) -> Declaration:
    # pydantic takes longer to import than `status` takes altogether, and `directories` does not need it.
    from modelsupd.config.validate import validate  # noqa: PLC0415 - for that reason

    return validate(raw, problems)


def check(path: Path | None = None, *, host: Host | None = None) -> Config:
    """Do what `load` does, and also look on disk: a file that is not there is a warning, because it may come later."""
    config = load(path, host=host)
    missing = tuple(_missing(config.declaration))
    return dataclasses.replace(config, warnings=config.warnings + missing)


def directories(
    path: Path | None = None,
    *,
    state_dir: Path | None = None,
    runtime_dir: Path | None = None,
    host: Host | None = None,
) -> Directories:
    """Return where state and sockets are, for commands that must also work while models.toml is broken or gone.

    Only `[daemon]` counts, and what is wrong elsewhere does not matter. Raises ConfigError where the directories would
    be a guess: for a file that was named and is not there, and for a mistake that touches these settings.
    """
    host = host or Host.current()
    named = path is not None or bool(host.environ.get("MODELSUPD_CONFIG"))
    daemon = DaemonSpec()
    if not (state_dir and runtime_dir):
        daemon = _daemon_entry(path, host, named=named)
    return choose(daemon, host, state_dir=state_dir, runtime_dir=runtime_dir)


def _daemon_entry(path: Path | None, host: Host, *, named: bool) -> DaemonSpec:
    try:
        file = locate(path, host)
    except ConfigError:
        if named:
            raise
        return DaemonSpec()
    entry = read_daemon(file)
    problems: list[Problem] = []
    if all(isinstance(entry.get(key, ""), str) for key in ("state_dir", "runtime_dir")):
        daemon = DaemonSpec(state_dir=entry.get("state_dir"), runtime_dir=entry.get("runtime_dir"))
        declaration = Declaration(daemon=daemon)
    else:
        declaration = _validate({"daemon": entry}, problems)
    declaration = absolute(declaration, file.parent, host, problems)
    mattering = [problem for problem in problems if problem.path[-1:] in {("state_dir",), ("runtime_dir",)}]
    if mattering:
        raise ConfigError(file, mattering)
    return declaration.daemon


def _warnings(file: Path, declaration: Declaration) -> list[str]:
    found = []
    if not declaration.models:
        found.append(f"{file} declares no model: there is nothing to run")
    holds_env = any(model.env for model in declaration.models.values())
    try:
        mode = file.stat().st_mode
    except OSError:
        return found  # replaced by an editor since it was read; whatever is there by then is for the next reading
    if holds_env and mode & 0o004:
        found.append(f"{file} sets environment values and every user can read it: chmod o-r if one is a secret")
    if mode & 0o002:
        found.append(f"{file} can be written by every user, who may so run any program as this one: chmod o-w")
    return found


def _missing(declaration: Declaration) -> list[str]:
    named: list[tuple[tuple[str, ...], str | None]] = []
    for kind, engine in declaration.engines.items():
        named += [(("engines", kind, "binary"), engine.binary), (("engines", kind, "python"), engine.python)]
    for name, model in declaration.models.items():
        named.append((("models", name, "weights"), model.weights))
        named.append((("models", name, "binary"), model.binary))
        named.append((("models", name, "python"), model.python))
        named.append((("models", name, "command"), model.command[0] if model.command else None))
    return [
        f"{dotted(path)} = '{value}': there is no such file now"
        for path, value in named
        if value and value.startswith("/") and not Path(value).exists()
    ]
