"""llama-server's flags, as far as they need more than being passed on: tables only.

Names are the long flags without their dashes and with `_` for `-`. Read from `llama-server --help` of the pinned build;
a test asks that build whether each of them still exists. What is not listed is passed on as it is: the engine knows its
flags better than a table, and refuses a wrong one at once, with its own line.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENDPOINT = "modelsupd gives every run an endpoint of its own"
_WEIGHTS = "what is loaded is said by 'weights'"
_BESIDE = "it is said by '{}' of the model, so that it is verified as the weights are"
_UNVERIFIED = "it is loaded like weights, and modelsupd cannot verify it yet"
_KEYS = "a key on the command line can be read by every user of the machine, and the socket is private already"
_LOG = "modelsupd reads the engine's log to tell why it died"
_ROUTER = "modelsupd runs one model per process, so that it can tell which one failed"
_EXITS = "it makes the engine print something and exit"
_OFFLINE = "an engine loads local files only"

#: Flags that a model's [args] may not hold, and why.
OWNED: Mapping[str, str] = {
    "host": _ENDPOINT,
    "port": _ENDPOINT,
    "reuse_port": _ENDPOINT,
    "api_prefix": "it would move the paths that probes and clients ask for",
    "ssl_key_file": "probes and gateway speak plain HTTP over a private socket",
    "ssl_cert_file": "probes and gateway speak plain HTTP over a private socket",
    "api_key": _KEYS,
    "api_key_file": _KEYS,
    "hf_token": _KEYS,
    "model": _WEIGHTS,
    "model_url": _WEIGHTS,
    "docker_repo": _WEIGHTS,
    "hf_repo": _WEIGHTS,
    "hf_file": _WEIGHTS,
    "embd_gemma_default": _WEIGHTS,
    "fim_qwen_1.5b_default": _WEIGHTS,
    "fim_qwen_3b_default": _WEIGHTS,
    "fim_qwen_7b_default": _WEIGHTS,
    "fim_qwen_7b_spec": _WEIGHTS,
    "fim_qwen_14b_spec": _WEIGHTS,
    "fim_qwen_30b_default": _WEIGHTS,
    "gpt_oss_20b_default": _WEIGHTS,
    "gpt_oss_120b_default": _WEIGHTS,
    "vision_gemma_4b_default": _WEIGHTS,
    "vision_gemma_12b_default": _WEIGHTS,
    "mmproj": _BESIDE.format("mmproj"),
    "spec_draft_model": _BESIDE.format("draft"),
    "model_draft": _BESIDE.format("draft"),
    "lora": _BESIDE.format("lora"),
    "lora_scaled": _BESIDE.format("lora' and 'lora_scales"),
    "control_vector": _UNVERIFIED,
    "control_vector_scaled": _UNVERIFIED,
    "mmproj_url": _OFFLINE,
    "spec_draft_hf": _OFFLINE,
    "hf_repo_draft": _OFFLINE,
    "offline": _OFFLINE,
    "alias": "the engine is told the model's own name; further ones are 'aliases'",
    "metrics": "it is always on: its counters are what shows that the engine moves",
    "ui": "it is always off: an engine's socket is private",
    "webui": "it is always off: an engine's socket is private",
    "log_file": _LOG,
    "log_disable": _LOG,
    "log_jsonl": _LOG,
    "log_colors": _LOG,
    "models_dir": _ROUTER,
    "models_preset": _ROUTER,
    "models_max": _ROUTER,
    "models_autoload": _ROUTER,
    "sleep_idle_seconds": "modelsupd's own generation probes would wake the engine again and again",
    "help": _EXITS,
    "usage": _EXITS,
    "version": _EXITS,
    "cache_list": _EXITS,
    "completion_bash": _EXITS,
    "list_devices": _EXITS,
}

#: Short flags by which people know llama.cpp: refused with the long name, since `--ngl` is no flag of the engine's.
SHORT: Mapping[str, str] = {
    "a": "alias",
    "b": "batch_size",
    "c": "ctx_size",
    "cb": "cont_batching",
    "cmoe": "cpu_moe",
    "cram": "cache_ram",
    "ctk": "cache_type_k",
    "ctv": "cache_type_v",
    "dev": "device",
    "fa": "flash_attn",
    "fitc": "fit_ctx",
    "fitt": "fit_target",
    "hf": "hf_repo",
    "hff": "hf_file",
    "hft": "hf_token",
    "kvo": "kv_offload",
    "kvu": "kv_unified",
    "lm": "load_mode",
    "lv": "log_verbosity",
    "m": "model",
    "md": "spec_draft_model",
    "mg": "main_gpu",
    "mm": "mmproj",
    "mu": "model_url",
    "n": "predict",
    "ncmoe": "n_cpu_moe",
    "ngl": "gpu_layers",
    "np": "parallel",
    "ot": "override_tensor",
    "rea": "reasoning",
    "s": "seed",
    "sm": "split_mode",
    "sps": "slot_prompt_similarity",
    "t": "threads",
    "tb": "threads_batch",
    "to": "timeout",
    "ts": "tensor_split",
    "ub": "ubatch_size",
    "v": "verbose",
}

#: Flags without a value and without a `--no-` form: `false` leaves them out.
SWITCHES = frozenset(
    {
        "check_tensors",
        "cpu_moe",
        "embedding",
        "embeddings",
        "ignore_eos",
        "lora_init_without_apply",
        "no_host",
        "props",
        "rerank",
        "reranking",
        "special",
        "spec_draft_cpu_moe",
        "spm_infill",
        "swa_full",
        "verbose",
    }
)

#: Flags that want the word `on` or `off` where TOML has a boolean.
ON_OFF = frozenset({"fit", "flash_attn", "reasoning"})

#: Flags that take several values as one text, and by what they are joined; any other list repeats its flag.
JOINED: Mapping[str, str] = {
    "device": ",",
    "fit_target": ",",
    "override_kv": ",",
    "override_tensor": ",",
    "rpc": ",",
    "samplers": ";",
    "spec_draft_device": ",",
    "spec_draft_override_tensor": ",",
    "spec_type": ",",
    "tags": ",",
    "tensor_split": ",",
    "tools": ",",
}

#: Flags that take two values one after the other.
PAIRS = frozenset({"control_vector_layer_range"})

#: Other names of flags that modelsupd sets by default itself.
GPU_LAYERS = frozenset({"gpu_layers", "n_gpu_layers"})
EMBEDDING = frozenset({"embedding", "embeddings", "rerank", "reranking"})
