"""Looks for what a run needs before it is started: the engine's program and the weights.

The fingerprint of both is (device, inode, size, mtime) of each: a failed replica is tried again when it changes.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec
from modelsupd.engines.base import adapter


@dataclass(frozen=True, slots=True)
class Inputs:
    """What was found: the program's path, the fingerprint, and why a start would be useless, if so."""

    binary: str
    fingerprint: str
    failure: Failure | None


def look(spec: ModelSpec, engine: EngineSpec | None) -> Inputs:
    """Look at program and weights. Blocks on file systems that do, so call it in a thread."""
    declared = adapter(spec.engine).binary(spec, engine)
    binary = declared if "/" in declared else shutil.which(declared) or ""
    prints = f"{_fingerprint(binary)} {_fingerprint(spec.weights) if spec.weights else '-'}"
    failure = _binary_failure(spec, declared, binary) or _weights_failure(spec)
    return Inputs(binary, prints, failure)


def _binary_failure(spec: ModelSpec, declared: str, binary: str) -> Failure | None:
    setting = "command" if spec.engine is Engine.COMMAND else f'binary in [engines."{spec.engine}"]'
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
    if spec.engine is Engine.LLAMA_CPP and not stat.S_ISREG(found.st_mode):
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
