"""The load of streams and idle connections that is put on proxies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import uvloop

from idle import cpu_s

STREAMS = 100
EVENTS = 50
PACE_MS = 20

_EVENT_END = b"\n\n"
_ANSWER_END = b"\r\n0\r\n\r\n"
_WATCHED_S = 3.0
_SETTLE_S = 1.0


def request(events: int, pace_ms: float) -> bytes:
    """Return a request that streams so many events."""
    asked = {"model": "m", "stream": True, "max_tokens": events, "pace_ms": pace_ms, "messages": [{"role": "user"}]}
    body = json.dumps(asked).encode()
    line = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return line + b"Content-Length: %d\r\n\r\n" % len(body) + body


@dataclass
class Came:
    """What came of streams: seconds until the first event of each, and how many events there were."""

    first_s: list[float] = field(default_factory=list)
    events: int = 0


class _Stream(asyncio.Protocol):
    """A client that asks for one stream after another on one connection."""

    def __init__(self, came: Came, asked: bytes, delay_s: float) -> None:
        self._came = came
        self._asked = asked
        self._delay_s = delay_s
        self._asked_at: float | None = None
        self._stopped = False

    async def connect(self, where: str | int) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(where, str):
            await loop.create_unix_connection(lambda: self, where)
        else:
            await loop.create_connection(lambda: self, "127.0.0.1", where)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        asyncio.get_running_loop().call_later(self._delay_s, self._ask)

    def _ask(self) -> None:
        if not self._transport.is_closing():
            self._asked_at = time.perf_counter()
            self._transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        events = data.count(_EVENT_END)
        if events and self._asked_at is not None:
            self._came.first_s.append(time.perf_counter() - self._asked_at)
            self._asked_at = None
        self._came.events += events
        if data.endswith(_ANSWER_END):
            # Not at once, or all clients would come to ask in step with the engine's clock.
            asyncio.get_running_loop().call_later(random.random() * PACE_MS / 1e3, self._ask)  # noqa: S311 - no secret

    def close(self) -> None:
        self._transport.abort()


def streams(where: str | int, *, seconds: float) -> Came:
    """Ask a path or a port for streams, so many at once, for so long."""

    async def main() -> Came:
        warming, came = Came(), Came()
        clients = []
        for _ in range(STREAMS):
            delay_s = random.random() * EVENTS * PACE_MS / 1e3  # noqa: S311 - no secret
            client = _Stream(warming, request(EVENTS, PACE_MS), delay_s)
            clients.append(client)
            await client.connect(where)
        await asyncio.sleep(EVENTS * PACE_MS / 1e3 + 0.5)
        for client in clients:
            client._came = came  # noqa: SLF001 - its own module
        await asyncio.sleep(seconds)
        for client in clients:
            client.close()
        return came

    return uvloop.run(main())


@contextlib.contextmanager
def _connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(count)]


@contextlib.contextmanager
def held_streams(port: int, count: int) -> Iterator[None]:
    """Hold so many streams open, each of which has begun and says something every few seconds."""
    asked = request(1000, 5000)
    with _connections(port, count) as held:
        for sock in held:
            sock.sendall(asked)
        for sock in held:
            while _EVENT_END not in sock.recv(65536):
                pass
        yield


@dataclass(frozen=True, slots=True)
class Held:
    """Idle connections."""

    def watched(self, pid: int) -> float:
        """Return how many seconds of CPU a process uses in a second."""
        time.sleep(_SETTLE_S)
        before = cpu_s(pid)
        time.sleep(_WATCHED_S)
        return (cpu_s(pid) - before) / _WATCHED_S


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[Held]:
    """Hold so many connections open on which nothing was said."""
    with _connections(port, count):
        yield Held()
