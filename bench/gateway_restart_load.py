"""The load of `gateway_restart`, in a process of its own: `… PORT SECONDS OUT`.

300 streams at a pace, each on a connection of its own and followed by the next; a hundred fresh connections a second
with one small request each; and clients that keep theirs, as every SDK does, for one small request after another. What
came of them is written to OUT: delays of events, and counts.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop

STREAMS = 300
PACE_MS = 50
EVENTS = (40, 160)
FRESH_EVERY_S = 0.01
KEPT = 20
KEPT_EVERY_S = 0.05

_STAMP = re.compile(rb'"content": "([0-9.]+) "')
_STREAM_END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
_SMALL = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n%b\r\n"
_CLOSE = b"Connection: close\r\n"
_ANSWER_TIMEOUT_S = 10.0


@dataclass
class Came:
    """What came: when each event was due and there, how long small requests took, and what went wrong."""

    due_at: array[float] = field(default_factory=lambda: array("d"))
    came_at: array[float] = field(default_factory=lambda: array("d"))
    fresh_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


class Stream(asyncio.Protocol):
    """A stream on a connection of its own; `over` is set with its end, however that comes."""

    def __init__(self, came: Came, events: int) -> None:
        """Ask once connected."""
        self._came = came
        self._events = events
        self._got = 0
        self._tail = b""
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport = cast("asyncio.Transport", transport)
        asked = {"model": "m", "stream": True, "max_tokens": self._events, "pace_ms": PACE_MS, "messages": []}
        body = json.dumps(asked).encode()
        line = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        self._transport.write(line + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))

    def data_received(self, data: bytes) -> None:
        """Note when each event came."""
        now, came = time.monotonic(), self._came
        for stamp in _STAMP.findall(data):
            came.due_at.append(float(stamp))
            came.came_at.append(now)
            self._got += 1
        self._tail = (self._tail + data)[-len(_STREAM_END) :]

    def connection_lost(self, exc: Exception | None) -> None:
        """Judge it."""
        if self._tail == _STREAM_END and self._got == self._events:
            self._came.counts["streams"] += 1
        else:
            self._came.wrong[f"stream broken ({exc or 'closed'})"] += 1
        if not self.over.done():
            self.over.set_result(None)


async def streaming(came: Came, port: int, until: float) -> None:
    """Have one stream after another, each whole."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(random.random() * PACE_MS / 1e3)  # noqa: S311 - no secret
    while loop.time() < until:
        events = random.randint(*EVENTS)  # noqa: S311 - no secret
        try:
            _, stream = await loop.create_connection(lambda events=events: Stream(came, events), "127.0.0.1", port)  # type: ignore[misc] # mypy sees no default
        except OSError as error:
            came.wrong[f"stream refused ({error.strerror})"] += 1
            await asyncio.sleep(PACE_MS / 1e3)
            continue
        await stream.over


async def fresh(came: Came, port: int, until: float) -> None:
    """Ask something small by a new connection, again and again, without waiting for those before."""
    loop = asyncio.get_running_loop()
    asking: set[asyncio.Task[None]] = set()
    while loop.time() < until:
        task = loop.create_task(_once(came, port))
        asking.add(task)
        task.add_done_callback(asking.discard)
        await asyncio.sleep(FRESH_EVERY_S)
    await asyncio.gather(*asking)


async def _once(came: Came, port: int) -> None:
    began_at = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        came.wrong[f"connection refused ({error.strerror})"] += 1
        return
    try:
        writer.write(_SMALL % _CLOSE)
        answer = await asyncio.wait_for(reader.read(), _ANSWER_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        answer = type(error).__name__.encode()
    writer.close()
    if answer.startswith(b"HTTP/1.1 200"):
        came.counts["fresh connections"] += 1
        came.fresh_s.append(time.monotonic() - began_at)
    else:
        came.wrong[f"fresh connection: {answer[:40]!r}"] += 1


async def kept(came: Came, port: int, until: float) -> None:
    """Ask something small on a connection that is kept until the answer says that it is closed."""
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await _ask_on(reader, writer, came, until)
        except (OSError, asyncio.IncompleteReadError) as error:
            came.wrong[f"kept connection: {type(error).__name__}"] += 1
        writer.close()


async def _ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, came: Came, until: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        if reader.at_eof():
            came.counts["kept connections closed while idle"] += 1
            return
        writer.write(_SMALL % b"")
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
        came.counts["kept requests"] += 1
        if b"connection: close" in head:
            return
        await asyncio.sleep(KEPT_EVERY_S * (0.5 + random.random()))  # noqa: S311 - no secret


async def main(port: int, seconds: float) -> Came:
    """Put the load on a port for so long; streams that run then are finished."""
    came = Came()
    until = asyncio.get_running_loop().time() + seconds
    await asyncio.gather(
        *(streaming(came, port, until) for _ in range(STREAMS)),
        fresh(came, port, until),
        *(kept(came, port, until) for _ in range(KEPT)),
    )
    return came


if __name__ == "__main__":
    found = uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
    Path(sys.argv[3]).write_text(
        json.dumps(
            {
                "due_at": found.due_at.tolist(),
                "came_at": found.came_at.tolist(),
                "fresh_s": found.fresh_s,
                "counts": found.counts,
                "wrong": found.wrong,
            }
        )
    )
