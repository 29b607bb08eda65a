"""Write a tiny random model that a real llama.cpp loads in a moment and that really generates.

Two rules. The same arguments give the same bytes, with the same numpy and gguf. And what it says is printable and goes
on until the caller's limit: one channel of the residual stream is alike for every token and is touched by no layer, so
that it works in the output matrix as a bias, for words and against everything else, the end of the text above all.

The vocabulary is a byte vocabulary, so that any prompt can be read, with a few dozen words on top, so that a person can
look at the result. It knows nothing; the words are drawn from a random network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

_TEXT = """
a an the this that every one some no of in on to with from over under and or but so then while until
model token engine probe journal replica tensor context window layer prompt answer stream socket signal clock
small quiet warm brave patient honest slow quick empty random
reads writes waits wakes sleeps counts answers remembers restarts drains loads asks proves forgets
"""
WORDS = _TEXT.split()

EMBEDDING = 128
BLOCKS = 2
FEED_FORWARD = 256
HEADS = 4
KV_HEADS = 2
HEAD_SIZE = EMBEDDING // HEADS

#: The channel that every token sets alike, and how strongly; the rest of an embedding has standard deviation 1.
BIAS_CHANNEL = 0
BIAS_INPUT = 8.0
#: What the bias adds to a word's logit and takes from any other's, times about 8 after the final norm.
BIAS_OUTPUT = 4.0

#: ChatML's outline in plain text: the markers need no tokens of their own in a byte vocabulary.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

Array = npt.NDArray[np.float32]


def vocabulary() -> tuple[list[str], list[int]]:
    """Return the tokens and their types: three control tokens, 256 bytes, letters and the space mark, words."""
    kind = gguf.TokenType
    tokens = [("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)]
    tokens += [(f"<0x{byte:02X}>", kind.BYTE) for byte in range(256)]
    tokens += [(chr(code), kind.NORMAL) for code in range(ord("a"), ord("z") + 1)]
    tokens += [("▁", kind.NORMAL)]
    tokens += [("▁" + word, kind.NORMAL) for word in WORDS]
    return [text for text, _ in tokens], [int(sort) for _, sort in tokens]


def tensors(tokens: list[str], seed: int) -> dict[str, Array]:
    """Return every tensor of the model by its GGUF name, random by `seed` but for the bias channel."""
    draw = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> Array:
        drawn: Array = draw.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)
        return drawn

    embedding = draw.standard_normal((len(tokens), EMBEDDING), dtype=np.float32)
    embedding[:, BIAS_CHANNEL] = BIAS_INPUT
    output = 4 * matrix(len(tokens), EMBEDDING)
    output[:, BIAS_CHANNEL] = [BIAS_OUTPUT if text[1:] in WORDS else -BIAS_OUTPUT for text in tokens]
    ones = np.ones(EMBEDDING, dtype=np.float32)
    made = {"token_embd.weight": embedding, "output.weight": output, "output_norm.weight": ones}
    for block in range(BLOCKS):
        here = f"blk.{block}."
        into_stream = {
            "attn_output.weight": matrix(EMBEDDING, EMBEDDING),
            "ffn_down.weight": matrix(EMBEDDING, FEED_FORWARD),
        }
        for name, weights in into_stream.items():
            weights[BIAS_CHANNEL, :] = 0.0
            made[here + name] = weights
        made[here + "attn_norm.weight"] = ones
        made[here + "ffn_norm.weight"] = ones
        made[here + "attn_q.weight"] = matrix(HEADS * HEAD_SIZE, EMBEDDING)
        made[here + "attn_k.weight"] = matrix(KV_HEADS * HEAD_SIZE, EMBEDDING)
        made[here + "attn_v.weight"] = matrix(KV_HEADS * HEAD_SIZE, EMBEDDING)
        made[here + "ffn_gate.weight"] = matrix(FEED_FORWARD, EMBEDDING)
        made[here + "ffn_up.weight"] = matrix(FEED_FORWARD, EMBEDDING)
    return made


def write(path: Path, *, context_length: int = 2048, seed: int = 0) -> None:
    """Write the model to `path`, in place of what is there, by way of a temporary file beside it.

    `context_length` is the longest context, in tokens, that the file lets an engine use.
    """
    tokens, types = vocabulary()
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name("tiny random")
    writer.add_context_length(context_length)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weights in tensors(tokens, seed).items():
        writer.add_tensor(name, weights if weights.ndim == 1 else weights.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--context-length", type=int, default=2048, help="longest context in tokens (default 2048)")
    parser.add_argument("--seed", type=int, default=0, help="which random model (default 0)")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write(arguments.out, context_length=arguments.context_length, seed=arguments.seed)
    print(arguments.out)


if __name__ == "__main__":
    main()
