"""Writes small GGUF files of many shapes: models that llama.cpp takes for real ones, and headers of any content."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

import tiny_gguf


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model by its numbers. `numbers` are further keys of the architecture, lists for a value of each layer."""

    architecture: str = "llama"
    layers: int = 2
    embedding: int = 64
    heads: int = 4
    kv_heads: int | list[int] = 2
    head_size: int = 16
    feed_forward: int = 64
    context_length: int = 2048
    tied: bool = False
    numbers: dict[str, int | float | list[int] | list[bool]] = field(default_factory=dict)

    def tensors(self, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by name, as numpy has them."""
        shapes: dict[str, tuple[int, ...]] = {
            "token_embd.weight": (vocabulary, self.embedding),
            ("token_embd_norm" if self.architecture == "lfm2" else "output_norm") + ".weight": (self.embedding,),
        }
        if not self.tied:
            shapes["output.weight"] = (vocabulary, self.embedding)
        for number in range(self.layers):
            for name, shape in self.block(number).items():
                shapes[named(number, name)] = shape
        return shapes

    def block(self, number: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's tensors, without its prefix."""
        if self.architecture == "mamba":
            return self._mamba()
        if self.architecture == "mamba2":
            return self._mamba2()
        one = (self.embedding,)
        shapes = self._attention(number) | {
            "attn_norm": one,
            "ffn_norm": one,
            "ffn_gate": (self.feed_forward, self.embedding),
            "ffn_up": (self.feed_forward, self.embedding),
            "ffn_down": (self.embedding, self.feed_forward),
        }
        if self.architecture in {"gemma2", "gemma3"}:
            shapes |= {"post_attention_norm": one, "post_ffw_norm": one}
        return shapes

    def _attention(self, number: int) -> dict[str, tuple[int, ...]]:
        kv_heads = self.kv_heads if isinstance(self.kv_heads, int) else self.kv_heads[number]
        if self.architecture == "deepseek2":
            return self._latent()
        if self.architecture == "lfm2" and kv_heads == 0:
            return {
                "shortconv.conv": (self.embedding, self.number("shortconv.l_cache")),
                "shortconv.in_proj": (3 * self.embedding, self.embedding),
                "shortconv.out_proj": (self.embedding, self.embedding),
            }
        shapes: dict[str, tuple[int, ...]] = {
            "attn_q": (self.heads * self.head_size, self.embedding),
            "attn_k": (kv_heads * self.head_size, self.embedding),
            "attn_v": (kv_heads * self.head_size, self.embedding),
            "attn_output": (self.embedding, self.heads * self.head_size),
        }
        if self.architecture in {"gemma3", "lfm2"}:
            shapes |= {"attn_q_norm": (self.head_size,), "attn_k_norm": (self.head_size,)}
        return shapes

    def number(self, key: str) -> int:
        """Return one of the further numbers."""
        value = self.numbers[key]
        assert isinstance(value, int)
        return value

    def _latent(self) -> dict[str, tuple[int, ...]]:
        """Return attention with a latent cache (MLA), as DeepSeek's converter writes it."""
        rank, rope = self.number("attention.kv_lora_rank"), self.number("rope.dimension_count")
        key, value = self.number("attention.key_length_mla"), self.number("attention.value_length_mla")
        return {
            "attn_q": (self.heads * key, self.embedding),
            "attn_kv_a_norm": (rank,),
            "attn_kv_a_mqa": (rank + rope, self.embedding),
            "attn_k_b": (self.heads, rank, key - rope),
            "attn_v_b": (self.heads, value, rank),
            "attn_output": (self.embedding, self.heads * value),
        }

    def _mamba(self) -> dict[str, tuple[int, ...]]:
        inner, size = self.number("ssm.inner_size"), self.number("ssm.state_size")
        rank = self.number("ssm.time_step_rank")
        return {
            "attn_norm": (self.embedding,),
            "ssm_in": (2 * inner, self.embedding),
            "ssm_conv1d": (inner, self.number("ssm.conv_kernel")),
            "ssm_conv1d.bias": (inner,),
            "ssm_x": (rank + 2 * size, inner),
            "ssm_dt": (inner, rank),
            "ssm_dt.bias": (inner,),
            "ssm_a": (inner, size),
            "ssm_d": (inner,),
            "ssm_out": (self.embedding, inner),
        }

    def _mamba2(self) -> dict[str, tuple[int, ...]]:
        inner, size = self.number("ssm.inner_size"), self.number("ssm.state_size")
        heads, groups = self.number("ssm.time_step_rank"), self.number("ssm.group_count")
        width = inner + 2 * groups * size
        return {
            "attn_norm": (self.embedding,),
            "ssm_in": (inner + width + heads, self.embedding),
            "ssm_conv1d": (width, self.number("ssm.conv_kernel")),
            "ssm_conv1d.bias": (width,),
            "ssm_dt.bias": (heads,),
            "ssm_a": (heads, 1),
            "ssm_d": (heads, 1),
            "ssm_norm": (groups, inner // groups),
            "ssm_out": (self.embedding, inner),
        }


#: What is kept exactly, whatever its shape; and what has no suffix.
_EXACT = ("norm", "bias", "ssm_conv1d", "shortconv.conv", "ssm_a", "ssm_d")
_BARE = ("ssm_a", "ssm_d")


def named(number: int, name: str) -> str:
    """Return a tensor's whole name."""
    whole = name.endswith(".bias") or name in _BARE
    return f"blk.{number}.{name}" + ("" if whole else ".weight")


def write(path: Path, model: Model) -> Path:
    """Write a model whose weights are all zero, with the vocabulary of the tiny model; return the path."""
    tokens, types = tiny_gguf.vocabulary()
    writer = gguf.GGUFWriter(path, model.architecture)
    writer.add_name("shape")
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.embedding)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.feed_forward)
    writer.add_layer_norm_rms_eps(1e-5)
    if not model.architecture.startswith("mamba"):
        writer.add_head_count(model.heads)
        writer.add_head_count_kv(model.kv_heads)
        writer.add_key_length(model.head_size)
        writer.add_value_length(model.head_size)
    for key, value in model.numbers.items():
        name = f"{model.architecture}.{key}"
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif name in writer.kv_data[0]:
            writer.kv_data[0][name].value = value
        else:
            writer.add_uint32(name, value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    for name, shape in model.tensors(len(tokens)).items():
        exact = len(shape) == 1 or any(part in name for part in _EXACT)
        writer.add_tensor(name, np.zeros(shape, dtype=np.float32 if exact else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
