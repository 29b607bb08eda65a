"""Write a tiny random Llama, as a folder of the hub's kind, that a real vLLM loads and that really generates.

Neither torch nor a network is needed: safetensors is a header in JSON and the numbers behind it, and so it is written
here, in two shards with their index. The same arguments give the same bytes.

The vocabulary is a byte vocabulary, so that any prompt can be read, with a few dozen words on top, which alone have
rows in the output matrix, so that what it says is printable. There is no end of text in it: an answer goes on until the
caller's limit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiny_gguf import CHAT_TEMPLATE, WORDS

HIDDEN = 128
BLOCKS = 2
FEED_FORWARD = 256
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = 32

#: By how much a word's logit spreads around 0, which is what any other token has.
WORD_SPREAD = 4.0

Array = npt.NDArray[np.float32]


def byte_characters() -> list[str]:
    """Return for each byte the character that stands for it in byte-level BPE: itself where it is printable."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def vocabulary() -> list[str]:
    """Return the tokens: bytes, then words with the mark of a space before them."""
    return [*byte_characters(), *("Ġ" + word for word in WORDS)]


def tokenizer() -> dict[str, Any]:
    """Return tokenizer.json; the words are never split off, so prompts are read byte by byte."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(vocabulary())},
            "merges": [],
        },
    }


def config(context_length: int) -> dict[str, Any]:
    """Return config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "hidden_act": "silu",
        "max_position_embeddings": context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": len(vocabulary()),
        "tie_word_embeddings": False,
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def tensors(seed: int) -> dict[str, Array]:
    """Return the weights by the names of the hub's Llama."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, spread: float | None = None) -> Array:
        return random.normal(0, spread or columns**-0.5, (rows, columns)).astype(np.float32)

    tokens = len(vocabulary())
    head = np.zeros((tokens, HIDDEN), np.float32)
    head[256:] = matrix(len(WORDS), HIDDEN, WORD_SPREAD * HIDDEN**-0.5)
    made = {"model.embed_tokens.weight": matrix(tokens, HIDDEN, 1.0)}
    for number in range(BLOCKS):
        block = f"model.layers.{number}"
        made |= {
            f"{block}.input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{block}.self_attn.q_proj.weight": matrix(HEADS * HEAD_SIZE, HIDDEN),
            f"{block}.self_attn.k_proj.weight": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            f"{block}.self_attn.v_proj.weight": matrix(KV_HEADS * HEAD_SIZE, HIDDEN),
            f"{block}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * HEAD_SIZE),
            f"{block}.post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{block}.mlp.gate_proj.weight": matrix(FEED_FORWARD, HIDDEN),
            f"{block}.mlp.up_proj.weight": matrix(FEED_FORWARD, HIDDEN),
            f"{block}.mlp.down_proj.weight": matrix(HIDDEN, FEED_FORWARD),
        }
    return made | {"model.norm.weight": np.ones(HIDDEN, np.float32), "lm_head.weight": head}


def safetensors(held: dict[str, Array]) -> bytes:
    """Return a file of that format: the length of the header, the header in JSON, and the numbers."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in held.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in held.values())


def write(folder: Path, *, context_length: int = 2048, seed: int = 0) -> None:
    """Write the model into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    all_of_it = tensors(seed)
    names = list(all_of_it)
    shards = {"model-00001-of-00002.safetensors": names[:10], "model-00002-of-00002.safetensors": names[10:]}
    for file, held in shards.items():
        (folder / file).write_bytes(safetensors({name: all_of_it[name] for name in held}))
    size_bytes = sum(array.nbytes for array in all_of_it.values())
    index = {
        "metadata": {"total_size": size_bytes},
        "weight_map": {name: file for file, held in shards.items() for name in held},
    }
    documents = {
        "model.safetensors.index.json": index,
        "config.json": config(context_length),
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context_length,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1), encoding="utf-8")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--context-length", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.folder, context_length=arguments.context_length, seed=arguments.seed)


if __name__ == "__main__":
    main()
