"""Several models and room for one: `allot` itself decides, on a clock that only moves from one thing to the next.

Everything else is as simple as can be: an engine is ready `start_s` after its turn came and gone `stop_s` after it was
told to go, a gateway reaches a run that has become ready `reach_s` later, and a request takes as long as it takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.demanding import GIB, on_demand
from core.samples import DIGEST, process
from core.test_core_allotment import cards
from modelsupd.core.allotment import Allotment, Card, allot
from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.core.health import begin
from modelsupd.core.phases import Ready, Reason, Replica, Starting, Stopped, Stopping, Waiting
from modelsupd.core.placement import Size

#: Decisions at one instant, at most: one more and they go round in a circle.
MOST_DECISIONS = 50


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: when it comes, for what, and how long its answer takes, in seconds."""

    at: float
    model: str
    takes_s: float = 0.1


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds; all engines are alike."""

    start_s: float = 0.0
    stop_s: float = 0.0
    reach_s: float = 0.02
    residence_s: float = 10.0
    turn_s: float = 30.0

    def bound_s(self, models: int, longest_s: float) -> float:
        """Return what no request waits longer than, where so many models have one place.

        Its turn comes after `turn_s`. What is in flight where it comes ends first: its own model may just take nothing
        new. Each other model may be ahead, once: it starts, or did so just before, is kept for `residence_s` or until
        those that waited have reached it, finishes what it has, and ends. Then this one starts, and is reached.
        """
        in_flight_s = longest_s + self.stop_s
        ahead_s = self.start_s + max(self.residence_s, self.reach_s) + longest_s + self.stop_s
        return self.turn_s + in_flight_s + (models - 1) * ahead_s + self.start_s + self.reach_s


@dataclass
class OnePlace:
    """The models, who waits for them, and what became of all."""

    pace: Pace
    models: Sequence[str]
    on_gpu: bool = False
    now: float = 0.0
    replicas: dict[str, Replica] = field(default_factory=dict)
    waiting: dict[str, list[Ask]] = field(default_factory=dict)
    in_flight: dict[str, list[float]] = field(default_factory=dict)
    last_at: dict[str, float] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    again_at: float | None = None
    starts: list[str] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with nothing running."""
        for model in self.models:
            self.replicas[f"{model}/0"] = self._resting(model)

    def _resting(self, model: str) -> Replica:
        apart: dict[str, Any] = {} if self.on_gpu else {"group": "g", "excludes": ("g",)}
        return on_demand(
            f"{model}/0",
            Stopped(self.now),
            count=1 if self.on_gpu else 0,
            idle_timeout_s=0,
            residence_s=self.pace.residence_s,
            turn_s=self.pace.turn_s,
            **apart,
        )

    def serve(self, asks: Iterable[Ask]) -> None:
        """Let requests come, until all are answered."""
        coming = sorted(asks, key=lambda ask: ask.at)
        while True:
            while coming and coming[0].at <= self.now:
                ask = coming.pop(0)
                self.waiting.setdefault(ask.model, []).append(ask)
            self._settle()
            assert len(self.starts) <= len(self.waits_s) + len(self.models), "they take turns and serve nobody"
            due = [*self._due(), *(ask.at for ask in coming[:1])]
            if not due:
                break
            assert min(due) > self.now, f"time stands still at {self.now}"
            self.now = min(due)
        assert not any(self.waiting.values()), f"nobody comes for {self.waiting}"

    def _due(self) -> Iterable[float]:
        """Yield all instants at which something happens by itself."""
        for replica in self.replicas.values():
            phase = replica.phase
            if isinstance(phase, Starting):
                yield phase.since + self.pace.start_s
            elif isinstance(phase, Stopping):
                yield phase.until
            elif isinstance(phase, Ready) and phase.since + self.pace.reach_s > self.now:
                yield phase.since + self.pace.reach_s
            yield from self.in_flight.get(replica.name, ())
        if self.again_at is not None and (any(self.waiting.values()) or any(self.in_flight.values())):
            yield self.again_at

    def _settle(self) -> None:
        for _ in range(MOST_DECISIONS):
            self._pass_time()
            answer = allot(self.replicas, {}, self._cards(), self._usage(), self.now)
            self.closed, self.again_at = answer.closed, answer.again_at
            if not self._carry_out(answer):
                return
        raise AssertionError(f"decisions go round in a circle at {self.now}: {answer}")

    def _cards(self) -> list[Card]:
        return cards(8) if self.on_gpu else []

    def _usage(self) -> Usage:
        runs = {
            f"{name}#{each.last_run}": Use(len(self.in_flight.get(name, ())), self.last_at.get(name))
            for name, each in self.replicas.items()
        }
        return Usage(
            runs, {model: Wanted(len(asks), asks[0].at) for model, asks in self.waiting.items() if asks}, known=True
        )

    def _pass_time(self) -> None:
        for name, replica in self.replicas.items():
            phase = replica.phase
            if isinstance(phase, Starting) and phase.since + self.pace.start_s <= self.now:
                self.replicas[name] = replace(replica, phase=Ready(self.now, phase.process, begin(self.now)))
                self.last_at.pop(name, None)
            elif isinstance(phase, Stopping) and phase.until <= self.now:
                self.replicas[name] = replace(
                    self._resting(replica.model), last_run=replica.last_run, demanded_by=replica.demanded_by
                )
            flying = self.in_flight.setdefault(name, [])
            if any(until <= self.now for until in flying):
                self.last_at[name] = self.now
                flying[:] = [until for until in flying if until > self.now]
            self._reach(self.replicas[name], flying)

    def _reach(self, replica: Replica, flying: list[float]) -> None:
        phase = replica.phase
        open_to_all = isinstance(phase, Ready) and replica.name not in self.closed
        if open_to_all and phase.since + self.pace.reach_s <= self.now:
            for ask in self.waiting.pop(replica.model, []):
                self.waits_s.append(self.now - ask.at)
                flying.append(self.now + ask.takes_s)

    def _carry_out(self, answer: Allotment) -> bool:
        """Do what was decided; return whether anything was."""
        for name in answer.demanded:
            self.replicas[name] = replace(self.replicas[name], demanded_by="clients")
        for name in answer.evicted:
            replica = self.replicas[name]
            assert isinstance(replica.phase, Ready), "only clients that leave end a wait, and none do"
            assert not self.in_flight[name], f"{name} is cut short"
            until = self.now + self.pace.stop_s
            ending = Stopping(self.now, replica.phase.process, Reason.EVICTED, until)
            self.replicas[name] = replace(replica, phase=ending, demanded_by="")
        for name, placed in answer.placed.items():
            replica = self.replicas[name]
            self.starts.append(replica.model)
            phase = Starting(self.now, process(placed.run), begin(self.now))
            self.replicas[name] = replace(replica, phase=phase, hold=placed.hold)
        began = False
        for name, replica in self.replicas.items():
            if isinstance(replica.phase, Stopped) and replica.demanded_by:
                run, size = replica.last_run + 1, Size(6 * GIB) if self.on_gpu else None
                self.replicas[name] = replace(replica, phase=Waiting(self.now, run, DIGEST, size), last_run=run)
                began = True
        return bool(answer.placed or answer.evicted or began)


def first_come_first_served(asks: Iterable[Ask]) -> int:
    """Return how often a model is started where requests are served one after another, as they come."""
    return sum(1 for _model, _asks in itertools.groupby(sorted(asks, key=lambda ask: ask.at), lambda ask: ask.model))
