"""Reads headers and indexes of safetensors, bounded, and tells from them whether a file is whole.

Written after the reference implementation (safetensors/src/tensor.rs): the header is JSON behind its length, and the
tensors fill the rest of the file without holes, to the byte.

As for GGUF, nothing in the file is believed, and only `FormatError` and `OSError` leave this module.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from modelsupd.weights.base import FormatError, Structure
from modelsupd.weights.untrusted import bytes_at, opened, parsed, quoted, whole

#: huggingface_hub's limit; the reference takes four times as much. The largest known have some 10 MB.
MAX_HEADER_BYTES = 25_000_000
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_DIMENSIONS = 32

#: dtype → bits of an element.
DTYPES: dict[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
    "C64": 64,
}

_LENGTH = struct.Struct("<Q")
_SHARD = re.compile(r"(?s)(.*)-([0-9]{5})-of-([0-9]{5})\.safetensors\Z")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; it lies from `begin` to `end`, counted from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Return how many bytes it takes."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data; tensors in the order in which they lie. `file_bytes` is the file's size."""

    tensors: tuple[Tensor, ...]
    metadata: dict[str, str]
    data_offset: int
    file_bytes: int


@dataclass(frozen=True, slots=True)
class Index:
    """Which file holds which tensor of a model that is split; names are relative to the index's folder."""

    files: tuple[str, ...]
    tensors: Mapping[str, str]
    total_bytes: int | None


def read(path: Path) -> Header:
    """Return a file's header, in bounded time and memory. Raises FormatError and OSError."""
    with opened(path) as (descriptor, size):
        text = _header_text(descriptor, size)
    found = _object(text)
    metadata = found.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("has a header whose __metadata__ is not made of texts")
    tensors = sorted((_tensor(name, entry) for name, entry in found.items()), key=lambda t: (t.begin, t.end))
    return Header(tuple(tensors), metadata, _LENGTH.size + len(text), size)


def check_file(path: Path) -> Structure:
    """Return whether a file is whole by its own header. OSError passes."""
    try:
        header = read(path)
    except FormatError as error:
        return Structure("unknown" if error.unknown else "bad", str(error))
    return check(header)


def check(header: Header) -> Structure:
    """Return whether the tensors have the sizes of their shapes, and fill the file to its last byte."""
    at = 0
    for tensor in header.tensors:
        if tensor.begin != at or tensor.end < tensor.begin:
            return Structure(
                "bad", f"has tensor {quoted(tensor.name)} from {tensor.begin} to {tensor.end} where {at} should begin"
            )
        at = tensor.end
        bits = DTYPES.get(tensor.dtype)
        if bits is not None and tensor.elements * bits != tensor.size_bytes * 8:
            return Structure(
                "bad",
                f"has tensor {quoted(tensor.name)} with {tensor.size_bytes} bytes, which is not what the shape"
                f" {list(tensor.shape)} of {tensor.dtype} takes",
            )
    should = header.data_offset + at
    if should != header.file_bytes:
        what = "is cut off" if header.file_bytes < should else "has bytes behind its last tensor"
        return Structure("bad", f"{what}: the file has {header.file_bytes} bytes, its header says {should}")
    unknown = sorted({tensor.dtype for tensor in header.tensors if tensor.dtype not in DTYPES})
    if unknown:
        return Structure("unknown", f"holds tensors of type {', '.join(map(quoted, unknown))}, whose size is not known")
    return Structure("ok")


def index(path: Path) -> Index:
    """Return what a `model.safetensors.index.json` says. Raises FormatError and OSError.

    `total_size` is what it says and nothing more: it is sometimes wrong.
    """
    found = _object(whole(path, MAX_INDEX_BYTES))
    tensors = found.get("weight_map")
    if not isinstance(tensors, dict) or not tensors:
        raise FormatError("has no weight_map")
    for name in set(map(_plain, tensors.values())):
        if name is None:
            raise FormatError("has a weight_map that names something other than files beside it")
    metadata = found.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    # Written as a float by some tools.
    total_bytes = int(total) if isinstance(total, int | float) and math.isfinite(total) else None
    return Index(tuple(sorted(set(tensors.values()))), tensors, total_bytes)


def shard_names(name: str) -> tuple[str, ...]:
    """Return the names of all files of a split model, given that of one; the name itself where it is not split."""
    found = _SHARD.match(name)
    if not found or not 1 <= int(found[2]) <= int(found[3]):
        return (name,)
    return tuple(f"{found[1]}-{number:05d}-of-{found[3]}.safetensors" for number in range(1, int(found[3]) + 1))


def _plain(name: object) -> str | None:
    """Return the name of a file in or below the folder; None for anything else."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return None
    try:
        name.encode("utf-8")  # JSON can spell half of a pair of surrogates, which no file system takes
    except UnicodeEncodeError:
        return None
    path = PurePosixPath(name)
    return None if path.is_absolute() or ".." in path.parts or not path.parts else name


def _header_text(descriptor: int, size: int) -> bytes:
    prefix = bytes_at(descriptor, 0, min(size, _LENGTH.size))
    if len(prefix) < _LENGTH.size:
        raise FormatError("is empty" if not prefix else f"is cut off: it has {len(prefix)} bytes, not even its length")
    length: int = _LENGTH.unpack(prefix)[0]
    if length > size - _LENGTH.size:
        raise FormatError(f"is cut off or damaged: it claims a header of {length} bytes and has {size} bytes")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"has a header of {length} bytes, of which at most {MAX_HEADER_BYTES} are read", unknown=True)
    text = bytes_at(descriptor, _LENGTH.size, length)
    if text[:1] != b"{":
        raise FormatError(f"has a header that begins with {text[:1]!r} instead of {b'{'!r}")
    return text


def _object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that the text is; each name in it may stand once."""
    found = parsed(text, _once)
    if not isinstance(found, dict):
        raise FormatError("has JSON that is no object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _tensor(name: str, entry: object) -> Tensor:
    what = f"has a header that is wrong about tensor {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(what)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _numbers(shape) or not _numbers(offsets) or len(offsets) != 2:  # noqa: PLR2004 - from, to
        raise FormatError(what)
    if len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{what}: it has {len(shape)} dimensions")
    return Tensor(name, dtype, tuple(shape), offsets[0], offsets[1])


def _numbers(found: object) -> bool:
    """Return whether it is a list of numbers as they fit into 64 bits."""
    return isinstance(found, list) and all(type(number) is int and 0 <= number < 2**64 for number in found)
