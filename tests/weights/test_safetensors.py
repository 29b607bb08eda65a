"""safetensors: the header, exact extents, the index."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from format_files import safetensors as write
from format_files import safetensors_raw
from modelsupd.weights import safetensors
from modelsupd.weights.base import FormatError
from modelsupd.weights.safetensors import MAX_HEADER_BYTES

TENSORS = {"b": ("BF16", [4, 8], 64), "a": ("F32", [2, 2], 16), "e": ("F32", [0], 0), "s": ("I64", [], 8)}


def test_a_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", TENSORS, {"format": "pt"})
    header = safetensors.read(path)
    assert header.metadata == {"format": "pt"}
    assert {t.name: (t.dtype, list(t.shape), t.size_bytes) for t in header.tensors} == TENSORS
    assert safetensors.check(header).kind == "ok"
    assert sum(t.elements for t in header.tensors) == 32 + 4 + 0 + 1


def test_types_smaller_than_a_byte(tmp_path: Path) -> None:
    assert safetensors.check_file(write(tmp_path / "a", {"q": ("F4", [8], 4), "r": ("F6_E3M2", [4], 3)})).kind == "ok"
    assert safetensors.check_file(write(tmp_path / "b", {"q": ("F4", [7], 4)})).kind == "bad"


def test_padding_of_the_header_is_allowed(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}).encode() + b"     "
    assert safetensors.check_file(safetensors_raw(tmp_path / "m", header, b"abc")).kind == "ok"


def test_cut_at_any_byte_it_is_not_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", TENSORS, {"format": "pt"})
    for size in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        assert safetensors.check_file(path).kind == "bad", size


def test_any_bit_flipped_in_a_header_never_crashes(tmp_path: Path) -> None:
    path = write(tmp_path / "m.safetensors", TENSORS)
    whole = path.read_bytes()
    kinds = set()
    with path.open("r+b", buffering=0) as target:
        for place in range(safetensors.read(path).data_offset):
            for bit in range(8):
                os.pwrite(target.fileno(), bytes([whole[place] ^ 1 << bit]), place)
                kinds.add(safetensors.check_file(path).kind)
            os.pwrite(target.fileno(), whole[place : place + 1], place)
    assert kinds == {"ok", "bad", "unknown"}


def test_an_unknown_type_is_not_called_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"a": ("F3_NEW", [7], 5), "b": ("F32", [1], 4)})
    found = safetensors.check_file(path)
    assert (found.kind, "F3_NEW" in found.words) == ("unknown", True)
    os.truncate(path, path.stat().st_size - 1)
    assert safetensors.check_file(path).kind == "bad"


def info(begin: object, end: object, shape: object = (4,), dtype: object = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "begins with"),
        (b" {}", "begins with"),
        (b"[]", "begins with"),
        (b"{", "cannot be read"),
        (b'{"a": 1}', "wrong about tensor 'a'"),
        (b"{} {}", "cannot be read"),
        (b'{"\xff": 1}', "cannot be read"),
        (b'{"a":' * 100_000, "too deeply"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read"),
        (json.dumps({"a": info(0, 4)}).encode()[:-1] + b', "a": 1}', "stands twice"),
        (json.dumps({"a": info(0, 4) | {"more": 1}}).encode(), "wrong about"),
        (json.dumps({"a": info(0, 4, [-4])}).encode(), "wrong about"),
        (json.dumps({"a": info(0, 4, [True])}).encode(), "wrong about"),
        (json.dumps({"a": info(0, 2**64)}).encode(), "wrong about"),
        (json.dumps({"a": info(0, 4, [1] * 40)}).encode(), "40 dimensions"),
        (json.dumps({"a": info(0, 4, dtype=8)}).encode(), "wrong about"),
        (json.dumps({"a": info(4, 0)}).encode(), "from 4 to 0"),
        (json.dumps({"a": info(1, 5)}).encode(), "where 0 should begin"),
        (json.dumps({"a": info(0, 4), "b": info(2, 6)}).encode(), "where 4 should begin"),
        (json.dumps({"a": info(0, 5)}).encode(), "with 5 bytes"),
        (json.dumps({"a": info(0, 4)}).encode(), "behind its last tensor"),
        (json.dumps({"__metadata__": {"a": 1}}).encode(), "not made of texts"),
    ],
)
def test_hostile_headers_are_refused_with_a_reason(header: bytes, words: str, tmp_path: Path) -> None:
    found = safetensors.check_file(safetensors_raw(tmp_path / "m", header, bytes(9)))
    assert found.kind == "bad"
    assert words in found.words


def test_lengths_beyond_the_file_or_the_limit(tmp_path: Path) -> None:
    path = safetensors_raw(tmp_path / "m", b"{}", length=2**63)
    assert safetensors.check_file(path).kind == "bad"
    path = safetensors_raw(tmp_path / "m", b"{}", length=MAX_HEADER_BYTES + 1)
    os.truncate(path, 2**40)
    assert safetensors.check_file(path).kind == "unknown"
    path = safetensors_raw(tmp_path / "m", b"{" + b"[],".ljust(3) * 2_000_000)
    assert safetensors.check_file(path).kind == "unknown"


def test_an_index(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1e9}, "weight_map": {"x": "b", "y": "a", "z": "b"}}))
    found = safetensors.index(path)
    assert (found.files, found.total_bytes, found.tensors["y"]) == (("a", "b"), 1_000_000_000, "a")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b", "\ud800", 3, ["a"], None])
def test_an_index_names_nothing_outside_its_folder(name: object, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"x": name, "y": "fine"}}))
    with pytest.raises(FormatError, match="something other than files beside it"):
        safetensors.index(path)


@pytest.mark.parametrize("said", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "", '{"weight_map'])
def test_an_index_that_is_none(said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(said)
    with pytest.raises(FormatError):
        safetensors.index(path)
