"""The flags of `vllm serve`, as far as they need more than being passed on: tables only.

Names are the long flags without their dashes and with `_` for `-`, read from `vllm serve --help=all` of the pinned
version; a test asks that version whether each still exists. What is not listed is passed on as it is, once the version
that is installed has said that it knows it (see `vllm_help`).
"""

from __future__ import annotations

from collections.abc import Mapping

_ENDPOINT = "modelsupd gives every run an endpoint of its own"
_WEIGHTS = "what is loaded is said by 'weights'"
_PLAIN = "probes and gateway speak plain HTTP over a private socket"
_KEYS = "a key on the command line can be read by every user of the machine, and the socket is private already"
_OFFLINE = "an engine loads local files only, which were verified"
_ONE = "modelsupd runs one server per replica, so that it can tell which one failed: set 'replicas'"
_NODE = "modelsupd runs engines on this host only"
_GPUS = "which GPUs an engine sees is said by 'gpus'"
_LOG = "modelsupd reads the engine's log to tell why it died"

#: Flags that a model's [args] may not hold, and why.
OWNED: Mapping[str, str] = {
    "host": _ENDPOINT,
    "port": _ENDPOINT,
    "uds": _ENDPOINT,
    "grpc": _ENDPOINT,
    "grpc_port": _ENDPOINT,
    "root_path": "it would move the paths that probes and clients ask for",
    "middleware": "it could answer probes in the engine's place",
    "ssl_keyfile": _PLAIN,
    "ssl_certfile": _PLAIN,
    "ssl_ca_certs": _PLAIN,
    "ssl_cert_reqs": _PLAIN,
    "ssl_ciphers": _PLAIN,
    "enable_ssl_refresh": _PLAIN,
    "api_key": _KEYS,
    "hf_token": _KEYS,
    "config": "it sets other flags; models.toml says what there is to say",
    "model": _WEIGHTS,
    "model_tag": _WEIGHTS,
    "revision": _WEIGHTS,
    "code_revision": _OFFLINE,
    "tokenizer_revision": _OFFLINE,
    "download_dir": _OFFLINE,
    "served_model_name": "the engine is told the model's own name; further ones are 'aliases'",
    "enable_sleep_mode": "that it sleeps is said by 'demand.sleep'",
    "disable_log_stats": "it is always off: its counters are what shows that the engine moves",
    "disable_uvicorn_access_log": "it is always on: the gateway keeps the record of requests",
    "disable_access_log_for_endpoints": "no request is logged by the engine: the gateway keeps the record",
    "logging_config": _LOG,
    "log_config_file": _LOG,
    "shutdown_timeout": "modelsupd drains an engine before it stops it: set 'stop.drain_timeout_s'",
    "api_server_count": _ONE,
    "headless": _ONE,
    "data_parallel_rank": _ONE,
    "data_parallel_start_rank": _ONE,
    "data_parallel_size_local": _ONE,
    "data_parallel_hybrid_lb": _ONE,
    "data_parallel_external_lb": _ONE,
    "data_parallel_multi_port_external_lb": _ONE,
    "data_parallel_supervisor_port": _ONE,
    "data_parallel_address": _NODE,
    "data_parallel_rpc_port": _NODE,
    "master_addr": _NODE,
    "master_port": _NODE,
    "nnodes": _NODE,
    "node_rank": _NODE,
    "device_ids": _GPUS,
    "help": "it makes the engine print something and exit",
}

#: The parser takes an unambiguous beginning of a flag for the flag; these are flags that an owned one begins with.
WHOLE = frozenset({"data_parallel_size", "tokenizer"})

#: Short flags by which people know vLLM: refused with the long name, since `--tp` is no flag of the engine's.
SHORT: Mapping[str, str] = {
    "O": "optimization_level",
    "ac": "attention_config",
    "asc": "api_server_count",
    "cc": "compilation_config",
    "dcp": "decode_context_parallel_size",
    "dp": "data_parallel_size",
    "ep": "enable_expert_parallel",
    "pp": "pipeline_parallel_size",
    "q": "quantization",
    "sc": "speculative_config",
    "tp": "tensor_parallel_size",
}

#: What llama-server calls what is called otherwise here, for those who come from there.
ELSEWHERE: Mapping[str, str] = {
    "c": "max_model_len",
    "ctx_size": "max_model_len",
    "n_ctx": "max_model_len",
    "max_context_length": "max_model_len",
    "np": "max_num_seqs",
    "parallel": "max_num_seqs",
    "lora": "lora_modules",
}

#: Flags that say how much memory the cache of keys and values gets.
KV_SIZE = frozenset({"kv_cache_memory_bytes", "gpu_memory_utilization", "device_memory_utilization"})

#: Flags by which a model is spread over GPUs; their product is how many it takes. By the last two each part of the GPUs
#: holds all of the weights.
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size", "data_parallel_size")
COPYING = PARALLEL[2:]
