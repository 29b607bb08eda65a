"""How the vLLM adapter has its engine sleep: what it is started with, what it is told, and how its answers read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.placement import Hold
from modelsupd.core.spec import Engine, ModelSpec, Start, launch_digest
from modelsupd.engines.base import Files, Sleeper, adapter
from modelsupd.runtime.sleep import lacking_bytes

VLLM = adapter(Engine.VLLM)
HOLD = Hold(gpus=("GPU-0", "GPU-1"), bytes=(1 << 60, 1 << 60))


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


def test_the_hosts_memory_has_to_hold_the_weights_and_leave_what_is_reserved(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(4096))
    (tmp_path / "tokenizer.json").write_bytes(bytes(9999))

    def lacking(weights: str | None, reserve_bytes: int) -> int | None:
        return asyncio.run(lacking_bytes(weights, HOLD, reserve_bytes))

    assert lacking(str(tmp_path), 0) is None
    assert lacking(str(tmp_path / "a.safetensors"), 0) is None
    short = lacking(str(tmp_path), 1 << 60)
    assert short is not None
    assert short > 1 << 59
    whole = lacking(str(tmp_path / "gone"), 0)
    assert whole is not None, "of weights that cannot be seen, all that it holds of GPUs is reckoned with"
    assert whole > 1 << 60
    assert lacking(None, 0) == pytest.approx(whole, rel=0.01)
