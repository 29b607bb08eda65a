"""Who is asked for, who is idle, and who gives way to whom. What gateways tell is read here, and judged.

Three rules:

1. One that is in use gives way only to a higher priority. To its own it gives way when it is idle, and has been ready
   for `residence_s`; to a lower one never.
2. Whoever has waited for `turn_s` gets a turn: those in its way take nothing new, and give way when what they have
   is finished. So nobody waits for ever, and nothing is cut short for that.
3. Before every gateway has told what it has in hand, everybody is taken to be in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from modelsupd.core.phases import Backoff, Failed, Ready, Replica, Waiting
from modelsupd.core.sleeping import rests
from modelsupd.core.spec import ModelSpec, Start

#: By whom a model is demanded that requests wait for.
CLIENTS = "clients"

#: By whom one is that ran already when it came to start on demand.
CONFIGURATION = "the configuration"

#: What a start is reckoned to take that was never seen, in seconds.
UNKNOWN_START_S = 60.0

#: How long a model that has just become ready is kept for those that waited for it, until they reach it, in seconds.
REACHED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Use:
    """What gateways tell of a run: requests in flight, and when the last byte of an answer went out; None if never."""

    in_flight: int = 0
    last_at: float | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many requests wait for a model, and since when the oldest does."""

    waiting: int
    since: float


@dataclass(frozen=True, slots=True)
class Usage:
    """All that gateways tell: use by run (`qwen/0#7`), what is waited for by model.

    `known` tells whether every gateway that serves has told this daemon what it has in hand.
    """

    runs: Mapping[str, Use] = field(default_factory=dict)
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    known: bool = False

    def waits_for(self, model: str) -> bool:
        """Tell whether requests wait for a model."""
        found = self.wanted.get(model)
        return found is not None and found.waiting > 0


def idle_since(replica: Replica, usage: Usage) -> float | None:
    """Return since when a ready replica has nothing in flight, None where it has, or that is not known."""
    if not usage.known or not isinstance(replica.phase, Ready):
        return None
    use = usage.runs.get(f"{replica.name}#{replica.last_run}", _NONE)
    return None if use.in_flight else max(replica.phase.since, use.last_at or 0.0)


_NONE = Use()


def asked_for(replicas: Mapping[str, Replica], usage: Usage) -> Iterator[str]:
    """Yield the replicas that are to start because requests wait for their model."""
    for name, replica in replicas.items():
        startable = replica.spec.start is Start.ON_DEMAND and not replica.demanded_by
        # `runs_wanted` would be false for lack of demand alone.
        if startable and usage.waits_for(replica.model) and _may_run(replica):
            yield name


def _may_run(replica: Replica) -> bool:
    return replica.want == "up" and not replica.removed and not replica.halt


def needless(replica: Replica, usage: Usage, now: float) -> tuple[str, float | None]:  # noqa: PLR0911 - one case a reason: read in order
    """Return why nobody needs a replica that starts on demand, or "" and the instant at which that may be so.

    One that sleeps is needed by nobody either when it is no longer asked for, and when it has slept for too long.
    """
    spec, phase = replica.spec, replica.phase
    if spec.start is not Start.ON_DEMAND:
        return "", None
    if rests(replica) and not replica.demanded_by and not usage.waits_for(replica.model):
        limit_s = spec.demand.asleep_timeout_s
        over = limit_s > 0 and now >= phase.since + limit_s
        return (f"slept for {limit_s:g} s", None) if over else ("", phase.since + limit_s if limit_s > 0 else None)
    if not replica.demanded_by or not usage.known or usage.waits_for(replica.model):
        return "", None
    if isinstance(phase, Waiting | Backoff) or rests(replica):
        return ("nobody waits for it any more", None) if replica.demanded_by == CLIENTS else ("", None)
    limit_s = spec.demand.idle_timeout_s
    if spec.demand.pinned or limit_s == 0:
        return "", None
    since = phase.since if isinstance(phase, Failed) else idle_since(replica, usage)
    if since is None:
        return "", None
    if now >= since + limit_s:
        return f"no request for {limit_s:g} s", None
    return "", since + limit_s


@dataclass(frozen=True, slots=True)
class Yielding:
    """Whether a replica gives way: `now`, or once it is `closed` to new requests and idle, or not, and then `why`.

    With `soon` it will, when it has been ready for long enough: nobody behind who waits is to have that room. `busy`
    tells that something is in flight; `cost` is what it costs to start it again, less the longer it has been idle;
    `again_at` is when the answer may be another, None where only an event can change it.
    """

    now: bool = False
    closed: bool = False
    soon: bool = False
    busy: bool = False
    cost: float = 0.0
    why: str = ""
    again_at: float | None = None


def yields(replica: Replica, to: Replica, waits_since: float, usage: Usage, now: float) -> Yielding:  # noqa: PLR0911 - one case a reason
    """Return whether a replica gives way to another that has waited since then."""
    demand, phase = replica.spec.demand, replica.phase
    if replica.spec.start is not Start.ON_DEMAND:
        return Yielding(why=f"{replica.name} does not start on demand, and stays")
    if demand.pinned:
        return Yielding(why=f"{replica.name} is pinned")
    if demand.priority > to.spec.demand.priority:
        return Yielding(why=f"{replica.name} has a higher priority")
    above = demand.priority < to.spec.demand.priority
    turn_at = waits_since + to.spec.demand.turn_s
    start_s = replica.learned.start_s if replica.learned is not None else UNKNOWN_START_S
    if rests(replica):
        # Also one that waits to wake: whoever goes before it may need its room, and it can start anew.
        return Yielding(now=True, cost=start_s if replica.demanded_by else start_s / max(1.0, now - phase.since))
    if not isinstance(phase, Ready):
        return Yielding(soon=above or now >= turn_at, cost=start_s, why=f"{replica.name} is not ready yet")
    since = idle_since(replica, usage)
    cost = start_s / max(1.0, now - since) if since is not None else start_s
    if above:
        return Yielding(now=True, busy=since is None, cost=cost)
    # Whose own turn it is serves those that waited for it, else two could take turns for ever and serve nobody.
    unreached = since == phase.since and usage.waits_for(replica.model)
    stays_until = phase.since + (max(demand.residence_s, REACHED_WITHIN_S) if unreached else demand.residence_s)
    if now < stays_until:
        words = f"{replica.name} has only just become ready"
        return Yielding(soon=now >= turn_at, cost=cost, why=words, again_at=stays_until)
    if now >= turn_at:
        # From here on it takes nothing new: who waits for it waits for its next turn.
        return Yielding(now=since is not None, closed=since is None, busy=since is None, cost=cost)
    if since is None or usage.waits_for(replica.model):
        return Yielding(why=f"{replica.name} is in use", again_at=turn_at)
    return Yielding(now=True, cost=cost)


def waits_since(replica: Replica, usage: Usage) -> float:
    """Return since when somebody waits for a replica."""
    found, phase = usage.wanted.get(replica.model), replica.phase
    if found is None:
        return phase.since if isinstance(phase, Waiting) or rests(replica) else math.inf
    return min(phase.since, found.since) if isinstance(phase, Waiting) else found.since


def exclude(one: ModelSpec, name: str, other: ModelSpec, other_name: str) -> bool:
    """Tell whether two different models never run beside one another; which is asked first does not matter."""
    return name != other_name and (
        _named(one, other, other_name) or _named(other, one, name)  # whoever says it says it for both
    )


def _named(by: ModelSpec, spec: ModelSpec, name: str) -> bool:
    names = by.demand.excludes
    return name in names or spec.demand.group in names
