"""What the `--help` of an installed engine in Python says of its flags, and what of [args] it would not take.

Flags come and go between versions of vLLM, and one that it does not know ends it after ten seconds of imports. So the
version that is installed is asked, by whoever may wait for it, and its answer is read here. Pure, like all of this
part: argparse's help is text.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modelsupd.core.spec import Argument, Problem

#: The head of an entry: `  --dtype {auto,half}`, `  --tensor-parallel-size N, -tp N`, `  --enable-x, --no-enable-x`.
_HEAD = re.compile(r"^ {2,4}(-[\w-].*)$", re.MULTILINE)
_FLAG = re.compile(r"(?:^|, )--([A-Za-z][\w.-]*)(?=[ ,\[]|$)([^,]*)")
_LAST = re.compile(r"(?:^|, )--?[A-Za-z][\w.-]* ([^,]+)$")


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of an engine: whether it takes a value, and whether it may stand without one."""

    value: bool
    bare: bool


def read(text: str) -> dict[str, Flag]:
    """Return the flags that a help text lists, by their names with `_` for `-`; empty where it is no such text."""
    found: dict[str, Flag] = {}
    for head in _HEAD.findall(text):
        # A help line follows after two spaces where the head is short enough.
        names = re.sub(r"\{[^}]*\}", "{}", re.split(r" {2,}", head)[0])
        # Since Python 3.13 a value is told once, after the last name of a flag, which is often the short one.
        last = _LAST.search(names)
        for seen in _FLAG.finditer(names):
            rest = seen[2].strip() or (last[1] if last else "")
            found[seen[1].replace("-", "_")] = Flag(value=bool(rest), bare=not rest or rest.startswith("["))
    return found


def drift(args: Mapping[str, Argument], flags: Mapping[str, Flag], version: str) -> Iterator[Problem]:
    """Yield a problem for each of a model's [args] that the version with these flags would not take."""
    for name, value in args.items():
        why = _refusal(name.partition(".")[0].replace("-", "_"), value, flags, version, nested="." in name)
        if why:
            yield Problem(("args", name), value, why)


def _refusal(key: str, value: Argument, flags: Mapping[str, Flag], version: str, *, nested: bool) -> str:
    flag = flags.get(key)
    if flag is None:
        near = difflib.get_close_matches(key, flags, n=1)
        return f"is no flag of {version}" + (f"; did you mean '{near[0]}'?" if near else "")
    if nested or not isinstance(value, bool):
        takes = nested or flag.value
        return "" if takes else f"must be true or false: to {version} it is a switch"
    if not flag.bare:
        return f"takes a value, not true or false, to {version}"
    if not value and f"no_{key}" not in flags:
        return f"cannot be false: {version} has no '--no-{key.replace('_', '-')}'; leave it out"
    return ""
