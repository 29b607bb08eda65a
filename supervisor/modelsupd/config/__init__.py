"""Reads models.toml.

Two rules: every problem is reported at once, each with its path, its value and why; what is not built yet, not known
or out of range is refused, never ignored and never clamped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelsupd.config.file import locate, read, read_daemon
from modelsupd.config.paths import Resolver, absolute
from modelsupd.config.places import LONGEST_OF_VLLM, Directories, Host, socket_path_problem
from modelsupd.config.places import directories as choose
from modelsupd.errors import ConfigError, dotted

if TYPE_CHECKING:
    from modelsupd.core.spec import Declaration, Problem
    from modelsupd.weights.base import Settings
    from modelsupd.weights.lock import Lock

__all__ = ["Config", "Directories", "Host", "check", "directories", "load", "locate", "schema"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A models.toml that can be used.

    `path` is the file, `declaration` what it says, with the paths of weights and binaries absolute; `metrics_listen`
    is host and port, or None for no scrape; `gateway_listen` are host and port of the gateway's addresses, none where
    there is no gateway; `weights` is `[weights]` with its defaults filled in, `lock` the lock file
    beside `path`; `warnings` are for the log, each a sentence.
    """

    path: Path
    declaration: Declaration
    state_dir: Path
    runtime_dir: Path
    metrics_listen: tuple[str, int] | None
    weights: Settings
    lock: Lock
    gateway_listen: tuple[tuple[str, int], ...] = ()
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
    from modelsupd.config import gateway, weights  # noqa: PLC0415 - see _validate
    from modelsupd.config.listen import listen_address  # noqa: PLC0415 - the same

    host = host or Host.current()
    file = locate(path, host)
    raw = read(file)
    problems: list[Problem] = []
    declaration = _validate(raw, problems)
    declaration = absolute(declaration, file.parent, host, problems)
    daemon = declaration.daemon
    places = choose((daemon.state_dir, daemon.runtime_dir), host, state_dir=state_dir, runtime_dir=runtime_dir)
    has_vllm = any(model.engine == "vllm" for model in declaration.models.values())
    longest = (LONGEST_OF_VLLM,) if has_vllm else ()
    problems.extend(socket_path_problem(places, daemon.runtime_dir, *longest))
    listen = listen_address(daemon.metrics_listen, problems)
    problems.extend(gateway.closed(declaration.gateway, places.state_dir))
    lock_file = weights.lock_file(file)
    settings = weights.settings(declaration.weights, host, places.state_dir, lock_file, problems)
    lock = weights.read_lock(lock_file, declaration.models, problems)
    if problems:
        raise ConfigError(file, problems)
    return Config(
        path=file,
        declaration=declaration,
        state_dir=places.state_dir,
        runtime_dir=places.runtime_dir,
        metrics_listen=listen,
        weights=settings,
        lock=lock,
        gateway_listen=gateway.addresses(declaration.gateway),
        warnings=(*_warnings(file, declaration), *gateway.warnings(declaration.gateway, places.state_dir)),
    )


def schema() -> dict[str, Any]:
    """Return the JSON Schema of models.toml, for editors."""
    from modelsupd.config.json_schema import schema as generate  # noqa: PLC0415 - see _validate

    return generate()


def _validate(raw: Mapping[str, Any], problems: list[Problem]) -> Declaration:
    # pydantic takes longer to import than `status` takes altogether, the declarations a sixth of it, and `directories`
    # needs neither.
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
    declared: tuple[str | None, str | None] = (None, None)
    if not (state_dir and runtime_dir):
        declared = _declared(path, host, named=named)
    return choose(declared, host, state_dir=state_dir, runtime_dir=runtime_dir)


def _declared(path: Path | None, host: Host, *, named: bool) -> tuple[str | None, str | None]:
    try:
        file = locate(path, host)
    except ConfigError:
        if named:
            raise
        return None, None
    entry = read_daemon(file)
    problems: list[Problem] = []
    given = entry.get("state_dir"), entry.get("runtime_dir")
    if not all(isinstance(value, str | None) for value in given):
        daemon = _validate({"daemon": entry}, problems).daemon
        given = daemon.state_dir, daemon.runtime_dir
    resolver = Resolver(file.parent, host, problems)
    state_dir = resolver.path(("daemon", "state_dir"), given[0] or None)
    runtime_dir = resolver.path(("daemon", "runtime_dir"), given[1] or None)
    mattering = [problem for problem in problems if problem.path[-1:] in {("state_dir",), ("runtime_dir",)}]
    if mattering:
        raise ConfigError(file, mattering)
    return state_dir, runtime_dir


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
    named: list[tuple[tuple[str, ...], str | None]] = [(("weights", "token_file"), declaration.weights.token_file)]
    if declaration.gateway is not None:
        named += [(("gateway", part), getattr(declaration.gateway, part)) for part in ("tls_cert", "tls_key")]
    for kind, engine in declaration.engines.items():
        named += [(("engines", kind, "binary"), engine.binary), (("engines", kind, "python"), engine.python)]
    for name, model in declaration.models.items():
        named += [(("models", name, part), getattr(model, part)) for part in ("weights", "mmproj", "draft")]
        named += [(("models", name, "lora", f"[{index}]"), lora) for index, lora in enumerate(model.lora)]
        named.append((("models", name, "binary"), model.binary))
        named.append((("models", name, "python"), model.python))
        named.append((("models", name, "command"), model.command[0] if model.command else None))
    return [
        f"{dotted(path)} = '{value}': there is no such file now"
        for path, value in named
        if value and value.startswith("/") and not Path(value).exists()
    ]
