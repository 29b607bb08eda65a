"""What a run is started with, what is said of it, and the errors of starting it."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelsupd.core.events import Exit, Failure, FailureClass, Process
from modelsupd.runtime.identity import Pidfd, Token
from modelsupd.runtime.rundir import RunDir
from modelsupd.runtime.shim import engine
from modelsupd.runtime.vitals import TreeVitals

ORPHAN_GRACE_S = 1.0
"""How long what the engine leaves behind may take to end after SIGTERM."""

_BAD_BINARY = frozenset({errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a run is started with. `argv` and the values of `env` may hold {host}, {port}, and what `places` fills in.

    `log_max_bytes` is the size at which the log is rotated, `log_files` how many older ones are kept, `backstop_s` how
    long after SIGTERM the shim kills the run by itself. Without `cwd` the engine starts in its TMPDIR. `gpus` are those
    that it was given, by UUID.
    """

    replica: str
    run: int
    digest: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    listen: Literal["unix", "tcp"]
    log_max_bytes: int
    log_files: int
    backstop_s: float
    cwd: str | None = None
    gpus: tuple[str, ...] = ()


class SpawnError(Exception):
    """There is no engine; `failure` says why. Unless `cleared`, something of the run may still live."""

    def __init__(self, failure: Failure) -> None:
        """Hold the failure."""
        super().__init__(failure.detail)
        self.failure = failure
        self.cleared = True


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended.

    `cleared`: nothing of it is left; `pids_left` is what was alive when this was written; `asked`: its shim was told to
    end it, by a daemon or by `modelsupd reap`.
    """

    exit: Exit
    cleared: bool
    pids_left: tuple[int, ...] = ()
    note: str = ""
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A run that recovery came upon.

    `process` is None if it does not live any more, and then `ended` says what is known of its end, and `gpus` which it
    was given. Where `token_matches` is false the directory is another installation's, which is left alone.
    """

    replica: str
    run: int
    process: Process | None
    token_matches: bool
    ended: Ended | None
    gpus: tuple[str, ...] = ()


class Held:
    """A run whose shim and engine we hold."""

    def __init__(self, process: Process, shim: Pidfd, engine: Pidfd) -> None:
        """Take over both descriptors."""
        self.process = process
        self.shim = shim
        self.engine = engine
        self.vitals = TreeVitals()

    def close(self) -> None:
        """Let go of both; neither notices."""
        self.shim.close()
        self.engine.close()


def spec_of(launch: Launch, place: RunDir, tmp: Path, token: Token, boot_id: str) -> dict[str, Any]:
    """Return the spec.json of a run."""
    return {
        "v": 1,
        "replica": launch.replica,
        "run": launch.run,
        "digest": launch.digest,
        "token": str(token),
        "boot_id": boot_id,
        "argv": list(launch.argv),
        "env": dict(launch.env),
        "cwd": launch.cwd,
        "listen": launch.listen,
        "socket": str(place.socket),
        "tmp": str(tmp),
        "cache": str(place.cache(launch.replica)),
        "state": str(place.state),
        "log_max_bytes": launch.log_max_bytes,
        "log_files": launch.log_files,
        "backstop_s": launch.backstop_s,
        "orphan_grace_s": ORPHAN_GRACE_S,
        "gpus": list(launch.gpus),
    }


def filled(spec: Mapping[str, Any], process: Process | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return argv and environment as the engine gets them; without a process its port is not known and stays {port}."""
    fills = engine.places(spec)
    if spec["listen"] == "tcp":
        fills["host"] = engine.HOST
        if process is not None:
            fills["port"] = process.endpoint.rpartition(":")[2]
    argv, env = engine.filled(spec, fills)
    return tuple(argv), env


def gpus_of(spec: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the GPUs that spec.json says the run was given; one of an older version knows of none."""
    return tuple((spec or {}).get("gpus", ()))


def process_of(record: Mapping[str, Any], gpus: tuple[str, ...]) -> Process:
    """Return what run.json, or the same as a report, says of a run that was given these GPUs."""
    return Process(
        run=record["run"],
        pid=record["engine"]["pid"],
        shim_pid=record["shim"]["pid"],
        endpoint=record["endpoint"],
        digest=record["digest"],
        gpus=gpus,
    )


def spawn_error(launch: Launch, why: Exception | str, number: int | None = None) -> SpawnError:
    """Return the error of a spawn that failed for lack of something here, not because of the binary."""
    if isinstance(why, OSError):
        number = why.errno
    text = (why.strerror if isinstance(why, OSError) else None) or str(why)
    words = f"cannot start run {launch.run} of {launch.replica!r}: {text[:1].lower()}{text[1:]}"
    kind = FailureClass.NO_SPACE if number in (errno.ENOSPC, errno.EDQUOT) else FailureClass.SPAWN
    return SpawnError(Failure(kind, words))


def refusal(launch: Launch, answer: Mapping[str, Any]) -> SpawnError:
    """Return the error that a shim reported."""
    if answer["step"] != "exec" or answer["errno"] not in _BAD_BINARY:
        return spawn_error(launch, answer["why"], answer["errno"])
    words = f"cannot execute {launch.argv[0]!r}: {answer['why'][:1].lower()}{answer['why'][1:]}"
    if answer["errno"] == errno.ENOENT and Path(launch.argv[0]).exists():
        words += " (the interpreter that its first line names, or the loader that it was linked with, is missing)"
    return SpawnError(Failure(FailureClass.MISSING_BINARY, words))
