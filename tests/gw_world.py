"""A gateway's service behind its real wire, engines that answer what a test says, and a client that reads it all."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from modelsupd.gateway.base import Availability, Limits, Model, Run, Table
from modelsupd.gateway.desk import Reports
from modelsupd.gateway.front import Front
from modelsupd.gateway.keys import Principal, Refusal
from modelsupd.gateway.listener import Listener, listening
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.record import Entry
from modelsupd.gateway.service import Service, Ways
from modelsupd.gateway.traffic import Ledger
from modelsupd.gateway.wire import Kind, Wanted
from waiting import auntil

TICK_S = 0.02


@dataclass
class Asked:
    """A request as an engine got it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever it is
        return json.loads(self.body)


class Engine:
    """An engine in this process: `answer` is called with each request, and writes what it wants."""

    def __init__(self, path: Path, answer: Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]) -> None:
        self.path = path
        self.answer = answer
        self.asked: list[Asked] = []
        self.gone = 0
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def endpoint(self) -> str:
        return f"unix:{self.path}"

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def die(self) -> None:
        """Refuse connections from now on, and cut those that are there."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                asked = Asked(method, path, headers, body)
                self.asked.append(asked)
                await self.answer(asked, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            self.gone += 1
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()


@dataclass
class Answer:
    """What a client got. `whole` tells whether it ended as it should."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever it is
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """Return the data of the events."""
        return [line.removeprefix("data: ") for line in self.body.decode().split("\n") if line.startswith("data: ")]


class Client:
    """One request and its answer, as it comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def head(self) -> None:
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)

    async def chunk(self) -> bytes:
        """Return the next chunk, empty at the end."""
        size = int(await self._reader.readline(), 16)
        data = (await self._reader.readexactly(size + 2))[:-2]
        self.body += data
        return data

    async def until(self, words: bytes) -> None:
        while words not in self.body:
            assert await self.chunk(), self.body

    async def until_comment(self) -> None:
        """Wait until the gateway has said something of its own."""
        await self.head()
        assert (await self.chunk()).startswith(b": ")

    async def rest(self) -> Answer:
        whole = True
        try:
            if not self.status:
                await self.head()
            if "content-length" in self.headers:
                self.body += await self._reader.readexactly(int(self.headers["content-length"]))
            elif self.headers.get("transfer-encoding") == "chunked":
                while await self.chunk():
                    pass
            else:
                self.body += await self._reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            whole = False
        return Answer(self.status, self.headers, self.body, whole)

    def close(self) -> None:
        self.writer.transport.abort()


def anyone(headers: Headers) -> Principal | Refusal:  # noqa: ARG001 - whoever it is
    """Let everybody in."""
    return Principal()


@dataclass
class World:
    """A gateway on a port of its own."""

    folder: Path
    service: Service
    port: int
    ledger: Ledger
    entries: list[Entry] = field(default_factory=list)
    evidence: list[tuple[str, Kind, str]] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    demands: list[dict[str, int]] = field(default_factory=list)
    """How many waited, by model, each time that the daemon would have been told at once."""

    async def engine(self, answer: Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]) -> Engine:
        made = Engine(self.folder / f"e{len(self.engines)}.sock", answer)
        self.engines.append(made)
        await made.start()
        return made

    def table(self, *models: Model) -> None:
        self.service.update(Table({model.name: model for model in models}))

    async def open(
        self,
        path: str,
        body: object = None,
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> Client:
        """Send a request; the answer is still to be read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        client = Client(reader, writer)
        self.clients.append(client)
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(data)}"]
        given = {"Content-Type": "application/json", **(headers or {})}
        lines += [f"{name}: {value}" for name, value in given.items()]
        writer.write("\r\n".join((*lines, "", "")).encode() + data)
        return client

    async def ask(
        self, path: str, body: object = None, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return its whole answer."""
        client = await self.open(path, body, method=method, headers=headers)
        answer = await asyncio.wait_for(client.rest(), 20)
        client.close()
        return answer

    async def chat(self, model: str = "m", *, stream: bool = False, **more: Any) -> Answer:  # noqa: ANN401 - a body
        return await self.ask("/v1/chat/completions", said(model, stream=stream, **more))

    def wanted(self) -> dict[str, Wanted]:
        return {each.model: each for each in self.service.wanted()}

    def queued(self, name: str = "m") -> int:
        return self.service.queued().get(name, 0)

    async def recorded(self, count: int = 1) -> list[Entry]:
        await auntil(lambda: len(self.entries) >= count, what=lambda: f"{count} records: {self.entries}")
        return self.entries


def said(model: str = "m", *, stream: bool = False, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - a body's fields
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}


def model(name: str = "m", *engines: Engine, number: int = 1, **more: Any) -> Model:  # noqa: ANN401 - any fields
    """Return a model that these engines serve, ready unless said otherwise."""
    runs = tuple(Run(f"{name}/{index}", number, engine.endpoint) for index, engine in enumerate(engines))
    given = {"availability": Availability.READY, "retry_after_s": 3.0, **more}
    return Model(name=name, runs=runs, **given)


def run(
    test: Callable[[World], Coroutine[Any, Any, None]],
    *,
    check: Callable[[Headers], Principal | Refusal] = anyone,
    ways: Ways | None = None,
) -> None:
    """Run a test on a fresh gateway; nothing of it is left."""

    async def main() -> None:
        async with _world(check, ways or Ways(tick_s=TICK_S)) as world:
            await asyncio.wait_for(test(world), 30)

    uvloop.run(main())


@asynccontextmanager
async def _world(check: Callable[[Headers], Principal | Refusal], ways: Ways) -> AsyncIterator[World]:
    folder = Path(tempfile.mkdtemp(prefix="msd-"))
    ledger = Ledger()
    entries: list[Entry] = []
    evidence: list[tuple[str, Kind, str]] = []
    reports = Reports(
        evidence=lambda *told: evidence.append(told),
        record=entries.append,
        demand=lambda: world.demands.append({each.model: each.waiting for each in service.wanted()}),
    )
    service = Service(check, ledger=ledger, reports=reports, ways=ways)
    front = Front(Limits(), service.handle, tick_s=TICK_S)
    front.start()
    listener = Listener(front)
    sock = listening("127.0.0.1", 0)
    await listener.start([sock])
    world = World(folder, service, sock.getsockname()[1], ledger, entries, evidence)
    try:
        yield world
        assert not service.desk.relays or world.clients
    finally:
        for client in world.clients:
            client.close()
        for engine in world.engines:
            await engine.die()
        listener.stop()
        service.close()
        front.close()
        sock.close()
        shutil.rmtree(folder)
        await asyncio.sleep(0)


# What engines say

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str | None = "word", reason: str | None = None, **more: Any) -> bytes:  # noqa: ANN401 - fields
    delta = {} if text is None else {"content": text}
    shape = {"id": "c1", "object": "chat.completion.chunk", "model": "m", **more}
    return (
        b"data: "
        + json.dumps({**shape, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode()
        + b"\n\n"
    )


DONE = b"data: [DONE]\n\n"
GOOD_STREAM = event("") + event("one") + event(" two") + event(None, "stop") + DONE


def whole_answer(text: str = "hello", tokens: int = 2, reason: str = "stop") -> bytes:
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
            "usage": {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens},
        }
    ).encode()


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


async def talks(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Answer as a healthy engine does."""
    if asked.body and asked.json.get("stream"):
        writer.write(HEAD + chunk(GOOD_STREAM) + b"0\r\n\r\n")
    else:
        writer.write(http(whole_answer()))
