"""Makes the gateway's routing table of what the daemon publishes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Draining,
    Failed,
    Halt,
    Killing,
    Ready,
    Replica,
    Resolving,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
    phase_name,
)
from modelsupd.core.sleeping import rests
from modelsupd.core.spec import ModelSpec, Start, gpu_count
from modelsupd.core.timing import start_left_s
from modelsupd.engines.base import adapter
from modelsupd.gateway.base import Availability, Model, Run
from modelsupd.weights.base import Progress

#: What a client is told to wait while a model loads, in seconds, where nothing better is known.
RETRY_AFTER_S = 5.0

#: The same while none of it can be placed on a GPU: nobody knows when there will be room.
WAITING_RETRY_S = 30.0


#: The same where a replica gives way to another model: that one has its turn first.
GIVES_WAY_RETRY_S = 15.0
_GIVES_WAY = "gives way to another model; it comes back in its turn"

#: A reason is for clients. One that tells of many GPUs is cut after so many characters.
_MAX_REASON_CHARS = 160


#: What reads as the name of a replica.
_A_REPLICA = re.compile(r"[^\s,;:]+/\d+\b")


def models(
    declared: Mapping[str, ModelSpec],
    replicas: Mapping[str, Replica],
    fetching: Mapping[str, Progress],
    now: float,
    closed: Collection[str] = (),
) -> tuple[Model, ...]:
    """Return every configured model, in the configured order, with the runs that may be routed to.

    Replicas in `closed` are to give way: they get no more requests, although they are ready.
    """
    by_model: dict[str, list[Replica]] = {name: [] for name in declared}
    for replica in replicas.values():
        if replica.model in by_model:
            by_model[replica.model].append(replica)
    return tuple(
        _model(name, spec, by_model[name], _outlook(by_model[name], fetching, now, closed), closed)
        for name, spec in declared.items()
    )


def _model(
    name: str,
    spec: ModelSpec,
    replicas: list[Replica],
    outlook: tuple[Availability, str, float],
    closed: Collection[str],
) -> Model:
    runs = tuple(
        Run(
            replica.name,
            replica.phase.process.run,
            replica.phase.process.endpoint,
            draining=isinstance(replica.phase, Draining) or replica.name in closed,
            unread_timeout_s=_unread_timeout_s(replica.spec),
        )
        for replica in replicas
        if isinstance(replica.phase, Ready | Draining)
    )
    availability, reason, retry_after_s = outlook
    limits = spec.gateway
    return Model(
        name=name,
        aliases=spec.aliases,
        engine=str(spec.engine),
        availability=availability,
        on_demand=spec.start is Start.ON_DEMAND,
        reason=reason,
        retry_after_s=retry_after_s,
        runs=runs,
        context_length=limits.context_length or _declared_context(spec),
        capabilities=limits.capabilities,
        max_concurrent=limits.max_concurrent,
        max_queued=limits.max_queued,
        queue_timeout_s=limits.queue_timeout_s,
        start_wait_s=limits.start_wait_s,
        stream_stall_s=limits.stream_stall_s,
        first_byte_timeout_s=limits.first_byte_timeout_s,
    )


def _unread_timeout_s(spec: ModelSpec) -> float | None:
    """Return for how long a client may take nothing of an answer, where nobody else is served meanwhile.

    No probe is either: the run would be ended as hung, with the requests of all, before the client is given up.
    """
    return spec.health.hang_after_s / 2 if adapter(spec.engine).one_at_a_time else None


def _outlook(
    replicas: list[Replica], fetching: Mapping[str, Progress], now: float, closed: Collection[str]
) -> tuple[Availability, str, float]:
    """Return what can be expected of a model: the best of its replicas."""
    ready = [replica.name for replica in replicas if isinstance(replica.phase, Ready)]
    if any(name not in closed for name in ready):
        return Availability.READY, "", 0.0
    for replica in replicas:
        if isinstance(replica.phase, Resolving | Spawning | Starting):
            return Availability.LOADING, *_loading(replica, fetching.get(replica.name), now)
    if any(isinstance(replica.phase, Asleep) and replica.runs_wanted for replica in replicas):
        return Availability.LOADING, "wakes up", RETRY_AFTER_S
    for replica in replicas:
        if isinstance(replica.phase, Waiting):
            return Availability.LOADING, _waiting(replica, replica.phase), WAITING_RETRY_S
    if ready or any(replica.name in closed and _on_its_way_down(replica) for replica in replicas):
        return Availability.LOADING, _GIVES_WAY, GIVES_WAY_RETRY_S
    return _outlook_of_idle(replicas, now)


def _waiting(replica: Replica, phase: Waiting) -> str:
    """Return what a replica waits for, without who has how much of a GPU: who asks may not know of other models."""
    if not phase.why:
        return "waits for a GPU" if gpu_count(replica.spec) > 0 else "waits for its turn"
    why = _A_REPLICA.sub("another", re.sub(r" ?\([^()]*\)", "", phase.why))
    return f"waits: {why if len(why) <= _MAX_REASON_CHARS else why[: _MAX_REASON_CHARS - 1] + '…'}"


def _loading(replica: Replica, progress: Progress | None, now: float) -> tuple[str, float]:
    part = ""
    if progress is not None and progress.total_bytes:
        part = f": fetching weights, {100 * progress.done_bytes // progress.total_bytes} %"
    left_s = start_left_s(replica, now)
    return f"loading{part}", RETRY_AFTER_S if left_s is None else max(1.0, left_s)


def _outlook_of_idle(replicas: list[Replica], now: float) -> tuple[Availability, str, float]:
    """Return what can be expected of a model of which nothing is on its way up."""
    for replica in replicas:
        if isinstance(replica.phase, Backoff):
            wait_s = max(1.0, replica.phase.until - now)
            return Availability.LOADING, f"starts again soon; {replica.phase.failure.kind}", wait_s
    asked = [replica for replica in replicas if _starts_when_asked(replica)]
    if any(isinstance(replica.phase, Stopped) or rests(replica) for replica in asked):
        words = "asleep; wakes up" if any(map(rests, asked)) else "starts"
        return Availability.ON_DEMAND, f"{words} when asked for", RETRY_AFTER_S
    for replica in replicas:
        if isinstance(replica.phase, Failed):
            wait_s = 60.0 if replica.phase.retry_at is None else max(1.0, replica.phase.retry_at - now)
            failure = replica.phase.failure
            return Availability.FAILED, f"failed: {failure.kind}: {failure.detail}", wait_s
    if any(replica.runs_wanted and not isinstance(replica.phase, Stopped) for replica in replicas):
        return Availability.LOADING, "is being replaced", RETRY_AFTER_S
    if any(_on_its_way_down(replica) for replica in asked):
        return Availability.LOADING, "is being stopped; it starts again when asked for", RETRY_AFTER_S
    phase = phase_name(replicas[0].phase) if replicas else "stopped"
    return Availability.DOWN, f"{phase}; an operator starts it", 60.0


def _starts_when_asked(replica: Replica) -> bool:
    """Tell whether a request has the replica started, now or once it has stopped."""
    on_demand = replica.spec.start is Start.ON_DEMAND
    return on_demand and replica.want is Want.UP and replica.halt is Halt.NO and not replica.removed


def _on_its_way_down(replica: Replica) -> bool:
    return isinstance(replica.phase, Draining | Asleep | Stopping | Killing | Clearing)


def _declared_context(spec: ModelSpec) -> int | None:
    """Return the context that the engine is started with, where its flags say it."""
    for flag in ("ctx_size", "ctx-size", "n_ctx", "max_model_len", "max-model-len"):
        value = spec.args.get(flag)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
