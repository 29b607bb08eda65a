"""Many replicas: only what crosses them. Each replica is stepped on its own; this module says which, and with what."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from modelsupd.core.events import Event, Removed, Respecified
from modelsupd.core.moves import NOTHING, Step, begin
from modelsupd.core.phases import Replica, Stopped, Want
from modelsupd.core.spec import ModelSpec, Start, gpu_count


@dataclass(frozen=True, slots=True)
class Declared:
    """One model as configured, with the launch digest of its engine, and for how many GPUs `per-gpu` makes replicas."""

    spec: ModelSpec
    digest: str
    gpus: int = 0

    @property
    def replicas(self) -> int:
        """Return how many replicas there are to be."""
        return replica_count(self.spec, self.gpus)


_STARTS_WHEN = {
    Start.MANUAL: "starts when asked to (start = 'manual')",
    Start.ON_DEMAND: "starts when a client asks for it (start = 'on-demand')",
}


class UnknownTarget(Exception):  # noqa: N818 - named for what it is
    """No such model or replica; the text names what comes nearest."""


def replica_count(spec: ModelSpec, gpus: int) -> int:
    """Return how many replicas a model has on a host with so many GPUs."""
    return spec.replicas if isinstance(spec.replicas, int) else gpus // gpu_count(spec)


def replica_names(model: str, entry: Declared) -> tuple[str, ...]:
    """Return the names of a model's replicas: `qwen/0`, `qwen/1`."""
    return tuple(f"{model}/{index}" for index in range(entry.replicas))


def targets(replicas: Mapping[str, Replica], target: str) -> tuple[str, ...]:
    """Return the replicas that an operator means by `MODEL`, an alias of it, or `MODEL/N`."""
    by_model = tuple(name for name, replica in replicas.items() if target in {replica.model, *replica.spec.aliases})
    if by_model:
        return by_model
    if target in replicas:
        return (target,)
    known = sorted({replica.model for replica in replicas.values()} | set(replicas))
    near = difflib.get_close_matches(target, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known) or 'none'}"
    raise UnknownTarget(f"there is no model or replica '{target}'{hint}")


def fresh(name: str, model: str, declared: Declared, now: float, last_run: int = 0) -> Step:
    """Return a replica that the journal does not know, and what starts it where it starts by itself.

    `last_run` is the highest run of that name ever seen: a replica that was removed and is declared again must not
    use a number twice.
    """
    start = declared.spec.start
    want = Want.DOWN if start is Start.MANUAL else Want.UP
    replica = Replica(
        name=name,
        model=model,
        spec=declared.spec,
        digest=declared.digest,
        want=want,
        phase=Stopped(now),
        last_run=last_run,
        reason="new in the configuration" if start is Start.ALWAYS else _STARTS_WHEN[start],
    )
    return begin(replica, "new in the configuration", now) if replica.runs_wanted else (replica, NOTHING)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration asks of the fleet: replicas to add, and an event for each that changes or goes.

    Replicas that are as declared are in neither.
    """

    added: Mapping[str, tuple[str, Declared]]
    events: Mapping[str, Event]


def plan(replicas: Mapping[str, Replica], declared: Mapping[str, Declared], unsettled: Collection[str] = ()) -> Plan:
    """Compare what there is with what is declared.

    Of the `unsettled` what is published is not the last word: events wait for them, or they are not published yet.
    They are told in any case; the same thing told twice is harmless.
    """
    wanted = {name: (model, entry) for model, entry in declared.items() for name in replica_names(model, entry)}
    events: dict[str, Event] = {}
    known = {*replicas, *unsettled}
    for name in sorted(known):
        if name not in wanted:
            if name in unsettled or not replicas[name].removed:
                events[name] = Removed()
            continue
        _model, entry = wanted[name]
        if name in unsettled or not _is_as_declared(replicas[name], entry):
            events[name] = Respecified(entry.spec, entry.digest)
    return Plan({name: entry for name, entry in wanted.items() if name not in known}, events)


def _is_as_declared(replica: Replica, entry: Declared) -> bool:
    return (replica.spec, replica.digest, replica.removed) == (entry.spec, entry.digest, False)


def is_gone(replica: Replica) -> bool:
    """Tell whether a replica that the configuration no longer has can be forgotten."""
    return replica.removed and isinstance(replica.phase, Stopped)


def all_still(replicas: Iterable[Replica]) -> bool:
    """Tell whether no replica has a process, or is about to: the daemon may go."""
    return all(isinstance(replica.phase, Stopped) for replica in replicas)
