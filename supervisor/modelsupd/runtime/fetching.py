"""Runs the workers that fetch and verify weights, and knows how far each has come.

Replicas that need the same share one worker; as many work side by side as `[weights] downloads` allows. A worker whose
last replica lets go of it ends, and so does one whose daemon dies; what it fetched is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from modelsupd.core.events import Failure, FailureClass
from modelsupd.weights.base import FileDone, Progress
from modelsupd.weights.wire import Finished, Job, job_line, read_report

log = structlog.get_logger("weights")

#: What a worker needs of the daemon's environment: proxies, certificates, and where the hub's own settings lie.
PASSED_ON = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
    "CREDENTIALS_DIRECTORY",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_OFFLINE",
)

#: How long a worker may take to end once it was told to, in seconds; it gives itself five.
KILL_AFTER_S = 7.0

#: What is kept of a worker's stderr, for when it ends without a word of its own.
STDERR_BYTES = 4096

#: Window over which the rate is taken, in seconds.
RATE_WINDOW_S = 10.0

#: Longest line that a worker writes; a report is a few hundred bytes.
LINE_BYTES = 1 << 20


@dataclass(eq=False)
class _Work:
    """One worker, and the replicas that wait for it."""

    job: Job
    names: set[str]
    task: asyncio.Task[Failure | None] = field(init=False)
    progress: Progress | None = None
    seen: deque[tuple[float, int]] = field(default_factory=deque)


class Fetches:
    """All workers of a daemon."""

    def __init__(self, limit: Callable[[], int], on_file: Callable[[frozenset[str], FileDone], None]) -> None:
        """Run at most `limit()` workers at once; tell `on_file` of each file, and of the replicas it is for."""
        self._limit = limit
        self._on_file = on_file
        self._work: dict[Job, _Work] = {}
        self._tasks: set[asyncio.Task[Failure | None]] = set()
        self._running = 0
        self._freed = asyncio.Condition()
        self._pids: set[int] = set()

    def pids(self) -> frozenset[int]:
        """Return the pids of the workers, which are waited for here."""
        return frozenset(self._pids)

    def progress(self) -> Mapping[str, Progress]:
        """Return how far each replica's weights have come, by name; those that wait for a worker are among them."""
        waiting = Progress("waiting for another download", 0, 0)
        return {name: work.progress or waiting for work in self._work.values() for name in work.names}

    async def make_whole(self, name: str, job: Job) -> Failure | None:
        """Have the job done for the replica `name`; return why it was not."""
        work = self._work.get(job)
        if work is None:
            work = self._work[job] = _Work(job, set())
            work.task = asyncio.create_task(self._do(work))
            self._tasks.add(work.task)
            work.task.add_done_callback(self._tasks.discard)
        work.names.add(name)
        # The replicas that share the work must not take it from one another.
        return await asyncio.shield(work.task)

    def abandon(self, name: str) -> None:
        """Let go of the replica's work; a worker that nobody waits for any more ends.

        Whoever asks for the same again meanwhile gets a worker of its own, which waits for the locks of this one.
        """
        for work in list(self._work.values()):
            work.names.discard(name)
            if not work.names:
                del self._work[work.job]
                work.task.cancel()

    async def close(self) -> None:
        """End every worker."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _do(self, work: _Work) -> Failure | None:
        try:
            async with self._freed:
                await self._freed.wait_for(lambda: self._running < self._limit())
                self._running += 1
            try:
                return await self._worker(work)
            finally:
                self._running -= 1
                async with self._freed:
                    self._freed.notify_all()
        except asyncio.CancelledError:
            return Failure(FailureClass.UNREACHABLE, "given up: nobody waits for these weights any more")
        finally:
            if self._work.get(work.job) is work:
                del self._work[work.job]

    async def _worker(self, work: _Work) -> Failure | None:
        """Run one worker to its end; return why its job was not done."""
        work.progress = Progress("starting", 0, 0)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", "modelsupd.weights.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=worker_env(os.environ),
                cwd="/",
                start_new_session=True,
                limit=LINE_BYTES,
            )
        except OSError as error:
            return Failure(FailureClass.SPAWN, f"cannot start a worker for the weights: {error}")
        self._pids.add(process.pid)
        try:
            return await self._follow(work, process)
        finally:
            await _end(process)
            self._pids.discard(process.pid)

    async def _follow(self, work: _Work, process: asyncio.subprocess.Process) -> Failure | None:
        assert process.stdin is not None  # noqa: S101 - all three are pipes
        assert process.stdout is not None  # noqa: S101 - the same
        assert process.stderr is not None  # noqa: S101 - the same
        last_words = asyncio.create_task(_tail(process.stderr))
        finished: Finished | None = None
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(job_line(work.job))
                await process.stdin.drain()
            async for line in process.stdout:
                match read_report(line):
                    case Progress() as progress:
                        work.progress = _rated(progress, work.seen)
                    case FileDone() as done:
                        self._on_file(frozenset(work.names), done)
                    case Finished() as finished:
                        pass
            status = await process.wait()
            if finished is not None:
                return finished.failure
            said = (await last_words).decode(errors="replace").strip().splitlines()
        finally:
            last_words.cancel()
        how = f"killed by signal {-status}" if status < 0 else f"exit code {status}"
        words = f"the worker for the weights ended without an answer: {how}{f'; {said[-1]}' if said else ''}"
        return Failure(FailureClass.UNREACHABLE, words)


def worker_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: what it needs of ours, and nothing that would change how it works."""
    kept = {name: environ[name] for name in PASSED_ON if name in environ}
    return kept | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}


def _rated(progress: Progress, seen: deque[tuple[float, int]]) -> Progress:
    """Return the progress with its rate over the last seconds."""
    now = time.monotonic()
    if seen and progress.done_bytes < seen[-1][1]:
        seen.clear()  # another thing is being done now
    seen.append((now, progress.done_bytes))
    while len(seen) > 1 and now - seen[0][0] > RATE_WINDOW_S:
        seen.popleft()
    began_at, began_bytes = seen[0]
    if now - began_at < 1:
        return progress
    return replace(progress, rate=(progress.done_bytes - began_bytes) / (now - began_at))


async def _tail(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while piece := await stream.read(STDERR_BYTES):
        kept = (kept + piece)[-STDERR_BYTES:]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    """Make sure that the worker is gone, also where we are being cancelled ourselves."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    waiting = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait_for(asyncio.shield(waiting), KILL_AFTER_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await waiting
