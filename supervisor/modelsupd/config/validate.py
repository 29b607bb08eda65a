"""From the parsed file to a declaration, with everything that is wrong on the way.

Each entry is validated on its own. What is wrong is taken out and the rest looked at again, so that one mistake hides
no other; what is then missing only because it was taken out is not reported a second time.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import pydantic

from modelsupd.config import demand, gateway, rules, unbuilt, weights, words
from modelsupd.core.gpu_spec import GpusSpec
from modelsupd.core.spec import DaemonSpec, Declaration, EngineSpec, GatewaySpec, ModelSpec, Problem, WeightsSpec

Entry = TypeVar("Entry")
Where = tuple[str, ...]

_ADAPTERS: dict[type, pydantic.TypeAdapter[Any]] = {
    cls: pydantic.TypeAdapter(cls) for cls in (DaemonSpec, EngineSpec, GatewaySpec, GpusSpec, ModelSpec, WeightsSpec)
}
_SECTIONS = ("daemon", "gateway", "weights", "gpus", "engines", "models")


def validate(raw: Mapping[str, Any], problems: list[Problem]) -> Declaration:
    """Return the declaration, made of what is right in `raw`; what is wrong is added to `problems`."""
    problems.extend(
        Problem((key,), value, words.unknown_section(key, _SECTIONS))
        for key, value in raw.items()
        if key not in _SECTIONS
    )
    sections = {key: _table((key,), raw.get(key, {}), problems) or {} for key in _SECTIONS}
    daemon = _entry(DaemonSpec, ("daemon",), sections["daemon"], problems, rules.daemon)
    fetching = _entry(WeightsSpec, ("weights",), sections["weights"], problems, weights.of_weights)
    cards = _entry(GpusSpec, ("gpus",), sections["gpus"], problems)
    engines = {}
    for kind, value in sections["engines"].items():
        here = ("engines", kind)
        refused = words.refused_engine(kind, value)
        if refused:
            problems.append(Problem(here, value, refused))
            continue
        table = _table(here, value, problems)
        if table is not None and (engine := _entry(EngineSpec, here, table, problems, rules.of_engine(kind))):
            engines[kind] = engine
    models = {}
    for name, value in sections["models"].items():
        here = ("models", name)
        table = _table(here, value, problems)
        if table is not None and (model := _entry(ModelSpec, here, table, problems, rules.of_model(name))):
            models[name] = model
    problems.extend(rules.names(sections["models"], models))
    serving = None
    if isinstance(raw.get("gateway"), dict):
        known = {*sections["models"], *(alias for model in models.values() for alias in model.aliases)}
        serving = _entry(GatewaySpec, ("gateway",), sections["gateway"], problems, gateway.of_gateway(known))
    # Where [gateway] itself is wrong, that is all there is to say about it.
    assumed = GatewaySpec() if "gateway" in raw and serving is None else serving
    problems.extend(demand.across(sections["models"], models, assumed))
    return Declaration(
        daemon=daemon or DaemonSpec(),
        weights=fetching or WeightsSpec(),
        gpus=cards or GpusSpec(),
        gateway=serving,
        engines=engines,
        models=models,
    )


def _table(where: Where, value: object, problems: list[Problem]) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    problems.append(Problem(where, value, f"must be a table, not {words.kind_of(value)}"))
    return None


def _entry(
    cls: type[Entry],
    where: Where,
    raw: Mapping[str, Any],
    problems: list[Problem],
    check: Callable[[Entry], Iterable[Problem]] = lambda _: (),
) -> Entry | None:
    """Return the entry without its wrong settings, or None when nothing usable is left."""
    rest: dict[str, Any] = copy.deepcopy(dict(raw))
    removed: set[Where] = set()

    def report(found: Iterable[Problem]) -> bool:
        fresh = [problem for problem in found if not _under(problem.path, removed)]
        problems.extend(fresh)
        removed.update((*where, *_remove(rest, problem.path[len(where) :])) for problem in fresh)
        return bool(fresh)

    report(words.not_in_json(where, raw))
    if cls is ModelSpec:
        report(rules.counts(where, rest))
    elif cls is GatewaySpec:
        report(unbuilt.of_gateway(rest))
    while True:
        try:
            # As JSON, because only there a list may stand for a tuple while "5" is still no number and true no 1.
            entry: Entry = _ADAPTERS[cls].validate_json(json.dumps(rest), strict=True)
            break
        except pydantic.ValidationError as error:
            if not report(words.of_pydantic(cls, where, rest, error)):
                return None
    report(check(entry))
    return entry


def _under(path: Where, removed: set[Where]) -> bool:
    return any(path[:length] in removed for length in range(1, len(path) + 1))


def _remove(rest: dict[str, Any], path: Where) -> Where:
    """Take out the setting at `path`, for a list's item the whole list; return the path of what was taken out."""
    table: Any = rest
    for depth, key in enumerate(path):
        inner = table.get(key)
        if depth == len(path) - 1 or not isinstance(inner, dict):
            table.pop(key, None)
            return path[: depth + 1]
        table = inner
    return path
