"""What must hold of models that start on demand: somebody who can ask for them, and nobody who keeps them out."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from modelsupd.config.words import nearest
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.spec import GatewaySpec, ModelSpec, Problem, Start, gpu_count
from modelsupd.engines.base import Sleeper, adapter

#: What only one that starts on demand can be told: the others do not give way.
_OF_THOSE_THAT_GIVE_WAY = (
    "idle_timeout_s",
    "pinned",
    "group",
    "excludes",
    "residence_s",
    "sleep",
    "asleep_vram_bytes",
    "asleep_timeout_s",
    "sleep_timeout_s",
)


def of_model(spec: ModelSpec) -> Iterator[Problem]:
    """Yield what is wrong with one model's own settings."""
    demand = spec.demand
    if spec.start is not Start.ON_DEMAND:
        for item in dataclasses.fields(DemandSpec):
            value = getattr(demand, item.name)
            if item.name in _OF_THOSE_THAT_GIVE_WAY and value != item.default:
                why = f"is for start = 'on-demand', and this one starts '{spec.start}'"
                yield Problem(("demand", item.name), _plain(value), why)
    else:
        why = "a model that starts on demand is started by who waits for it: must be more than 0"
        for name in ("start_wait_s", "max_queued"):
            if getattr(spec.gateway, name) == 0:
                yield Problem(("gateway", name), 0, why)
    if demand.sleep and not isinstance(adapter(spec.engine), Sleeper):
        yield Problem(("demand", "sleep"), demand.sleep, f"is vLLM's: an engine of kind '{spec.engine}' cannot sleep")
    elif demand.sleep and gpu_count(spec) == 0:
        yield Problem(("demand", "sleep"), demand.sleep, "is for a model that uses GPUs, whose memory it gives back")
    if demand.group == "":
        yield Problem(("demand", "group"), "", "is empty; leave it out for none")


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def across(
    declared: Collection[str], models: Mapping[str, ModelSpec], serving: GatewaySpec | None
) -> Iterator[Problem]:
    """Yield what is wrong between models. `declared` holds every name of the file, `models` what could be read."""
    groups = {spec.demand.group for spec in models.values()} - {None}
    for name, spec in models.items():
        here = ("models", name)
        if spec.start is Start.ON_DEMAND and (serving is None or not serving.enabled):
            yield Problem((*here, "start"), str(spec.start), "only the gateway can tell of demand: add [gateway]")
        if spec.demand.group in declared:
            why = "is a model's name, and `excludes` could not tell which is meant"
            yield Problem((*here, "demand", "group"), spec.demand.group, why)
        for index, other in enumerate(spec.demand.excludes):
            where = (*here, "demand", "excludes", f"[{index}]")
            if other not in declared and other not in groups:
                known = [*declared, *(group for group in groups if group is not None)]
                yield Problem(where, other, f"there is no such model or group{nearest(other, known)}")
            elif other == name:
                yield Problem(where, other, "is the model itself; its own group is what keeps it off others")
            elif other in models and models[other].start is not Start.ON_DEMAND:
                why = f"starts '{models[other].start}' and gives way to nobody: it would keep this one out for ever"
                yield Problem(where, other, why)
