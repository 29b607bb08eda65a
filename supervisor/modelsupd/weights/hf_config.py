"""Reads what a `config.json` of the transformers library says about a model's size and about what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from modelsupd.weights.base import FormatError
from modelsupd.weights.layers import MAX_LAYERS, Layer
from modelsupd.weights.untrusted import parsed, whole

MAX_BYTES = 4 * 1024 * 1024

#: Any of these, if it says anything, speaks of layers that keep something else than keys and values of every token.
_UNUSUAL = (
    "sliding_window",
    "layer_types",
    "layers_block_type",
    "attn_type_list",
    "mamba_d_state",
    "mamba_d_conv",
    "ssm_cfg",
    "state_size",
    "linear_conv_kernel_dim",
    "full_attention_interval",
    "attention_chunk_size",
    "num_kv_shared_layers",
    "cross_attention_layers",
    "index_topk",
    "is_encoder_decoder",
)


def read(path: Path) -> dict[str, object]:
    """Return what a config.json says. Raises FormatError and OSError."""
    found = parsed(whole(path, MAX_BYTES), dict)
    if not isinstance(found, dict):
        raise FormatError("has JSON that is no object")
    return found


class Config:
    """What a config says; of a model that reads more than text, what it says about its text."""

    def __init__(self, config: Mapping[str, object]) -> None:
        """Look into it, whatever it holds."""
        text = config.get("text_config")
        self._outer = config
        self._config: Mapping[str, object] = {**config, **text} if isinstance(text, dict) else config

    def number(self, *keys: str) -> int | None:
        """Return the first of these that is a number above 0."""
        for key in keys:
            value = self._config.get(key)
            if type(value) is int and value > 0:
                return value
        return None

    @property
    def architecture(self) -> str | None:
        """Return the first architecture, as engines look it up, or the model's type."""
        named = self._outer.get("architectures")
        if isinstance(named, list) and named and isinstance(named[0], str):
            return named[0]
        kind = self._outer.get("model_type")
        return kind if isinstance(kind, str) else None

    @property
    def context_length(self) -> int | None:
        """Return how many tokens the model was trained on."""
        return self.number("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

    @property
    def experts(self) -> int | None:
        """Return the number of experts."""
        return self.number("num_local_experts", "num_experts", "n_routed_experts")

    @property
    def quantisation(self) -> str | None:
        """Return the method by which weights are packed, None where they are not."""
        found = self._outer.get("quantization_config") or self._config.get("quantization_config")
        method = found.get("quant_method") if isinstance(found, dict) else None
        return method if isinstance(method, str) else None

    def keeps(self) -> tuple[Layer, ...] | str:
        """Return what each layer keeps, or why that is not known."""
        unusual = [key for key in _UNUSUAL if self._matters(key)]
        if unusual:
            return f"config.json has {unusual[0]}, which changes what is kept of the context"
        count, heads = self.number("num_hidden_layers"), self.number("num_attention_heads")
        if not count or not heads or count > MAX_LAYERS:
            return "config.json says no number of layers and heads"
        rank = self.number("kv_lora_rank")
        if rank:  # what keys and values are computed from, and the part of the keys that knows positions
            return (Layer(rank + (self.number("qk_rope_head_dim") or 0)),) * count
        size = self.number("head_dim") or (self.number("hidden_size") or 0) // heads
        if not size:
            return "config.json says no size of a head"
        width = (self.number("num_key_value_heads") or heads) * size
        return (Layer(width, width),) * count

    def _matters(self, key: str) -> bool:
        value = self._config.get(key)
        if key == "sliding_window" and self._config.get("use_sliding_window") is False:
            return False
        if key == "layer_types" and isinstance(value, list):
            return any(kind != "full_attention" for kind in value)
        return bool(value)
