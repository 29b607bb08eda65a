"""Says what happens, for people: one line for each change of phase, through structlog to stderr."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from modelsupd.core.events import Event
from modelsupd.core.phases import Backoff, Clearing, Failed, Fault, Killing, Replica, phase_name

log = structlog.get_logger("modelsupd")


def configure(level: str, environment: Mapping[str, str] = os.environ) -> None:
    """Set up the log. Under systemd the journal adds the time; colours only for a terminal without NO_COLOR."""
    processors: list[Any] = [structlog.processors.add_log_level]
    if "JOURNAL_STREAM" not in environment:
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if sys.stderr.isatty() else "iso"))
    colours = sys.stderr.isatty() and not environment.get("NO_COLOR")
    processors += [
        structlog.processors.format_exc_info,
        structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=28, sort_keys=False),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class Narrator:
    """Tells changes of phase; what stays in its phase is told only when it is called stuck."""

    def changed(self, before: Replica | None, after: Replica, _event: Event | str) -> None:
        """Take note of a published change."""
        phase = phase_name(after.phase)
        if before is not None and phase_name(before.phase) == phase and not _newly_stuck(before, after):
            if before.reason != after.reason:
                log.debug("unchanged", replica=after.name, phase=phase, why=after.reason)
            return
        tell = log.info
        if isinstance(after.phase, Failed) or _newly_stuck(before, after):
            tell = log.error
        elif isinstance(after.phase, Backoff) or isinstance(getattr(after.phase, "cause", None), Fault):
            tell = log.warning
        known = {"run": after.last_run or None, "pid": after.process.pid if after.process else None}
        tell(phase, replica=after.name, **{key: value for key, value in known.items() if value}, why=after.reason)


def _newly_stuck(before: Replica | None, after: Replica) -> bool:
    if not isinstance(after.phase, Killing | Clearing) or not after.phase.stuck:
        return False
    return before is None or not getattr(before.phase, "stuck", False)
