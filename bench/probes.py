"""The least that probing can be: one plain HTTP request to each of many sockets, every five seconds, for ever.

`python probes.py < PATHS`: no verdicts, no state, no limits; what idling with probes is measured against.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

INTERVAL_S = 5.0

_ASK = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def ask(path: str, after_s: float) -> None:
    """Ask one socket, again and again."""
    await asyncio.sleep(after_s)
    while True:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(_ASK)
        answer = await reader.read()
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            sys.exit(f"{path}: {answer!r}")
        await asyncio.sleep(INTERVAL_S)


async def main() -> None:
    """Ask all, evenly spread."""
    paths = sys.stdin.read().split()
    await asyncio.gather(*(ask(path, INTERVAL_S * number / len(paths)) for number, path in enumerate(paths)))


if __name__ == "__main__":
    uvloop.run(main())
