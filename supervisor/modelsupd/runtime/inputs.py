"""Looks for what a run needs before it is started: the engine's program and the weights.

The fingerprint of both is (device, inode, size, mtime) of each file: a failed replica is tried again when it changes.
Of an engine that is a Python package, that of its first module belongs to it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec
from modelsupd.engines.base import Files, adapter, base_env
from modelsupd.runtime import installed, modules
from modelsupd.weights import folders
from modelsupd.weights.base import Part, Role, Settings, WeightsError
from modelsupd.weights.lock import Lock
from modelsupd.weights.look import Whole, located
from modelsupd.weights.look import look as look_at_weights
from modelsupd.weights.records import Records
from modelsupd.weights.sources import parts
from modelsupd.weights.wire import Job

#: How an engine that is a Python package is installed: by an extra of our own package, or, where its dependencies are
#: its own affair, in an environment of its own.
_ADVICE = {
    Engine.LLAMA_CPP_PYTHON: "pip install 'modelsupd[llama-cpp]', or set",
    Engine.VLLM: "install vllm in an environment of its own, and set",
}


_NOTHING = Files()


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found: the program's path, the fingerprint, and why a start would be useless, if so.

    `files` are what the engine is given, `evidence` how they were proven. Where that is not so yet, `job` is the work
    that would make them whole, and `todo` why it is needed.
    """

    binary: str
    fingerprint: str
    failure: Failure | None
    files: Files = _NOTHING
    evidence: str = ""
    job: Job | None = None
    todo: str = ""


@dataclass(frozen=True, slots=True)
class Stock:
    """Where weights are kept, and what the lock file says of them."""

    settings: Settings
    lock: Lock


def look(spec: ModelSpec, engine: EngineSpec | None, stock: Stock) -> Inputs:
    """Look at program and weights. Blocks on file systems that do, so call it in a thread."""
    declared = adapter(spec.engine).binary(spec, engine)
    binary = declared if "/" in declared else shutil.which(declared) or "" if declared else sys.executable
    found = parts(spec)
    locked = tuple(stock.lock.of(part) for part in found)
    seen = look_at_weights(found, locked, stock.settings, spec.engine)
    prints = f"{_fingerprint(binary)} {seen.fingerprint}"
    failure = _binary_failure(spec, declared, binary)
    if failure is None and (needed := adapter(spec.engine).modules):
        failure, origin = _modules_failure(spec, binary, needed)
        prints += f" {_fingerprint(origin)}"
        failure = failure or installed.failure(spec, binary, origin, stock.settings.state_dir)
    failure = failure or seen.failure or (_layout_failure(seen.whole) if not seen.todo else None)
    if failure is not None or not seen.todo:
        files = (
            files_of(spec, stock) if failure else _files(found, [part.path if part else None for part in seen.whole])
        )
        return Inputs(binary, prints, failure, files, seen.evidence)
    job = Job(found, locked, stock.settings, spec.engine)
    return Inputs(binary, prints, None, files_of(spec, stock), "", job, seen.todo)


def _layout_failure(whole: Sequence[Whole | None]) -> Failure | None:
    """Make the folders that the engine is given; return why it cannot be done, if so."""
    try:
        for part in whole:
            if part is not None and part.links:
                folders.lay_out(part.path, part.links)
    except WeightsError as error:
        return error.failure
    return None


def files_of(spec: ModelSpec, stock: Stock) -> Files:
    """Return what the engine would be given, whole or not, for a command that is only shown."""
    found = parts(spec)
    records = Records(stock.settings.state_dir)
    pins = [stock.lock.of(part) or ((record := records.get(part)) and record.pinned) or None for part in found]
    paths = [located(part, pinned, stock.settings) for part, pinned in zip(found, pins, strict=True)]
    return _files(found, list(paths))


def _files(found: Sequence[Part], paths: Sequence[Path | None]) -> Files:
    by_role: dict[Role, list[str]] = {role: [] for role in Role}
    for part, path in zip(found, paths, strict=True):
        by_role[part.role].append(str(path))
    one = {role: next(iter(of_role), None) for role, of_role in by_role.items()}
    return Files(one[Role.WEIGHTS], one[Role.MMPROJ], one[Role.DRAFT], tuple(by_role[Role.LORA]))


def _modules_failure(spec: ModelSpec, python: str, needed: tuple[str, ...]) -> tuple[Failure | None, str]:
    """Return why that interpreter cannot run the engine, if so, and the file of the first module."""
    advice = f'{_ADVICE[spec.engine]} python in [engines."{spec.engine}"]'
    env = {name: value for name, value in base_env(spec).items() if "{" not in value}
    try:
        found = modules.where(python, needed, env)
    except modules.UnaskableError as error:
        words = f"'{python}' cannot be used as a Python interpreter: {error}; {advice}"
        return Failure(FailureClass.MISSING_BINARY, words), ""
    missing = [name for name in needed if found.get(name) is None]
    failure = Failure(FailureClass.MISSING_LIBRARY, f"'{python}' has no {', '.join(missing)}: {advice}")
    return failure if missing else None, found.get(needed[0]) or ""


def _binary_failure(spec: ModelSpec, declared: str, binary: str) -> Failure | None:
    names = "python" if adapter(spec.engine).modules else "binary"
    setting = "command" if spec.engine is Engine.COMMAND else f'{names} in [engines."{spec.engine}"]'
    if not binary:
        words = f"there is no '{declared}' on PATH; set {setting}, or install it"
        return Failure(FailureClass.MISSING_BINARY, words)
    if not Path(binary).exists():
        return Failure(FailureClass.MISSING_BINARY, f"there is no file '{binary}'; it is named by {setting}")
    if Path(binary).is_dir() or not os.access(binary, os.X_OK):
        return Failure(FailureClass.MISSING_BINARY, f"'{binary}' cannot be executed; it is named by {setting}")
    return None


def _fingerprint(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116 - the same
    except OSError as error:
        return f"{error.errno}"
    return f"{found.st_dev:x}:{found.st_ino:x}:{found.st_size:x}:{found.st_mtime_ns:x}"
