"""What the version of an engine that is installed says of its own flags, asked once and kept.

vLLM takes ten seconds to print its help, for it imports all of itself. So what it said is kept in `STATE/engines`, by
the interpreter and by device, inode, size and mtime of the package: an upgrade is asked anew. Whoever asks may wait: a
thread of the daemon's, before a start, or `modelsupd check`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.spec import EngineSpec, ModelSpec, Problem
from modelsupd.engines.base import Drifting, adapter, base_env
from modelsupd.runtime import modules

#: An answer that takes longer is gone without: the engine itself says what it does not know, and is not started again.
TIMEOUT_S = 25.0

_ASKING = threading.Lock()


def problems(
    spec: ModelSpec, engine: EngineSpec | None, state_dir: Path, *, timeout_s: float = TIMEOUT_S
) -> list[Problem]:
    """Return what of a model's flags its engine would not take, as it is installed; nothing where that is not told.

    Paths are as of `Adapter.problems`. Blocks for ten seconds and more when a version is asked for the first time.
    """
    kind = adapter(spec.engine)
    if not isinstance(kind, Drifting) or not spec.args:
        return []
    declared = kind.binary(spec, engine)
    python = shutil.which(declared) if declared else sys.executable
    told = _told(python, kind, spec, state_dir, timeout_s) if python else None
    return kind.drift(spec, told) if told else []


def failure(spec: ModelSpec, python: str, origin: str, state_dir: Path) -> Failure | None:
    """Return why it is no use to start the engine with these flags; `origin` is the file of its first module."""
    kind = adapter(spec.engine)
    if not isinstance(kind, Drifting) or not spec.args:
        return None
    told = _kept_or_asked(python, origin, kind, spec, state_dir, TIMEOUT_S)
    found = kind.drift(spec, told) if told else []
    words = "; ".join(f"{'.'.join(problem.path)} = {problem.value!r} {problem.why}" for problem in found)
    return Failure(FailureClass.BAD_FLAG, f"{words} ({python})") if found else None


def _told(python: str, kind: Drifting, spec: ModelSpec, state_dir: Path, timeout_s: float) -> str | None:
    package = adapter(spec.engine).modules[0]
    try:
        origin = modules.where(python, [package], _env(spec)).get(package)
    except modules.UnaskableError:
        return None
    if not origin:
        return None
    return _kept_or_asked(python, origin, kind, spec, state_dir, timeout_s)


def _kept_or_asked(
    python: str, origin: str, kind: Drifting, spec: ModelSpec, state_dir: Path, timeout_s: float
) -> str | None:
    kept = _kept(python, origin, state_dir)
    if kept is None:
        with _ASKING:  # of many replicas that start together one asks, and the others find its answer
            kept = _kept(python, origin, state_dir) or _asked(python, origin, kind, spec, state_dir, timeout_s)
    return kept


def _env(spec: ModelSpec) -> dict[str, str]:
    return {name: value for name, value in base_env(spec).items() if "{" not in value}


def _place(python: str, origin: str, state_dir: Path) -> Path:
    seen = os.stat(origin)  # noqa: PTH116 - a file's identity, as everywhere
    key = f"{python}\0{origin}\0{seen.st_dev}\0{seen.st_ino}\0{seen.st_size}\0{seen.st_mtime_ns}"
    return state_dir / "engines" / f"help-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _kept(python: str, origin: str, state_dir: Path) -> str | None:
    try:
        kept = json.loads(_place(python, origin, state_dir).read_bytes())
        return str(kept["told"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _asked(python: str, origin: str, kind: Drifting, spec: ModelSpec, state_dir: Path, timeout_s: float) -> str | None:
    try:
        with tempfile.TemporaryDirectory(prefix="modelsupd-") as home:
            done = subprocess.run(  # noqa: S603 - the operator's interpreter, which is about to be run as an engine
                [python, *kind.help],
                # A terminal's width would break what is read.
                env={**_env(spec), "HOME": home, "COLUMNS": "100", "NO_COLOR": "1", "DO_NOT_TRACK": "1"},
                cwd=home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=True,
            )
    except (OSError, subprocess.SubprocessError):
        return None
    told = done.stdout.decode(errors="replace")
    with contextlib.suppress(OSError):  # kept if it can be; who checks may not write there
        _keep(_place(python, origin, state_dir), python, told)
    return told


def _keep(path: Path, python: str, told: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)  # not its parents: no state directory is made to check a file
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps({"v": 1, "python": python, "told": told}), encoding="utf-8")
    partial.replace(path)
