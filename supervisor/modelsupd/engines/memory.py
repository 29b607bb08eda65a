"""What of a declaration decides how much memory an engine takes.

For llama.cpp that is how it makes its cache and how many layers it puts onto devices; for vLLM, which takes what it is
told to, the share or the size itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from modelsupd.core.spec import Engine, ModelSpec, gpu_count
from modelsupd.engines import vllm_flags
from modelsupd.engines.llama_cpp import DEFAULT_CTX_SIZE
from modelsupd.engines.llama_flags import GPU_LAYERS

#: llama_cpp.server's own default.
_PYTHON_CONTEXT = 2048

#: vLLM's own default of `--gpu-memory-utilization` (0.33, vllm/config/cache.py).
VLLM_SHARE = 0.92


def of_llama(spec: ModelSpec, type_name: Any) -> dict[str, Any] | None:  # noqa: ANN401 - a function from a number to a name
    """Return how llama.cpp will make its cache, by the fields of `weights.claim.Use`; None for any other engine.

    `type_name` tells the name of a type of ggml's by its number, which is how llama-cpp-python takes them.
    """
    given = {name.replace("-", "_"): value for name, value in spec.args.items()}
    if spec.engine is Engine.LLAMA_CPP:
        return _of_server(given, spec)
    return _of_python(given, spec, type_name) if spec.engine is Engine.LLAMA_CPP_PYTHON else None


def of_vllm(spec: ModelSpec) -> tuple[float, int | None, int]:
    """Return what share of each GPU vLLM takes, and the size of its cache on each, in bytes, where that is given.

    The last is how many times all of the weights are loaded, over all GPUs.
    """
    given = {name.replace("-", "_"): value for name, value in spec.args.items()}
    share = given.get("gpu_memory_utilization", given.get("device_memory_utilization", VLLM_SHARE))
    fixed = _human(given.get("kv_cache_memory_bytes"))
    copies = math.prod(max(1, _number(given.get(name), 1) or 1) for name in vllm_flags.COPYING)
    try:
        taken = float(share) if not isinstance(share, bool | tuple) else VLLM_SHARE
    except ValueError:
        taken = VLLM_SHARE
    # With any other vLLM refuses to start.
    return taken if 0 < taken <= 1 else VLLM_SHARE, fixed, copies


def _of_server(given: Mapping[str, object], spec: ModelSpec) -> dict[str, Any]:
    layers = next((given[name] for name in GPU_LAYERS if name in given), None if gpu_count(spec) else 0)
    parallel = _number(given.get("parallel"), None)
    return {
        "context": _number(given.get("ctx_size"), DEFAULT_CTX_SIZE) or 0,
        "parallel": parallel if parallel is not None and parallel > 0 else None,
        "unified": given.get("kv_unified") is True,
        "type_k": str(given.get("cache_type_k", "f16")),
        "type_v": str(given.get("cache_type_v", "f16")),
        "swa_full": given.get("swa_full") is True,
        "batch": _number(given.get("batch_size"), 2048) or 2048,
        "ubatch": _number(given.get("ubatch_size"), 512) or 512,
        "gpu_layers": _number(layers, None),
    }


def _of_python(given: Mapping[str, object], spec: ModelSpec, type_name: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
    # The binding takes the numbers of ggml's types, F16 being 1.
    type_k, type_v = (type_name(_number(given.get(name), 1) or 0).lower() for name in ("type_k", "type_v"))
    layers = _number(given.get("n_gpu_layers"), -1 if gpu_count(spec) else 0)
    return {
        "context": _number(given.get("n_ctx"), _PYTHON_CONTEXT) or 0,
        "parallel": 1,
        "type_k": type_k,
        "type_v": type_v,
        "batch": _number(given.get("n_batch"), 512) or 512,
        "ubatch": _number(given.get("n_ubatch"), 512) or 512,
        "gpu_layers": None if layers is None or layers < 0 else layers,
    }


def _human(value: object) -> int | None:
    """Return an integer as vLLM reads it: `25.6k` is 25600, `2K` 2048 (its `human_readable_int`)."""
    written = re.fullmatch(r"\s*(\d+)(\.\d+)?([kmgtKMGT])\s*", value) if isinstance(value, str) else None
    if written is None:
        return _number(value, None)
    whole, part, unit = written.groups()
    power = "kmgt".index(unit.lower()) + 1
    return int(float(f"{whole}{part or ''}") * 1000**power) if unit.islower() else int(whole) * 1024**power


def _number(value: object, default: int | None) -> int | None:
    """Return an integer of [args], also where it is written as a text; `all` and `auto` are no numbers."""
    if isinstance(value, bool):
        return default
    if isinstance(value, int):
        return value
    if isinstance(value, str) and value.lstrip("-").isdecimal():
        return int(value)
    return default
