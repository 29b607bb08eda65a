"""What gateways are told of a model, by the phases of its replicas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.samples import CRASH, DIGEST, ON_GPU, SPEC, process, replica
from modelsupd.core.health import begin
from modelsupd.core.phases import (
    Backoff,
    Clearing,
    Draining,
    Failed,
    Halt,
    Phase,
    Ready,
    Reason,
    Replica,
    Resolving,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
)
from modelsupd.core.spec import Engine, ModelSpec, Start
from modelsupd.gateway.base import Availability, Model
from modelsupd.runtime import routes

ASKED = replace(SPEC, start=Start.ON_DEMAND)
ASKED_ON_GPU = replace(ON_GPU, start=Start.ON_DEMAND)

READY = Ready(0, process(), begin(0))
STARTING = Starting(0, process(), begin(0))
DRAINING = Draining(0, process(), Reason.REPLACED, 30, 1)
STOPPING = Stopping(0, process(), Reason.REPLACED, 8)
CLEARING = Clearing(0, 1, Reason.REPLACED)
FAILED = Failed(0, 1, CRASH, None)
GIVES_WAY = "gives way to another model; it comes back in its turn"


def told(*phases: Phase, spec: ModelSpec = ASKED, closed: tuple[str, ...] = (), **more: object) -> Model:
    """Return what is told of a model whose replicas are in these phases."""
    replicas: dict[str, Replica] = {}
    for index, phase in enumerate(phases):
        made = replace(replica(phase, last_run=1, spec=spec), name=f"m/{index}", **more)  # type: ignore[arg-type]  # fields of any type
        replicas[made.name] = made
    (model,) = routes.models({"m": spec}, replicas, {}, 5.0, closed)
    return model


@pytest.mark.parametrize(
    ("phases", "expected", "reason"),
    [
        ((Stopped(0),), Availability.ON_DEMAND, "starts when asked for"),
        ((Stopped(0), Stopped(1)), Availability.ON_DEMAND, "starts when asked for"),
        ((Stopped(0), FAILED), Availability.ON_DEMAND, "starts when asked for"),
        ((FAILED,), Availability.FAILED, "failed: crash: exit code 1"),
        ((Stopped(0), READY), Availability.READY, ""),
        ((Stopped(0), Resolving(0, 1)), Availability.LOADING, "loading"),
        ((Backoff(0, 1, CRASH, 9.0),), Availability.LOADING, "starts again soon; crash"),
        ((Waiting(0, 1, DIGEST),), Availability.LOADING, "waits for its turn"),
        ((Waiting(0, 1, DIGEST, why="behind n/0"),), Availability.LOADING, "waits: behind another"),
    ],
)
def test_a_model_that_starts_on_demand(phases: tuple[Phase, ...], expected: Availability, reason: str) -> None:
    model = told(*phases)
    assert (model.availability, model.reason, model.on_demand) == (expected, reason, True)


@pytest.mark.parametrize("phase", [DRAINING, STOPPING, CLEARING])
def test_one_on_its_way_down_is_waited_for(phase: Phase) -> None:
    assert told(phase).availability is Availability.LOADING
    gives_way = told(phase, closed=("m/0",))
    assert (gives_way.availability, gives_way.reason) == (Availability.LOADING, GIVES_WAY)


def test_only_what_a_request_starts_is_on_demand() -> None:
    stopped = [
        told(Stopped(0), spec=SPEC),
        told(Stopped(0), want=Want.DOWN),
        told(Stopped(0), halt=Halt.DRAIN),
        told(Stopped(0), removed=True),
        told(STOPPING, want=Want.DOWN),
        told(),
    ]
    assert {model.availability for model in stopped} == {Availability.DOWN}
    assert [model.on_demand for model in stopped] == [False, True, True, True, True, True]


def test_a_replica_that_gives_way_gets_no_more_requests() -> None:
    both = told(READY, READY, closed=("m/0",))
    assert [run.draining for run in both.runs] == [True, False]
    assert both.availability is Availability.READY

    last = told(READY, closed=("m/0",))
    assert [(run.key, run.draining) for run in last.runs] == [("m/0#1", True)]
    assert (last.availability, last.reason) == (Availability.LOADING, GIVES_WAY)
    assert last.retry_after_s > 0

    beside = told(READY, Stopped(0), closed=("m/0",))
    assert (beside.availability, beside.reason) == (Availability.LOADING, GIVES_WAY)
    another = told(READY, STARTING, closed=("m/0", "n/0"))
    assert (another.availability, another.reason) == (Availability.LOADING, "loading")
    assert told(READY, closed=("n/0",)).availability is Availability.READY


def test_who_does_not_read_is_given_up_before_an_engine_that_waits_for_them_is_taken_for_hung() -> None:
    alone = replace(SPEC, engine=Engine.LLAMA_CPP_PYTHON, health=replace(SPEC.health, hang_after_s=8))
    assert [told(READY, spec=spec).runs[0].unread_timeout_s for spec in (alone, SPEC)] == [4, None]


def test_what_a_replica_waits_for_is_said_in_short() -> None:
    assert told(Waiting(0, 1, DIGEST), spec=ASKED_ON_GPU).reason == "waits for a GPU"
    why = "GPU 0: needs 40.0 GiB, 12.0 GiB of 80.0 GiB left (66.0 GiB claimed by n/0 and o/0, 2.0 GiB kept in reserve)"
    short = told(Waiting(0, 1, DIGEST, why=why), spec=ON_GPU).reason
    assert short == "waits: GPU 0: needs 40.0 GiB, 12.0 GiB of 80.0 GiB left"
    long = told(Waiting(0, 1, DIGEST, why="; ".join(f"GPU {index}: lost" for index in range(50))), spec=ON_GPU).reason
    assert len(long) == len("waits: ") + 160
    assert long.endswith("…")
