"""Connections to engines, kept open between requests.

Rules. Idle ones are closed before the engine would: vLLM does after 5 s, and a request that meets that moment is lost.
What goes wrong for want of something of our own is never held against an engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import socket
import time
from collections.abc import Sequence
from typing import Final, cast
from urllib.parse import urlsplit

from modelsupd.gateway.base import Limits, Run
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.line import Line
from modelsupd.gateway.ports import Pair
from modelsupd.gateway.relay import Lines, Relay

#: As many idle connections are kept for each engine.
MAX_IDLE: Final = 256

#: So long may connecting take. An engine listens on this host: it accepts at once, or its queue is full.
CONNECT_TIMEOUT_S: Final = 5.0
_QUEUE_FULL_PAUSE_S: Final = 0.02

_UNIX: Final = "unix:"

#: Errors of connecting that are ours, not the engine's: no descriptors, no memory, no local ports left.
_OURS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL}


class Pool(Lines):
    """All connections to engines, and the relays that use them."""

    def __init__(self, limits: Limits) -> None:
        """Start with none."""
        self.relays = set()
        self._limits = limits
        self._idle: dict[str, list[Line]] = {}
        self._dialling: set[asyncio.Task[None]] = set()
        self._now = time.monotonic()

    @property
    def idle(self) -> int:
        """Return how many connections are open and idle."""
        return sum(map(len, self._idle.values()))

    def relay(self, exchange: Exchange, run: Run, path: str | None, headers_added: Sequence[Pair]) -> Relay:
        """Prepare a relay."""
        limit_s, own_s = self._limits.write_timeout_s, run.unread_timeout_s
        unread_timeout_s = limit_s if own_s is None else min(limit_s, own_s)
        return Relay(exchange, self, run.endpoint, path, headers_added, unread_timeout_s)

    def take(self, endpoint: str) -> Line | None:
        """Return an idle connection, the one used last first, so that the others can be closed."""
        lines = self._idle.get(endpoint)
        while lines:
            line = lines.pop()
            if line.usable:
                return line
        return None

    def put(self, line: Line) -> None:
        """Keep a connection for the next request."""
        line.idle_since = self._now  # a little early, which is on the safe side
        lines = self._idle.get(line.endpoint)
        if lines is None:
            self._idle[line.endpoint] = [line]
        elif len(lines) < MAX_IDLE:
            lines.append(line)
        else:
            line.drop()

    def forget(self, line: Line) -> None:
        """Learn that a connection was closed by the engine."""
        lines = self._idle.get(line.endpoint)
        if lines and line in lines:
            lines.remove(line)

    def close(self, endpoint: str | None = None) -> None:
        """Close idle connections, to one engine or to all. What is in use ends with its answer."""
        for name in [endpoint] if endpoint is not None else list(self._idle):
            for line in self._idle.pop(name, []):
                line.drop()

    def tick(self, now: float) -> None:
        """Look at the time: relays that are silent, connections that are idle."""
        self._now = now
        for relay in list(self.relays):
            relay.tick(now)
        oldest_at = now - self._limits.upstream_idle_s
        for endpoint, lines in list(self._idle.items()):
            while lines and lines[0].idle_since < oldest_at:
                lines.pop(0).drop()
            if not lines:
                del self._idle[endpoint]

    def host(self, endpoint: str) -> bytes:
        """Return what an engine is called in the Host header."""
        return _host(endpoint)

    def dial(self, relay: Relay) -> None:
        """Open a connection and call `relay.ask` with it, or `relay.failed`."""
        task = asyncio.get_running_loop().create_task(self._dial(relay))
        relay.dialling = task
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, relay: Relay) -> None:
        line = Line(self, relay.endpoint)
        failure: tuple[str, str] | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connect(line)
        except TimeoutError:
            failure = ("timeout", f"it accepts no connection within {CONNECT_TIMEOUT_S:g} s")
        except OSError as error:
            failure = _kind(error), f"cannot connect: {error.strerror or error}"
        relay.dialling = None
        if relay.over:
            line.drop()
        elif failure is not None:
            relay.failed(*failure)
        elif line.usable:
            relay.ask(line)
        else:
            relay.failed("closed", "connection closed at once")


@functools.lru_cache(maxsize=1024)
def _host(endpoint: str) -> bytes:
    return b"localhost" if endpoint.startswith(_UNIX) else urlsplit(endpoint).netloc.encode()


def _kind(error: OSError) -> str:
    return "unable" if error.errno in _OURS else "refused"


async def connect(line: Line) -> None:
    """Connect to the line's endpoint, and hand the socket to it. Raises OSError."""
    loop = asyncio.get_running_loop()
    to_path = line.endpoint.startswith(_UNIX)
    protocol = cast("asyncio.Protocol", line)
    sock = socket.socket(socket.AF_UNIX if to_path else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    itself = os.fstat(sock.fileno()).st_ino
    try:
        if to_path:
            await _connect_path(sock, line.endpoint.removeprefix(_UNIX))
            await loop.create_unix_connection(lambda: protocol, sock=sock)
        else:
            address = urlsplit(line.endpoint)
            await loop.sock_connect(sock, (address.hostname, address.port))
            await loop.create_connection(lambda: protocol, sock=sock)
    except BaseException:
        line.drop()
        raise
    finally:
        _let_go(sock, itself, taken=line.made)


def _let_go(sock: socket.socket, itself: int, *, taken: bool) -> None:
    """Leave the descriptor to the transport that has taken it; close it where none has.

    uvloop's transport closes the number, which may be another's as soon as it has. Python's socket does not know of
    that, and would close the same number again when it is collected: a connection of somebody else, or the listener.
    A transport that was given up before it was made (the wait was cancelled) has closed it too.
    """
    descriptor = sock.detach()
    if taken:
        return
    with contextlib.suppress(OSError):
        if os.fstat(descriptor).st_ino == itself:
            os.close(descriptor)


async def _connect_path(sock: socket.socket, path: str) -> None:
    """Connect to a path: at once, or as soon as the engine has accepted others before.

    With a full queue this is EAGAIN, which event loops take either for an error of their own or for success.
    """
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(_QUEUE_FULL_PAUSE_S)
        else:
            return
