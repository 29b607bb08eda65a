"""What is not shown of a command and its environment unless it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelsupd.errors import may_be_secret

MASK = "********"


def masked_names(names: Iterable[str], declared: Iterable[str]) -> set[str]:
    """Return the variables whose values are not shown: what the operator declared, and names that look secret."""
    known, own = set(names), set(declared)
    return {name for name in known if name in own or may_be_secret(("", "", name))}


def masked_argv(argv: Sequence[str]) -> list[str]:
    """Return a command with the value of each flag masked whose name looks secret."""
    shown: list[str] = []
    for before, word in zip(("", *argv), argv, strict=False):
        flag, equals, _value = word.partition("=")
        if equals and _is_secret(flag):
            shown.append(f"{flag}={MASK}")
        else:
            shown.append(MASK if _is_secret(before) and not word.startswith("--") else word)
    return shown


def shown_spec(spec: Mapping[str, Any], env: Mapping[str, str], *, reveal: bool) -> dict[str, Any]:
    """Return a model's declaration as it is shown; its variables have the values that they have in `env`."""
    shown = {**spec, "env": {name: env.get(name, MASK) for name in spec["env"]}}
    if not reveal:
        shown["command"] = masked_argv(spec["command"])
        shown["args"] = {name: MASK if may_be_secret(("", "", name)) else value for name, value in spec["args"].items()}
    return shown


def _is_secret(flag: str) -> bool:
    return flag.startswith("--") and may_be_secret(("", "", flag.removeprefix("--")))
