"""What the gateway tells its own host, on a unix socket: whether it works, and its metrics.

| request | answer |
|---|---|
| GET /health | `{"v": 1, "accepting", "draining", "in_flight", "connections", "daemon", "table_seq", …}` |
| GET /metrics | Prometheus' text format |

One request a connection. Neither wakes a model or counts as use of one. Both are answered in a thread of their own:
when thousands of clients ask at once, whoever watches the gateway does not have to wait behind them. An answer of
`/health` is still proof that the loop turns which serves clients: while that is late by more than a moment, none comes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from modelsupd.gateway import metrics

_LARGEST_HEAD_BYTES = 16384
_TIMEOUT_S = 10.0
_BACKLOG = 64

#: A loop that is later than this proves nothing: whoever asks for health gets an answer when it has turned again.
_LATE_S = 2.0
_LATE_LOOK_S = 0.05

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Headers Too Large"}
_JSON = "application/json"


class Admin:
    """Listens, and answers."""

    def __init__(
        self,
        health: Callable[[], Mapping[str, object]],
        scrape: Callable[[], bytes],
        late_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Take who knows; all are called in a thread. `late_s` tells how late the loop is that serves clients."""
        self._health = health
        self._scrape = scrape
        self._late_s = late_s
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.connections: set[asyncio.Transport] = set()

    def listen(self, path: Path) -> None:
        """Listen at `path`, where a socket of an earlier process may still lie. Raises OSError."""
        listening = _bound(path)
        listening.listen(_BACKLOG)
        self._thread = threading.Thread(target=self._run, args=(listening,), name="admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more, and answer nobody."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()
        self._loop.close()

    def _run(self, listening: socket.socket) -> None:
        self._loop.run_until_complete(self._serve(listening))

    async def _serve(self, listening: socket.socket) -> None:
        server = await self._loop.create_unix_server(lambda: _Asked(self), sock=listening)
        await self._ended.wait()
        server.close()
        for connection in self.connections:
            connection.abort()
        await asyncio.gather(*self._tasks)
        while self.connections:  # noqa: ASYNC110 - a turn of the loop or two, once in its life
            await asyncio.sleep(0)

    def answer(self, transport: asyncio.Transport, line: bytes) -> None:
        """Answer the request of this request line."""
        method, _, rest = line.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            _reply(transport, 405, _JSON, b'{"error":{"message":"only GET"}}')
        elif path == "/health":
            task = asyncio.get_running_loop().create_task(self._send_health(transport))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif path == "/metrics":
            _reply(transport, 200, metrics.CONTENT_TYPE, self._scrape())
        else:
            _reply(transport, 404, _JSON, b'{"error":{"message":"there are /health and /metrics"}}')

    async def _send_health(self, transport: asyncio.Transport) -> None:
        while (late_s := self._late_s()) > _LATE_S and not transport.is_closing():  # noqa: ASYNC110 - of another loop
            await asyncio.sleep(_LATE_LOOK_S)
        _reply(transport, 200, _JSON, json.dumps({**self._health(), "late_s": round(late_s, 3)}).encode())


class _Asked(asyncio.Protocol):
    """A connection, for one request."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._received = b""
        self._answered = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by birth
        self._admin.connections.add(self._transport)
        self._timer = asyncio.get_running_loop().call_later(_TIMEOUT_S, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._answered = True
            self._admin.answer(self._transport, self._received.partition(b"\r\n")[0])
        elif len(self._received) > _LARGEST_HEAD_BYTES:
            self._answered = True
            _reply(self._transport, 431, _JSON, b'{"error":{"message":"the head is too large"}}')

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        self._admin.connections.discard(self._transport)
        if self._timer is not None:
            self._timer.cancel()


def _bound(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    path.unlink(missing_ok=True)
    # Nobody else may connect, not even in the moment between bind and chmod.
    before = os.umask(0o177)
    try:
        made.bind(str(path))
    except OSError:
        made.close()
        raise
    finally:
        os.umask(before)
    return made


def _reply(transport: asyncio.Transport, status: int, kind: str, body: bytes) -> None:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    if not transport.is_closing():
        transport.write(head.encode() + body)
        transport.close()
