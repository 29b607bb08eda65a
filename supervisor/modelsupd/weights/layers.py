"""What each layer of a GGUF model keeps of what was said: keys and values of each token, or a state of fixed size.

Read from the metadata as llama.cpp 0c1e570 does it (src/llama-model.cpp, src/llama-hparams.cpp, src/models/*.cpp). An
architecture that is not in a table here is not guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsupd.weights.gguf_parse import Header
from modelsupd.weights.untrusted import quoted

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS

#: Every layer keeps keys and values of every token, and nothing in their loading says otherwise.
_PLAIN = frozenset(
    """
    apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm command-r dbrx
    deci deepseek deepseek2 dots1 ernie4_5 exaone falcon gemma glm4 glm4moe gpt2 gptneox granite granitemoe grok
    grovemoe hunyuan-moe hunyuan_vl internlm2 jais jais2 llama maincoder minicpm minicpm3 minimax-m2 mistral3 mpt
    nemotron olmo olmoe openelm orion pangu-embedded phi2 phi3 phimoe plamo plm qwen qwen2 qwen2moe qwen2vl qwen3
    qwen3moe qwen3vl qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 talkie xverse
    """.split()  # noqa: SIM905 - as a list of seventy quoted names it could not be read
)
#: They answer from the whole input at once and keep nothing; clip is what multimodal projectors call themselves.
_NO_CACHE = frozenset(
    """
    bert clip dream eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llada llada-moe modern-bert neo-bert nomic-bert
    nomic-bert-moe rnd1 wavtokenizer-dec
    """.split()  # noqa: SIM905 - the same
)
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
#: Recurrent where there are no heads for keys and values.
_HYBRID_BY_HEADS = frozenset({"jamba", "granitehybrid", "lfm2", "lfm2moe", "nemotron_h", "nemotron_h_moe"})
#: Recurrent but for every n-th layer.
_HYBRID_BY_INTERVAL = frozenset({"qwen3next", "qwen35", "qwen35moe"})
_HYBRID_BOTH = frozenset({"falcon-h1"})
#: The state of these has no groups, whatever the metadata says.
_UNGROUPED = frozenset({"mamba", "jamba"})

#: Architecture → every how many layers one is without a window, unless the metadata says it; None: it must say it.
_WINDOWED: dict[str, int | None] = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gemma4": None,
    "gpt-oss": 2,
    "llama4": 4,
    "olmo2": 4,
    "plamo3": 8,
}
#: The window where the metadata names none.
_WINDOWS = {"exaone4": 4096, "gemma2": 4096, "llama4": 8192}
#: With a window of 0, or none, these are plain.
_WINDOW_OPTIONAL = frozenset({"gemma3", "olmo2", "plamo3"})
_EXAONE4_WINDOWED_LAYERS = 64
_GEMMA3N_OWN_LAYERS = 20

KNOWN = _PLAIN | _NO_CACHE | _RECURRENT | _HYBRID_BY_HEADS | _HYBRID_BY_INTERVAL | _HYBRID_BOTH | frozenset(_WINDOWED)

_STATE_BYTES = 4  # states are kept as F32


class UnknownError(Exception):
    """Why the memory of a model cannot be told, for people."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps: elements of keys and values of each token, of the last `window` tokens or of all (None).

    `state_bytes` is kept once for each sequence.
    """

    key: int = 0
    value: int = 0
    window: int | None = None
    state_bytes: int = 0


def of(header: Header) -> tuple[Layer, ...]:
    """Return what each layer keeps, in order. Raises UnknownError."""
    architecture = header.text("general.architecture")
    if architecture not in KNOWN:
        known = "it names no architecture" if architecture is None else f"architecture {quoted(architecture)}"
        raise UnknownError(f"the memory of {known} is not known" if architecture else known)
    if architecture in _NO_CACHE or header.text("general.type") == "adapter":  # a LoRA changes another's layers
        return ()
    return _Reading(header, architecture).layers()


class _Reading:
    """One model's metadata, read by the keys of its architecture."""

    def __init__(self, header: Header, architecture: str) -> None:
        self.header = header
        self.architecture = architecture
        self.count = self.number("block_count")
        if not 1 <= self.count <= MAX_LAYERS:
            raise UnknownError(f"it has {self.count} layers, where 1 to {MAX_LAYERS} are allowed")
        # What predicts further tokens is kept by a draft, which is apart.
        self.trunk = self.count - self.number("nextn_predict_layers", 0)
        if self.trunk < 1:
            raise UnknownError("all its layers predict further tokens")
        self.embedding = self.number("embedding_length")

    def number(self, key: str, default: int | None = None) -> int:
        """Return a number of the architecture; without a default it must be there."""
        value = self.header.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UnknownError(f"{self.architecture}.{key} is missing" if value is None else f"{key} is no number")
        return value

    def each(self, key: str, default: int | None = None) -> list[int]:
        """Return a number for each layer, from one number for all or a list."""
        value = self.header.metadata.get(f"{self.architecture}.{key}")
        if not isinstance(value, tuple):
            return [self.number(key, default)] * self.count
        if len(value) != self.count or not all(isinstance(one, int) and one >= 0 for one in value):
            raise UnknownError(f"{self.architecture}.{key} is no list of {self.count} numbers")
        return [int(one) for one in value]

    def layers(self) -> tuple[Layer, ...]:
        heads = self.each("attention.head_count", 0)
        kv_heads = self.each("attention.head_count_kv", -1) if self._has("attention.head_count_kv") else heads
        default = self.embedding // heads[0] if heads[0] else 0
        key, value = (self.number(f"attention.{name}_length", default) if heads[0] else 0 for name in ("key", "value"))
        key_windowed = self.number("attention.key_length_swa", key)
        value_windowed = self.number("attention.value_length_swa", value)
        windows = self._windows()
        attends, recurrent = self._kinds(kv_heads)
        state = self._state_bytes() if any(recurrent) else 0
        without_value = self._keeps_latent()
        found = []
        for number in range(self.trunk):
            window = windows[number]
            per_key, per_value = (key, value) if window is None else (key_windowed, value_windowed)
            many = kv_heads[number] if attends[number] else 0
            own_value = 0 if without_value else per_value * many
            found.append(Layer(per_key * many, own_value, window, state if recurrent[number] else 0))
        return tuple(found)

    def _has(self, key: str) -> bool:
        return f"{self.architecture}.{key}" in self.header.metadata

    def _keeps_latent(self) -> bool:
        """Return whether values are computed from what is kept as keys (MLA)."""
        lengths = [self.number(f"attention.{name}_length_mla", 0) for name in ("key", "value")]
        if self.architecture != "deepseek2" or not any(lengths):
            return False
        if not all(lengths):
            raise UnknownError("only one of key_length_mla and value_length_mla is there")
        return True

    def _kinds(self, kv_heads: list[int]) -> tuple[list[bool], list[bool]]:
        """Return which layers keep keys and values, and which a state."""
        everywhere, nowhere = [True] * self.count, [False] * self.count
        if self.architecture in _RECURRENT:
            return nowhere, everywhere
        if self.architecture in _HYBRID_BOTH:
            return everywhere, everywhere
        if self.architecture in _HYBRID_BY_HEADS:
            recurrent = [heads == 0 for heads in kv_heads]
            if not self.architecture.startswith("nemotron_h"):
                return [not one for one in recurrent], recurrent
            mixes = [width == 0 for width in self.each("feed_forward_length")]
            return (
                [mix and not one for mix, one in zip(mixes, recurrent, strict=True)],
                [mix and one for mix, one in zip(mixes, recurrent, strict=True)],
            )
        if self.architecture in _HYBRID_BY_INTERVAL:
            if self._has("attention.recurrent_layers"):
                recurrent = [bool(one) for one in self.each("attention.recurrent_layers")]
            else:
                interval = self.number("full_attention_interval", 4) or 1
                recurrent = [(number + 1) % interval != 0 for number in range(self.count)]
            return [not one for one in recurrent], recurrent
        own = self._own_layers()
        return [number < own for number in range(self.count)], nowhere

    def _own_layers(self) -> int:
        """Return from which layer on the keys and values of an earlier one are used."""
        if self.architecture == "gemma3n":
            return _GEMMA3N_OWN_LAYERS
        if self.architecture == "gemma4":
            return max(self.count - self.number("attention.shared_kv_layers", 0), 0)
        return self.count

    def _windows(self) -> list[int | None]:
        """Return each layer's window, None where it sees everything."""
        everything: list[int | None] = [None] * self.count
        if self.architecture == "lfm2":
            window = self.number("attention.sliding_window", 0)
            return [window] * self.count if window else everything
        if self.architecture not in _WINDOWED:
            return everything
        optional = self.architecture in _WINDOW_OPTIONAL
        window = self.number("attention.sliding_window", 0 if optional else _WINDOWS.get(self.architecture))
        if self.architecture == "llama4" and window:
            window = _WINDOWS["llama4"]  # whatever else the metadata says
        if self.architecture == "exaone4" and self.trunk != _EXAONE4_WINDOWED_LAYERS:
            return everything
        if not window:
            if optional or self.architecture == "llama4":
                return everything
            raise UnknownError("its window is 0")
        return [window if windowed else None for windowed in self._pattern()]

    def _pattern(self) -> list[bool]:
        """Return which layers have a window, as llama.cpp's load_swa_pattern does."""
        key = "attention.sliding_window_pattern"
        value = self.header.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple):
            flags = [bool(one) for one in value[: self.count]]
            return flags + [False] * (self.count - len(flags))
        every = self.number(key, _WINDOWED[self.architecture])
        return [number < self.trunk and (not every or number % every < every - 1) for number in range(self.count)]

    def _state_bytes(self) -> int:
        """Return what one recurrent layer keeps for one sequence (llama_hparams::n_embd_r and n_embd_s)."""
        if self._has("wkv.head_size"):
            shifts = self.number("token_shift_count", 2)
            return _STATE_BYTES * self.embedding * (shifts + self.number("wkv.head_size"))
        if self._has("shortconv.l_cache"):
            return _STATE_BYTES * self.embedding * max(self.number("shortconv.l_cache") - 1, 0)
        inner, size = self.number("ssm.inner_size"), self.number("ssm.state_size")
        groups = 0 if self.architecture in _UNGROUPED else self.number("ssm.group_count", 0)
        convolution = max(self.number("ssm.conv_kernel") - 1, 0) * (inner + 2 * groups * size)
        return _STATE_BYTES * (convolution + size * inner)
