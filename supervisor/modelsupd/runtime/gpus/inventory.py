"""The daemon's side of the process that reads the GPUs: asks it, gives it up where the driver hangs, starts another.

Two rules:

1. No answer is waited for longer than `answer_timeout_s`. A reader that has not answered by then is killed; where even
   that does not end it, no other is started while it lives: it would hang as well.
2. A GPU that was seen once and is not told of any more is lost, not forgotten. Where its vendor's driver cannot be
   asked at all, as after an upgrade of its library, nothing is known of it, and that is no loss: what runs goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from modelsupd.core.gpu_spec import GpusSpec
from modelsupd.runtime.gpus import amd
from modelsupd.runtime.gpus.reading import Reading, Seen, read

log = structlog.get_logger("gpus")

#: A reading of 16 GPUs with all their processes is some 10 KB.
LINE_BYTES = 4 << 20

#: What the reader needs of the daemon's environment.
_PASSED_ON = ("PATH", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD")

#: A reader that answered wrongly or died is not started again within this time, in seconds.
RETRY_S = 1.0

#: A reader that was killed is gone within this time, in seconds, even on a busy machine: else it hangs in the driver.
GONE_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of the GPUs, `at` what instant it was asked for, and why that is not now, if so."""

    gpus: tuple[Seen, ...] = ()
    at: float | None = None
    trouble: str = ""
    notes: tuple[str, ...] = ()


class Inventory:
    """Knows the GPUs of the host."""

    def __init__(self, spec: Callable[[], GpusSpec], drm: str = str(amd.DRM)) -> None:
        """Start nothing; `spec` returns the present `[gpus]`, `drm` is where sysfs tells of AMD's."""
        self._spec, self._drm = spec, drm
        self.last = Look()
        self._process: asyncio.subprocess.Process | None = None
        self._path = ""
        self._given_up: list[asyncio.subprocess.Process] = []
        self._asking = asyncio.Lock()
        self._failed_at: float | None = None

    def pids(self) -> frozenset[int]:
        """Return the pids of the readers, which are waited for here."""
        every = [*self._given_up, *([self._process] if self._process else [])]
        return frozenset(process.pid for process in every)

    async def read(self) -> Look:
        """Look at the GPUs now; return what is known, with the reason where that is of an earlier look."""
        async with self._asking:
            loop = asyncio.get_running_loop()
            if self._failed_at is not None and loop.time() - self._failed_at < RETRY_S:
                await asyncio.sleep(self._failed_at + RETRY_S - loop.time())
            asked_at = loop.time()
            try:
                reading = self._whole(await self._ask())
            except _Unanswered as error:
                self._failed_at = loop.time()
                words = str(error)
                if self.last.trouble != words:
                    log.warning("the GPUs cannot be read", why=words)
                self.last = replace(self.last, trouble=words)
            else:
                self._failed_at = None
                self.last = Look(with_missing(self.last.gpus, reading), asked_at, "", reading.notes)
            return self.last

    def _whole(self, reading: Reading) -> Reading:
        """Return the reading if it tells of every vendor whose GPUs are known."""
        known = {gpu.vendor for gpu in self.last.gpus}
        if known & {*reading.unread}:
            self._give_up()  # another process loads the library anew
            raise _Unanswered("; ".join(reading.notes))
        return reading

    async def close(self) -> None:
        """End the reader; one that cannot be ended is left."""
        if self._process is not None:
            self._give_up()
        await self._reap()

    async def _ask(self) -> Reading:
        timeout_s = self._spec().answer_timeout_s
        await self._reap()
        if self._given_up:
            pids = ", ".join(str(process.pid) for process in self._given_up)
            raise _Unanswered(f"the driver does not answer: process {pids}, which asked it, hangs in it")
        process = await self._started()
        assert process.stdin is not None  # noqa: S101 - both are pipes
        assert process.stdout is not None  # noqa: S101 - the same
        try:
            process.stdin.write(b"look\n")
            line = await asyncio.wait_for(process.stdout.readline(), timeout_s)
            return read(line)
        except TimeoutError:
            self._give_up()
            raise _Unanswered(f"the driver did not answer within {timeout_s:g} s") from None
        except (OSError, ValueError) as error:
            self._give_up()
            why = f"{error}" if line_was(error) else "the process that asks the driver died"
            raise _Unanswered(why) from error
        except BaseException:
            # The answer would be taken for that to the next question.
            self._give_up()
            raise

    async def _started(self) -> asyncio.subprocess.Process:
        nvml = self._spec().nvml
        if self._process is not None and (self._process.returncode is not None or self._path != nvml):
            self._give_up()
        if self._process is None:
            env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-m", "modelsupd.runtime.gpus.reader", nvml, self._drm),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env=env,
                    cwd="/",
                    start_new_session=True,
                    limit=LINE_BYTES,
                )
            except OSError as error:
                raise _Unanswered(f"cannot start the process that asks the driver: {error.strerror}") from error
            self._path = nvml
        return self._process

    def _give_up(self) -> None:
        process = self._process
        self._process = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            self._given_up.append(process)

    async def _reap(self) -> None:
        """Forget the readers that are gone; a killed one takes a moment."""
        waits = [asyncio.ensure_future(process.wait()) for process in self._given_up]
        if waits:
            await asyncio.wait(waits, timeout=GONE_WITHIN_S)
            for wait in waits:
                wait.cancel()
        self._given_up = [process for process in self._given_up if process.returncode is None]


class _Unanswered(Exception):  # noqa: N818 - named for what happened
    """There is no reading, and why."""


def line_was(error: Exception) -> bool:
    """Tell whether an error is about what was read, and not about that there was nothing."""
    return isinstance(error, ValueError) and "Expecting value" not in str(error)


def with_missing(before: Sequence[Seen], reading: Reading) -> tuple[Seen, ...]:
    """Return what was read, and as lost what was there before and is not told of any more."""
    there = {gpu.uuid for gpu in reading.gpus}
    divided = {*reading.divided, *(gpu.parent for gpu in reading.gpus)}
    names = {gpu.uuid: gpu for gpu in before}
    found = [
        # A lost GPU tells no sizes; those it had are what is lost.
        replace(gpu, total_bytes=names[gpu.uuid].total_bytes) if gpu.lost and gpu.uuid in names else gpu
        for gpu in reading.gpus
    ]
    missing = [gpu for gpu in before if gpu.uuid not in there and gpu.uuid not in divided]
    # A MIG device that was taken away by an administrator is no loss, as long as its GPU is there.
    gone = [
        replace(gpu, lost=True, used_bytes=0, processes=None, notes=("no longer told of by its driver",))
        for gpu in missing
        if gpu.parent is None or gpu.parent not in there | divided
    ]
    return (*found, *gone)
