"""A front in this process, an engine that says what a test has written down, and raw sockets to ask it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import uvloop

from counting_observer import Counter
from modelsupd.gateway.base import Limits, Run
from modelsupd.gateway.exchange import Done, Exchange, UpstreamFailed
from modelsupd.gateway.front import Front
from modelsupd.gateway.listener import Listener, listening
from waiting import auntil

TICK_S = 0.02

#: With this, the clock of a front does not turn in a test: what happens all the same is noticed when it happens.
NEVER_S = 3600.0

TIMEOUT_S = 10


def on_uvloop(main: Coroutine[Any, Any, None]) -> None:
    """Run a test on the loop that the gateway runs on."""
    uvloop.run(asyncio.wait_for(main, 30))


def echo(exchange: Exchange) -> None:
    """Answer with what came."""
    line = f"{exchange.method} {exchange.path}?{exchange.query} {len(exchange.body)} ".encode()
    exchange.respond(200, [(b"content-type", b"text/plain")], line + exchange.body)


@dataclass
class Relaying:
    """A service that relays everything to one run, and keeps what it is told."""

    endpoint: str
    unread_timeout_s: float | None = None
    first_byte_timeout_s: float = 5.0
    stall_s: float = 5.0
    final: bytes = b'data: {"error": "the engine died"}\n\ndata: [DONE]\n\n'
    exchanges: list[Exchange] = field(default_factory=list)
    observers: list[Counter] = field(default_factory=list)
    failed: list[UpstreamFailed] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    gone: int = 0
    observer: Callable[[], Counter] = Counter

    def __call__(self, exchange: Exchange) -> None:
        """Relay."""
        self.exchanges.append(exchange)
        exchange.on_client_gone(self.count_gone)
        self.relay(exchange)

    def relay(self, exchange: Exchange) -> None:
        """Relay to the run."""
        observer = self.observer()
        self.observers.append(observer)
        exchange.relay(
            Run("m/0", 1, self.endpoint, unread_timeout_s=self.unread_timeout_s),
            headers_added=[(b"x-modelsupd-run", b"m/0#1")],
            observer=observer,
            on_failed=lambda failure: self.on_failed(exchange, failure),
            on_done=self.done.append,
            first_byte_timeout_s=self.first_byte_timeout_s,
            stall_s=self.stall_s,
        )

    def on_failed(self, exchange: Exchange, failure: UpstreamFailed) -> None:
        """End what was begun, or say that nothing came of it."""
        self.failed.append(failure)
        if failure.bytes_sent_to_client:
            exchange.finish_with(self.final)
        else:
            exchange.respond(503, [], failure.kind.encode())

    def count_gone(self) -> None:
        """Count."""
        self.gone += 1

    async def told(self, *, gone: int = 0) -> None:
        """Wait until a relay is done, and until so many clients have gone."""
        await auntil(lambda: self.done and self.gone == gone)


@dataclass
class Fronted:
    """A front that listens."""

    front: Front
    listener: Listener
    listener_socket: socket.socket

    @property
    def port(self) -> int:
        """Return where it listens."""
        return int(self.listener_socket.getsockname()[1])

    async def open(self) -> Client:
        """Connect."""
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own, and return all that comes until it is closed."""
        client = await self.open()
        client.writer.write(data)
        try:
            return await client.rest()
        finally:
            await client.close()


@dataclass
class Client:
    """A raw connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Send."""
        self.writer.write(data)

    def read(self, *, on: bool) -> None:
        """Stop reading, so that the buffers between fill up, or go on."""
        transport = cast("asyncio.Transport", self.writer.transport)
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()

    async def until(self, end: bytes) -> bytes:
        """Return what comes, up to `end`."""
        return await asyncio.wait_for(self.reader.readuntil(end), TIMEOUT_S)

    async def rest(self) -> bytes:
        """Return everything until the connection is closed, however that is done."""
        came = []
        with contextlib.suppress(ConnectionError):
            while piece := await asyncio.wait_for(self.reader.read(65536), TIMEOUT_S):
                came.append(piece)
        return b"".join(came)

    async def close(self) -> None:
        """Close."""
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Close with a reset, as a client does that was killed with bytes unread."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.writer.transport.abort()


@asynccontextmanager
async def fronted(
    handle: Callable[[Exchange], None], limits: Limits | None = None, tick_s: float = TICK_S
) -> AsyncIterator[Fronted]:
    """Run a front on a port of its own, and see that nothing of it is left."""
    front = Front(limits or Limits(), handle, tick_s=tick_s)
    front.start()
    listener = Listener(front)
    sock = listening("127.0.0.1", 0)
    await listener.start([sock])
    try:
        yield Fronted(front, listener, sock)
    finally:
        listener.stop()
        sock.close()
        front.close()
        await auntil(lambda: not front.connections)
        assert front.in_flight == 0
        assert front.buffered_bytes == 0
        assert not front.pool.relays


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Engine:
    """An engine that follows a script, once for each connection."""

    endpoint: str
    heads: list[bytes] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    connections: int = 0
    closed: int = 0
    server: asyncio.Server | None = None

    async def asked(self, times: int) -> None:
        """Wait until it has read so many requests."""
        await auntil(lambda: len(self.heads) == times)

    async def left(self, times: int) -> None:
        """Wait until so many connections were closed."""
        await auntil(lambda: self.closed == times)

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request, keep it, and return its body."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = await reader.readexactly(length)
        self.heads.append(head)
        self.bodies.append(body)
        return body


@asynccontextmanager
async def engine(folder: Path, script: Callable[[Engine], Script]) -> AsyncIterator[Engine]:
    """Run an engine on a socket in `folder`."""
    path = folder / "e.sock"
    made = Engine(f"unix:{path}")
    follow = script(made)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        try:
            await follow(reader, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            made.closed += 1
            writer.close()

    made.server = await asyncio.start_unix_server(serve, path)
    try:
        yield made
    finally:
        made.server.close()


def answering(*answers: bytes, then_wait: bool = True) -> Callable[[Engine], Script]:
    """Answer each request of a connection with the next of these, then wait for the client, or close at once."""

    def script(made: Engine) -> Script:
        async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await made.request(reader)
                writer.write(answer)
            if then_wait:
                await reader.read()

        return follow

    return script


def chunked(*pieces: bytes, end: bool = True, kind: bytes = b"text/event-stream") -> bytes:
    """Return an answer in chunks."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return head + body + (b"0\r\n\r\n" if end else b"")


def plain(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    """Return an answer of known length."""
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        more,
        len(body),
        body,
    )


def post(path: str = "/v1/chat/completions", body: bytes = b"{}", more: bytes = b"") -> bytes:
    """Return a request."""
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n%b" % (path.encode(), more, len(body), body)


def dechunked(body: bytes) -> tuple[list[bytes], bool]:
    """Return the chunks of a body and whether it ends as it ought to. Raises on broken framing."""
    pieces: list[bytes] = []
    at = 0
    while at < len(body):
        line_end = body.index(b"\r\n", at)
        size = int(body[at:line_end], 16)
        at = line_end + 2
        if size == 0:
            assert body[at:] == b"\r\n", body[at:]
            return pieces, True
        pieces.append(body[at : at + size])
        at += size + 2
        assert body[at - 2 : at] == b"\r\n", body[at - 2 : at + 100]
    return pieces, False
