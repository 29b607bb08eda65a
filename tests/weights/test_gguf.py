"""GGUF headers: read as gguf's own reader does, whole files told from others, hostile ones refused."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import gguf as peer
import numpy as np
import pytest

import tiny_gguf
from format_files import ARRAY, STRING, Gguf, array, entry, small, tensor, text, u16, u32
from modelsupd.weights import ggml, gguf
from modelsupd.weights.base import FormatError
from modelsupd.weights.gguf_parse import KEPT_BYTES, MAX_HEADER_BYTES, MAX_STRINGS


def test_the_tiny_model_reads_as_by_the_peer(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    header, other = gguf.read(path), peer.GGUFReader(path)
    assert gguf.check(header).kind == "ok"
    for name in (
        "general.architecture", "llama.block_count", "llama.attention.head_count_kv", "tokenizer.chat_template",
        "llama.attention.layer_norm_rms_epsilon",
    ):  # fmt: skip
        assert header.metadata[name] == other.fields[name].contents()
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, gguf.Skipped)
    assert tokens.count == len(other.fields["tokenizer.ggml.tokens"].contents())
    ours = [(t.name, list(t.shape), t.type, header.data_offset + t.offset, t.size_bytes) for t in header.tensors]
    assert ours == [
        (t.name, [int(n) for n in t.shape], int(t.tensor_type), t.data_offset, t.n_bytes) for t in other.tensors
    ]
    assert header.extent_bytes <= header.file_bytes == path.stat().st_size < header.extent_bytes + 32


def test_every_type_that_the_peer_knows_has_its_size() -> None:
    theirs = {int(kind): (kind.name, *size) for kind, size in peer.GGML_QUANT_SIZES.items()}
    del theirs[9]  # Q8_1: gguf 0.19 counts two floats, ggml keeps two halves
    assert theirs.items() <= ggml.TYPES.items()


def test_alignment_is_that_of_the_file(tmp_path: Path) -> None:
    writer = peer.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(128)
    writer.add_tensor("a", np.zeros((3, 5), dtype=np.float32))
    writer.add_tensor("b", np.zeros((7,), dtype=np.float16))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    header = gguf.read(tmp_path / "a.gguf")
    assert header.alignment == 128
    assert header.data_offset % 128 == 0
    assert [t.offset for t in header.tensors] == [0, 128]
    assert gguf.check(header).kind == "ok"


def test_cut_at_any_byte_it_is_not_whole(tmp_path: Path) -> None:
    file = small(u32("llama.block_count", 2), entry(b"tags", ARRAY, array(STRING, 2, text(b"x") + text(b"yz"))))
    path = file.write(tmp_path / "f.gguf")
    assert gguf.check_file(path).kind == "ok"
    for size in range(path.stat().st_size - 1, -1, -1):
        os.truncate(path, size)
        assert gguf.check_file(path).kind == "bad", size


def test_a_real_file_cut_anywhere_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    header = gguf.read(path)
    places = {size for t in header.tensors for size in range(header.data_offset + t.offset - 3, header.data_offset + 3)}
    places |= set(range(header.extent_bytes - 100, header.extent_bytes))
    places |= set(range(0, header.data_offset, 5)) | set(range(header.data_offset, header.extent_bytes, 9973))
    for size in sorted(places, reverse=True):
        os.truncate(path, size)
        assert gguf.check_file(path).kind == "bad", size


def test_padding_behind_the_last_tensor_may_be_missing(tmp_path: Path) -> None:
    file = replace(small(), tensors=[tensor(b"a", (3,), 0, 0)], data=bytes(12))
    assert gguf.check_file(file.write(tmp_path / "a.gguf")).kind == "ok"
    assert gguf.check_file(replace(file, extra=bytes(1000)).write(tmp_path / "b.gguf")).kind == "ok"
    assert gguf.check_file(replace(file, data=bytes(11)).write(tmp_path / "c.gguf")).kind == "bad"


def test_any_bit_flipped_in_a_header_never_crashes(tmp_path: Path) -> None:
    file = small(
        u32("general.alignment", 32),
        entry(b"tokens", ARRAY, array(STRING, 3, text(b"x") * 3)),
        entry(b"scores", ARRAY, array(6, 3, struct.pack("<3f", 1, 2, 3))),
    )
    path = file.write(tmp_path / "f.gguf")
    whole = path.read_bytes()
    kinds = set()
    with path.open("r+b", buffering=0) as target:
        for place in range(gguf.read(path).data_offset):
            for bit in range(8):
                os.pwrite(target.fileno(), bytes([whole[place] ^ 1 << bit]), place)
                kinds.add(gguf.check_file(path).kind)
            os.pwrite(target.fileno(), whole[place : place + 1], place)
    assert kinds == {"ok", "bad", "unknown"}  # a name, or a number that only an engine minds, may be anything


def test_an_unknown_type_is_not_called_damaged(tmp_path: Path) -> None:
    file = replace(small(), tensors=[tensor(b"a", (8, 4), 77, 0), tensor(b"b", (16, 2), 1, 96)])
    found = gguf.check_file(file.write(tmp_path / "f.gguf"))
    assert (found.kind, "type 77" in found.words) == ("unknown", True)
    # What can be known is still looked at: the second tensor must lie inside the file.
    assert gguf.check_file(replace(file, data=bytes(100)).write(tmp_path / "g.gguf")).kind == "bad"
    assert gguf.read(tmp_path / "f.gguf").tensors[0].size_bytes is None


ONE = tensor(b"a", (8, 4), 0, 0)
HOSTILE: dict[str, tuple[Gguf, str]] = {
    "magic": (replace(small(), magic=b"GGML"), "begins with"),
    "version 1": (replace(small(), version=1), "version 1"),
    "other byte order": (replace(small(), version=3 << 24), "byte order"),
    "many tensors": (replace(small(), n_tensors=2**62), "claims"),
    "negative tensors": (replace(small(), n_tensors=-1), "claims -1"),
    "many entries": (replace(small(), n_metadata=2**40), "claims"),
    "one entry more": (replace(small(), n_metadata=3), ""),
    "empty key": (small(entry(b"", 4, bytes(4))), "empty key"),
    "key twice": (small(u32("x", 1), u32("x", 1)), "'x' twice"),
    "long key": (small(text(b"", 2**63)), "a key of"),
    "long text": (small(entry(b"k", STRING, text(b"", 2**64 - 1))), " needs "),
    "long array": (small(entry(b"k", ARRAY, array(0, 2**64 - 1, b""))), " needs "),
    "many texts": (small(entry(b"k", ARRAY, array(STRING, 2**61, b""))), " needs "),
    "long text in an array": (small(entry(b"k", ARRAY, array(STRING, 1, text(b"", 2**64 - 1)))), " needs "),
    "array of arrays": (small(entry(b"k", ARRAY, array(ARRAY, 1, array(0, 1, b"x")))), "unknown type 9"),
    "unknown type": (small(entry(b"k", 13, b"")), "unknown type 13"),
    "alignment 0": (small(u32("general.alignment", 0)), "power of two"),
    "alignment 48": (small(u32("general.alignment", 48)), "power of two"),
    "alignment of 16 bits": (small(u16("general.alignment", 32)), "power of two"),
    "huge alignment": (small(u32("general.alignment", 2**31)), "cut off"),
    "long name": (replace(small(), tensors=[tensor(b"n" * 64, (8,), 0, 0)]), "name of 64 bytes"),
    "name twice": (small(names=("a", "a")), "'a' twice"),
    "five dimensions": (replace(small(), tensors=[tensor(b"a", (1,) * 5, 0, 0)]), "5 dimensions"),
    "many dimensions": (replace(small(), tensors=[tensor(b"a", (1,), 0, 0, dimensions=2**32 - 1)]), "dimensions"),
    "negative dimension": (replace(small(), tensors=[tensor(b"a", (-8,), 0, 0)]), "cannot be"),
    "too many elements": (replace(small(), tensors=[tensor(b"a", (2**62, 4), 0, 0)]), "cannot be"),
    "negative type": (replace(small(), tensors=[tensor(b"a", (8,), -1, 0)]), "cannot be"),
    "half a block": (replace(small(), tensors=[tensor(b"a", (33,), 2, 0)]), "blocks of 32"),
    "overlap": (replace(small(), tensors=[ONE, tensor(b"b", (16, 2), 1, 96)]), "not where 'a' ends"),
    "gap": (replace(small(), tensors=[ONE, tensor(b"b", (16, 2), 1, 160)]), "not where 'a' ends"),
    "misaligned": (replace(small(), tensors=[ONE, tensor(b"b", (16, 2), 1, 130)]), "not aligned"),
    "first not at 0": (replace(small(), tensors=[tensor(b"a", (8, 4), 0, 32)]), "instead of 0"),
    "behind the end": (replace(small(), tensors=[tensor(b"a", (8, 4), 0, 2**64 - 32)]), "offset"),
    "no tensors": (small(names=()), "no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    file, words = HOSTILE[name]
    found = gguf.check_file(file.write(tmp_path / "f.gguf"))
    assert found.kind == "bad"
    assert words in found.words


@pytest.mark.parametrize(
    "file",
    [
        replace(small(), version=4),
        small(*(u32(f"k{number}", 1) for number in range(20_000))),
        replace(small(), tensors=[tensor(b"%d" % number, (0,), 0, 0) for number in range(70_000)]),
        small(*(entry(b"%d" % number + b"k" * 65_000, 0, b"x") for number in range(KEPT_BYTES // 65_000 + 1))),
    ],
    ids=["newer", "many entries", "many tensors", "long keys"],
)
def test_beyond_what_we_know_is_not_called_damaged(file: Gguf, tmp_path: Path) -> None:
    found = gguf.check_file(file.write(tmp_path / "f.gguf"))
    assert found.kind == "unknown", found.words


def test_huge_sparse_files_take_neither_time_nor_memory(tmp_path: Path) -> None:
    texts = small(entry(b"k", ARRAY, array(STRING, MAX_STRINGS + 1, b"")))
    numbers = small(entry(b"k", ARRAY, array(0, MAX_HEADER_BYTES, b"")))
    # Behind it lie two tensors whose names, of no length, are the same.
    empty_texts = Gguf(metadata=[entry(b"k", ARRAY, array(STRING, 1_000_000, b""))], n_tensors=2)
    tracemalloc.start()
    try:
        began = time.process_time()
        for file, kind in ((texts, "unknown"), (numbers, "bad"), (empty_texts, "bad")):
            path = file.write(tmp_path / "f.gguf")
            os.truncate(path, 2**42)
            assert gguf.check_file(path).kind == kind
        assert time.process_time() - began < 5
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert gguf.check_file(tmp_path / "pipe.gguf").words == "is no regular file"
    assert gguf.check_file(Path("/dev/zero")).kind == "bad"
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(FormatError, match="is empty"):
        gguf.read(tmp_path / "empty.gguf")
    with pytest.raises(OSError, match="No such file"):
        gguf.check_file(tmp_path / "none.gguf")


def test_control_characters_of_a_file_reach_nobody(tmp_path: Path) -> None:
    file = replace(small(), tensors=[tensor("\x1b[2J\n\u202e".encode(), (-8,), 0, 0)])
    words = gguf.check_file(file.write(tmp_path / "f.gguf")).words
    assert words.isascii()
    assert words.isprintable()


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("m-00001-of-00002.gguf", ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")),
        ("a/m-00002-of-00002.gguf", ("a/m-00001-of-00002.gguf", "a/m-00002-of-00002.gguf")),
        ("m.gguf", ("m.gguf",)),
        ("m-00000-of-00002.gguf", ("m-00000-of-00002.gguf",)),
        ("m-00003-of-00002.gguf", ("m-00003-of-00002.gguf",)),
        ("m-1-of-2.gguf", ("m-1-of-2.gguf",)),
        ("m-00001-of-00002.gguf\n", ("m-00001-of-00002.gguf\n",)),
    ],
)
def test_names_of_shards(name: str, names: tuple[str, ...]) -> None:
    assert gguf.shard_names(name) == names


def test_the_peer_splits_and_we_read(tmp_path: Path) -> None:
    writer = peer.GGUFWriter(tmp_path / "s.gguf", "llama", split_max_tensors=2)
    for name in "abcde":
        writer.add_tensor(name, np.zeros((4, 8), dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    names = gguf.shard_names("s-00002-of-00003.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == list(names)
    headers = [gguf.read(tmp_path / name) for name in names]
    assert [header.integer("split.no") for header in headers] == [0, 1, 2]
    assert {gguf.check(header).kind for header in headers} == {"ok"}
