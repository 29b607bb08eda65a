"""What would happen if a model were asked for now: `modelsupd plan --want MODEL`. Decides as ever, and does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modelsupd.core.allotment import Card, allot
from modelsupd.core.demand import Usage, Wanted, idle_since
from modelsupd.core.phases import Backoff, Failed, Replica, Stopped, Waiting, phase_name
from modelsupd.core.placement import Size
from modelsupd.core.sleeping import rests


@dataclass(frozen=True, slots=True)
class Victim:
    """A run that would give way: idle for `idle_s` seconds, None where it is in use; it took `start_s` to start."""

    name: str
    idle_s: float | None
    start_s: float | None


@dataclass(frozen=True, slots=True)
class Preview:
    """What would become of a replica.

    `verdict` is `runs` (there is a process, or one is on its way), `starts` (at once, on `gpus`), `evicts` (once those
    have gone that give way), `waits` (for the reason in `why`; `closes` are those that would take nothing new for it).
    """

    name: str
    verdict: str
    gpus: tuple[str, ...] = ()
    evicts: tuple[Victim, ...] = ()
    closes: tuple[str, ...] = ()
    why: str = ""


def preview(
    replicas: Mapping[str, Replica],
    cards: Sequence[Card],
    usage: Usage,
    now: float,
    wanted: Mapping[str, Size | None],
) -> tuple[Preview, ...]:
    """Return what would become of these replicas of one model, of each of which it is known what it takes of GPUs."""
    assumed, found = dict(replicas), {}
    for name, size in wanted.items():
        replica = replicas[name]
        if rests(replica):
            assumed[name] = replace(replica, demanded_by="plan")
        elif isinstance(replica.phase, Stopped | Backoff | Failed | Waiting):
            since = replica.phase.since if isinstance(replica.phase, Waiting) else now
            taken = replica.phase.size if isinstance(replica.phase, Waiting) else size
            waiting = Waiting(since, replica.last_run, replica.digest, taken)
            assumed[name] = replace(replica, phase=waiting)
        else:
            found[name] = Preview(name, "runs", why=f"is {phase_name(replica.phase)}: {replica.reason}")
    models = {replicas[name].model for name in wanted}
    asked = {model: usage.wanted.get(model, Wanted(1, now)) for model in models}
    told = replace(usage, wanted={**usage.wanted, **asked})
    answer = allot(assumed, {}, cards, told, now)
    if answer.beside:
        # Who runs there is told of the load first; then it begins.
        assumed |= {other: replace(assumed[other], beside=event.loading) for other, event in answer.beside.items()}
        answer = allot(assumed, {}, cards, told, now)
    for name in wanted.keys() - found.keys():
        placed = answer.placed.get(name)
        words = f"gives way to {name}"
        victims = tuple(
            _victim(replicas[other], usage, now)
            for other, event in sorted(answer.evicted.items())
            if event.words == words
        )
        if placed is not None:
            found[name] = Preview(name, "starts", placed.hold.gpus if placed.hold is not None else ())
        else:
            why = answer.waiting.get(name, "")
            closes = tuple(other for other in sorted(answer.closed) if other in why.split())
            found[name] = Preview(name, "evicts" if victims else "waits", evicts=victims, closes=closes, why=why)
    return tuple(found[name] for name in wanted)


def _victim(replica: Replica, usage: Usage, now: float) -> Victim:
    since = idle_since(replica, usage)
    learned = replica.learned
    return Victim(replica.name, None if since is None else now - since, None if learned is None else learned.start_s)
