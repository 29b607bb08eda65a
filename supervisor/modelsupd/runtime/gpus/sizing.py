"""How much of GPUs a run will take, from what is declared and the headers of its weights. Blocks on the file system."""

from __future__ import annotations

from pathlib import Path

import structlog

from modelsupd.core.placement import Size
from modelsupd.core.spec import ModelSpec, gpu_count
from modelsupd.engines import memory
from modelsupd.engines.base import Files
from modelsupd.weights import gguf
from modelsupd.weights.base import FormatError
from modelsupd.weights.claim import Use, claim, describe
from modelsupd.weights.ggml import type_name

log = structlog.get_logger("gpus")


def size_of(spec: ModelSpec, files: Files) -> Size | None:
    """Return what a run of the model takes of its GPUs; None where it uses none, or where that cannot be told."""
    if gpu_count(spec) == 0 or spec.placement.vram_bytes is not None:
        return None
    try:
        return _of_vllm(spec, files) if spec.engine == "vllm" else _of_llama(spec, files)
    except (FormatError, OSError) as error:
        # Whether an engine can be started on these weights is not decided here.
        log.warning("cannot tell how much memory a model takes", weights=spec.weights, why=str(error))
        return None


def _of_vllm(spec: ModelSpec, files: Files) -> Size | None:
    share, cache_bytes, copies = memory.of_vllm(spec)
    if cache_bytes is None:
        return Size(share=share)
    facts = describe(_named(files.weights))
    if facts is None or facts.weights_bytes is None:
        return None
    return Size(facts.weights_bytes * copies + cache_bytes * gpu_count(spec), estimated=True)


def _of_llama(spec: ModelSpec, files: Files) -> Size | None:
    use = memory.of_llama(spec, type_name)
    facts = describe(_named(files.weights)) if use is not None else None
    if use is None or facts is None or facts.form != "gguf":
        return None
    taken = claim(facts, Use(**use)).vram_bytes
    if taken is None:
        return None
    # What lies beside the weights is put onto devices too, whole.
    beside = [path for path in (files.mmproj, files.draft, *files.lora) if path is not None]
    return Size(taken + sum(Path(path).stat().st_size for path in beside), estimated=True)


def _named(weights: str | None) -> dict[str, Path]:
    """Return the files of a model by name: all of a folder, or a file with its shards."""
    if weights is None:
        return {}
    path = Path(weights)
    if path.is_dir():
        return {each.name: each for each in sorted(path.iterdir()) if each.is_file()}
    return {name: path.with_name(name) for name in gguf.shard_names(path.name)} if path.suffix == ".gguf" else {}
