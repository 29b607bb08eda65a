"""Tells from headers alone what a model is, and how much memory its weights and its cache will take.

The cache is what llama.cpp allocates, to the byte; `llama-fit-params` of the same build says the same, and a test holds
the two together. What is left out are the engine's compute buffers and the driver's own memory, which depend on the
build and the device: llama.cpp itself leaves 1 GiB free on each device for what it cannot tell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelsupd.weights import ggml, gguf, hf_config, layers, safetensors
from modelsupd.weights.layers import Layer, UnknownError

#: llama-server without `--parallel`: so many slots, which share one cache.
SERVER_SLOTS = 4
#: llama.cpp makes caches of whole multiples of this many tokens, vLLM of its blocks.
_CELLS = 256
_BLOCK = 16

_IN_BLOCK = re.compile(r"blk\.([0-9]+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a model is; None where its files do not say it.

    `quantisation` is how most of the weights are stored. `kv_heads` is the most that a layer has. `layer_bytes` are the
    weights of each layer, `output_bytes` those of the last step, which a device takes as one layer more; where its
    matrix is that of the input, a device needs a copy (`copied_bytes`). `keeps` says what each layer keeps of the
    context, or why that is not known.
    """

    form: Literal["gguf", "safetensors"]
    architecture: str | None
    name: str | None
    parameters: int | None
    quantisation: str | None
    context_length: int | None
    layers: int | None
    embedding: int | None
    heads: int | None
    kv_heads: int | None
    experts: int | None
    tensors: int
    weights_bytes: int | None
    layer_bytes: tuple[int, ...] = ()
    output_bytes: int = 0
    copied_bytes: int = 0
    keeps: tuple[Layer, ...] | str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a model will be run; defaults are those of llama-server.

    `context` counts tokens, 0 is what the model was trained on. `parallel` sequences share one cache if `unified`;
    None leaves both to llama-server. Of other engines, each sequence has a context of its own. `gpu_layers` counts from
    the last layer, the output being one; None means all, 0 none.
    """

    context: int = 0
    parallel: int | None = None
    unified: bool = False
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = False
    batch: int = 2048
    ubatch: int = 512
    gpu_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """How much memory a model takes; None where that cannot be told, and `words` say why.

    `kv_bytes` holds the state of recurrent layers too. Weights that stay in RAM are mapped: they can be given back to
    the kernel, and several processes share them.
    """

    context: int | None
    weights_bytes: int | None
    kv_bytes: int | None
    vram_bytes: int | None
    ram_bytes: int | None
    words: str = ""


def describe(files: Mapping[str, Path]) -> Facts | None:
    """Return what the files of one model are, by name inside their source; None where there are no headers to read.

    Raises FormatError and OSError.
    """
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    if ggufs:
        first = gguf.shard_names(ggufs[0])
        return facts([gguf.read(files[name]) for name in first if name in files])
    tensors = [safetensors.read(path) for name, path in sorted(files.items()) if name.endswith(".safetensors")]
    if not tensors:
        return None
    return facts_of_folder(tensors, hf_config.read(files["config.json"]) if "config.json" in files else {})


def facts(headers: Sequence[gguf.Header]) -> Facts:
    """Return what a GGUF model is, from the headers of its shards, the first of which says what it is."""
    first = headers[0]
    architecture = first.text("general.architecture")
    tensors = [tensor for header in headers for tensor in header.tensors]
    sizes = [tensor.size_bytes for tensor in tensors]
    by_layer, output, copied = _by_place(tensors)
    try:
        keeps: tuple[Layer, ...] | str = layers.of(first)
    except UnknownError as error:
        keeps = str(error)
    number = {
        name: first.metadata.get(f"{architecture}.{key}")
        for name, key in (
            ("context", "context_length"),
            ("layers", "block_count"),
            ("embedding", "embedding_length"),
            ("heads", "attention.head_count"),
            ("kv", "attention.head_count_kv"),
            ("experts", "expert_count"),
        )
    }
    return Facts(
        form="gguf",
        architecture=architecture,
        name=first.text("general.name"),
        parameters=sum(tensor.elements for tensor in tensors),
        quantisation=_quantisation(first, tensors),
        context_length=_most(number["context"]),
        layers=_most(number["layers"]),
        embedding=_most(number["embedding"]),
        heads=_most(number["heads"]),
        kv_heads=_most(number["kv"] if number["kv"] is not None else number["heads"]),
        experts=_most(number["experts"]),
        tensors=len(tensors),
        weights_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        layer_bytes=by_layer,
        output_bytes=output,
        copied_bytes=copied,
        keeps=keeps,
    )


def facts_of_folder(headers: Sequence[safetensors.Header], config: Mapping[str, object]) -> Facts:
    """Return what a model in safetensors is, from the headers of its files and its config.json."""
    tensors = [tensor for header in headers for tensor in header.tensors]
    said = hf_config.Config(config)
    dtypes = Counter[str]()
    for tensor in tensors:
        dtypes[tensor.dtype] += tensor.size_bytes
    packed = said.quantisation
    return Facts(
        form="safetensors",
        architecture=said.architecture,
        name=None,
        # Packed weights are several to an element, by rules of each method.
        parameters=None if packed else sum(tensor.elements for tensor in tensors),
        quantisation=packed or (dtypes.most_common(1)[0][0] if dtypes else None),
        context_length=said.context_length,
        layers=said.number("num_hidden_layers"),
        embedding=said.number("hidden_size"),
        heads=said.number("num_attention_heads"),
        kv_heads=said.number("num_key_value_heads") or said.number("num_attention_heads"),
        experts=said.experts,
        tensors=len(tensors),
        weights_bytes=sum(tensor.size_bytes for tensor in tensors),
        keeps=said.keeps(),
    )


def claim(facts: Facts, use: Use) -> Claim:
    """Return how much memory a model takes when it is run so."""
    context = use.context or facts.context_length
    why = ["the size of its tensors is not known"] if facts.weights_bytes is None else []
    kept: list[int] | None = None
    if isinstance(facts.keeps, str):
        why.append(facts.keeps)
    elif facts.keeps and not context:
        why.append("its context length is not known")
    else:
        try:
            kept = [_kept_bytes(layer, facts.form, context or 0, use) for layer in facts.keeps]
        except UnknownError as error:
            why.append(str(error))
    kv_bytes = None if kept is None else sum(kept)
    vram = ram = None
    if facts.weights_bytes is not None and kept is not None:
        vram = _vram_bytes(facts, kept, use)
        ram = facts.weights_bytes + sum(kept) - vram
        if facts.form == "gguf" and use.gpu_layers != 0:
            ram += facts.copied_bytes
    return Claim(context, facts.weights_bytes, kv_bytes, vram, ram, "; ".join(why))


def _kept_bytes(layer: Layer, form: str, context: int, use: Use) -> int:
    """Return what one layer keeps (llama_context's constructor and llama_kv_cache_iswa's)."""
    per_token = _row_bytes(layer.key, use.type_k) + _row_bytes(layer.value, use.type_v)
    if form != "gguf":
        return _multiple(context, _BLOCK) * (use.parallel or 1) * per_token
    sequences = SERVER_SLOTS if use.parallel is None else max(use.parallel, 1)
    unified = use.unified or use.parallel is None
    ubatch = min(use.ubatch or use.batch, use.batch, context)
    cells = _multiple(context, _CELLS)
    if not unified:
        cells = _multiple(cells // sequences, _CELLS)
    if layer.window is not None and not use.swa_full:
        seen = layer.window * (sequences if unified else 1) + ubatch
        cells = _multiple(min(cells, seen), _CELLS)
    return cells * (1 if unified else sequences) * per_token + sequences * layer.state_bytes


def _row_bytes(elements: int, cache_type: str) -> int:
    if cache_type not in ggml.CACHE_TYPES:
        raise UnknownError(f"the cache type {cache_type!r} is not known")
    block, size = ggml.CACHE_TYPES[cache_type]
    if elements % block:
        raise UnknownError(f"the cache type {cache_type!r} keeps {block} elements together, a layer has {elements}")
    return elements // block * size


def _vram_bytes(facts: Facts, kept: list[int], use: Use) -> int:
    """Return what of weights and cache lies on devices: the last layers, the output counting as one."""
    weights = facts.weights_bytes or 0
    if facts.form != "gguf":
        return 0 if use.gpu_layers == 0 else weights + sum(kept)
    count = len(facts.layer_bytes)
    wanted = count + 1 if use.gpu_layers is None or use.gpu_layers < 0 else use.gpu_layers
    if wanted == 0:
        return 0
    first = max(count + 1 - wanted, 0)
    return facts.output_bytes + facts.copied_bytes + sum(facts.layer_bytes[first:]) + sum(kept[first:])


def _by_place(tensors: Iterable[gguf.Tensor]) -> tuple[tuple[int, ...], int, int]:
    """Return the bytes of each layer, those of the output, and those of the input that the output needs as well."""
    by_layer: dict[int, int] = {}
    output = embedding = 0
    own_output = False
    for tensor in tensors:
        size = tensor.size_bytes or 0
        if found := _IN_BLOCK.match(tensor.name):
            by_layer[int(found[1])] = by_layer.get(int(found[1]), 0) + size
        elif tensor.name.startswith("output"):
            output += size
            own_output = own_output or tensor.name == "output.weight"
        elif tensor.name == "token_embd.weight":
            embedding = size
    # The number comes from a name: a hostile one would make a list of any length.
    if by_layer and max(by_layer) >= layers.MAX_LAYERS:
        return (), output, 0
    listed = tuple(by_layer.get(number, 0) for number in range(max(by_layer, default=-1) + 1))
    return listed, output, 0 if own_output else embedding


def _quantisation(header: gguf.Header, tensors: Iterable[gguf.Tensor]) -> str | None:
    named = ggml.FILE_TYPES.get(header.integer("general.file_type") or -1)
    if named or header.integer("general.file_type") == 0:
        return named or ggml.FILE_TYPES[0]
    most = Counter[str]()
    for tensor in tensors:
        most[tensor.type_name] += tensor.size_bytes or 0
    return most.most_common(1)[0][0] if most else None


def _most(value: object) -> int | None:
    """Return a number of the metadata; of a list, which has one for each layer, the largest."""
    if isinstance(value, tuple):
        return max((one for one in value if isinstance(one, int)), default=None)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of
