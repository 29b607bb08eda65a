"""The document of `modelsupd status --json`: from the daemon's published state, or from what the journal last told.

Its names are a contract (DESIGN §11). Nothing is read or asked here; what is given is put into shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from modelsupd.control.port import Port
from modelsupd.control.words import duration, progress_words, rfc3339
from modelsupd.core.phases import Ready, Replica, Resolving, Starting, Want, phase_name
from modelsupd.core.spec import Engine, Start
from modelsupd.core.timing import known_start, start_left_s
from modelsupd.weights.base import Progress

RUNNING = "running"
NOT_RUNNING = "not running"

#: What is said of one that starts on demand, and that nobody asks for.
ON_DEMAND = "starts when a client asks for it"

Document = dict[str, Any]


def document(port: Port) -> Document:
    """Return what is the case, as published."""
    seq, read_only = port.journal()
    declared = port.models()
    replicas, fetching, changes = port.replicas(), port.fetching(), port.changes()
    models: dict[str, dict[str, Any]] = {
        name: {"name": name, "engine": str(spec.engine), "rows": []} for name, spec in declared.items()
    }
    for replica in replicas.values():
        if replica.spec.engine is Engine.GATEWAY:
            continue
        fallback = {"name": replica.model, "engine": str(replica.spec.engine), "rows": []}
        wanted = replica.want is Want.UP and not replica.removed
        row = _row(replica, port, fetching.get(replica.name), changes.get(replica.name, ""))
        models.setdefault(replica.model, fallback)["rows"].append((wanted, row))
    for name, spec in declared.items():
        # Declared just now and on its way to be recorded: a script that waits for readiness must not see none missing.
        expected = spec.replicas if isinstance(spec.replicas, int) else 1
        models[name]["awaited"] = spec.start is Start.ALWAYS and len(models[name]["rows"]) < expected
    return {
        "daemon": {
            "state": RUNNING,
            "pid": port.pid,
            "version": port.version,
            "since": rfc3339(port.wall(port.started_at)),
            "journal": {"seq": seq, "read_only": read_only},
        },
        "models": [_model(**entry) for entry in models.values()],
        "gpus": list(port.gpus()),
        "gateway": port.gateway(),
    }


def last_known(
    states: Mapping[str, Mapping[str, Any]],
    start: Mapping[str, Any] | None,
    seq: int,
    engines: Mapping[str, str],
    wall: Callable[[float], datetime],
) -> Document:
    """Return what the journal last told, for when there is no daemon.

    `states` are durable states by replica, `start` the last daemon's record, `engines` the kinds of engine by model as
    far as they are known. Phases and pids are as recorded; whether those processes still exist is not looked at.
    """
    models: dict[str, dict[str, Any]] = {}
    for name in sorted(states, key=_order):
        state = states[name]
        if state["model"].startswith("@"):
            continue  # a gateway's, which is no model
        entry = {"name": state["model"], "engine": engines.get(state["model"]), "rows": []}
        wanted = state["want"] == Want.UP and not state["removed"]
        models.setdefault(state["model"], entry)["rows"].append((wanted, _recorded_row(name, state, wall)))
    return {
        "daemon": {
            "state": NOT_RUNNING,
            "pid": None,
            "version": (start or {}).get("version"),
            "since": None,
            "journal": {"seq": seq, "read_only": None},
        },
        "models": [_model(**entry) for entry in models.values()],
        "gpus": [],
        "gateway": None,
    }


def _order(name: str) -> tuple[str, int]:
    model, _, index = name.rpartition("/")
    return (model, int(index)) if index.isdigit() else (name, 0)


def _model(
    name: str, engine: str | None, rows: list[tuple[bool, dict[str, Any]]], *, awaited: bool = False
) -> dict[str, Any]:
    wanted = [row for want, row in rows if want]
    # Whoever starts on demand and is asked for by nobody is as it should be, and not ready.
    needed = [row for row in wanted if not row["idle"]]
    return {
        "name": name,
        "engine": engine,
        "want": str(Want.UP if wanted or awaited else Want.DOWN),
        "ready": bool(needed) and not awaited and all(row["phase"] == "ready" for row in needed),
        "idle": bool(wanted) and not awaited and not needed,
        "replicas": [row for _, row in rows],
    }


def _row(replica: Replica, port: Port, progress: Progress | None, changes: str) -> dict[str, Any]:
    process, wall = replica.process, port.wall
    reason = _reason(phase_name(replica.phase), replica.want, replica.reason) + _complaint(replica)
    if replica.idle and ON_DEMAND not in reason:
        reason += f"; {ON_DEMAND}"
    if isinstance(replica.phase, Resolving) and progress is not None:
        reason += f"; {progress_words(progress)}"
    if isinstance(replica.phase, Ready) and changes:
        reason += f"; {changes}"
    left_s = start_left_s(replica, port.now())
    if left_s is not None:
        reason += f"; {start_words(replica, left_s)}"
    return {
        "name": replica.name,
        "phase": phase_name(replica.phase),
        "run": replica.last_run or None,
        "pid": process.pid if process else None,
        "shim_pid": process.shim_pid if process else None,
        "endpoint": process.endpoint if process else None,
        "gpus": list(replica.hold.gpus) if replica.hold is not None else [],
        "since": rfc3339(wall(replica.phase.since)),
        "restarts": replica.restarts,
        "reason": reason,
        "idle": replica.idle,
        "weights": _progress(progress) if isinstance(replica.phase, Resolving) and progress is not None else None,
        "left_s": None if left_s is None else round(left_s, 1),
    }


def start_words(replica: Replica, left_s: float) -> str:
    """Return how long a start will still take, by the last one of the same."""
    learned = known_start(replica)
    usual = duration(learned.start_s) if learned is not None else "?"
    return f"its last start took {usual}, {duration(left_s) + ' left' if left_s > 0 else 'this one takes longer'}"


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "doing": progress.doing,
        "done_bytes": progress.done_bytes,
        "total_bytes": progress.total_bytes,
        "bytes_per_s": None if progress.rate is None else round(progress.rate),
        "left_s": None if progress.left_s is None else round(progress.left_s, 1),
    }


def _recorded_row(name: str, state: Mapping[str, Any], wall: Callable[[float], datetime]) -> dict[str, Any]:
    phase = state["phase"]
    process = phase.get("process") or {}
    return {
        "name": name,
        "phase": phase["name"],
        "run": state["last_run"] or None,
        "pid": process.get("pid"),
        "shim_pid": process.get("shim_pid"),
        "endpoint": process.get("endpoint"),
        "gpus": list((state.get("hold") or {}).get("gpus", ())),
        "since": rfc3339(wall(phase["since"])),
        "restarts": state["restarts"],
        "reason": _reason(phase["name"], state["want"], state["reason"]),
        "idle": False,  # the spec, which tells how it starts, is not recorded
        "weights": None,
        "left_s": None,
    }


def _reason(phase: str, want: str, reason: str) -> str:
    """Return the words for the last change; of what is down for good they say so, because a reboot hides the cause."""
    if phase == "stopped" and want == Want.DOWN:
        stays = "stays down until started, after a reboot too"
        return f"{reason}; {stays}" if reason else stays
    return reason


def _complaint(replica: Replica) -> str:
    """Return what the last probe had to complain of, which is no reason for a change yet."""
    phase = replica.phase
    if not isinstance(phase, Starting | Ready) or not phase.pulse.complaint:
        return ""
    if isinstance(phase, Starting):
        return f"; not ready yet: {phase.pulse.complaint}"
    failures = phase.pulse.failures
    probes = "the last probe failed" if failures == 1 else f"the last {failures} probes failed"
    return f"; {probes}: {phase.pulse.complaint}"
