"""How the vLLM adapter has its engine sleep: what it is started with, what it is told, and how its answers read."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from pathlib import Path
from typing import Self

import psutil
import pytest

from modelsupd.core.actions import Sleep
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.sleep_events import Slept
from modelsupd.core.spec import Engine, ModelSpec, Start, launch_digest
from modelsupd.engines.base import Files, Sleeper, adapter
from modelsupd.runtime.sleep import Keeps, Sleepers
from waiting import auntil

VLLM = adapter(Engine.VLLM)
SLEEP = Sleep(1, 1, 5.0)


def spec(level: int) -> ModelSpec:
    demand = DemandSpec(sleep=level)
    return ModelSpec(engine=Engine.VLLM, weights="/v", gpus=1, start=Start.ON_DEMAND, demand=demand)


def test_only_one_that_is_to_sleep_is_started_for_it() -> None:
    command = VLLM.command("v", spec(1), binary="python", files=Files("/v"))
    assert "--enable-sleep-mode" in command.argv
    assert command.env["VLLM_SERVER_DEV_MODE"] == "1"
    awake = VLLM.command("v", spec(0), binary="python", files=Files("/v"))
    assert "--enable-sleep-mode" not in awake.argv
    assert "VLLM_SERVER_DEV_MODE" not in awake.env
    assert launch_digest(spec(0)) != launch_digest(spec(1)) == launch_digest(spec(2)), "a level needs no other engine"


def test_what_it_is_told() -> None:
    assert isinstance(VLLM, Sleeper)
    assert [request.path for request in VLLM.sleep(2)] == ["/sleep?level=2&mode=abort"]
    assert [request.path for request in VLLM.wake(1)] == ["/wake_up"]
    weights, read_again, cache = VLLM.wake(2)
    assert (weights.path, cache.path) == ("/wake_up?tags=weights", "/wake_up?tags=kv_cache")
    assert (read_again.path, read_again.body) == ("/collective_rpc", b'{"method":"reload_weights"}')
    assert {request.method for request in (*VLLM.sleep(1), *VLLM.wake(2))} == {"POST"}


@pytest.mark.parametrize(
    ("status", "body", "sleeps"),
    [
        (200, b'{"is_sleeping":true}', True),
        (200, b'{"is_sleeping":false}', False),
        (200, b'{"is_sleeping":"yes"}', None),
        (200, b"sleeping", None),
        (404, b'{"is_sleeping":true}', None),
    ],
)
def test_its_own_word_is_what_counts(status: int, body: bytes, sleeps: bool | None) -> None:
    assert isinstance(VLLM, Sleeper)
    assert VLLM.read_sleeping(status, body) is sleeps


def test_others_cannot_sleep() -> None:
    assert not any(isinstance(adapter(kind), Sleeper) for kind in Engine if kind is not Engine.VLLM)


class Vllm:
    """What answers as vLLM does of sleep, at a socket; it falls asleep when it is `let`."""

    def __init__(self, place: Path, name: str = "e", *, asleep: bool = False) -> None:
        self.path, self.asleep, self.let, self.told = place / name, asleep, asyncio.Event(), list[str]()
        self.endpoint = f"unix:{self.path}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_unix_server(self._answer, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        if path != "/is_sleeping":
            self.told.append(path)
            await self.let.wait()
            self.asleep = path.startswith("/sleep")
        body = json.dumps({"is_sleeping": self.asleep}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()


def available_bytes() -> int:
    return int(psutil.virtual_memory().available)


def test_the_hosts_memory_has_to_hold_the_weights_and_leave_what_is_reserved(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a.safetensors").write_bytes(bytes(4096))
    (weights / "tokenizer.json").write_bytes(bytes(9999))

    async def sleep(keeps: Keeps | None) -> str:
        async with Vllm(tmp_path) as engine:
            engine.let.set()
            ended = await Sleepers().carry_out(VLLM, engine.endpoint, SLEEP, keeps)
            assert isinstance(ended, Slept)
            assert engine.told == ([] if ended.failure else ["/sleep?level=1&mode=abort"])
            return ended.failure

    def tried(keeps: Keeps | None) -> str:
        return asyncio.run(sleep(keeps))

    assert tried(None) == ""
    assert tried(Keeps(str(weights), 1 << 60, 0)) == ""
    assert tried(Keeps(str(weights / "a.safetensors"), 1 << 60, 0)) == ""
    assert re.fullmatch(r"the host's memory lacks 1073\d{6}\.\d GiB for .*", tried(Keeps(str(weights), 0, 1 << 60)))
    assert "lacks" in tried(Keeps(str(weights / "gone"), 1 << 60, 0)), "all that it holds of GPUs is reckoned with"
    assert "lacks" in tried(Keeps(None, 1 << 60, 0))


def test_one_that_sleeps_already_is_not_asked_whether_there_is_room_for_that(tmp_path: Path) -> None:
    """What it keeps is in the host's memory by now: a daemon that died had asked for it."""

    async def main() -> None:
        async with Vllm(tmp_path, asleep=True) as engine:
            keeps = Keeps(None, 1 << 60, 0)
            assert await Sleepers().carry_out(VLLM, engine.endpoint, SLEEP, keeps) == Slept(1)

    asyncio.run(main())


def test_those_who_fall_asleep_at_the_same_time_share_the_room(tmp_path: Path) -> None:
    async def main() -> None:
        sleepers = Sleepers()
        keeps = Keeps(None, available_bytes() * 2 // 3, 0)
        async with Vllm(tmp_path, "a") as one, Vllm(tmp_path, "b") as other:
            first = asyncio.create_task(sleepers.carry_out(VLLM, one.endpoint, SLEEP, keeps))
            await auntil(lambda: one.told)
            second = await sleepers.carry_out(VLLM, other.endpoint, SLEEP, keeps)
            assert isinstance(second, Slept)
            assert "lacks" in second.failure
            one.let.set()
            other.let.set()
            assert await first == Slept(1)
            # What the first has taken by now would be seen, had it taken any.
            assert await sleepers.carry_out(VLLM, other.endpoint, SLEEP, keeps) == Slept(1)

    asyncio.run(main())


def test_a_file_system_that_does_not_answer_keeps_nobody_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(Path, "is_dir", lambda _path: answers.wait())

    async def main() -> None:
        async with Vllm(tmp_path) as engine:
            engine.let.set()
            keeps = Keeps("/weights", 1, 0)
            try:
                ended = await sleepers.carry_out(VLLM, engine.endpoint, Sleep(1, 1, 1.0), keeps)
            finally:
                answers.set()
            assert ended == Slept(1)

    sleepers = Sleepers()
    asyncio.run(main())
