"""The gateway's process: `python -I -m modelsupd.gateway --settings FILE --admin SOCKET`.

All that it will ever need is imported before it serves, since the code on disk may be replaced under it. SIGTERM lets
answers finish and ends it; whoever has no patience left kills it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog
import uvloop

from modelsupd.errors import ModelsupdError
from modelsupd.gateway import settings
from modelsupd.gateway.worker import Worker

log = structlog.get_logger("gateway")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, and return the exit status: 0 after an orderly end, 2 where the settings cannot be used."""
    parser = argparse.ArgumentParser(
        prog="modelsupd.gateway", description="The gateway's process; the daemon starts it."
    )
    parser.add_argument("--settings", type=Path, required=True, metavar="FILE", help="what the daemon wrote for it")
    parser.add_argument("--admin", type=Path, required=True, metavar="SOCKET", help="where it answers its own host")
    given = parser.parse_args(arguments)
    try:
        read = settings.read(given.settings)
        _configure_log(read.log_level)
        _raise_descriptors()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(read, given.admin))
    except (ModelsupdError, OSError) as error:
        sys.stderr.write(f"modelsupd.gateway: {error}\n")
        return 2
    return 0


async def _serve(read: settings.Settings, admin_path: Path) -> None:
    worker = Worker(read)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, worker.end)
    loop.add_signal_handler(signal.SIGINT, worker.end)
    for number in (signal.SIGHUP, signal.SIGUSR1):  # a daemon's own, and by default the end of whoever gets them
        signal.signal(number, signal.SIG_IGN)
    # What was imported lives as long as the process: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    await worker.run(admin_path)
    log.info("ended")


def _raise_descriptors() -> None:
    """Allow as many open files as may be: a connection is one, and with an engine's two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Log:
    """Writes lines to stderr. Where whoever keeps them does not read on, they are lost: no client waits for that."""

    def __init__(self) -> None:
        self._descriptor = sys.stderr.fileno()
        if stat.S_ISFIFO(os.fstat(self._descriptor).st_mode):
            os.set_blocking(self._descriptor, False)

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        pass


def _configure_log(level: str) -> None:
    """Write lines of words; what keeps the log adds the time."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0, sort_keys=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(_Log()),  # type: ignore[arg-type] # it only writes and flushes
        cache_logger_on_first_use=True,
    )
