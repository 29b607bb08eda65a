"""`modelsupd status`, with or without `--json`, while all goes well: the shortest way from question to answer.

Monitoring asks it every few seconds, and most of the time that a command takes is that of its imports. Two rules:
whatever this does not know for certain is left to the full command line, which begins anew and has the words for every
mistake; and nothing is imported that the answer does not need.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

READY, NOT_READY, NO_DAEMON = 0, 1, 3

_OPTIONS = ("--config", "--state-dir", "--runtime-dir")


def status(words: tuple[str, ...]) -> int | None:
    """Print the answer and return the exit status; None, and nothing is printed, for anything else."""
    as_json = words[-1:] == ("--json",)
    options = _options(words[:-1] if as_json else words)
    if options is None or "_MODELSUPD_COMPLETE" in os.environ:
        return None
    document = _ask(options)
    if document is None:
        return None
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        from modelsupd.cli.screen import show_status  # noqa: PLC0415 - only where it is needed

        show_status(document)
    return code(document)


def code(document: Mapping[str, Any]) -> int:
    """Return the exit status for a document."""
    if document["daemon"]["state"] != "running":
        return NO_DAEMON
    wanted = [model for model in document["models"] if model["want"] == "up"]
    gateway = document.get("gateway")
    served = gateway is None or any(run["accepts"] for run in gateway["runs"])
    return READY if served and all(model["ready"] or model["idle"] for model in wanted) else NOT_READY


def _options(words: Sequence[str]) -> dict[str, Path] | None:
    """Return the global options before the verb `status`, None where anything else is said."""
    if tuple(words[-1:]) != ("status",):
        return None
    pairs = words[:-1]
    if len(pairs) % 2 or any(name not in _OPTIONS for name in pairs[::2]):
        return None
    return {name: Path(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}


def _ask(options: Mapping[str, Path]) -> dict[str, Any] | None:
    from modelsupd.config import directories  # noqa: PLC0415 - only where it is needed
    from modelsupd.control.client import ApiError, Client, NoDaemon, Unanswered  # noqa: PLC0415 - the same
    from modelsupd.errors import ModelsupdError  # noqa: PLC0415 - the same

    try:
        places = directories(
            options.get("--config"), state_dir=options.get("--state-dir"), runtime_dir=options.get("--runtime-dir")
        )
        return Client(places.runtime_dir).status()
    except (ModelsupdError, NoDaemon, Unanswered, ApiError):
        return None
