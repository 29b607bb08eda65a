"""An engine for measuring the gateway: answers chat requests with events at a pace, or at once. `… SOCKET`.

`max_tokens` events, `pace_ms` between them; the first comes as soon as the request is there, so that whatever a client
waits longer was added on the way.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from typing import cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1790000000, "model": "m"}


def _event(delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    data = f"data: {json.dumps({**_CHUNK, 'choices': [choice]})}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


_TOKEN = _event({"content": " word"}, None)
_END = _event({}, "length") + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection; a request comes in one piece, as the proxies send it."""

    def __init__(self) -> None:
        """Have nothing to say yet."""
        self._left = 0
        self._pace_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's
        """Say no more."""
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Begin to answer."""
        asked = json.loads(data[data.index(b"\r\n\r\n") :])
        self._left = int(asked["max_tokens"])
        self._pace_s = asked["pace_ms"] / 1e3
        self._transport.write(_HEAD)
        self._say()

    def _say(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._transport.write(_END)
            return
        self._transport.write(_TOKEN)
        self._timer = asyncio.get_running_loop().call_later(self._pace_s, self._say)


async def main(path: str) -> None:
    """Serve until killed."""
    await asyncio.get_running_loop().create_unix_server(Connection, path, backlog=4096)
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
