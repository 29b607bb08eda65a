"""The JSON Schema that editors use, from the fields' own metadata."""

from __future__ import annotations

import dataclasses
from typing import Any

import pydantic

from modelsupd.config.weights import SHA256
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.gpu_spec import GpusSpec, PlacementSpec
from modelsupd.core.spec import (
    MOST_REPLICAS,
    NAME,
    AccessLogLimits,
    AutoRule,
    DaemonSpec,
    Declaration,
    Engine,
    EngineSpec,
    GatewayLimits,
    GatewaySpec,
    HealthLimits,
    JournalLimits,
    LogLimits,
    ModelGateway,
    ModelSpec,
    RestartPolicy,
    StopLimits,
    WeightsSpec,
)

_CLASSES: tuple[type, ...] = (
    AccessLogLimits,
    AutoRule,
    DaemonSpec,
    DemandSpec,
    EngineSpec,
    GatewayLimits,
    GatewaySpec,
    GpusSpec,
    HealthLimits,
    JournalLimits,
    LogLimits,
    ModelGateway,
    ModelSpec,
    PlacementSpec,
    RestartPolicy,
    StopLimits,
    WeightsSpec,
)

_EXAMPLES: dict[tuple[str, str], list[object]] = {
    ("DaemonSpec", "state_dir"): ["/var/lib/modelsupd"],
    ("DaemonSpec", "runtime_dir"): ["/run/modelsupd"],
    ("DaemonSpec", "metrics_listen"): ["127.0.0.1:9310", ""],
    ("GatewaySpec", "listen"): ["127.0.0.1:8080", ["127.0.0.1:8080", "[::1]:8080"]],
    ("GatewaySpec", "tls_cert"): ["/etc/modelsupd/tls.pem"],
    ("GatewaySpec", "tls_key"): ["/etc/modelsupd/tls.key"],
    ("GatewaySpec", "cors_origins"): [["https://chat.example"]],
    ("AutoRule", "models"): [["qwen", "tiny"]],
    ("EngineSpec", "binary"): ["/usr/local/bin/llama-server"],
    ("EngineSpec", "python"): ["/opt/vllm/bin/python"],
    ("ModelSpec", "weights"): ["hf:Qwen/Qwen2-0.5B-Instruct-GGUF/qwen2-0_5b-instruct-q4_k_m.gguf", "/models/tiny.gguf"],
    ("ModelSpec", "mmproj"): ["/models/mmproj.gguf"],
    ("ModelSpec", "draft"): ["/models/draft.gguf"],
    ("ModelSpec", "lora"): [["/models/lora.gguf"]],
    ("ModelSpec", "allow"): [["*.safetensors", "*.json"]],
    ("ModelSpec", "ignore"): [["*.bin"]],
    ("WeightsSpec", "cache_dir"): ["/var/cache/huggingface/hub"],
    ("WeightsSpec", "endpoint"): ["https://hub.example"],
    ("WeightsSpec", "token_file"): ["/etc/modelsupd/hf-token"],
    ("ModelSpec", "gpus"): [1, ["GPU-5f1c1b0e-8f2d-4c53-9d3c-0d6a3f2b7e11"]],
    ("ModelSpec", "replicas"): [1, "per-gpu"],
    ("PlacementSpec", "apart_from"): [["qwen"]],
    ("DemandSpec", "excludes"): [["big"]],
    ("DemandSpec", "group"): ["big"],
    ("GpusSpec", "nvml"): ["/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"],
    ("ModelSpec", "command"): [["python3", "server.py", "--uds", "{socket}"]],
    ("ModelSpec", "aliases"): [["gpt-4o-mini"]],
    ("ModelSpec", "args"): [{"ctx_size": 4096, "parallel": 2}],
    ("ModelSpec", "env"): [{"OMP_NUM_THREADS": "4"}],
    ("HealthLimits", "alive_path"): ["/v1/models"],
}


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of models.toml, with descriptions, defaults, ranges and examples."""
    made = pydantic.TypeAdapter(Declaration).json_schema()
    for cls in _CLASSES:
        _describe(cls, made["$defs"][cls.__name__])
    _describe(Declaration, made)
    made["properties"]["models"]["propertyNames"] = {"pattern": f"^{NAME.pattern}$"}
    made["properties"]["engines"]["propertyNames"] = {"enum": ["vllm", "llama.cpp", "llama-cpp-python"]}
    model = made["$defs"]["ModelSpec"]["properties"]
    for name, bounds in (("replicas", {"minimum": 1, "maximum": MOST_REPLICAS}), ("gpus", {"minimum": 0})):
        next(choice for choice in model[name]["anyOf"] if choice.get("type") == "integer").update(bounds)
    made["$defs"]["Engine"]["enum"].remove(Engine.GATEWAY)  # nobody declares a model of it
    made["$defs"]["ModelSpec"]["properties"]["sha256"]["pattern"] = f"^{SHA256.pattern}$"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "models.toml of modelsupd",
        "description": "What modelsupd runs, and how.",
    }


def _describe(cls: type, table: dict[str, Any]) -> None:
    table["description"] = (cls.__doc__ or "").strip()
    for item in dataclasses.fields(cls):
        shown = table["properties"][item.name]
        shown.pop("title", None)
        shown["description"] = item.metadata.get("doc", "")
        if examples := _EXAMPLES.get((cls.__name__, item.name)):
            shown["examples"] = examples
        # TOML has no null: a setting that is not given is left out, so an editor should not offer null either.
        choices = [choice for choice in shown.get("anyOf", []) if choice != {"type": "null"}]
        if len(choices) == 1:
            del shown["anyOf"]
            shown.update(choices[0])
        if shown.get("default", ...) is None:
            del shown["default"]
