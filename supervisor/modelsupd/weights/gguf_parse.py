"""Reads the header of a GGUF file, streaming and bounded; written after ggml's own reader, ggml/src/gguf.cpp.

Two rules:

1. Nothing in the file is believed: every count and length is held against what is left of the file, and against limits
   far above what real files have. Only `FormatError` and `OSError` leave this module.
2. What is long is passed over: of a vocabulary only its number of entries is kept, so that memory stays small.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from modelsupd.weights import ggml
from modelsupd.weights.base import FormatError
from modelsupd.weights.untrusted import bytes_at, opened, quoted

MAGIC = b"GGUF"
VERSIONS = (2, 3)

#: Limits, each some fifty times what the largest known models have.
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_METADATA = 16_384
MAX_TENSORS = 65_536
MAX_STRINGS = 8_000_000  # in all arrays together

#: Above these, a value is passed over and only counted. Chat templates have some 10 KB, arrays one element a layer.
KEPT_STRING_BYTES = 64 * 1024
KEPT_ELEMENTS = 1024
KEPT_BYTES = 2 * 1024 * 1024  # of all values together

MAX_KEY_BYTES = 65_535  # the format's own
MAX_NAME_BYTES = 63  # GGML_MAX_NAME counts the zero at the end
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
DEFAULT_ALIGNMENT = 32
INT64_MAX = 2**63 - 1

_WINDOW_BYTES = 1024 * 1024

#: gguf_type → how a value of it is laid out; strings and arrays are apart.
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_U32 = _SCALARS[4]
_I32 = _SCALARS[5]
_U64 = _SCALARS[10]
_I64 = _SCALARS[11]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that was passed over: how many elements it has, and its bytes in the file."""

    count: int
    size_bytes: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | Skipped


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor; `shape[0]` varies fastest, `offset` counts from the start of the data.

    `size_bytes` is None where the type is not known.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    size_bytes: int | None

    @property
    def elements(self) -> int:
        """Return how many numbers it holds."""
        return _product(self.shape)

    @property
    def type_name(self) -> str:
        """Return the type's name in ggml, or its number."""
        return ggml.type_name(self.type)


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before the data. `file_bytes` is the file's size when it was read."""

    version: int
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    alignment: int
    data_offset: int
    file_bytes: int

    @property
    def extent_bytes(self) -> int:
        """Return how long the file must be at least; padding behind the last tensor may be missing."""
        return self.data_offset + max((t.offset + (t.size_bytes or 0) for t in self.tensors), default=0)

    def integer(self, key: str) -> int | None:
        """Return a whole number of the metadata, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        """Return a text of the metadata, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None


def read(path: Path) -> Header:
    """Return a file's header; in bounded time and memory, whatever the file holds.

    Raises FormatError where it is none that llama.cpp would read, and OSError.
    """
    with opened(path) as (descriptor, size):
        return _header(_Reader(descriptor, size))


def padded(size: int, alignment: int) -> int:
    """Return the next multiple of an alignment."""
    return -(-size // alignment) * alignment


def _product(numbers: tuple[int, ...]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product


class _Reader:
    """Reads forward through a window. `at` is the place in the file of the next byte."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.size = size
        self.kept_bytes = 0
        self.strings = 0
        self._descriptor = descriptor
        self._buffer = b""
        self._next = 0  # in the buffer; may lie behind its end after a skip
        self._base = 0  # of the buffer, in the file

    @property
    def at(self) -> int:
        return self._base + self._next

    def left(self) -> int:
        """Return how many bytes a header may still take."""
        return min(self.size, MAX_HEADER_BYTES) - self.at

    def want(self, count: int, what: str) -> None:
        """Raise unless so many bytes are left."""
        if count <= self.left():
            return
        limit = (
            "the file has"
            if count > self.size - self.at
            else f"the {MAX_HEADER_BYTES} bytes that a header may take in all"
        )
        raise FormatError(f"is cut off or damaged: {what}, at byte {self.at}, needs {count} bytes, more than {limit}")

    def take(self, count: int, what: str) -> bytes:
        """Return the next bytes."""
        self.want(count, what)
        self._fill(count)
        data = self._buffer[self._next : self._next + count]
        self._next += count
        return data

    def number(self, layout: struct.Struct, what: str) -> int:
        """Return the next whole number."""
        return int(layout.unpack(self.take(layout.size, what))[0])

    def skip(self, count: int, what: str) -> None:
        """Pass over bytes."""
        self.want(count, what)
        self._next += count

    def skip_strings(self, count: int, what: str) -> None:
        """Pass over strings, each behind its length."""
        self.want(count * _U64.size, what)
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise FormatError(f"has arrays of more than {MAX_STRINGS} texts, which are not read", unknown=True)
        length_at = _U64.unpack_from
        buffer, at, end = self._buffer, self._next, len(self._buffer) - _U64.size
        for _ in range(count):
            if at > end:
                self._next = at
                self.want(_U64.size, what)
                self._fill(_U64.size)
                buffer, at, end = self._buffer, self._next, len(self._buffer) - _U64.size
            at += _U64.size + length_at(buffer, at)[0]
        self._next = at
        self.want(0, what)

    def _fill(self, count: int) -> None:
        """Make the buffer hold the next `count` bytes, which are known to be in the file."""
        if self._next + count <= len(self._buffer):
            return
        self._base, self._next = self.at, 0
        wanted = max(count, min(_WINDOW_BYTES, self.size - self._base))
        self._buffer = bytes_at(self._descriptor, self._base, wanted)


def _header(reader: _Reader) -> Header:
    magic = reader.take(len(MAGIC), "the magic") if reader.size else b""
    if magic != MAGIC:
        raise FormatError(f"begins with {magic!r} instead of {MAGIC!r}" if magic else "is empty")
    version = reader.number(_U32, "the version")
    if version & 0xFFFF == 0:
        raise FormatError(f"is of version {version}: damaged, or written for a machine of the other byte order")
    if version not in VERSIONS:
        raise FormatError(f"is of GGUF version {version}, known are 2 and 3", unknown=version > max(VERSIONS))
    tensors = _count(reader, "tensors", MAX_TENSORS, 24)
    metadata = _metadata(reader, _count(reader, "metadata entries", MAX_METADATA, 13))
    alignment = _alignment(metadata.pop("general.alignment", None))
    infos = _tensors(reader, tensors)
    data_offset = padded(reader.at, alignment) if infos else reader.at
    kept = {key: value for key, (_, value) in metadata.items()}
    return Header(version, kept, infos, alignment, data_offset, reader.size)


def _count(reader: _Reader, what: str, limit: int, least_bytes: int) -> int:
    count = reader.number(_I64, f"the number of {what}")
    if count < 0 or count * least_bytes > reader.size:
        raise FormatError(f"is cut off or damaged: it claims {count} {what} in {reader.size} bytes")
    if count > limit:
        raise FormatError(f"has {count} {what}, of which at most {limit} are read", unknown=True)
    return count


def _text(reader: _Reader, limit: int, what: str) -> bytes:
    length = reader.number(_U64, what)
    if length > limit:
        raise FormatError(f"has {what} of {length} bytes at byte {reader.at}, where at most {limit} are allowed")
    return reader.take(length, what)


def _metadata(reader: _Reader, count: int) -> dict[str, tuple[int, Value]]:
    """Return key → gguf_type and value."""
    found: dict[str, tuple[int, Value]] = {}
    seen: set[bytes] = set()
    for _ in range(count):
        key = _text(reader, MAX_KEY_BYTES, "a key")
        name = key.decode("utf-8", "replace")
        reader.kept_bytes += len(key)
        if not key or key in seen:
            raise FormatError(f"has the key {quoted(name)} twice" if key else "has an empty key")
        if reader.kept_bytes > KEPT_BYTES:
            raise FormatError(f"has more than {KEPT_BYTES} bytes of keys and values", unknown=True)
        seen.add(key)
        kind = reader.number(_I32, f"the type of {quoted(name)}")
        found[name] = (kind, _value(reader, kind, name))
    return found


def _value(reader: _Reader, kind: int, key: str) -> Value:
    what = f"the value of {quoted(key)}"
    if kind in _SCALARS:
        number: Scalar = _SCALARS[kind].unpack(reader.take(_SCALARS[kind].size, what))[0]
        return number
    if kind == _STRING:
        length = reader.number(_U64, what)
        if length > KEPT_STRING_BYTES or reader.kept_bytes + length > KEPT_BYTES:
            reader.skip(length, what)
            return Skipped(1, length)
        reader.kept_bytes += length
        return reader.take(length, what).decode("utf-8", "replace")
    if kind == _ARRAY:
        return _array(reader, what)
    raise FormatError(f"has {what} of the unknown type {kind}")


def _array(reader: _Reader, what: str) -> Value:
    kind = reader.number(_I32, what)
    count = reader.number(_U64, what)
    began = reader.at
    if kind == _STRING:
        reader.skip_strings(count, what)
        return Skipped(count, reader.at - began)
    if kind not in _SCALARS:  # arrays of arrays among them: ggml reads none
        raise FormatError(f"has {what} as an array of the unknown type {kind}")
    size = count * _SCALARS[kind].size
    if count > KEPT_ELEMENTS or reader.kept_bytes + size > KEPT_BYTES:
        reader.skip(size, what)
        return Skipped(count, size)
    reader.kept_bytes += size
    data = reader.take(size, what)
    return tuple(value for (value,) in _SCALARS[kind].iter_unpack(data))


def _alignment(found: tuple[int, Value] | None) -> int:
    if found is None:
        return DEFAULT_ALIGNMENT
    kind, value = found
    if kind != _UINT32 or not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise FormatError(f"has general.alignment = {value!r}, which is no power of two in 32 bits")
    return value


def _tensors(reader: _Reader, count: int) -> tuple[Tensor, ...]:
    found = []
    seen: set[bytes] = set()
    for _ in range(count):
        key = _text(reader, MAX_NAME_BYTES, "a tensor's name")
        name = key.decode("utf-8", "replace")
        if key in seen:
            raise FormatError(f"has the tensor {quoted(name)} twice")
        seen.add(key)
        what = f"tensor {quoted(name)}"
        dimensions = reader.number(_U32, what)
        if dimensions > MAX_DIMENSIONS:
            raise FormatError(f"has {what} with {dimensions} dimensions, where at most {MAX_DIMENSIONS} are allowed")
        shape = struct.unpack(f"<{dimensions}q", reader.take(8 * dimensions, what))
        kind = reader.number(_I32, what)
        offset = reader.number(_U64, what)
        found.append(Tensor(name, shape, kind, offset, _size(shape, kind, what)))
    return tuple(found)


def _size(shape: tuple[int, ...], kind: int, what: str) -> int | None:
    """Return a tensor's bytes, None where its type is not known."""
    elements = _product(shape)
    if min(shape, default=0) < 0 or elements > INT64_MAX or kind < 0:
        raise FormatError(f"has {what} with the shape {shape} and the type {kind}, which cannot be")
    if kind not in ggml.TYPES:
        return None
    name, block, size = ggml.TYPES[kind]
    row = shape[0] if shape else 1
    if row % block:
        raise FormatError(f"has {what} with rows of {row} elements, which {name} keeps in blocks of {block}")
    return elements // block * size
