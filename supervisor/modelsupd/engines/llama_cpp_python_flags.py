"""The flags of `python -m llama_cpp.server`: tables only.

Its flags are the fields of its settings (llama_cpp/server/settings.py of the pinned version), and a test asks that
version whether the table holds all of them and no other. The table is whole because it has to be: the server's parser
takes any unambiguous beginning of a flag for the flag, so `hos` would be `host`, and its settings are read from
environment variables of the same names as well.
"""

from __future__ import annotations

from collections.abc import Mapping

_ENDPOINT = "modelsupd gives every run an endpoint of its own"
_WEIGHTS = "what is loaded is said by 'weights'"
_PLAIN = "probes and gateway speak plain HTTP over loopback"

#: Flags that a model's [args] may not hold, and why.
OWNED: Mapping[str, str] = {
    "host": _ENDPOINT,
    "port": _ENDPOINT,
    "root_path": "it would move the paths that probes and clients ask for",
    "ssl_keyfile": _PLAIN,
    "ssl_certfile": _PLAIN,
    "api_key": "a key on the command line can be read by every user of the machine, and probes have none",
    "config_file": "it replaces every other flag; models.toml says what there is to say",
    "model": _WEIGHTS,
    "hf_model_repo_id": _WEIGHTS,
    "clip_model_path": "it is said by 'mmproj' of the model, so that it is verified as the weights are",
    "lora_path": "it is said by 'lora' of the model, so that it is verified as the weights are",
    "lora_base": "it is loaded like weights, and modelsupd cannot verify it",
    "model_alias": "the engine is told the model's own name; further ones are 'aliases'",
    "interrupt_requests": "it is always off: a new request, a probe's too, would cut the stream that is being sent",
    "disable_ping_events": "it is always on: the bytes of a stream show that the engine moves, and pings would too",
    "verbose": "it is always on: modelsupd reads the engine's log to tell why it died, and whether it serves",
    "vocab_only": "without weights there is nothing that could generate",
    "help": "it makes the engine print something and exit",
}

SWITCHES = frozenset(
    {
        "cache",
        "embedding",
        "flash_attn",
        "logits_all",
        "mul_mat_q",
        "numa",
        "offload_kqv",
        "use_mlock",
        "use_mmap",
    }
)
"""Flags that take `true` or `false`; `numa` is one to the server's parser, although its settings know numbers too."""

LISTS = frozenset({"kv_overrides", "tensor_split"})
"""Flags that take several values, one after the other."""

VALUES = frozenset(
    {
        "cache_size",
        "cache_type",
        "chat_format",
        "chat_template_kwargs",
        "draft_model",
        "draft_model_num_pred_tokens",
        "hf_pretrained_model_name_or_path",
        "hf_tokenizer_config_path",
        "last_n_tokens_size",
        "main_gpu",
        "n_batch",
        "n_ctx",
        "n_gpu_layers",
        "n_threads",
        "n_threads_batch",
        "n_ubatch",
        "rope_freq_base",
        "rope_freq_scale",
        "rope_scaling_type",
        "rpc_servers",
        "seed",
        "split_mode",
        "type_k",
        "type_v",
        "yarn_attn_factor",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "yarn_ext_factor",
        "yarn_orig_ctx",
    }
)
"""Flags that take one value; `chat_template_kwargs` takes a JSON object as text."""

TAKEN = SWITCHES | LISTS | VALUES
KNOWN = TAKEN | OWNED.keys()

#: What llama-server calls what is called otherwise here, for those who come from there.
ELSEWHERE: Mapping[str, str] = {
    "batch_size": "n_batch",
    "c": "n_ctx",
    "chat_template": "chat_format",
    "ctx_size": "n_ctx",
    "embeddings": "embedding",
    "gpu_layers": "n_gpu_layers",
    "ngl": "n_gpu_layers",
    "override_kv": "kv_overrides",
    "threads": "n_threads",
    "threads_batch": "n_threads_batch",
    "ubatch_size": "n_ubatch",
}
