"""Tells whether a GGUF file is whole, from its header and its size; and which files make up a split model.

A header is read by `gguf_parse`. What llama.cpp would refuse is bad here, and nothing else is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from modelsupd.weights.base import FormatError, Structure
from modelsupd.weights.gguf_parse import Header, Scalar, Skipped, Tensor, Value, padded, read
from modelsupd.weights.untrusted import quoted

__all__ = [
    "FormatError",
    "Header",
    "Scalar",
    "Skipped",
    "Tensor",
    "Value",
    "check",
    "check_file",
    "read",
    "shard_names",
    "shard_number",
]

_SHARD = re.compile(r"(?s)(.*)-([0-9]{5})-of-([0-9]{5})\.gguf\Z")


def check_file(path: Path) -> Structure:
    """Return whether one file is whole by its own header; of a split model, whether this shard is. OSError passes."""
    try:
        header = read(path)
    except FormatError as error:
        return Structure("unknown" if error.unknown else "bad", str(error))
    return check(header)


def check(header: Header) -> Structure:
    """Return whether the tensors lie side by side as llama.cpp demands, all of them inside the file."""
    if not header.tensors and (header.integer("split.count") or 1) == 1:
        return Structure("bad", "holds no tensors")
    for problem in _misplaced(header):
        return Structure("bad", problem)
    unknown = sorted({tensor.type for tensor in header.tensors if tensor.size_bytes is None})
    if unknown:
        return Structure("unknown", f"holds tensors of type {', '.join(map(str, unknown))}, whose size is not known")
    return Structure("ok")


def shard_names(name: str) -> tuple[str, ...]:
    """Return the names of all files of a split model, given that of one; the name itself where it is not split."""
    found = _SHARD.match(name)
    if not found or not shard_number(name):
        return (name,)
    return tuple(f"{found[1]}-{number:05d}-of-{found[3]}.gguf" for number in range(1, int(found[3]) + 1))


def shard_number(name: str) -> tuple[int, int] | None:
    """Return which shard of how many a name stands for, counted from 1; None where it is no shard's."""
    found = _SHARD.match(name)
    if not found or not 1 <= int(found[2]) <= int(found[3]):
        return None
    return int(found[2]), int(found[3])


def _misplaced(header: Header) -> Iterator[str]:
    """Yield what is wrong with where the tensors lie, in the order of the file."""
    for before, tensor in pairwise((None, *header.tensors)):
        if tensor is None:
            continue
        name = quoted(tensor.name)
        begin = header.data_offset + tensor.offset
        end = begin + (tensor.size_bytes or 0)
        if tensor.offset % header.alignment:
            yield f"has tensor {name} at byte {begin}, which is not aligned to {header.alignment}"
        if before is None and tensor.offset:
            yield f"has its first tensor at offset {tensor.offset} instead of 0"
        if before is not None and not _adjoins(before, tensor, header.alignment):
            yield f"has tensor {name} at offset {tensor.offset}, which is not where {quoted(before.name)} ends"
        if end > header.file_bytes:
            yield (
                f"is cut off: tensor {name} ends at byte {end}, the file at {header.file_bytes};"
                f" it should have {header.extent_bytes} bytes"
            )


def _adjoins(before: Tensor, tensor: Tensor, alignment: int) -> bool:
    if before.size_bytes is None:
        return tensor.offset >= before.offset
    return tensor.offset == padded(before.offset + before.size_bytes, alignment)
