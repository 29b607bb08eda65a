"""Replicas, runs and reports to test with: small, named, and with limits that are easy to reckon with."""

from __future__ import annotations

from dataclasses import replace

from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.events import (
    Exit,
    Exited,
    Failure,
    FailureClass,
    Outcome,
    Probed,
    ProbeKind,
    Process,
    Resolved,
    Spawned,
    Vitals,
)
from modelsupd.core.learning import Learned
from modelsupd.core.phases import Phase, Replica, Stopped, Want
from modelsupd.core.placement import Hold, Size
from modelsupd.core.spec import Engine, HealthLimits, ModelSpec, RestartPolicy, Start, StopLimits

#: Limits of which no two are alike, so that a test that mixes two of them up fails.
HEALTH = HealthLimits(
    probe_interval_s=5,
    probe_timeout_s=10,
    hang_after_s=60,
    busy_limit_s=600,
    prove_every_s=61,
    start_interval_s=0.25,
    start_stall_s=300,
    start_limit_s=3600,
)
STOP = StopLimits(drain_timeout_s=30, term_timeout_s=8, load_term_timeout_s=2, kill_timeout_s=11)
RESTART = RestartPolicy(jitter=0.0)

SPEC = ModelSpec(engine=Engine.COMMAND, command=("engine", "{socket}"), health=HEALTH, stop=STOP, restart=RESTART)
ON_GPU = replace(SPEC, gpus=1)
ON_DEMAND = replace(SPEC, start=Start.ON_DEMAND)
SIZE = Size(3, estimated=True)
HOLD = Hold(gpus=("GPU-0",), bytes=(3,), idle_bytes=(1,))
SLEEPER = replace(ON_DEMAND, gpus=1, demand=DemandSpec(sleep=1))
OTHER_SPEC = ModelSpec(engine=Engine.COMMAND, command=("engine", "--new", "{socket}"))
DIGEST, OTHER_DIGEST = "d1d1", "d2d2"
INPUTS, OTHER_INPUTS = "weights-1", "weights-2"

LEARNED = Learned(DIGEST, INPUTS, 12.0, 2.0, 4)

CRASH = Failure(FailureClass.CRASH, "exit code 1")
BAD_WEIGHTS = Failure(FailureClass.BAD_WEIGHTS, "tensor 'x' is not within the file bounds")
ADDRESS = Failure(FailureClass.ADDRESS_IN_USE, "bind: address already in use")
NO_MEMORY = Failure(FailureClass.OUT_OF_MEMORY, "cannot allocate")


def replica(phase: Phase | None = None, *, want: Want = Want.UP, last_run: int = 0, spec: ModelSpec = SPEC) -> Replica:
    """Return `m/0` in a phase; `Stopped` since 0 by default."""
    return Replica(
        name="m/0",
        model="m",
        spec=spec,
        digest=DIGEST,
        want=want,
        phase=phase or Stopped(0.0),
        last_run=last_run,
        reason="what came before",
    )


def process(run: int = 1, digest: str = DIGEST) -> Process:
    """Return a run's process; its pid tells the run."""
    return Process(run=run, pid=1000 + run, shim_pid=2000 + run, endpoint=f"unix:/r/{run}/engine.sock", digest=digest)


def resolved(run: int = 1, digest: str = DIGEST, inputs: str = INPUTS) -> Resolved:
    """Return the report that weights and binary are there."""
    return Resolved(run, digest, inputs)


def spawned(run: int = 1, digest: str = DIGEST) -> Spawned:
    """Return the report that a run's process exists."""
    return Spawned(run, process(run, digest))


def exited(run: int = 1, failure: Failure = CRASH, *, cleared: bool = True) -> Exited:
    """Return the report that a run ended, by default with code 1 and nothing left of it."""
    return Exited(run, Exit(code=1), failure, cleared)


def probed(
    outcome: Outcome,
    kind: ProbeKind = ProbeKind.ALIVE,
    *,
    run: int = 1,
    before: Vitals | None = None,
    vitals: Vitals | None = None,
    took_s: float = 0.0,
) -> Probed:
    """Return the report of a probe; nothing moved unless said."""
    seen = vitals or Vitals()
    return Probed(run, kind, outcome, f"it was {outcome}", before or seen, seen, took_s)
