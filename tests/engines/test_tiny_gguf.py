"""The tiny model's file: deterministic, whole, and what it says it is."""

from __future__ import annotations

from pathlib import Path

import gguf

import tiny_gguf


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny_gguf.write(tmp_path / name, seed=seed)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != other
    assert len(first) < 2_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_the_file_reads_back(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "t.gguf", context_length=4096)
    reader = gguf.GGUFReader(tmp_path / "t.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.context_length"].contents() == 4096
    assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == 3 + 256 + 26 + 1 + len(tiny_gguf.WORDS)
    assert "add_generation_prompt" in reader.fields["tokenizer.chat_template"].contents()
    assert len(reader.tensors) == 3 + 9 * tiny_gguf.BLOCKS


def test_words_are_words() -> None:
    assert len(set(tiny_gguf.WORDS)) == len(tiny_gguf.WORDS)
    assert all(word.isalpha() for word in tiny_gguf.WORDS)
