"""Errors whose words are meant for the person at the terminal.

A command shows them without a traceback; anything else that is raised is a defect of ours and shows one.
Two rules: a message reads `cannot X: why`; a value that may be a secret is never part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelsupd.core.spec import Problem

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

#: A key of this shape may hold a secret, wherever someone put it, so that its value is not repeated in a message.
_SECRET_KEY = re.compile(r"(?:^|[_.-])(?:keys?|token|secrets?|password|passphrase|auth|credentials?)$", re.IGNORECASE)

_LONGEST_VALUE = 60


class ModelsupdError(Exception):
    """What went wrong, in words that the operator can act on."""


class Refused(ModelsupdError):  # noqa: N818 - named for what happened
    """A command that cannot be carried out now, with the reason; nothing was changed."""


class ConfigError(ModelsupdError):
    """models.toml cannot be used. `path` is the file, `problems` holds everything that is wrong with it."""

    def __init__(self, path: Path | None, problems: Sequence[Problem]) -> None:
        """Take the problems in the order in which they are to be read."""
        self.path = path
        self.problems = tuple(problems)
        super().__init__(self._words())

    def _words(self) -> str:
        subject = f"cannot use {self.path}" if self.path else "cannot find a configuration"
        lines = [describe(problem) for problem in self.problems]
        if len(lines) == 1:
            return f"{subject}: {lines[0]}"
        return "\n".join((f"{subject}: {len(lines)} problems", *(f"  {line}" for line in lines)))


def dotted(path: Sequence[str]) -> str:
    """Return a setting's path as it is written in TOML: `models."qwen3:8b".gpus`; a list's items as `aliases[1]`."""
    text = ""
    for part in path:
        if part.startswith("["):
            text += part
        else:
            escaped = printable(part.replace("\\", "\\\\").replace('"', '\\"'))
            quoted = part if _BARE_KEY.fullmatch(part) else f'"{escaped}"'
            text += f".{quoted}" if text else quoted
    return text


def describe(problem: Problem) -> str:
    """Return one problem as `path = value: why`, without the value where it is long, a table or may be a secret."""
    where = dotted(problem.path)
    shown = _shown(problem)
    setting = f"{where} = {shown}" if where and shown else where
    return f"{setting}: {problem.why}" if setting else problem.why


def printable(text: str) -> str:
    """Return the text with every control character as its escape: a file may not write to the reader's terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def may_be_secret(path: Sequence[str]) -> bool:
    """Tell whether the value at this path must not be repeated: a model's environment, and keys such as `api_key`."""
    # Of models and engines the second part is a name that the operator chose.
    own = path[2 if path and path[0] in ("models", "engines") else 1 :]
    return "env" in path[2:3] or any(_SECRET_KEY.search(part) for part in own)


def _shown(problem: Problem) -> str:
    value = problem.value
    if may_be_secret(problem.path) or value is None or isinstance(value, dict):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        value = list(value)
    text = printable(f"'{value}'" if isinstance(value, str) else str(value))
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
