"""The daemon's side of the spawner: starts it, asks it for shims, starts it anew when it has died."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from modelsupd.runtime.shim import packet, title, tree

#: Where the package lies; the spawner runs isolated (-I -S) and is told. Appended, so that it can hide nothing of the
#: standard library's.
_SOURCE_ROOT = str(Path(__file__).resolve().parents[2])
_PROGRAM = "import sys; sys.path.append({root!r}); from modelsupd.runtime.shim.spawner import main; main({fd})"
_STOP_S = 5.0
#: Between two attempts to send to a spawner that has not taken some three hundred requests yet, in seconds.
_FULL_S = 0.01


class NoReportError(Exception):
    """No shim reported; whether one was started is not known."""


class Spawner:
    """The warm process, and the socket to it."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._sending = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Return the spawner's pid, None if it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process; raises OSError. It needs some 30 ms to be ready; requests wait in its socket."""
        self._drop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            program = _PROGRAM.format(root=_SOURCE_ROOT, fd=theirs.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", "-c", program],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={tree.TOKEN_NAME: title.placeholder(), "LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._control = ours

    async def stop(self) -> None:
        """End the spawner; its shims go on."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _STOP_S)
        self._drop()

    async def ask(self, directory: Path, timeout_s: float) -> tuple[dict[str, Any], list[int]]:
        """Have a shim started for a run directory; return its report and the descriptors that came with it.

        Raises NoReportError where none came in time or the shim died first, and OSError where none can have been
        started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Room for the two pidfds of the report: without it they would be lost, and a running engine with them.
        spare: list[int] = []
        try:
            ours.setblocking(False)
            with theirs:
                for _ in range(2):
                    spare.append(os.dup(ours.fileno()))  # noqa: PERF401 - the first must be known if the second fails
                asked = await self._send({"v": 1, "directory": str(directory)}, theirs.fileno())
            try:
                await asyncio.wait_for(_readable(ours), timeout_s)
            except TimeoutError:
                if self._process is asked:
                    self._drop()  # it may be stopped, or hang: the next run gets another
                raise NoReportError(f"no report from the shim within {timeout_s} s") from None
            while spare:
                os.close(spare.pop())
            try:
                answer, fds = packet.receive(ours, 2)
            except OSError as error:
                raise NoReportError(f"the report of the shim was lost: {error.strerror}") from error
        finally:
            ours.close()
            for fd in spare:
                os.close(fd)
        if answer is None:
            raise NoReportError("the shim, or the process that forks shims, died before it reported")
        return answer, fds

    async def _send(self, request: dict[str, Any], fd: int) -> subprocess.Popen[bytes] | None:
        """Send a request to a spawner, and return to which; raises OSError."""
        async with self._sending:
            for attempt in (1, 2):
                if self.pid is None or self._control is None:
                    self.start()
                try:
                    await self._send_once(request, fd)
                except (BrokenPipeError, ConnectionResetError, ConnectionRefusedError):
                    # It died, or was given up, without taking this request, so the request may be made again.
                    self._drop()
                    if attempt > 1:
                        raise
                else:
                    break
            return self._process

    async def _send_once(self, request: dict[str, Any], fd: int) -> None:
        control = self._control
        while control is not None and control is self._control:
            try:
                packet.send(control, request, [fd])
            except BlockingIOError:
                # Not waited for by the loop: it would go on watching a descriptor that somebody else's timeout closes,
                # and never look at whatever gets the same number.
                await asyncio.sleep(_FULL_S)
            else:
                return
        raise BrokenPipeError(errno.EPIPE, "the spawner is stopped")

    def _drop(self) -> None:
        """Forget a spawner that has died, or is about to: without its socket it goes by itself."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._process = None


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(sock.fileno(), _done, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def _done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
