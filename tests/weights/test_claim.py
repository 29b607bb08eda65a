"""What a model is and takes, from its headers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf as peer
import pytest

import tiny_gguf
from format_files import STRING, entry, small, tensor, text, u32
from format_files import safetensors as write_safetensors
from gguf_models import Model, write
from modelsupd.weights import claim, layers
from modelsupd.weights.claim import Claim, Facts, Use

MIB = 1024 * 1024


def described(path: Path) -> Facts:
    found = claim.describe({path.name: path})
    assert found is not None
    return found


def claimed(path: Path, model: Model, use: Use) -> Claim:
    return claim.claim(described(write(path / "m.gguf", model)), use)


def test_facts_of_the_tiny_model(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path, context_length=4096)
    found = described(path)
    tensors = peer.GGUFReader(path).tensors
    assert (found.form, found.architecture, found.name) == ("gguf", "llama", "tiny random")
    assert found.parameters == sum(int(t.n_elements) for t in tensors)
    assert found.weights_bytes == sum(int(t.n_bytes) for t in tensors)
    assert (found.layers, found.heads, found.kv_heads, found.embedding) == (2, 4, 2, 128)
    assert (found.context_length, found.quantisation, found.experts) == (4096, "F16", None)
    assert found.tensors == len(tensors)


def test_the_cache_of_the_engines_notes(tmp_path: Path) -> None:
    """24 layers, 8 heads of 64 for keys and values, 4096 tokens, f16: 192 MiB, as llama-fit-params printed."""
    model = Model(layers=24, heads=14, kv_heads=8, head_size=64, feed_forward=32)
    found = claimed(tmp_path, model, Use(context=4096))
    assert found.kv_bytes == 192 * MIB
    assert (found.context, found.words) == (4096, "")


@pytest.mark.parametrize(
    ("use", "cells"),
    [
        (Use(context=1000), 1024),  # llama-server: four slots share one cache
        (Use(), 2048),  # what the model was trained on
        (Use(context=1000, parallel=1), 1024),
        (Use(context=1000, parallel=3), 3 * 512),
        (Use(context=1000, parallel=3, unified=True), 1024),
        (Use(context=1000, parallel=0), 1024),
    ],
)
def test_contexts_and_slots(use: Use, cells: int, tmp_path: Path) -> None:
    assert claimed(tmp_path, Model(), use).kv_bytes == cells * 2 * (2 * 2 * 16) * 2


def test_cache_types(tmp_path: Path) -> None:
    def kv(use: Use) -> int | None:
        return claimed(tmp_path, Model(layers=1, kv_heads=2, head_size=16), use).kv_bytes

    assert kv(Use(context=256, type_k="q8_0", type_v="q4_0")) == 256 * (34 + 18)
    assert kv(Use(context=256, type_k="f32")) == 256 * (128 + 64)
    found = claimed(tmp_path, Model(kv_heads=1), Use(type_k="q8_0"))
    assert (found.kv_bytes, found.vram_bytes) == (None, None)
    assert "keeps 32 elements together" in found.words
    assert "'q9' is not known" in claimed(tmp_path, Model(), Use(type_k="q9")).words


def test_layers_go_to_the_device_from_the_last(tmp_path: Path) -> None:
    model = Model(layers=4)
    found = {n: claimed(tmp_path, model, Use(context=512, gpu_layers=n)) for n in (None, 0, 1, 2, 5, 99)}
    weights, kv = found[0].weights_bytes, found[0].kv_bytes
    assert weights is not None
    assert kv is not None
    one = sum(t.n_bytes for t in peer.GGUFReader(tmp_path / "m.gguf").tensors if t.name.startswith("blk.0."))
    head = sum(t.n_bytes for t in peer.GGUFReader(tmp_path / "m.gguf").tensors if t.name.startswith("output"))
    assert (found[0].vram_bytes, found[0].ram_bytes) == (0, weights + kv)
    assert found[1].vram_bytes == head
    assert found[2].vram_bytes == head + one + kv // 4
    assert found[5].vram_bytes == head + 4 * one + kv
    assert found[None] == found[5] == found[99]
    assert found[5].ram_bytes == weights - head - 4 * one


def test_a_matrix_that_is_input_and_output_is_copied_to_the_device(tmp_path: Path) -> None:
    apart = claimed(tmp_path, Model(), Use(context=512))
    tied = claimed(tmp_path, Model(tied=True), Use(context=512))
    assert tied.vram_bytes == apart.vram_bytes
    assert tied.ram_bytes == apart.ram_bytes
    on_host = claimed(tmp_path, Model(tied=True), Use(context=512, gpu_layers=0))
    assert on_host.ram_bytes == (tied.weights_bytes or 0) + (tied.kv_bytes or 0)


def test_windows(tmp_path: Path) -> None:
    model = Model(architecture="gemma3", layers=6, numbers={"attention.sliding_window": 512})
    per_token = 2 * 2 * 16 * 2
    # Five of six layers see the last 512 tokens, and a batch of 512 on top.
    assert claimed(tmp_path, model, Use(context=8192, parallel=1)).kv_bytes == per_token * (8192 + 5 * 1024)
    assert claimed(tmp_path, model, Use(context=8192)).kv_bytes == per_token * (8192 + 5 * (4 * 512 + 512))
    apart = per_token * 3 * (2816 + 5 * 1024)  # a third of 8192, in whole caches of 256
    assert claimed(tmp_path, model, Use(context=8192, parallel=3)).kv_bytes == apart
    assert claimed(tmp_path, model, Use(context=8192, swa_full=True)).kv_bytes == per_token * 6 * 8192
    assert claimed(tmp_path, model, Use(context=256)).kv_bytes == per_token * 6 * 256
    off = Model(architecture="gemma3", layers=6, numbers={"attention.sliding_window": 0})
    assert claimed(tmp_path, off, Use(context=8192)).kv_bytes == per_token * 6 * 8192


def test_states_of_fixed_size(tmp_path: Path) -> None:
    numbers = {"inner_size": 64, "state_size": 16, "time_step_rank": 8, "conv_kernel": 4, "group_count": 2}
    model = Model(architecture="mamba", numbers={f"ssm.{key}": value for key, value in numbers.items()})
    state = 2 * 4 * (3 * 64 + 16 * 64)  # of two layers; the groups are not read
    assert claimed(tmp_path, model, Use(context=512)).kv_bytes == 4 * state
    assert claimed(tmp_path, model, Use(context=99_999, parallel=1)).kv_bytes == state
    hybrid = Model(architecture="lfm2", layers=3, kv_heads=[0, 2, 0], tied=True, numbers={"shortconv.l_cache": 3})
    expected = 2 * 4 * 64 * 2 + 512 * (2 * 16) * 2 * 2
    assert claimed(tmp_path, hybrid, Use(context=512, parallel=1)).kv_bytes == expected


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Model(architecture="brand-new"), "architecture 'brand-new' is not known"),
        (Model(layers=2, numbers={"block_count": 600}), "600 layers"),
        (Model(architecture="gpt-oss"), "gpt-oss.attention.sliding_window is missing"),
        (Model(architecture="deepseek2", kv_heads=1, numbers={
            "attention.key_length_mla": 24, "attention.kv_lora_rank": 8, "rope.dimension_count": 8,
            "attention.value_length_mla": 0,
        }), "only one of"),
        (Model(layers=3, architecture="openelm", numbers={"attention.head_count_kv": [1, 2]}), "list of 3 numbers"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_said(model: Model, words: str, tmp_path: Path) -> None:
    found = claimed(tmp_path, model, Use(context=512))
    assert (found.kv_bytes, found.vram_bytes, found.ram_bytes) == (None, None, None)
    assert found.weights_bytes is not None
    assert words in found.words


def test_a_header_without_numbers(tmp_path: Path) -> None:
    found = described(small(u32("general.file_type", 15)).write(tmp_path / "m.gguf"))
    assert (found.quantisation, found.layers, found.context_length) == ("Q4_K_M", None, None)
    assert "llama.block_count is missing" in claim.claim(found, Use()).words
    nameless = described(small(entry(b"general.name", STRING, text(b"x"))).write(tmp_path / "n.gguf"))
    assert (nameless.name, nameless.quantisation) == ("x", "F32")


@pytest.mark.parametrize(("kind", "architecture"), [("adapter", "llama"), ("mmproj", "clip"), ("model", "bert")])
def test_what_keeps_nothing(kind: str, architecture: str, tmp_path: Path) -> None:
    metadata = [entry(f"general.{key}".encode(), STRING, text(value.encode())) for key, value in (
        ("type", kind), ("architecture", architecture)
    )]  # fmt: skip
    file = replace(small(), metadata=metadata)
    found = claim.claim(described(file.write(tmp_path / "m.gguf")), Use(gpu_layers=0))
    assert (found.kv_bytes, found.ram_bytes, found.words) == (0, found.weights_bytes, "")


def test_tensors_of_an_unknown_type(tmp_path: Path) -> None:
    numbers = [u32(f"llama.{key}", value) for key, value in (
        ("block_count", 1), ("attention.head_count", 2), ("embedding_length", 32), ("context_length", 512)
    )]  # fmt: skip
    file = small(*numbers)
    file = replace(file, tensors=[tensor(b"a", (8, 4), 77, 0), *file.tensors[1:]])
    found = claim.claim(described(file.write(tmp_path / "m.gguf")), Use())
    assert (found.weights_bytes, found.kv_bytes, found.vram_bytes) == (None, 512 * 32 * 2 * 2, None)
    assert found.words == "the size of its tensors is not known"


def test_every_known_architecture_is_one_of_the_peer_s() -> None:
    names = set(peer.MODEL_ARCH_NAMES.values())
    assert {"llama", "qwen3", "gemma3", "gpt-oss", "mamba", "bert"} <= layers.KNOWN
    # gguf 0.19 is older than the llama.cpp that the table was read from.
    assert len(layers.KNOWN - names) < 10, layers.KNOWN - names


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 8, "head_dim": 64, "hidden_size": 896, "max_position_embeddings": 4096,
}  # fmt: skip


def of_config(folder: Path, config: dict[str, object]) -> Facts:
    (folder / "config.json").write_text(json.dumps(config))
    weights = write_safetensors(folder / "m.safetensors", {"a": ("BF16", [8, 8], 128), "b": ("F32", [2], 8)})
    found = claim.describe({"m.safetensors": weights, "config.json": folder / "config.json"})
    assert found is not None
    return found


def test_a_folder_of_safetensors(tmp_path: Path) -> None:
    found = of_config(tmp_path, CONFIG)
    assert (found.form, found.architecture, found.quantisation) == ("safetensors", "LlamaForCausalLM", "BF16")
    assert (found.parameters, found.weights_bytes, found.tensors) == (66, 136, 2)
    assert (found.layers, found.heads, found.kv_heads, found.context_length) == (24, 14, 8, 4096)
    assert claim.claim(found, Use()) == Claim(4096, 136, 192 * MIB, 136 + 192 * MIB, 0, "")
    assert claim.claim(found, Use(parallel=3)).kv_bytes == 3 * 192 * MIB
    assert claim.claim(found, Use(gpu_layers=0)).vram_bytes == 0


@pytest.mark.parametrize(
    ("changes", "kv"),
    [
        ({"head_dim": None}, 192 * MIB),  # 896 // 14
        ({"num_key_value_heads": None}, 192 * MIB * 14 // 8),
        ({"sliding_window": 4096, "use_sliding_window": False}, 192 * MIB),
        ({"sliding_window": 4096}, None),
        ({"layer_types": ["full_attention"]}, 192 * MIB),
        ({"layer_types": ["full_attention", "linear_attention"]}, None),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 4096 * 24 * 576 * 2),
        ({"num_hidden_layers": None}, None),
        ({"num_hidden_layers": 10**9}, None),
        ({"text_config": {"num_hidden_layers": 12}}, 96 * MIB),
    ],
)
def test_what_a_config_says_about_its_cache(changes: dict[str, object], kv: int | None, tmp_path: Path) -> None:
    found = claim.claim(of_config(tmp_path, CONFIG | changes), Use())
    assert found.kv_bytes == kv
    assert bool(found.words) is (kv is None)


def test_packed_weights_have_no_number_of_parameters(tmp_path: Path) -> None:
    found = of_config(tmp_path, CONFIG | {"quantization_config": {"quant_method": "gptq"}})
    assert (found.quantisation, found.parameters) == ("gptq", None)


def test_files_without_headers_are_nothing(tmp_path: Path) -> None:
    assert claim.describe({"a.txt": tmp_path / "a.txt"}) is None
