"""A crowd of clients in a process of its own: `… PORT COUNT LEFT`. All connect, then all ask; prints what they got.

One line when all are connected, after which it waits for a line; one when no more than LEFT of them still wait for an
answer; then one line of JSON: answers by status, how many of each came with Retry-After, and for how long each status
was waited.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections import Counter, defaultdict
from typing import cast

import uvloop

_ASKED = json.dumps({"model": "qwen", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}).encode()
_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(_ASKED), _ASKED)

#: Connections that are being made at once: the listening socket's queue has room for more.
_CONNECTING = 500


class Member(asyncio.Protocol):
    """One client, which asks once and stays connected."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._came = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, end, body = self._came.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length) and not self.answer.done():
            self.answer.set_result(head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(f"closed {exc or 'without a word'}".encode())


async def main(port: int, count: int, left: int) -> None:
    loop = asyncio.get_running_loop()
    turn = asyncio.Semaphore(_CONNECTING)

    async def join() -> Member:
        async with turn:
            _, member = await loop.create_connection(Member, "127.0.0.1", port)
            return member

    crowd = await asyncio.gather(*(join() for _ in range(count)))
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.readline)
    began_at = loop.time()
    waited: dict[str, list[float]] = defaultdict(list)
    told: Counter[str] = Counter()

    async def ask(member: Member) -> None:
        if not member.transport.is_closing():
            member.transport.write(_REQUEST)
        head = await member.answer
        status = head.split(b" ")[1].decode() if head.startswith(b"HTTP/1.1 ") else head.decode()
        waited[status].append(loop.time() - began_at)
        told[status] += b"\r\nretry-after: " in head.lower()
        if sum(map(len, waited.values())) == count - left:
            sys.stdout.write("told\n")
            sys.stdout.flush()

    await asyncio.gather(*map(ask, crowd))
    found = {status: [len(each), told[status], max(each)] for status, each in waited.items()}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.readline)
    for member in crowd:
        member.transport.abort()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
