"""An engine whose every event says when it was due: at a pace that is kept, whatever the machine does. `… SOCKET`.

The clock is CLOCK_MONOTONIC, which all processes of a host share, so that whoever gets an event can tell its delay.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import Any, cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_SHAPE = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1790000000, "model": "m"}
_WHOLE = {"id": "chatcmpl-0123456789", "object": "chat.completion", "created": 1790000000, "model": "m"}


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(delta: dict[str, str], reason: str | None) -> bytes:
    return b"data: " + json.dumps({**_SHAPE, "choices": [_choice("delta", delta, reason)]}).encode() + b"\n\n"


def _choice(name: str, said: object, reason: str | None) -> dict[str, Any]:
    return {"index": 0, name: said, "finish_reason": reason}


_BEFORE, _AFTER = _event({"content": "@"}, None).split(b"@")
_END = _chunk(_event({}, "length")) + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _whole(body: object) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(data), data)


class Connection(asyncio.Protocol):
    """One connection; a request comes in one piece, as the gateway and the daemon's probes send it."""

    def __init__(self) -> None:
        """Have nothing to say yet."""
        self._left = 0
        self._pace_s = 0.0
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Begin to answer."""
        if not data.startswith(b"POST"):
            self._transport.write(_whole({"object": "list", "data": [{"id": "m", "object": "model"}]}))
            return
        asked = json.loads(data[data.index(b"\r\n\r\n") :])
        if not asked.get("stream"):
            said = _choice("message", {"role": "assistant", "content": "word"}, "length")
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self._transport.write(_whole({**_WHOLE, "choices": [said], "usage": usage}))
            return
        self._left, self._pace_s = int(asked["max_tokens"]), asked["pace_ms"] / 1e3
        self._due_at = self._loop.time()
        self._transport.write(_HEAD)
        self._say()

    def _say(self) -> None:
        if self._left <= 0:
            self._transport.write(_END)
            return
        self._left -= 1
        self._transport.write(_chunk(b"%b%.6f %b" % (_BEFORE, self._due_at, _AFTER)))
        self._due_at += self._pace_s
        self._timer = self._loop.call_at(self._due_at, self._say)


async def main(path: str) -> None:
    """Serve until killed."""
    await asyncio.get_running_loop().create_unix_server(Connection, path, backlog=4096)
    sys.stderr.write("listening on the socket\n")
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
