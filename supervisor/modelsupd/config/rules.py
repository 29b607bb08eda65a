"""What must hold beyond the type of each setting: names, names of variables, limits that belong together.

What an engine can be run with is for its adapter to say, and is asked from here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from modelsupd.config import demand, weights
from modelsupd.config.words import nearest
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.spec import MOST_REPLICAS, NAME, DaemonSpec, Engine, EngineSpec, ModelSpec, Problem, RestartPolicy
from modelsupd.engines.base import adapter

Where = tuple[str, ...]

LOG_LEVELS = ("debug", "info", "warning", "error")

#: Longest name of a directory entry (NAME_MAX, limits.h).
_NAME_MAX_BYTES = 255

#: Room for `.` and a run number of 10 digits after the replica in the name of a run's directory.
_RUN_SUFFIX_BYTES = 11

_UUID = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/-]{1,80}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_REPLICA = re.compile(r"(?P<model>.+)/(?P<index>[0-9]+)")


def daemon(spec: DaemonSpec) -> Iterator[Problem]:
    """Yield what is wrong with `[daemon]`."""
    if spec.log_level not in LOG_LEVELS:
        known = ", ".join(LOG_LEVELS)
        yield Problem(
            ("daemon", "log_level"), spec.log_level, f"must be one of {known}{nearest(spec.log_level, LOG_LEVELS)}"
        )


def of_engine(kind: str) -> Callable[[EngineSpec], Iterator[Problem]]:
    """Return the check of one `[engines.KIND]` entry."""

    def check(spec: EngineSpec) -> Iterator[Problem]:
        here = ("engines", kind)
        if adapter(Engine(kind)).modules:
            if spec.binary:
                yield Problem((*here, "binary"), spec.binary, "is not for this engine, a Python package: set 'python'")
        elif spec.python:
            yield Problem((*here, "python"), spec.python, "is for engines in Python; this one is a 'binary'")

    return check


def of_model(name: str) -> Callable[[ModelSpec], Iterator[Problem]]:
    """Return the check of one `[models.NAME]` entry."""

    def check(spec: ModelSpec) -> Iterator[Problem]:
        here = ("models", name)
        yield from _environment((*here, "env"), spec.env)
        yield from _restart((*here, "restart"), spec.restart)
        yield from _gpus(here, spec)
        for problem in (*weights.of_model(spec), *demand.of_model(spec), *adapter(spec.engine).problems(name, spec)):
            yield Problem((*here, *problem.path), problem.value, problem.why)

    return check


def names(declared: Mapping[str, Any], models: Mapping[str, ModelSpec]) -> Iterator[Problem]:
    """Yield what is wrong with names and aliases.

    `declared` holds every name of the file, `models` the entries that could be read.
    """
    asked = {*declared, *(alias for model in models.values() for alias in model.aliases)}
    for name in declared:
        why = _name_problem(name, _most_replicas(models[name]) if name in models else 1)
        why = why or _reads_as_replica(name, asked)
        if why:
            yield Problem(("models", name), None, why)
    for name, model in models.items():
        for index, other in enumerate(model.placement.apart_from):
            if other not in declared:
                why = f"there is no such model{nearest(other, declared)}"
                yield Problem(("models", name, "placement", "apart_from", f"[{index}]"), other, why)
    owner = {name: name for name in declared}
    for name, model in models.items():
        for index, alias in enumerate(model.aliases):
            why = _name_problem(alias, 1) or _reads_as_replica(alias, asked)
            if not why and alias in owner:
                taken = "the model's own name" if alias == name == owner[alias] else f"taken by model '{owner[alias]}'"
                why = f"is {taken}" if alias not in model.aliases[:index] else "is there twice"
            if why:
                yield Problem(("models", name, "aliases", f"[{index}]"), alias, why)
            owner.setdefault(alias, name)


def _most_replicas(spec: ModelSpec) -> int:
    return spec.replicas if isinstance(spec.replicas, int) else MOST_REPLICAS


def _name_problem(name: str, replicas: int) -> str:
    if not NAME.fullmatch(name):
        return (
            "a model's name is 1 to 128 of the letters, digits and ._:/+@- and begins and ends with a letter or digit"
        )
    directory_bytes = len(quote(f"{name}/{replicas - 1}", safe="")) + _RUN_SUFFIX_BYTES
    if directory_bytes > _NAME_MAX_BYTES:
        over = directory_bytes - _NAME_MAX_BYTES
        return f"is {over} bytes too long for the name of a directory, in which each of : / + @ takes three"
    return ""


def _reads_as_replica(name: str, asked: Collection[str]) -> str:
    seen = _REPLICA.fullmatch(name)
    if seen and seen["model"] in asked:
        return f"reads as replica {seen['index']} of '{seen['model']}'; give one of them another name"
    return ""


def _environment(where: Where, env: Mapping[str, str]) -> Iterator[Problem]:
    for key in env:
        if not _VARIABLE.fullmatch(key):
            yield Problem((*where, key), None, "a variable's name is letters, digits and _, and begins with no digit")


def counts(here: Where, raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with numbers that may be words or lists as well, whose range no type can hold."""
    for key, least, most in (("replicas", 1, MOST_REPLICAS), ("gpus", 0, MOST_REPLICAS)):
        value = raw.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and not least <= value <= most:
            yield Problem((*here, key), value, f"must be at {f'least {least}' if value < least else f'most {most}'}")


def _gpus(here: Where, spec: ModelSpec) -> Iterator[Problem]:
    where = (*here, "gpus")
    if spec.gpus == ():
        yield Problem(where, [], "is an empty list; for no GPU it is 0")
    elif isinstance(spec.gpus, tuple):
        wrong = [uuid for uuid in spec.gpus if not _UUID.fullmatch(uuid)]
        if wrong:
            why = f"'{wrong[0]}' is no UUID, which begins with GPU- or MIG-: 'modelsupd gpu list' tells them"
            yield Problem(where, list(spec.gpus), why)
        elif len(set(spec.gpus)) < len(spec.gpus):
            yield Problem(where, list(spec.gpus), "names a GPU twice")
    if spec.replicas == "per-gpu" and not (isinstance(spec.gpus, int) and spec.gpus > 0):
        why = "needs the number of GPUs of each replica: set 'gpus' to 1 or more"
        yield Problem((*here, "replicas"), spec.replicas, why)
    if spec.gpus == 0 and spec.placement != PlacementSpec():
        yield Problem((*here, "placement"), None, "is for a model that uses GPUs: set 'gpus'")


def _restart(where: Where, policy: RestartPolicy) -> Iterator[Problem]:
    for low, high in (("backoff_initial_s", "backoff_max_s"), ("cool_down_s", "cool_down_max_s")):
        least, value = getattr(policy, low), getattr(policy, high)
        if value < least:
            yield Problem((*where, high), value, f"must be at least {low}, which is {least:g}")
