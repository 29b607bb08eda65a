"""How much of GPUs a run will take, and which of them its engine is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_models
import tiny_llama
from core.samples import SPEC
from hosts import small_gguf
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.placement import Size
from modelsupd.core.spec import Argument, Engine, ModelSpec
from modelsupd.engines import memory
from modelsupd.engines.base import Files, base_env, common_problems
from modelsupd.runtime.gpus.sizing import size_of
from modelsupd.weights.claim import Use, claim, describe


def model(engine: Engine, **args: Any) -> ModelSpec:  # noqa: ANN401 - the engine's own flags
    return ModelSpec(engine=engine, weights="/m.gguf", gpus=1, args=args)


def test_llama_takes_what_its_headers_tell(place: Path) -> None:
    path = gguf_models.write(place / "m.gguf", gguf_models.Model())
    files = Files(weights=str(path))
    found = size_of(model(Engine.LLAMA_CPP, ctx_size=512), files)
    facts = describe({path.name: path})
    assert facts is not None
    assert found is not None
    assert found == Size(claim(facts, Use(context=512)).vram_bytes or 0, estimated=True)
    assert found.bytes > path.stat().st_size / 2
    assert size_of(model(Engine.LLAMA_CPP, ctx_size=512, gpu_layers=0), files) == Size(0, estimated=True)
    extra = place / "mmproj.gguf"
    extra.write_bytes(bytes(100))
    with_more = size_of(model(Engine.LLAMA_CPP, ctx_size=512), replace(files, mmproj=str(extra)))
    assert with_more == Size(found.bytes + 100, estimated=True)


def test_what_cannot_be_told_is_none(place: Path) -> None:
    (place / "m.gguf").write_bytes(small_gguf())
    files = Files(weights=str(place / "m.gguf"))
    assert size_of(model(Engine.LLAMA_CPP), files) is None, "no word of its layers"
    assert size_of(replace(SPEC, gpus=1), files) is None, "a command is anything"
    assert size_of(model(Engine.LLAMA_CPP), Files(weights=str(place / "gone.gguf"))) is None
    assert size_of(model(Engine.LLAMA_CPP), Files()) is None
    (place / "m.gguf").write_bytes(b"GGUF broken")
    assert size_of(model(Engine.LLAMA_CPP), files) is None
    declared = replace(model(Engine.LLAMA_CPP), placement=PlacementSpec(vram_bytes=1))
    assert size_of(declared, files) is None
    assert size_of(replace(declared, gpus=0), files) is None


def test_vllm_takes_what_it_is_told_to() -> None:
    cases: list[tuple[dict[str, Argument], tuple[float, int | None, int]]] = [
        ({}, (0.92, None, 1)),
        ({"gpu_memory_utilization": 0.5}, (0.5, None, 1)),
        ({"gpu-memory-utilization": "0.5"}, (0.5, None, 1)),
        ({"device_memory_utilization": 0.25}, (0.25, None, 1)),
        ({"kv_cache_memory_bytes": 1024}, (0.92, 1024, 1)),
        ({"kv_cache_memory_bytes": "2G"}, (0.92, 2 * 1024**3, 1)),
        ({"kv_cache_memory_bytes": "1.5g"}, (0.92, 1_500_000_000, 1)),
        ({"kv_cache_memory_bytes": "2 apples"}, (0.92, None, 1)),
        ({"gpu_memory_utilization": "much"}, (0.92, None, 1)),
        ({"gpu_memory_utilization": True}, (0.92, None, 1)),
        # What vLLM refuses must not keep all others from being placed.
        ({"gpu_memory_utilization": "nan"}, (0.92, None, 1)),
        ({"gpu_memory_utilization": "inf"}, (0.92, None, 1)),
        ({"gpu_memory_utilization": 90}, (0.92, None, 1)),
        ({"data_parallel_size": 2, "prefill-context-parallel-size": "2"}, (0.92, None, 4)),
        ({"tensor_parallel_size": 2, "data_parallel_size": "x"}, (0.92, None, 1)),
    ]
    for args, expected in cases:
        assert memory.of_vllm(ModelSpec(engine=Engine.COMMAND, args=args)) == expected, args


def test_with_a_cache_of_a_given_size_vllm_takes_that_and_the_weights(place: Path) -> None:
    tiny_llama.write(place / "tiny")
    files = Files(weights=str(place / "tiny"))
    facts = describe({path.name: path for path in (place / "tiny").iterdir()})
    assert facts is not None
    assert facts.weights_bytes
    args: dict[str, Argument] = {"kv_cache_memory_bytes": 1000}
    spread = ModelSpec(engine=Engine.VLLM, weights="/m", gpus=2, args=args)
    assert size_of(spread, files) == Size(facts.weights_bytes + 2000, estimated=True)
    copied = replace(spread, args=args | {"data_parallel_size": 2})
    assert size_of(copied, files) == Size(2 * facts.weights_bytes + 2000, estimated=True), "each has all weights"
    assert size_of(replace(spread, args={}), files) == Size(share=0.92)


# What an engine is shown


def test_an_engine_sees_the_gpus_that_it_was_given() -> None:
    assert base_env(replace(SPEC, gpus=0))["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in base_env(replace(SPEC, gpus=2)), "not known before it is placed"
    nvidia = base_env(replace(SPEC, gpus=("GPU-5f1c1b0e-8f2d-4c53-9d3c-0d6a3f2b7e11", "MIG-x")))
    assert nvidia["CUDA_VISIBLE_DEVICES"] == "GPU-5f1c1b0e-8f2d-4c53-9d3c-0d6a3f2b7e11,MIG-x"
    assert nvidia["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    amd = base_env(replace(SPEC, gpus=("GPU-0123456789abcdef",)))
    assert amd["ROCR_VISIBLE_DEVICES"] == "GPU-0123456789abcdef"
    assert "CUDA_VISIBLE_DEVICES" not in amd


def test_a_model_on_gpus_may_not_choose_them_by_its_environment() -> None:
    env = {"HIP_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    found = {problem.path[-1] for problem in common_problems(replace(SPEC, gpus=1, env=env))}
    assert found == set(env)
    assert common_problems(replace(SPEC, gpus=0, env=env)) == []
