"""Files of weights made by hand: GGUF and safetensors whose headers say anything, right or wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Scalar gguf_types by their struct letters.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


def text(value: bytes, length: int | None = None) -> bytes:
    """Return a string of GGUF, with any length in front of it."""
    return struct.pack("<Q", len(value) if length is None else length) + value


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    """Return an entry of the metadata."""
    return text(key) + struct.pack("<i", kind) + value


def u32(key: str, value: int) -> bytes:
    """Return an entry that is a number."""
    return entry(key.encode(), 4, struct.pack("<I", value))


def u16(key: str, value: int) -> bytes:
    """Return an entry that is a small number."""
    return entry(key.encode(), 2, struct.pack("<H", value))


def array(kind: int, count: int, values: bytes) -> bytes:
    """Return the value of an entry that is a list."""
    return struct.pack("<iQ", kind, count) + values


def tensor(name: bytes, shape: Sequence[int], kind: int, offset: int, dimensions: int | None = None) -> bytes:
    """Return what a header says of a tensor."""
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}qiQ", count, *shape, kind, offset)


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """A GGUF file in pieces; the counts are those of the pieces unless they are given."""

    magic: bytes = b"GGUF"
    version: int = 3
    metadata: Sequence[bytes] = ()
    tensors: Sequence[bytes] = ()
    n_tensors: int | None = None
    n_metadata: int | None = None
    alignment: int = 32
    data: bytes = b""
    extra: bytes = field(default=b"")

    def encode(self) -> bytes:
        """Return the file."""
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_metadata = len(self.metadata) if self.n_metadata is None else self.n_metadata
        head = self.magic + struct.pack("<Iqq", self.version, n_tensors, n_metadata)
        head += b"".join(self.metadata) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data + self.extra

    def write(self, path: Path) -> Path:
        """Write it; return the path."""
        path.write_bytes(self.encode())
        return path


def small(*metadata: bytes, names: Sequence[str] = ("a", "b", "c")) -> Gguf:
    """Return a whole file of one F32 and further F16 tensors, whose sizes leave no padding at the end."""
    tensors = [tensor(names[0].encode(), (8, 4), 0, 0)] if names else []
    tensors += [tensor(name.encode(), (16, 2), 1, 128 + 64 * number) for number, name in enumerate(names[1:])]
    data = bytes(range(64)) * (len(names) + 1) if names else b""
    architecture = entry(b"general.architecture", STRING, text(b"llama"))
    return Gguf(metadata=(architecture, *metadata), tensors=tensors, data=data)


def safetensors(
    path: Path, tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str] | None = None
) -> Path:
    """Write a whole file of tensors given by name as dtype, shape and bytes; return the path."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return safetensors_raw(path, json.dumps(header).encode(), b"\x01" * at)


def safetensors_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file with any header, behind any length; return the path."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path
