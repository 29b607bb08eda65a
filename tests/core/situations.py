"""Every phase of a replica, in every context that changes what follows an event, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from core.samples import (
    BAD_WEIGHTS,
    CRASH,
    DIGEST,
    HOLD,
    INPUTS,
    LEARNED,
    ON_DEMAND,
    ON_GPU,
    OTHER_DIGEST,
    SIZE,
    SLEEPER,
    process,
    replica,
)
from modelsupd.core.events import (
    ProbeKind,
)
from modelsupd.core.health import Pulse, begin
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Cause,
    Clearing,
    Draining,
    Failed,
    Fault,
    Halt,
    Killing,
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
)

NOW = 1000.0
RUN = 7
SINCE = NOW - 20
FAULT = Fault(CRASH, None)


def situations() -> Iterator[tuple[str, Replica]]:
    """Yield every phase, in every context that changes what follows, in words."""
    down = Want.DOWN
    yield "stopped, wanted down", _at(Stopped(SINCE), down)
    yield "stopped, wanted up, the daemon goes", _at(Stopped(SINCE), halt=Halt.DRAIN)
    yield "stopped, wanted up, removed", _at(Stopped(SINCE), removed=True)
    yield "resolving", _at(Resolving(SINCE, RUN))
    yield "resolving, needs a GPU", _at(Resolving(SINCE, RUN), spec=ON_GPU)
    yield "waiting for a GPU", _at(Waiting(SINCE, RUN, DIGEST, SIZE, "none is free"), spec=ON_GPU)
    on_gpu: dict[str, Any] = {"spec": ON_GPU, "hold": HOLD, "learned": LEARNED, "inputs": INPUTS}
    spawning = Spawning(SINCE, RUN, DIGEST)
    yield "spawning", _at(spawning)
    yield "spawning, wanted down", _at(spawning, down)
    yield "spawning, removed", _at(spawning, removed=True)
    yield "spawning, the daemon goes", _at(spawning, halt=Halt.DRAIN)
    yield "spawning, the daemon goes and kills", _at(spawning, halt=Halt.KILL)
    yield "spawning, configured otherwise meanwhile", _at(spawning, digest=OTHER_DIGEST)
    quiet = begin(SINCE)
    yield "starting", _at(Starting(SINCE, process(RUN), quiet))
    yield "starting, probing", _at(Starting(SINCE, process(RUN), replace(quiet, probe=ProbeKind.START)))
    yield "ready", _at(Ready(SINCE, process(RUN), quiet))
    yield "ready, probing", _at(Ready(SINCE, process(RUN), replace(quiet, probe=ProbeKind.ALIVE)))
    doubted = Pulse(NOW - 61, NOW - 61, NOW - 61, NOW - 1, failures=2, doubted=True, answered=False, complaint="no")
    yield "ready on a GPU", _at(Ready(SINCE, process(RUN), quiet), **on_gpu)
    yield "ready on a GPU, beside a load", _at(Ready(SINCE, process(RUN), quiet), beside="n/0", **on_gpu)
    yield "ready, hung", _at(Ready(NOW - 100, process(RUN), doubted))

    yield "draining for an operator", _at(_draining(Reason.OPERATOR), down)
    yield "draining for an operator, wanted up again", _at(_draining(Reason.OPERATOR))
    yield "draining to be replaced, between two looks", _at(_draining(Reason.REPLACED, probing=False))
    yield "draining, removed", _at(_draining(Reason.REMOVED), removed=True)
    yield "draining, the daemon goes", _at(_draining(Reason.SHUTDOWN), halt=Halt.DRAIN)
    held = _draining(Reason.RESTART, probing=False, held=True, next_at=NOW + 10)
    yield "draining on a GPU, drained and held beside a load", _at(held, beside="n/0", **on_gpu)
    yield "stopping for an operator", _at(Stopping(SINCE, process(RUN), Reason.OPERATOR, NOW), down)
    yield "stopping to restart", _at(Stopping(SINCE, process(RUN), Reason.RESTART, NOW))
    yield "stopping, the daemon goes", _at(Stopping(SINCE, process(RUN), Reason.SHUTDOWN, NOW), halt=Halt.DRAIN)
    yield "killing for a fault", _at(Killing(SINCE, process(RUN), FAULT, NOW))
    yield "killing for a fault, wanted down", _at(Killing(SINCE, process(RUN), FAULT, NOW), down)
    yield "killing for an operator", _at(Killing(SINCE, process(RUN), Reason.OPERATOR, NOW), down)
    yield "clearing after a fault, looking", _at(Clearing(SINCE, RUN, FAULT))
    yield "clearing after a restart, stuck", _at(Clearing(SINCE, RUN, Reason.RESTART, NOW, (5,)))
    yield "clearing, its GPUs' memory looked for", _at(Clearing(SINCE, RUN, FAULT), **on_gpu)
    yield "clearing, wanted down", _at(Clearing(SINCE, RUN, Reason.OPERATOR), down)
    yield "backoff", _at(Backoff(SINCE, RUN, CRASH, NOW))
    yield "failed, one more try due", _at(Failed(SINCE, RUN, CRASH, NOW, INPUTS), inputs=INPUTS)
    yield "failed, look due", _at(Failed(SINCE, RUN, CRASH, NOW + 50, INPUTS, NOW), inputs=INPUTS)
    yield "failed for good, look due", _at(Failed(SINCE, RUN, BAD_WEIGHTS, None, INPUTS, NOW), inputs=INPUTS)
    yield "failed for good, looking", _at(Failed(SINCE, RUN, BAD_WEIGHTS, None, INPUTS), inputs=INPUTS)
    yield from _on_demand()


def _at(phase: object, want: Want = Want.UP, **changes: object) -> Replica:
    return replace(replica(phase, want=want, last_run=RUN), **changes)  # type: ignore[arg-type]  # samples of each phase


def _draining(cause: Cause, **changes: object) -> Draining:
    return replace(Draining(SINCE, process(RUN), cause, NOW + 10, NOW, probing=True), **changes)  # type: ignore[arg-type]  # by name


def _on_demand() -> Iterator[tuple[str, Replica]]:
    """Yield the same of one that starts on demand."""
    on_demand: dict[str, Any] = {"spec": ON_DEMAND, "demanded_by": "clients"}
    yield "stopped, on demand", _at(Stopped(SINCE), spec=ON_DEMAND)
    yield "resolving, on demand", _at(Resolving(SINCE, RUN), **on_demand)
    yield "waiting for its turn", _at(Waiting(SINCE, RUN, DIGEST, None, "n/0 is in use"), **on_demand)
    yield "spawning, on demand and nobody asks any more", _at(Spawning(SINCE, RUN, DIGEST), spec=ON_DEMAND)
    yield "ready, on demand", _at(Ready(SINCE, process(RUN), begin(SINCE)), **on_demand)
    yield "draining to give way", _at(_draining(Reason.EVICTED), spec=ON_DEMAND)
    yield "draining to give way, asked for again", _at(_draining(Reason.EVICTED), **on_demand)
    sleeper: dict[str, Any] = {"spec": SLEEPER, "hold": HOLD, "learned": LEARNED, "inputs": INPUTS}
    yield "ready, on demand, can sleep", _at(Ready(SINCE, process(RUN), begin(SINCE)), demanded_by="clients", **sleeper)
    yield "draining to sleep", _at(_draining(Reason.SLEEP), **sleeper)
    for state in Resting:
        asleep = Asleep(SINCE, process(RUN), 1, HOLD, state)
        yield f"asleep, {state}", _at(asleep, demanded_by="clients" if state is Resting.WAKING else "", **sleeper)
    yield "asleep and asked for", _at(Asleep(SINCE, process(RUN), 1, HOLD, Resting.ASLEEP), demanded_by="x", **sleeper)
    yield "backing off, on demand", _at(Backoff(SINCE, RUN, CRASH, NOW), **on_demand)
