"""The clients of a simulated machine, and the gateway that tells of them: they come, wait, are served, and come again.

All is drawn from a generator of its own, so that a world in which nothing starts on demand goes as it did before.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from modelsupd.core.demand import Usage, Use, Wanted, exclude
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.events import Evicted
from modelsupd.core.phases import Ready, Replica
from modelsupd.core.spec import ModelSpec, Start
from sim.world import Run, World


@dataclass
class Clients:
    """Who waits, since when, and what is in flight; a gateway outlives daemons, so this does too."""

    rng: random.Random
    tell: Callable[[str], None]
    world: World
    active: bool = False
    coming: bool = True
    waiting: dict[str, list[float]] = field(default_factory=dict)
    streams: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=dict)
    last_at: dict[tuple[str, int], float] = field(default_factory=dict)
    told: Usage = field(default_factory=Usage)
    excused_until: float = 0.0  # what was decided under another configuration breaks no rule

    def onto(self, spec: ModelSpec) -> ModelSpec:
        """Return a declaration that starts on demand, or as it was."""
        rng = self.rng
        if not self.active or rng.random() < 0.15:
            return spec
        demand = DemandSpec(
            idle_timeout_s=rng.choice([0, 5, 5, 40]),
            priority=rng.choice([0, 0, 1]),
            pinned=rng.random() < 0.1,
            group=rng.choice([None, "g"]),
            excludes=rng.choice([(), (), ("g",), ("m0",)]),
            residence_s=rng.choice([0, 5]),
            sleep=rng.choice([0, 1, 2, 2]) if spec.gpus else 0,
            asleep_vram_bytes=rng.choice([0, 1, 6]) * 1024**3,
            asleep_timeout_s=rng.choice([0, 30]),
            turn_s=rng.choice([5, 20]),
        )
        return replace(spec, start=Start.ON_DEMAND, demand=demand)

    def rebooted(self) -> None:
        """Lose whoever was there: it was another clock, and other processes."""
        self.waiting.clear()
        self.streams.clear()
        self.last_at.clear()
        self.told = Usage()
        self.excused_until = 0.0

    def turn(self, replicas: Mapping[str, Replica], closed: frozenset[str]) -> None:
        """Let a little time pass: requests come, are served, end; then tell the daemon."""
        now = self.world.now
        for key in list(self.streams):
            self._go_on(key, now)
        models = sorted({replica.model for replica in replicas.values() if replica.spec.start is Start.ON_DEMAND})
        for model in models:
            if self.coming and self.rng.random() < 0.08:
                self.waiting.setdefault(model, []).extend([now] * self.rng.choice([1, 1, 4]))
            # Some give up; as many as go are drawn, whoever they are.
            if self.coming and self.waiting.get(model) and self.rng.random() < 0.02:
                self.waiting[model].clear()
        for name, replica in sorted(replicas.items()):
            if isinstance(replica.phase, Ready) and name not in closed:
                self._serve(replica, now)
        self.told = Usage(
            {
                f"{name}#{run}": Use(len(streams), self.last_at.get((name, run)))
                for (name, run), streams in self.streams.items()
            },
            {model: Wanted(len(since), min(since)) for model, since in sorted(self.waiting.items()) if since},
            known=True,
        )

    def _go_on(self, key: tuple[str, int], now: float) -> None:
        run = self.world.runs.get(key)
        name = key[0]
        if run is None or not run.alive:
            # What was in flight is begun again elsewhere, and stands where it stood.
            again = [since for since, _until in self.streams.pop(key)]
            self.waiting.setdefault(name.rpartition("/")[0], []).extend(again)
            return
        if run.frozen or run.zero_tokens:
            return
        ended = [stream for stream in self.streams[key] if stream[1] <= now]
        if ended:
            self.last_at[key] = now
            self.streams[key] = [stream for stream in self.streams[key] if stream[1] > now]

    def _serve(self, replica: Replica, now: float) -> None:
        queue = self.waiting.get(replica.model)
        key = replica.name, replica.last_run
        self.streams.setdefault(key, [])
        if queue:
            self.streams[key] += [(since, now + self.rng.choice([0.1, 2.0, 15.0])) for since in queue]
            queue.clear()

    # What must hold

    def evicts(self, replica: Replica, event: Evicted, replicas: Mapping[str, Replica]) -> None:
        """See that a run that is told to give way may be, by what the daemon was told."""
        spec, phase = replica.spec, replica.phase
        if spec.start is not Start.ON_DEMAND:
            raise self.world.violated(f"{replica.name} does not start on demand and is told to go: {event.words}")
        if not isinstance(phase, Ready):
            return
        busy = self.told.runs.get(f"{replica.name}#{replica.last_run}", Use()).in_flight
        to = replicas.get(event.words.removeprefix("gives way to "))
        if spec.demand.pinned:
            raise self.world.violated(f"{replica.name} is pinned and is told to go: {event.words}")
        if to is None:
            if busy or self.world.now < phase.since + spec.demand.idle_timeout_s:
                raise self.world.violated(f"{replica.name} has {busy} in flight and is told to go: {event.words}")
            return
        above = to.spec.demand.priority - spec.demand.priority
        fresh = self.world.now < phase.since + spec.demand.residence_s
        if above < 0 or (above == 0 and (busy or fresh)):
            raise self.world.violated(f"{replica.name} has {busy} in flight and {event.words}, {above} above it")

    def starts(self, run: Run, replicas: Mapping[str, Replica]) -> None:
        """See that a run begins beside none that it is never to run beside."""
        replica = replicas.get(run.name)
        # What was decided before the configuration changed is carried out all the same.
        if replica is None or replica.spec.start is not Start.ON_DEMAND or self.world.now < self.excused_until:
            return
        for other in self.world.runs.values():
            known = replicas.get(other.name)
            if (
                known is None
                or other.asleep
                or not self.world.remains(other)
                or known.spec.start is not Start.ON_DEMAND
            ):
                continue
            if exclude(replica.spec, replica.model, known.spec, known.model):
                raise self.world.violated(f"{run.name}#{run.run} starts beside {other.name}#{other.run}")

    def left(self, replicas: Mapping[str, Replica]) -> list[str]:
        """Return the models that are waited for though they can be served."""
        found = []
        for model, since in sorted(self.waiting.items()):
            mine = [replica for replica in replicas.values() if replica.model == model]
            if since and any(isinstance(replica.phase, Ready) for replica in mine):
                found.append(model)
        return found
