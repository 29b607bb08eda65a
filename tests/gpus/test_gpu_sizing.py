"""How much of GPUs a run will take, and which of them its engine is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_models
from core.samples import SPEC
from hosts import small_gguf
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.placement import Size
from modelsupd.core.spec import Engine, ModelSpec
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
    for args, expected in (
        ({}, (0.92, None)),
        ({"gpu_memory_utilization": 0.5}, (0.5, None)),
        ({"gpu-memory-utilization": "0.5"}, (0.5, None)),
        ({"device_memory_utilization": 0.25}, (0.25, None)),
        ({"kv_cache_memory_bytes": 1024}, (0.92, 1024)),
        ({"gpu_memory_utilization": "much"}, (0.92, None)),
        ({"gpu_memory_utilization": True}, (0.92, None)),
    ):
        assert memory.of_vllm(ModelSpec(engine=Engine.COMMAND, args=args)) == expected, args


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
