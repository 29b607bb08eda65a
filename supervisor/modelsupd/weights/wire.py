"""What the daemon and its worker say to one another: one JSON object a line, each with its version.

The daemon writes one job and then holds the pipe open: its end is the daemon's. The worker writes progress, what became
of each file, and last how it ended. The worker's answers are for people; what is on disk is looked at afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelsupd.core.events import Failure, FailureClass
from modelsupd.weights.base import FileDone, HubSource, LocalSource, Part, Pin, Pinned, Progress, Role, Settings, Source

VERSION = 1


@dataclass(frozen=True, slots=True)
class Job:
    """Make the parts of a model whole: fetch what is missing, verify what is not verified yet.

    `locked` are the lock's entries, one a part, None where the lock has none. `engine` tells what files a folder needs.
    """

    parts: tuple[Part, ...]
    locked: tuple[Pinned | None, ...]
    settings: Settings
    engine: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The job's end; without a failure everything is whole."""

    failure: Failure | None = None


Report = Progress | FileDone | Finished
_REPORTS: Mapping[str, type[Any]] = {kind.__name__: kind for kind in (Progress, FileDone, Finished)}
_PATHS = ("cache_dir", "state_dir", "token_file", "lock_file")


def job_line(job: Job) -> bytes:
    """Return a job as a line."""
    plain = {
        "v": VERSION,
        "parts": [asdict(part) | {"source": _source(part.source)} for part in job.parts],
        "locked": [asdict(pinned) if pinned else None for pinned in job.locked],
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in _settings(job).items()},
        "engine": job.engine,
    }
    return json.dumps(plain).encode() + b"\n"


def read_job(line: bytes) -> Job:
    """Return the job of a line; raises ValueError for another version, which an upgrade in mid-flight may cause."""
    plain = json.loads(line)
    if plain["v"] != VERSION:
        raise ValueError(f"cannot read a job of version {plain['v']}: this worker knows {VERSION}")
    parts = tuple(
        Part(
            Role(part["role"]),
            _read_source(part["source"]),
            tuple(part["allow"]),
            tuple(part["ignore"]),
            part["sha256"],
        )
        for part in plain["parts"]
    )
    settings = plain["settings"] | {key: Path(plain["settings"][key]) for key in _PATHS if plain["settings"].get(key)}
    return Job(parts, tuple(map(_read_pinned, plain["locked"])), Settings(**settings), plain["engine"])


def report_line(report: Report) -> bytes:
    """Return a report as a line."""
    return json.dumps({"v": VERSION, "type": type(report).__name__, **asdict(report)}).encode() + b"\n"


def read_report(line: bytes) -> Report | None:
    """Return the report of a line, None for what is none: a library's own output, or a later version's."""
    try:
        plain = json.loads(line)
        if plain.pop("v") != VERSION:
            return None
        kind = _REPORTS[plain.pop("type")]
        if kind is Finished and plain["failure"]:
            failure = plain["failure"]
            plain["failure"] = Failure(FailureClass(failure["kind"]), failure["detail"], failure.get("retry_after_s"))
        return kind(**plain)  # type: ignore[no-any-return]  # one of the three kinds of the table
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _settings(job: Job) -> dict[str, Any]:
    return asdict(job.settings)


def _source(source: Source) -> dict[str, Any]:
    if isinstance(source, HubSource):
        return {"repo": source.repo, "revision": source.revision, "file": source.file}
    return {"path": str(source.path)}


def _read_source(plain: Mapping[str, Any]) -> Source:
    return LocalSource(Path(plain["path"])) if "path" in plain else HubSource(**plain)


def _read_pinned(plain: Mapping[str, Any] | None) -> Pinned | None:
    if plain is None:
        return None
    files = tuple(Pin(**pin) for pin in plain["files"])
    return Pinned(plain["source"], plain["commit"], files, tuple(plain["allow"]), tuple(plain["ignore"]))
