"""Looks for what a run needs before it is started: the engine's program and the weights.

The fingerprint of both is (device, inode, size, mtime) of each: a failed replica is tried again when it changes. Of
an engine that is a Python package, that of its first module belongs to it.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec
from modelsupd.engines.base import adapter, base_env
from modelsupd.runtime import modules

#: The extra of our own package by which an engine that is a Python package is installed.
_EXTRAS = {Engine.LLAMA_CPP_PYTHON: "llama-cpp"}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found: the program's path, the fingerprint, and why a start would be useless, if so."""

    binary: str
    fingerprint: str
    failure: Failure | None


def look(spec: ModelSpec, engine: EngineSpec | None) -> Inputs:
    """Look at program and weights. Blocks on file systems that do, so call it in a thread."""
    declared = adapter(spec.engine).binary(spec, engine)
    binary = declared if "/" in declared else shutil.which(declared) or "" if declared else sys.executable
    prints = f"{_fingerprint(binary)} {_fingerprint(spec.weights) if spec.weights else '-'}"
    failure = _binary_failure(spec, declared, binary)
    if failure is None and (needed := adapter(spec.engine).modules):
        failure, origin = _modules_failure(spec, binary, needed)
        prints += f" {_fingerprint(origin)}"
    return Inputs(binary, prints, failure or _weights_failure(spec))


def _modules_failure(spec: ModelSpec, python: str, needed: tuple[str, ...]) -> tuple[Failure | None, str]:
    """Return why that interpreter cannot run the engine, if so, and the file of the first module."""
    advice = f"pip install 'modelsupd[{_EXTRAS[spec.engine]}]', or set python in [engines.\"{spec.engine}\"]"
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


def _weights_failure(spec: ModelSpec) -> Failure | None:
    if spec.weights is None:
        return None
    try:
        found = os.stat(spec.weights)  # noqa: PTH116 - one call for existence, kind and size
    except OSError as error:
        words = f"cannot read the weights '{spec.weights}': {error.strerror}"
        return Failure(FailureClass.BAD_WEIGHTS, words)
    if spec.engine in (Engine.LLAMA_CPP, Engine.LLAMA_CPP_PYTHON) and not stat.S_ISREG(found.st_mode):
        return Failure(FailureClass.BAD_WEIGHTS, f"the weights '{spec.weights}' are not a regular file")
    if stat.S_ISREG(found.st_mode) and found.st_size == 0:
        return Failure(FailureClass.BAD_WEIGHTS, f"the weights '{spec.weights}' are empty")
    if not os.access(spec.weights, os.R_OK):
        words = f"cannot read the weights '{spec.weights}': permission denied for uid {os.getuid()}"
        return Failure(FailureClass.BAD_WEIGHTS, words)
    return None


def _fingerprint(path: str) -> str:
    try:
        found = os.stat(path)  # noqa: PTH116 - the same
    except OSError as error:
        return f"{error.errno}"
    return f"{found.st_dev:x}:{found.st_ino:x}:{found.st_size:x}:{found.st_mtime_ns:x}"
