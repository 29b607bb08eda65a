"""Replicas that start on demand, and what gateways tell of them: small, named, all on one clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.samples import DIGEST, LEARNED, SPEC, process
from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.health import begin
from modelsupd.core.phases import Phase, Ready, Replica, Starting, Stopped, Waiting, Want
from modelsupd.core.placement import Hold, Size
from modelsupd.core.spec import Start

GIB = 1024**3


def on_demand(
    name: str,
    phase: Phase,
    *gpus: int,
    size: int = 2,
    start: Start = Start.ON_DEMAND,
    count: int | None = None,
    **demand: Any,  # noqa: ANN401 - settings of any type
) -> Replica:
    """Return a replica in a phase, on GPUs of which it holds so many GiB each; `count` of them are declared."""
    uuids = tuple(f"GPU-{index}" for index in gpus)
    spec = replace(SPEC, start=start, gpus=len(gpus) if count is None else count, demand=DemandSpec(**demand))
    return Replica(
        name=name,
        model=name.partition("/")[0],
        spec=spec,
        digest=DIGEST,
        want=Want.UP,
        phase=phase,
        last_run=1,
        hold=Hold(gpus=uuids, bytes=(size * GIB,) * len(gpus)) if gpus else None,
        learned=replace(LEARNED, start_s=30.0),
        demanded_by="" if isinstance(phase, Stopped) or start is not Start.ON_DEMAND else "clients",
    )


def ready(name: str, since: float = 0.0, *gpus: int, **more: Any) -> Replica:  # noqa: ANN401 - as above
    """Return one that is ready since then."""
    return on_demand(name, Ready(since, process(1), begin(since)), *gpus, **more)


def starting(name: str, *gpus: int, **more: Any) -> Replica:  # noqa: ANN401 - as above
    """Return one whose process exists."""
    return on_demand(name, Starting(0.0, process(1), begin(0.0)), *gpus, **more)


def waits(name: str, since: float = 0.0, size: int = 2, count: int = 0, **more: Any) -> Replica:  # noqa: ANN401 - as above
    """Return one that an operator asked for and that waits, for so many GPUs and on each of them so many GiB."""
    phase = Waiting(since, 1, DIGEST, Size(size * GIB * count) if count else None)
    found = on_demand(name, phase, count=count, **more)
    return replace(found, demanded_by="ada") if found.demanded_by else found


def fleet(*replicas: Replica) -> Mapping[str, Replica]:
    """Return them by name."""
    return {replica.name: replica for replica in replicas}


def told(
    *, wanted: Mapping[str, float] | None = None, busy: Mapping[str, int] | None = None, **last_at: float
) -> Usage:
    """Return what a gateway tells: who is waited for and since when, who has how many in flight, who served when."""
    runs = {f"{name}/0#1": Use(0, at) for name, at in last_at.items()}
    runs |= {f"{name}/0#1": Use(number, last_at.get(name)) for name, number in (busy or {}).items()}
    return Usage(runs, {model: Wanted(1, since) for model, since in (wanted or {}).items()}, known=True)
