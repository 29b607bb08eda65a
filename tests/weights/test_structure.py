"""What a file's suffix promises, and what a set of files needs to be a model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from format_files import safetensors as write_safetensors
from format_files import small, u16
from modelsupd.weights import structure
from modelsupd.weights.base import Structure

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("config.json", b'{"a": [1, 2]}', "ok", ""),
        ("config.json", b'\xef\xbb\xbf{"a": 1}', "ok", ""),
        ("config.json", b'{"a": ', "bad", "cannot be read"),
        ("config.json", b"", "bad", "empty"),
        ("config.json", b"[" * 100_000, "bad", "too deeply"),
        ("config.json", b"\xff", "bad", "cannot be read"),
        ("config.json", b"[0" + b",0" * 5_000_000 + b"]", "unknown", "not read"),
        ("tokenizer.model", b"\x0a\x05", "ok", ""),
        ("merges.txt", b"", "ok", ""),
        ("pytorch_model.bin", b"PK\x03\x04", "unknown", ".bin"),
        ("pytorch_model.bin", b"", "bad", "empty"),
        ("m.gguf", POINTER, "bad", "git-LFS pointer"),
        ("m.safetensors", POINTER, "bad", "git-LFS pointer"),
        ("tokenizer.model", POINTER, "bad", "git-LFS pointer"),
        ("m.gguf", b"\n<!DOCTYPE html><html>", "bad", "HTML"),
        ("config.json", b"<html><head>", "bad", "HTML"),
        ("tokenizer.model", b"<HTML>", "bad", "HTML"),
        ("card.html", b"<html>", "ok", ""),
        ("m.gguf", b"", "bad", "empty"),
        ("m.GGUF", b"GGUF", "bad", "cut off"),
        ("m.safetensors", b"", "bad", "empty"),
    ],
)
def test_one_file(name: str, content: bytes, kind: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "blob"  # as in the hub's cache, where names have no suffix
    path.write_bytes(content)
    found = structure.check_file(path, name)
    assert found.kind == kind
    assert words in found.words


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    assert structure.check_file(tmp_path / "config.json", "config.json").words == "is no regular file"


def shards(folder: Path, many: int = 2, **changes: int) -> dict[str, Path]:
    """Write a split GGUF of one tensor each; `changes` overwrite what each shard says."""
    found = {}
    for number in range(many):
        says = {"no": number, "count": many, "tensors": many} | changes
        split = (
            u16("split.no", says["no"]),
            u16("split.count", says["count"]),
            u16("split.tensors.count", says["tensors"]),
        )
        name = f"m-{number + 1:05d}-of-{many:05d}.gguf"
        found[name] = small(*split, names=(f"t{number}",)).write(folder / name)
    return found


def test_a_whole_split_model(tmp_path: Path) -> None:
    assert structure.check_set(shards(tmp_path, 3), "llama.cpp") == Structure("ok")


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_shard_is_missing(lost: int, tmp_path: Path) -> None:
    files = shards(tmp_path, 3)
    name = sorted(files)[lost]
    del files[name]
    found = structure.check_set(files, "llama.cpp")
    assert found == Structure("bad", f"is incomplete: of 3 shards, {name} is missing")


def test_many_shards_are_missing(tmp_path: Path) -> None:
    name = "m-00001-of-99999.gguf"
    found = structure.check_set({name: small().write(tmp_path / name)}, None)
    assert found.words.startswith("is incomplete: of 99999 shards, m-00002-of-99999.gguf, ")
    assert found.words.endswith(" and 99993 more are missing")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": 3}, "says it is one of 3 files, not 2"),
        ({"no": 0}, "holds part 0 instead of 1"),
        ({"tensors": 7}, "hold 2 tensors, they say 7"),
    ],
)
def test_shards_that_do_not_fit_together(changes: dict[str, int], words: str, tmp_path: Path) -> None:
    found = structure.check_set(shards(tmp_path, **changes), None)
    assert found.kind == "bad"
    assert words in found.words


def test_shards_with_the_same_tensor(tmp_path: Path) -> None:
    files = shards(tmp_path)
    first, second = sorted(files)
    split = u16("split.no", 1), u16("split.count", 2), u16("split.tensors.count", 2)
    files[second] = small(*split, names=("t0",)).write(tmp_path / second)
    assert "holds 't0'" in structure.check_set(files, None).words
    # A file that only bears the name of a shard is loaded by llama.cpp as one file.
    files = {name: small().write(tmp_path / name) for name in (first, second)}
    assert structure.check_set(files, None).kind == "unknown"
    # One shard under another name cannot be loaded, since the others are found by name.
    assert structure.check_set({"m.gguf": small(*split).write(tmp_path / "m.gguf")}, None).kind == "bad"


def folder(path: Path) -> dict[str, Path]:
    """Write a model in two files of safetensors; return it by name."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    files = {name: write_safetensors(path / name, {f"t{number}": ("U8", [4], 4)}) for number, name in enumerate(names)}
    said = {
        "config.json": {"model_type": "llama"},
        "tokenizer.json": {},
        "model.safetensors.index.json": {"weight_map": {"t0": names[0], "t1": names[1]}},
    }
    for name, value in said.items():
        files[name] = path / name
        files[name].write_text(json.dumps(value))
    return files


def test_a_whole_folder(tmp_path: Path) -> None:
    files = folder(tmp_path)
    assert structure.check_set(files, "vllm") == Structure("ok")
    assert structure.check_set(files, None) == Structure("ok")
    assert {name: structure.check_file(path, name).kind for name, path in files.items()} == dict.fromkeys(files, "ok")


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("model-00002-of-00002.safetensors", "model-00002-of-00002.safetensors is missing"),
        ("config.json", "there is no config.json"),
        ("tokenizer.json", "there is no tokenizer"),
    ],
)
def test_something_is_missing(lost: str, words: str, tmp_path: Path) -> None:
    files = folder(tmp_path)
    del files[lost]
    found = structure.check_set(files, "vllm")
    assert found.kind == "bad"
    assert words in found.words


def test_the_index_names_more_than_is_there(tmp_path: Path) -> None:
    files = folder(tmp_path)
    index = files["model.safetensors.index.json"]
    index.write_text(json.dumps({"weight_map": {"t0": "a.safetensors", "t1": "b.safetensors"}}))
    assert "a.safetensors, b.safetensors are missing" in structure.check_set(files, None).words
    index.write_text(json.dumps({"weight_map": {"t0": "model-00002-of-00002.safetensors"}}))
    assert "holds 't0', which it does not" in structure.check_set(files, None).words
    index.write_text("{}")
    assert structure.check_set(files, None).kind == "bad"


def test_an_index_in_a_folder_below(tmp_path: Path) -> None:
    files = {f"sub/{name}": path for name, path in folder(tmp_path).items()}
    assert structure.check_set(files, None) == Structure("ok")


def test_what_engines_need(tmp_path: Path) -> None:
    files = folder(tmp_path)
    assert "none of its files is a .gguf" in structure.check_set(files, "llama.cpp").words
    weights = {name: path for name, path in files.items() if not name.endswith(".safetensors")}
    del weights["model.safetensors.index.json"]
    assert "there are no weights" in structure.check_set(weights, "vllm").words
    assert structure.check_set({"m.gguf": small().write(tmp_path / "m.gguf")}, "vllm") == Structure("ok")
    assert structure.check_set({}, None).kind == "bad"


def test_the_worst_is_told() -> None:
    ok, unknown, bad = Structure("ok"), Structure("unknown", "is new"), Structure("bad", "is cut")
    assert structure.worst({"a": ok, "b": unknown, "c": bad, "d": bad}) == Structure("bad", "c is cut; d is cut")
    assert structure.worst({"a": ok, "b": unknown}) == Structure("unknown", "b is new")
    assert structure.worst({"a": ok}) == ok
