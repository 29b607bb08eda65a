"""The examples of the documentation: the real loader reads each, and those of whole hosts are placed as they say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from configs import read
from core.samples import process
from modelsupd.config import Config
from modelsupd.core.allotment import Allotment, Card, allot
from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.core.fleet import plan
from modelsupd.core.health import begin
from modelsupd.core.phases import Ready, Replica, Stopped, Waiting, Want
from modelsupd.core.placement import Gpu, Size
from modelsupd.core.spec import Start
from modelsupd.engines.base import Files, adapter
from modelsupd.runtime.declared import models as declared

REPOSITORY = Path(__file__).parent.parent
GIB = 1024**3
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")))
LATER = 1000.0


def blocks(page: str) -> list[str]:
    return re.findall(r"(?ms)^```toml\n(.*?)^```", (REPOSITORY / page).read_text())


def titled() -> dict[str, str]:
    """Return the example of each section of docs/examples.md."""
    sections = re.split(r"(?m)^## ", (REPOSITORY / "docs/examples.md").read_text())[1:]
    return {section.partition("\n")[0]: re.findall(r"(?ms)^```toml\n(.*?)^```", section)[0] for section in sections}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_example_of_the_documentation_is_a_valid_configuration(page: str, tmp_path: Path) -> None:
    for text in blocks(page):
        read(tmp_path, text)


def cards(*sizes_gib: int) -> list[Card]:
    return [
        Card(gpu=Gpu(uuid=f"GPU-{number}", index=number, total_bytes=size * GIB))
        for number, size in enumerate(sizes_gib)
    ]


def replicas(config: Config, gpus: Sequence[Card], sizes_gib: Mapping[str, float]) -> dict[str, Replica]:
    """Return the replicas of a configuration: those that always run wait for GPUs, the others are stopped."""
    found = {}
    for name, (model, entry) in plan({}, declared(config.declaration, lambda _name, _spec: len(gpus))).added.items():
        size = Size(int(sizes_gib[model] * GIB), estimated=True) if model in sizes_gib else None
        waits = entry.spec.start is Start.ALWAYS
        phase = Waiting(0.0, 1, entry.digest, size) if waits else Stopped(0.0)
        found[name] = Replica(
            name=name, model=model, spec=entry.spec, digest=entry.digest, want=Want.UP, phase=phase, last_run=1
        )
    return found


def settled(fleet: dict[str, Replica], gpus: Sequence[Card]) -> dict[str, Replica]:
    """Return the fleet when all that can be placed is placed and ready: one load after another."""
    while (answer := allot(fleet, {}, gpus, Usage(known=True), LATER)).placed or answer.beside:
        fleet = started(told(fleet, answer), answer)
    return fleet


def told(fleet: dict[str, Replica], answer: Allotment) -> dict[str, Replica]:
    """Return the fleet when those beside a load have heard of it."""
    return fleet | {name: replace(fleet[name], beside=event.loading) for name, event in answer.beside.items()}


def started(fleet: dict[str, Replica], answer: Allotment) -> dict[str, Replica]:
    """Return the fleet when what was placed is ready."""
    ready = Ready(0.0, process(1), begin(0.0))
    return fleet | {
        name: replace(fleet[name], phase=ready, hold=event.hold, demanded_by="clients")
        for name, event in answer.placed.items()
    }


def on(fleet: Mapping[str, Replica]) -> dict[str, tuple[str, ...]]:
    return {name: each.hold.gpus for name, each in fleet.items() if each.hold is not None}


def test_one_model_on_each_of_eight_gpus(tmp_path: Path) -> None:
    gpus = cards(*[24] * 8)
    fleet = replicas(read(tmp_path, titled()["One model on each of eight GPUs"]), gpus, {"qwen": 7})
    assert on(settled(fleet, gpus)) == {f"qwen/{number}": (f"GPU-{number}",) for number in range(8)}


def test_two_small_ones_that_share_a_card(tmp_path: Path) -> None:
    gpus = cards(24)
    fleet = replicas(read(tmp_path, titled()["Two small ones that share a card"]), gpus, {"chat": 4})
    assert set(allot(fleet, {}, gpus).placed) == {"chat/0"}, "one loads after the other"
    fleet = settled(fleet, gpus)
    assert on(fleet) == {"chat/0": ("GPU-0",), "embed/0": ("GPU-0",)}
    assert sum(size for each in fleet.values() if each.hold for size in each.hold.bytes) == 7 * GIB


SIZES = {
    "helper": 1.5, "large": 20, "coder": 15, "writer": 17, "small": 6, "vision": 7, "reason": 10, "translate": 6,
    "batch": 10,
}  # fmt: skip


def asked(fleet: dict[str, Replica], name: str, gpus: Sequence[Card], in_use: Sequence[str] = ()) -> Allotment:
    """Return what is decided when a model is asked for while those that are ready are idle, but for some."""
    entry = fleet[f"{name}/0"]
    size = Size(int(SIZES[name] * GIB), estimated=True) if name in SIZES else None
    waiting = replace(entry, phase=Waiting(LATER, 1, entry.digest, size), demanded_by="clients")
    runs = {f"{other}#1": Use(int(other in in_use), LATER - 100) for other in fleet}
    usage = Usage(runs, {name: Wanted(1, LATER)}, known=True)
    return allot(fleet | {waiting.name: waiting}, {}, gpus, usage, LATER)


def test_ten_models_on_demand_on_one_card(tmp_path: Path) -> None:
    gpus = cards(24)
    fleet = replicas(read(tmp_path, titled()["Ten models on demand on one card"]), gpus, SIZES)
    assert len(fleet) == 10
    assert allot(fleet, {}, gpus, Usage(known=True), LATER).placed == {}, "nothing starts before it is asked for"
    for name in ("helper", "writer"):
        fleet = told(fleet, asked(fleet, name, gpus))
        fleet = started(fleet, asked(fleet, name, gpus))
    assert set(on(fleet)) == {"helper/0", "writer/0"}
    # The idle one gives way, the pinned one never; one in use only to the higher priority.
    assert set(asked(fleet, "coder", gpus).evicted) == {"writer/0"}
    assert "writer/0 is in use" in asked(fleet, "coder", gpus, in_use=["writer/0"]).waiting["coder/0"]
    large = asked(fleet, "large", gpus, in_use=["writer/0"])
    assert (set(large.evicted), large.waiting["large/0"]) == ({"writer/0"}, "writer/0 gives way")
    assert "has a higher priority" in asked(fleet, "batch", gpus).waiting["batch/0"]


def test_tensor_parallel_over_two(tmp_path: Path) -> None:
    gpus = cards(80, 80)
    config = read(tmp_path, titled()["Tensor parallel over two"])
    fleet = replicas(config, gpus, {})
    share = replace(fleet["big/0"], phase=Waiting(0.0, 1, fleet["big/0"].digest, Size(share=0.9)))
    placed = allot({"big/0": share}, {}, gpus).placed["big/0"]
    assert placed.hold is not None
    assert placed.hold.gpus == ("GPU-0", "GPU-1")
    spec = replace(config.declaration.models["big"], gpus=placed.hold.gpus)
    argv = adapter(spec.engine).command("big", spec, binary="/opt/vllm/bin/python", files=Files("/w")).argv
    assert argv[argv.index("--tensor-parallel-size") + 1] == "2"


def test_a_host_without_gpus(tmp_path: Path) -> None:
    config = read(tmp_path, titled()["A host without GPUs"])
    fleet = replicas(config, [], {})
    ready = Ready(0.0, process(1), begin(0.0))
    fleet |= {"chat/0": replace(fleet["chat/0"], phase=ready, demanded_by="clients")}
    assert set(asked(fleet, "code", []).evicted) == {"chat/0"}
    spec = config.declaration.models["always"]
    command = adapter(spec.engine).command("always", spec, binary="/usr/bin/llama-server", files=Files("/w"))
    assert command.argv[command.argv.index("--gpu-layers") + 1] == "0"
    assert command.env["CUDA_VISIBLE_DEVICES"] == ""
