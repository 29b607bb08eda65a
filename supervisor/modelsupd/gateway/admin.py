"""What the gateway tells its own host, on a unix socket: whether it works, and its metrics.

| request | answer |
|---|---|
| GET /health | `{"v": 1, "accepting", "draining", "in_flight", "connections", "table_seq", "daemon", "since"}` |
| GET /metrics | Prometheus' text format |

One request a connection. `/health` is answered on the loop that also serves clients, so that an answer is proof that it
turns. Neither wakes a model or counts as use of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from modelsupd.gateway import metrics

_LARGEST_HEAD_BYTES = 16384
_TIMEOUT_S = 10.0
_BACKLOG = 64

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 431: "Headers Too Large"}
_JSON = "application/json"


class Admin:
    """Listens, and answers."""

    def __init__(self, health: Callable[[], Mapping[str, object]], scrape: Callable[[], Callable[[], bytes]]) -> None:
        """Take who knows: `health` tells at once; `scrape` reads what there is, and returns what makes a text of it."""
        self._health = health
        self._scrape = scrape
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, path: Path) -> None:
        """Listen at `path`, where a socket of an earlier process may still lie. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Asked(self), sock=_bound(path), backlog=_BACKLOG)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()

    def answer(self, transport: asyncio.Transport, line: bytes) -> None:
        """Answer the request of this request line."""
        method, _, rest = line.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            _reply(transport, 405, _JSON, b'{"error":{"message":"only GET"}}')
        elif path == "/health":
            _reply(transport, 200, _JSON, json.dumps(self._health()).encode())
        elif path == "/metrics":
            task = asyncio.get_running_loop().create_task(self._send_metrics(transport))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            _reply(transport, 404, _JSON, b'{"error":{"message":"there are /health and /metrics"}}')

    async def _send_metrics(self, transport: asyncio.Transport) -> None:
        """Make the text in a thread: it takes milliseconds, in which clients wait for their tokens."""
        text = await asyncio.get_running_loop().run_in_executor(None, self._scrape())
        _reply(transport, 200, metrics.CONTENT_TYPE, text)


class _Asked(asyncio.Protocol):
    """A connection, for one request."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._received = b""
        self._answered = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by birth
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
