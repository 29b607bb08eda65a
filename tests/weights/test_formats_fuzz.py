"""Whatever a header holds, the readers answer or raise FormatError, soon."""

from __future__ import annotations

import json
import string
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gguf as peer
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from format_files import ARRAY, SCALARS, STRING, Gguf, array, entry, safetensors_raw, tensor, text
from modelsupd.weights import claim, gguf, safetensors
from modelsupd.weights.base import FormatError

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

#: No deadline of wall-clock time, which a busy machine spoils; the processor's time is looked at instead.
bounded = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
SECONDS = 1.0

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 40), st.sampled_from([0, 1, 2**31, 2**32, 2**62, 2**63 - 1])
)
UNSIGNED = NUMBERS.map(lambda number: number % 2**64)
KEYS = st.one_of(
    st.sampled_from(
        [
            b"general.architecture", b"general.alignment", b"general.file_type", b"llama.block_count", b"split.count",
            b"llama.attention.head_count", b"llama.attention.head_count_kv", b"llama.embedding_length",
        ]
    ),
    st.binary(max_size=12),
)  # fmt: skip
TEXTS = st.builds(text, st.one_of(st.just(b"llama"), st.binary(max_size=20)), st.none() | UNSIGNED)
VALUES = st.one_of(
    st.tuples(st.sampled_from([*SCALARS, STRING, ARRAY, 13, -1]), st.binary(max_size=24)),
    st.tuples(st.just(STRING), TEXTS),
    st.tuples(st.just(ARRAY), st.builds(array, st.integers(-1, 14), UNSIGNED, st.binary(max_size=40))),
    st.tuples(st.just(4), st.binary(min_size=4, max_size=4)),
)
ENTRIES = st.builds(lambda key, value: entry(key, *value), KEYS, VALUES)
TENSORS = st.builds(
    tensor,
    st.one_of(
        st.sampled_from([b"blk.0.attn_q.weight", b"output.weight", b"blk.99999999999.x"]), st.binary(max_size=70)
    ),
    st.lists(NUMBERS, max_size=5),
    st.integers(-2, 45),
    UNSIGNED,
    st.none() | st.integers(0, 2**32 - 1),
)
FILES = st.builds(
    Gguf,
    version=st.sampled_from([2, 3, 3, 3, 0, 4]),
    metadata=st.lists(ENTRIES, max_size=6),
    tensors=st.lists(TENSORS, max_size=4),
    n_tensors=st.none() | NUMBERS,
    n_metadata=st.none() | NUMBERS,
    data=st.binary(max_size=200),
)


def soon(content: bytes, read: Callable[[Path], object]) -> None:
    """Let something read a file of this content, which it may refuse, within the time."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        began = time.process_time()
        words = ""
        try:
            read(Path(file.name))
        except FormatError as error:
            words = str(error)
        assert words.isprintable()
        assert time.process_time() - began < SECONDS


def look_at_gguf(path: Path) -> None:
    found = gguf.check_file(path)
    assert found.words.isprintable()
    header = gguf.read(path)
    for shown in (claim.claim(claim.facts([header]), claim.Use(context=4096, gpu_layers=n)) for n in (None, 0, 3)):
        assert shown.words.isprintable()


def look_at_safetensors(path: Path) -> None:
    found = safetensors.check_file(path)
    assert found.words.isprintable()
    claim.facts_of_folder([safetensors.read(path)], {})


@bounded
@given(st.binary(max_size=300).map(lambda data: b"GGUF\x03\0\0\0" + data))
def test_any_bytes_as_gguf(content: bytes) -> None:
    soon(content, look_at_gguf)


@bounded
@given(FILES.map(Gguf.encode), st.integers(0, 400))
def test_any_gguf_header_cut_anywhere(content: bytes, cut: int) -> None:
    soon(content, look_at_gguf)
    soon(content[: len(content) - cut], look_at_gguf)


@bounded
@given(
    st.dictionaries(
        st.text(string.ascii_lowercase + ".é", min_size=1, max_size=20).filter(lambda key: key != "general.alignment"),
        st.one_of(
            st.integers(-(2**31), 2**31 - 1),
            st.booleans(),
            st.text(min_size=1, max_size=40),
            st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=20),
        ),
        max_size=8,
    ),
    st.dictionaries(
        st.text(string.ascii_letters + ".", min_size=1, max_size=63),
        st.tuples(
            st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([np.float16, np.float32, np.int8])
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_what_the_peer_writes_we_read(
    metadata: dict[str, int | bool | str | list[int]], tensors: dict[str, tuple[list[int], type]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.gguf"
        writer = peer.GGUFWriter(path, "llama")
        metadata.pop("general.architecture", None)
        for key, value in metadata.items():
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_int32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        for name, (shape, kind) in tensors.items():
            writer.add_tensor(name, np.zeros(shape, dtype=kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        header = gguf.read(path)
        assert gguf.check(header).kind == "ok"
        expected = {key: tuple(value) if isinstance(value, list) else value for key, value in metadata.items()}
        assert header.metadata == {"general.architecture": "llama", **expected}
        shapes = {name: tuple(reversed(shape)) for name, (shape, _) in tensors.items()}
        assert {t.name: t.shape for t in header.tensors} == shapes


JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
OFFSETS = st.lists(st.integers(-1, 64) | NUMBERS, min_size=2, max_size=2)
INFOS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "F4", "X9", "\x1b["]) | JSON,
        "shape": st.lists(st.integers(0, 9), max_size=3) | JSON,
        "data_offsets": OFFSETS | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), INFOS | JSON, max_size=5)


@bounded
@given(
    st.one_of(st.binary(max_size=80), HEADERS.map(lambda header: json.dumps(header).encode()), st.just(b"{" * 50_000)),
    st.binary(max_size=64),
    st.none() | UNSIGNED,
)
def test_any_safetensors_header(header: bytes, data: bytes, length: int | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = safetensors_raw(Path(folder) / "f", header, data, length).read_bytes()
    soon(content, look_at_safetensors)


@bounded
@given(st.one_of(JSON, st.fixed_dictionaries({"weight_map": JSON, "metadata": JSON})))
def test_any_index(found: object) -> None:
    soon(json.dumps(found).encode(), safetensors.index)
