"""Finds models.toml and parses it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli

from modelsupd.config.places import Host
from modelsupd.errors import ConfigError

SYSTEM_FILE = Path("/etc/modelsupd/models.toml")

#: Far above any real file; a device or a model named by mistake is refused before it fills the memory.
LARGEST_BYTES = 4 * 1024 * 1024

#: Settings stand four tables deep; a dotted key can write thousands.
DEEPEST = 16

_DAEMON_HEADER = re.compile(r"[ \t]*\[[ \t]*daemon[ \t]*[\].]")
_HEADER = re.compile(r"\s*\[\[?([^\]]*)\]")


def locate(path: Path | None, host: Host) -> Path:
    """Return the absolute path of the file to read.

    The command line's `path` wins, then MODELSUPD_CONFIG, `models.toml` in the working directory, and the system's.
    Raises ConfigError that lists where it looked.
    """
    named = path or (Path(value) if (value := host.environ.get("MODELSUPD_CONFIG")) else None)
    if named is not None:
        return host.cwd / named
    candidates = (host.cwd / "models.toml", host.system_file or SYSTEM_FILE)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = " nor ".join(str(candidate) for candidate in candidates)
    why = f"there is neither {looked}; name one with --config FILE or MODELSUPD_CONFIG"
    raise _unusable(None, why)


def read(path: Path) -> dict[str, Any]:
    """Return the parsed file. Raises ConfigError when it cannot be read, decoded or parsed, with line and column."""
    return _parsed(path, _text(path))


def read_daemon(path: Path) -> dict[str, Any]:
    """Return the `[daemon]` entry alone, also of a file whose syntax is broken somewhere else.

    Raises ConfigError when the file cannot be read, or its mistake may touch that entry.
    """
    text = _text(path)
    try:
        parsed = _parsed(path, text)
    except ConfigError:
        # What stands before the first header may be the entry too, as `daemon.state_dir = …`.
        head, *tables = re.split(r"(?m)^(?=[ \t]*\[)", text)
        parsed = _parsed(path, "".join((head, *filter(_DAEMON_HEADER.match, tables))))
    entry = parsed.get("daemon", {})
    return entry if isinstance(entry, dict) else {}


def _unusable(path: Path | None, why: str) -> ConfigError:
    from modelsupd.core.spec import Problem  # noqa: PLC0415 - it takes long to import, and all may go well

    return ConfigError(path, [Problem((), None, why)])


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise _unusable(path, _reason(error)) from error
    if len(raw) > LARGEST_BYTES:
        raise _unusable(path, f"it is larger than {LARGEST_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        why = f"line {line}: byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8"
        raise _unusable(path, why) from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        parsed = tomli.loads(text)
        _refuse_depth(parsed)
    except tomli.TOMLDecodeError as error:
        raise _unusable(path, _syntax(error)) from error
    except RecursionError as error:
        raise _unusable(path, "it is nested too deeply") from error
    return parsed


def _refuse_depth(value: object, left: int = DEEPEST) -> None:
    """Raise RecursionError for a file that whatever walks it later would have to fear."""
    if left == 0:
        raise RecursionError
    inner: list[object] = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    for item in inner:
        _refuse_depth(item, left - 1)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _syntax(error: tomli.TOMLDecodeError) -> str:
    """Return line, column, what the parser says, and the line itself with a mark under the column."""
    lines = error.doc.split("\n")
    number = min(error.lineno, len(lines))
    words = error.msg[:1].lower() + error.msg[1:]
    # One character for one, so that the mark stays under its column.
    shown = "".join(char if char.isprintable() else "\ufffd" for char in _without_secret(lines, number - 1))
    mark = f"\n      {' ' * (error.colno - 1)}^" if error.colno <= len(shown) + 1 else ""
    return f"line {error.lineno}, column {error.colno}: {words}" + (f"\n      {shown}{mark}" if shown.strip() else "")


def _without_secret(lines: list[str], index: int) -> str:
    """Return the line, cut at the `=` when it may set an environment value, for the log is no place for it."""
    line = lines[index].rstrip("\r").replace("\t", " ")
    header = next((seen[1] for text in reversed(lines[: index + 1]) if (seen := _HEADER.match(text))), "")
    within_env = header.rstrip().endswith("env")
    names_secret = re.search(r"\benv\b|key|token|secret|password", line.partition("=")[0], re.IGNORECASE)
    if "=" in line and (within_env or names_secret):
        return line.partition("=")[0] + "= …"
    if within_env and not _HEADER.match(line):
        return "…"
    return line
