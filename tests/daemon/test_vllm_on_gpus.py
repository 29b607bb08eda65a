"""The daemon with what looks like vLLM, on GPUs of a fake NVML: claims by share and by size, two GPUs for one model.

The fake takes of each GPU that it sees what vLLM would, and dies in vLLM's words where that is not free.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fake_engine
import tiny_llama
from fake_gpus import GIB, Cards
from hosts import QUICK, Host, fake, host, settled
from waiting import until


@pytest.fixture
def cards(place: Path) -> Cards:
    made = Cards(place / "cards", 8, 8)
    tiny_llama.write(place / "tiny", context_length=64)
    for file in (place / "tiny").iterdir():
        settled(file)
    program = fake_engine.install_vllm(place)
    takes = f"import gpu_engine; gpu_engine.take_as_vllm(gpu_engine.Path({str(made.folder)!r}), sys.argv)"
    begin = "fake_engine.main()"
    program.write_text(program.read_text().replace(begin, f"'--help=all' in sys.argv or exec({takes!r})\n{begin}"))
    return made


def model(place: Path, name: str, args: str, gpus: int = 1, extra: str = "") -> str:
    return (
        f"[models.{name}]\nengine = 'vllm'\nweights = '{place / 'tiny'}'\ngpus = {gpus}\n{extra}\n"
        f"[models.{name}.args]\n{args}\n{QUICK.format(name=name)}"
    )


def config(place: Path, cards: Cards, *models: str) -> str:
    return cards.config(f"[engines.vllm]\npython = '{place / 'python'}'\n", *models)


def row(daemon: Host, index: int) -> dict[str, Any]:
    return next(row for row in daemon.client.gpus()["gpus"] if row["index"] == index)


def test_shares_of_each_gpu_add_up_and_two_serve_one_model(place: Path, cards: Cards) -> None:
    manual = 'start = "manual"'
    models = (
        model(place, "wide", "gpu_memory_utilization = 0.5", gpus=2),
        model(place, "small", "gpu_memory_utilization = 0.4", extra=manual),
        model(place, "all", "", extra=manual),
    )
    with host(place, config(place, cards, *models)) as daemon:
        wide = daemon.until_phase("ready", name="wide/0")
        assert wide["gpus"] == ["GPU-0", "GPU-1"]
        told = fake(wide["endpoint"])
        assert told["environ"]["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
        assert " ".join(told["argv"]).endswith("--tensor-parallel-size 2 --gpu-memory-utilization 0.5")
        daemon.client.command("start", "small")
        assert daemon.until_phase("ready", name="small/0")["gpus"] == ["GPU-0"]
        shares = [int(0.5 * 8 * GIB), int(0.4 * 8 * GIB)]
        assert row(daemon, 0)["used_bytes"] == sum(shares)
        assert row(daemon, 0)["claimed_bytes"] - sum(shares) in (0, 1), "a claim is rounded up"
        assert [row(daemon, 1)[f"{name}_bytes"] for name in ("claimed", "used", "foreign")] == [4 * GIB, 4 * GIB, 0]

        # Without a word on it vLLM takes 0.92 of a GPU, which is not free until the wide one is gone.
        daemon.client.command("start", "all")
        daemon.until_phase("waiting", name="all/0")
        until(lambda: "GPU 1: needs 7.4 GiB, 4.0 GiB of 8.0 GiB left" in daemon.replica("all/0")["reason"])
        daemon.client.command("stop", "wide")
        found = daemon.until_phase("ready", name="all/0")
        assert (found["gpus"], found["run"], found["restarts"]) == (["GPU-1"], 1, 0)


@pytest.mark.real
def test_a_cache_of_a_given_size_is_claimed_with_the_weights_and_then_as_measured(place: Path, cards: Cards) -> None:
    with host(place, config(place, cards, model(place, "m", f"kv_cache_memory_bytes = {2 * GIB}"))) as daemon:
        daemon.until_phase("ready")
        weights = sum(path.stat().st_size for path in (place / "tiny").glob("*.safetensors"))
        [hold] = {tuple(record["state"]["hold"]["bytes"]) for record in daemon.records() if holds(record)}
        assert 3 * GIB <= hold[0] <= 3 * GIB + weights, "the cache, the weights, and a margin of 1 GiB"
        until(lambda: any(measured(record) == 3 * GIB for record in daemon.records()))
        assert daemon.run("restart", "m").returncode == 0
        assert daemon.replica()["run"] == 2
        assert row(daemon, 0)["claimed_bytes"] == 3 * GIB


def holds(record: dict[str, Any]) -> bool:
    return bool((record.get("state") or {}).get("hold"))


def measured(record: dict[str, Any]) -> int | None:
    return ((record.get("state") or {}).get("learned") or {}).get("bytes")
