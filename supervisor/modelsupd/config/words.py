"""What is wrong with a value, in the words of TOML rather than of the validating library."""

from __future__ import annotations

import dataclasses
import datetime as dt
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, get_args, get_type_hints

import pydantic

from modelsupd.core.spec import MOST_REPLICAS, Engine, GatewaySpec, ModelSpec, Problem

Where = tuple[str, ...]

#: TOML promises no more than a signed integer of 64 bits (toml.io, v1.0.0, "Integer").
_LARGEST_INTEGER = 2**63 - 1

_WANTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a table",
    "mapping_type": "a table",
    "dataclass_type": "a table",
}
_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
}
#: Engines that an `[engines.KIND]` entry may be of.
_PLACED = (Engine.VLLM, Engine.LLAMA_CPP, Engine.LLAMA_CPP_PYTHON)

_LISTEN = "must be an address such as '127.0.0.1:8080', or a list of them"
_UNIONS = {
    "replicas": f"must be a number from 1 to {MOST_REPLICAS}, or 'per-gpu'",
    "gpus": "must be a number, or a list of UUIDs such as 'GPU-…'",
}
_ARGUMENT = "must be a string, a number, true, false, or a list of strings and numbers"


def kind_of(value: object) -> str:
    """Return what a TOML value is: "an integer", "a table"."""
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (dict, "a table"),
        (list, "a list"),
        ((dt.date, dt.time), "a date or time"),
    )
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


def nearest(key: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" with the known word most like `key`, or nothing."""
    found = difflib.get_close_matches(key.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{found[0]}'?" if found else ""


def not_in_json(where: Where, value: object) -> Iterator[Problem]:
    """Yield a problem for each value that TOML can write and no setting can take, however deep it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from not_in_json((*where, key), inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from not_in_json((*where, f"[{index}]"), inner)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Problem(where, value, "must be a finite number")
    elif isinstance(value, int) and not -_LARGEST_INTEGER - 1 <= value <= _LARGEST_INTEGER:
        yield Problem(where, None, "must be an integer of at most 64 bits")
    elif isinstance(value, dt.date | dt.time):
        yield Problem(
            where, value.isoformat(), "must not be a date or time; write it in quotes where a string is meant"
        )


def unknown_section(key: str, known: Sequence[str]) -> str:
    """Return why a top-level key is refused."""
    return f"unknown section{nearest(key, known)}" + ("" if nearest(key, known) else f"; there are {_either(known)}")


def refused_engine(kind: str, value: object) -> str:
    """Return why an `[engines.KIND]` entry is refused, or nothing."""
    if kind in _PLACED:
        return ""
    if kind == Engine.COMMAND:
        return "engine 'command' has no binary of its own: the 'command' of each model names it"
    if kind == "llama" and isinstance(value, dict) and "cpp" in value:
        return 'a name with a dot needs quotes: write [engines."llama.cpp"]'
    return f"unknown engine{nearest(kind, _PLACED)}"


def of_pydantic(cls: type, where: Where, raw: Mapping[str, Any], error: pydantic.ValidationError) -> Iterator[Problem]:
    """Yield one problem per wrong setting. A union's alternatives are one setting, and read as one."""
    seen: set[Where] = set()
    for found in error.errors(include_url=False, include_context=True, include_input=True):
        local = tuple(f"[{part}]" if isinstance(part, int) else part for part in found["loc"])
        # Of a union, pydantic names the alternative too.
        union = _LISTEN if cls is GatewaySpec and local[:1] == ("listen",) else ""
        if union:
            local = local[:1]
        elif cls is ModelSpec and local[0] in _UNIONS:
            local, union = local[:1], _UNIONS[local[0]]
        elif cls is ModelSpec and local[:1] == ("args",) and len(local) > 1:
            local, union = local[:2], _ARGUMENT
        if local in seen:
            continue
        seen.add(local)
        value = _value_at(raw, local)
        if union:
            why = union
        elif found["type"] == "unexpected_keyword_argument":
            why = _unknown_key(cls, local, value, where)
        else:
            why = _why(found["type"], found.get("ctx", {}), value, found["msg"])
        yield Problem((*where, *local), value, why)


def _why(kind: str, context: Mapping[str, Any], value: object, message: str) -> str:
    if kind == "missing":
        return "is required"
    if kind in _BOUNDS:
        comparison, key = _BOUNDS[kind]
        return f"must be {comparison} {context[key]:g}"
    if kind == "enum":
        hint = nearest(value, _quoted(context["expected"])) if isinstance(value, str) else ""
        return f"must be {context['expected']}{hint}"
    if kind in _WANTED:
        return f"must be {_WANTED[kind]}, not {kind_of(value)}"
    return message[:1].lower() + message[1:]


def _unknown_key(cls: type, local: Where, value: object, where: Where) -> str:
    fields = _settings(cls, local[:-1])
    key = local[-1]
    for name, inner in fields.items():
        if inner is not None and key in _settings(inner, ()):
            table = ".".join((*where[:1], "NAME", *local[:-1], name) if where[0] == "models" else (*where, name))
            return f"unknown key here; it belongs in [{table}]"
    if near := nearest(key, fields):
        return f"unknown key{near}"
    if isinstance(value, dict) and where[0] == "models" and len(local) == 1:
        return f'unknown key; if it is part of a name, the name needs quotes: [models."{where[1]}.{key}"]'
    if cls is ModelSpec and len(local) == 1:
        return "unknown key; the engine's own flags belong in [models.NAME.args]"
    return f"unknown key; there are {_either(list(fields))}"


def _settings(cls: type, path: Where) -> dict[str, type | None]:
    """Return the keys of the table at `path` below `cls`; for a key that is itself a table of settings, its class."""
    path = tuple(part for part in path if not part.startswith("["))  # one item of a list of tables is like the others
    hints = get_type_hints(cls)
    found: dict[str, type | None] = {}
    for item in dataclasses.fields(cls):
        choices = (hints[item.name], *get_args(hints[item.name]))
        found[item.name] = next((c for c in choices if isinstance(c, type) and dataclasses.is_dataclass(c)), None)
    if not path:
        return found
    inner = found.get(path[0])
    return _settings(inner, path[1:]) if inner is not None else {}


def _value_at(raw: Mapping[str, Any], path: Where) -> object:
    value: Any = raw
    for part in path:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.startswith("["):
            value = value[int(part[1:-1])]
        else:
            return None
    return value


def _quoted(expected: str) -> list[str]:
    return expected.split("'")[1::2]


def _either(words: Sequence[str | StrEnum]) -> str:
    quoted = [f"'{word}'" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
