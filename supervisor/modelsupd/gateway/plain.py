"""Dataclasses to and from plain JSON values: what is written to another process, and read from it without trust.

A key that is not known is passed over, since the writer may be newer; one that is missing takes the field's default. A
value of the wrong kind is an error that names its place.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar, Union, cast

T = TypeVar("T")

_Reader = Callable[[object, str], Any]


class Unreadable(ValueError):  # noqa: N818 - named for what it is
    """A value is not what it ought to be; says where and what was wanted."""


def write(value: object) -> Any:  # noqa: ANN401 - whatever json.dumps takes
    """Return a dataclass, or what one holds, as dicts, lists and scalars."""
    if isinstance(value, str | int | float | bool | None):
        return value.value if isinstance(value, Enum) else value
    if dataclasses.is_dataclass(value):
        return {item.name: write(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): write(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list | frozenset | set):
        return [write(inner) for inner in value]
    raise TypeError(f"cannot write a {type(value).__name__}")


def read(cls: type[T], raw: object, where: str = "") -> T:
    """Return the dataclass that `write` made `raw` of. Raises `Unreadable`."""
    reader: _Reader = _dataclass(cast("Any", cls))
    return cast("T", reader(raw, where))


@functools.cache
def _dataclass(cls: type) -> _Reader:
    hints = typing.get_type_hints(cls)
    readers = {item.name: _reader(hints[item.name]) for item in dataclasses.fields(cls)}
    needed = [
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    ]

    def of_dataclass(raw: object, where: str) -> object:
        if not isinstance(raw, dict):
            raise _wrong(where, "an object")
        missing = [name for name in needed if name not in raw]
        if missing:
            raise Unreadable(f"{where or cls.__name__}: '{missing[0]}' is missing")
        return cls(**{name: readers[name](raw[name], f"{where}.{name}") for name in readers if name in raw})

    return of_dataclass


def _reader(hint: Any) -> _Reader:  # noqa: ANN401 - an annotation is anything
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _optional(_reader(next(arm for arm in inner if arm is not types.NoneType)))
    if origin is tuple:
        return _tuple(_reader(inner[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(_reader(inner[1]))
    if dataclasses.is_dataclass(hint):
        return _dataclass(cast("type", hint))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint)
    return _SCALARS[hint]


def _optional(reader: _Reader) -> _Reader:
    return lambda raw, where: None if raw is None else reader(raw, where)


def _tuple(reader: _Reader) -> _Reader:
    def of_list(raw: object, where: str) -> object:
        if not isinstance(raw, list):
            raise _wrong(where, "a list")
        return tuple(reader(item, f"{where}[{index}]") for index, item in enumerate(raw))

    return of_list


def _mapping(reader: _Reader) -> _Reader:
    def of_object(raw: object, where: str) -> object:
        if not isinstance(raw, dict):
            raise _wrong(where, "an object")
        return {key: reader(value, f"{where}.{key}") for key, value in raw.items()}

    return of_object


def _enum(cls: type[Enum]) -> _Reader:
    def of_word(raw: object, where: str) -> object:
        try:
            return cls(raw)
        except ValueError:
            raise _wrong(where, "one of " + ", ".join(str(member.value) for member in cls)) from None

    return of_word


def _string(raw: object, where: str) -> str:
    if not isinstance(raw, str):
        raise _wrong(where, "a string")
    return raw


def _boolean(raw: object, where: str) -> bool:
    if not isinstance(raw, bool):
        raise _wrong(where, "true or false")
    return raw


def _integer(raw: object, where: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise _wrong(where, "an integer")
    return raw


def _number(raw: object, where: str) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool) or not math.isfinite(raw):
        raise _wrong(where, "a number")
    return float(raw)


_SCALARS: dict[Any, _Reader] = {str: _string, bool: _boolean, int: _integer, float: _number}


def _wrong(where: str, wanted: str) -> Unreadable:
    return Unreadable(f"{where.lstrip('.') or 'it'} must be {wanted}")
