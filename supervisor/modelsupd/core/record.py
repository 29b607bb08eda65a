"""A replica's durable state, to and from the plain data that the journal keeps.

Left out is what a new daemon finds out for itself: the pulse, probes in flight, how urgently the daemon goes. The
spec is left out too, because it may hold secrets in `env`: the configuration is read again, and the digest tells
whether it is still the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from enum import StrEnum
from typing import Any

from modelsupd.core import health
from modelsupd.core.events import Event, Exit, Failure, FailureClass, Process, Vitals
from modelsupd.core.learning import Learned
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Cause,
    Clearing,
    Draining,
    Failed,
    Fault,
    Killing,
    Phase,
    Ready,
    Reason,
    Replica,
    Resolving,
    Resting,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
    phase_name,
)
from modelsupd.core.placement import Hold, Size
from modelsupd.core.restart import History
from modelsupd.core.spec import ModelSpec

_PHASES = {
    kind.__name__.lower(): kind
    for kind in (
        Stopped, Resolving, Waiting, Spawning, Starting, Ready, Asleep,
        Draining, Stopping, Killing, Clearing, Backoff, Failed,
    )
}  # fmt: skip
_DURABLE = (
    "model", "digest", "want", "last_run", "history", "restarts", "inputs", "removed", "reason", "hold", "learned",
    "demanded_by",
)  # fmt: skip
_VOLATILE = frozenset({"pulse", "next_at", "probing", "held", "again_at", "recheck_at"})


def durable(replica: Replica) -> dict[str, Any]:
    """Return the state as plain data; two replicas with equal results need no new record."""
    phase: dict[str, Any] = {"name": phase_name(replica.phase)}
    for item in fields(replica.phase):
        if item.name not in _VOLATILE:
            phase[item.name] = _plain(getattr(replica.phase, item.name))
    # What a replica without GPUs does not have is left out, as it was before there was such a thing.
    kept = ("hold", "learned")
    more: dict[str, Any] = {name: asdict(value) for name in kept if (value := getattr(replica, name)) is not None}
    more |= {"demanded_by": replica.demanded_by} if replica.demanded_by else {}
    return more | {
        "model": replica.model,
        "digest": replica.digest,
        "want": replica.want.value,
        "phase": phase,
        "last_run": replica.last_run,
        "history": asdict(replica.history),
        "restarts": replica.restarts,
        "inputs": replica.inputs,
        "removed": replica.removed,
        "reason": replica.reason,
    }


def same(before: Replica, after: Replica) -> bool:
    """Tell whether two replicas have equal durable states; cheaper than to make both plain, after every probe."""
    old, new = before.phase, after.phase
    if type(old) is not type(new) or any(getattr(before, name) != getattr(after, name) for name in _DURABLE):
        return False
    names = (item.name for item in fields(old) if item.name not in _VOLATILE)
    return all(getattr(old, name) == getattr(new, name) for name in names)


def _plain(value: object) -> Any:  # noqa: ANN401 - plain data of any shape
    match value:
        case Fault():
            return {"failure": asdict(value.failure), "ready_s": value.ready_s}
        case StrEnum():
            return value.value
        case Process(gpus=()):
            return {name: item for name, item in asdict(value).items() if name != "gpus"}
        case Process() | Failure() | Vitals() | Exit() | Hold() | Size():
            return asdict(value)
        case tuple():
            return list(value)
        case _:
            return value


def plain_event(event: Event) -> dict[str, Any]:
    """Return an event as plain data, its type and its fields; a spec is left out here too."""
    data: dict[str, Any] = {"type": type(event).__name__}
    for item in fields(event):
        value = getattr(event, item.name)
        if not isinstance(value, ModelSpec):
            data[item.name] = _plain(value)
    return data


def restore(name: str, state: Mapping[str, Any], spec: ModelSpec, now: float) -> Replica:
    """Return the replica of a recorded state; raises KeyError, TypeError or ValueError for what is no such state."""
    history = state["history"]
    learned = state.get("learned")
    return Replica(
        name=name,
        model=state["model"],
        spec=spec,
        digest=state["digest"],
        want=Want(state["want"]),
        phase=_phase(dict(state["phase"]), now),
        last_run=state["last_run"],
        history=History(tuple(history["failed_at"]), history["streak"], history["cool_downs"], history["addresses"]),
        restarts=state["restarts"],
        inputs=state["inputs"],
        reason=state["reason"],
        removed=state["removed"],
        hold=_hold(state.get("hold")),
        learned=None if learned is None else Learned(**learned),
        demanded_by=state.get("demanded_by", ""),
    )


def _hold(data: Mapping[str, Any] | None) -> Hold | None:
    if data is None:
        return None
    return Hold(
        gpus=tuple(data["gpus"]),
        bytes=tuple(data["bytes"]),
        exclusive=data["exclusive"],
        idle_bytes=tuple(data["idle_bytes"]),
    )


def _phase(data: dict[str, Any], now: float) -> Phase:
    kind = _PHASES[data.pop("name")]
    if "process" in data:
        process = data["process"]
        data["process"] = Process(**{**process, "gpus": tuple(process.get("gpus", ()))})
    if data.get("size") is not None:
        data["size"] = Size(**data["size"])
    if "failure" in data:
        data["failure"] = _failure(data["failure"])
    if "cause" in data:
        data["cause"] = _cause(data["cause"])
    if kind in (Starting, Ready):
        data["pulse"] = health.taken_over(now) if kind is Starting else health.begin(now)
    if kind is Asleep:
        data["before"], data["state"] = _hold(data["before"]), Resting(data["state"])
    if kind is Draining:
        data["next_at"] = now
    if kind is Clearing:
        data["stuck"] = tuple(data["stuck"])
    if kind is Failed:
        data["recheck_at"] = now
    return kind(**data)


def _failure(data: Mapping[str, Any]) -> Failure:
    return Failure(FailureClass(data["kind"]), data["detail"], data.get("retry_after_s"))


def _cause(data: Mapping[str, Any] | str) -> Cause:
    if isinstance(data, str):
        return Reason(data)
    return Fault(_failure(data["failure"]), data["ready_s"])
