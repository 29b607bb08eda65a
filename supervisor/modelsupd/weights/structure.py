"""Tells whether files, and sets of files, are built as an engine needs them: from headers, names and sizes.

It is no proof that the bytes are right, which is what digests are for; it finds what digests cannot: that somebody put
something else there on purpose or by mistake, and that something is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from modelsupd.weights import gguf, safetensors
from modelsupd.weights.base import FormatError, Structure
from modelsupd.weights.untrusted import bytes_at, opened, parsed, quoted, whole

#: The largest tokenizer.json of known models has some 35 MB.
MAX_JSON_BYTES = 256 * 1024 * 1024
#: Most names that are missing are listed; of hundreds, the number is said.
SHOWN_NAMES = 5

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_POINTER_BYTES = 1024  # its specification's limit
_HTML = (b"<!doctype html", b"<html")

#: Weights whose formats are not looked into.
_OPAQUE = frozenset({".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz", ".nemo", ".tflite"})

_INDEX = ".safetensors.index.json"
#: Any of these sets is a tokenizer.
_TOKENIZERS = (
    {"tokenizer.json"},
    {"tokenizer.model"},
    {"spiece.model"},
    {"sentencepiece.bpe.model"},
    {"tekken.json"},
    {"vocab.json", "merges.txt"},
    {"vocab.txt"},
)
_OK = Structure("ok")


def check_file(path: Path, name: str) -> Structure:
    """Return whether one file is what its name says, by its suffix. OSError passes.

    `name` is the file's name in its source: `path` may be a blob of the cache, which has none.
    """
    try:
        with opened(path) as (descriptor, size):
            start = bytes_at(descriptor, 0, min(size, _LFS_POINTER_BYTES))
        suffix = PurePosixPath(name).suffix.lower()
        return _stand_in(start, suffix) or _by_suffix(path, suffix, empty=not start)
    except FormatError as error:
        return Structure("unknown" if error.unknown else "bad", str(error))


def check_set(files: Mapping[str, Path], engine: str | None) -> Structure:
    """Return whether files make up a model: every shard there, and what its engine needs beside the weights.

    `files` maps names inside the source to paths. `engine` is the engine's kind, None to look at completeness alone;
    of a single file nothing beside it is asked. Each file by itself is what `check_file` tells. OSError passes.
    """
    unknown: Structure | None = None
    checks: list[Callable[[], Iterator[Structure]]] = [
        lambda: _shards_by_name(files),
        lambda: _split_gguf(files),
        lambda: _indexes(files),
        lambda: _needed(files, engine),
    ]
    for check in checks:
        for found in check():
            if found.kind == "bad":
                return found
            unknown = unknown or found
    return unknown or _OK


def worst(found: Mapping[str, Structure]) -> Structure:
    """Return one judgement of several files by name: bad before unknown before ok; words name each file."""
    for kind in ("bad", "unknown"):
        words = [f"{name} {one.words}" for name, one in found.items() if one.kind == kind]
        if words:
            return Structure(kind, "; ".join(words))
    return _OK


def _stand_in(start: bytes, suffix: str) -> Structure | None:
    """Return what is wrong with a file that holds something else in its place."""
    if start.startswith(_LFS_POINTER):
        return Structure(
            "bad",
            "is a git-LFS pointer, not the file that it stands for: it was cloned without git-lfs; `git lfs pull`",
        )
    if suffix not in {".html", ".htm"} and start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_HTML):
        return Structure("bad", "is an HTML page, such as a proxy or a login page answers, not the file itself")
    return None


def _by_suffix(path: Path, suffix: str, *, empty: bool) -> Structure:
    if suffix == ".gguf":
        return gguf.check_file(path)
    if suffix == ".safetensors":
        return safetensors.check_file(path)
    if empty and suffix in _OPAQUE | {".json"}:
        return Structure("bad", "is empty")
    if suffix == ".json":
        # Objects are dropped as soon as they are read: of a tokenizer's 300 000 entries, nobody asks for one.
        parsed(whole(path, MAX_JSON_BYTES), lambda _: None)
    return Structure("unknown", f"is of a format that is not looked into ({suffix})") if suffix in _OPAQUE else _OK


def _shards_by_name(files: Mapping[str, Path]) -> Iterator[Structure]:
    """Yield what is missing by the names of shards alone."""
    seen: set[str] = set()
    for name in sorted(files):
        if name in seen:
            continue
        names = safetensors.shard_names(name) if name.endswith(".safetensors") else gguf.shard_names(name)
        seen.update(names)
        missing = [other for other in names if other not in files]
        if missing:
            yield Structure("bad", f"is incomplete: of {len(names)} shards, {_listed(missing)}")


def _split_gguf(files: Mapping[str, Path]) -> Iterator[Structure]:
    """Yield what GGUF files say about the split that they belong to, where it does not fit."""
    seen: set[str] = set()
    for name in sorted(files):
        if not name.endswith(".gguf") or name in seen:
            continue
        names = gguf.shard_names(name)
        seen.update(names)
        try:
            headers = {other: gguf.read(files[other]) for other in names}
        except FormatError as error:
            yield Structure("unknown" if error.unknown else "bad", f"cannot be checked: {name} {error}")
            continue
        yield from _one_split(headers)


def _one_split(headers: Mapping[str, gguf.Header]) -> Iterator[Structure]:
    """Yield what is wrong with the shards of one model, given in their order."""
    first_name, first = next(iter(headers.items()))
    count = first.integer("split.count")
    if (count or 1) == len(headers) == 1:
        return
    if count is None:
        yield Structure("unknown", f"cannot be checked: {first_name} is named as a shard and says nothing of a split")
        return
    tensors: set[str] = set()
    for number, (name, header) in enumerate(headers.items()):
        says = header.integer("split.count")
        if says != len(headers):
            yield Structure("bad", f"does not fit together: {name} says it is one of {says} files, not {len(headers)}")
        if header.integer("split.no") != number:
            yield Structure(
                "bad", f"does not fit together: {name} holds part {header.integer('split.no')} instead of {number}"
            )
        own = {tensor.name for tensor in header.tensors}
        if twice := sorted(tensors & own):
            yield Structure("bad", f"does not fit together: {name} holds {quoted(twice[0])}, as does a shard before it")
        tensors |= own
    expected = first.integer("split.tensors.count")
    if expected is not None and expected != len(tensors):
        yield Structure("bad", f"does not fit together: its shards hold {len(tensors)} tensors, they say {expected}")


def _indexes(files: Mapping[str, Path]) -> Iterator[Structure]:
    """Yield what an index of safetensors promises and the files do not hold."""
    for name in sorted(files):
        if not name.endswith(_INDEX):
            continue
        try:
            index = safetensors.index(files[name])
        except FormatError as error:
            yield Structure("unknown" if error.unknown else "bad", f"cannot be checked: {name} {error}")
            continue
        folder = PurePosixPath(name).parent
        paths = {shard: files.get(str(folder / shard)) for shard in index.files}
        missing = [shard for shard, path in paths.items() if path is None]
        if missing:
            yield Structure("bad", f"is incomplete: of the {len(paths)} files in {name}, {_listed(missing)}")
            continue
        yield from _promised(name, index, {shard: path for shard, path in paths.items() if path})


def _promised(name: str, index: safetensors.Index, paths: Mapping[str, Path]) -> Iterator[Structure]:
    held: dict[str, set[str]] = {}
    for shard, path in paths.items():
        try:
            held[shard] = {tensor.name for tensor in safetensors.read(path).tensors}
        except FormatError as error:
            yield Structure("unknown" if error.unknown else "bad", f"cannot be checked: {shard} {error}")
            return
    lost = [tensor for tensor, shard in index.tensors.items() if tensor not in held[shard]]
    if lost:
        yield Structure(
            "bad",
            f"does not fit together: by {name}, {index.tensors[lost[0]]} holds {quoted(lost[0])}, which it does not"
            + (f"; so it is with {len(lost)} tensors" if len(lost) > 1 else ""),
        )


def _needed(files: Mapping[str, Path], engine: str | None) -> Iterator[Structure]:
    """Yield what an engine would miss."""
    if not files:
        yield Structure("bad", "holds no files")
    if engine in {"llama.cpp", "llama-cpp-python"} and not any(name.endswith(".gguf") for name in files):
        yield Structure("bad", f"cannot be loaded by {engine}: none of its files is a .gguf")
    if engine != "vllm" or len(files) == 1:
        return
    names = {name for name in files if "/" not in name}
    if not names & {"config.json", "params.json"}:
        yield Structure("bad", "cannot be loaded by vllm: there is no config.json")
    if not any(wanted <= names for wanted in _TOKENIZERS) and not any(name.endswith(".tiktoken") for name in names):
        yield Structure(
            "bad", "cannot be loaded by vllm: there is no tokenizer (tokenizer.json, tokenizer.model or tekken.json)"
        )
    if not any(PurePosixPath(name).suffix in {".safetensors", ".bin", ".pt", ".gguf"} for name in names):
        yield Structure("bad", "cannot be loaded by vllm: there are no weights (*.safetensors)")


def _listed(missing: list[str]) -> str:
    """Return names that are missing, as far as anybody wants to read them."""
    more = f" and {len(missing) - SHOWN_NAMES} more" if len(missing) > SHOWN_NAMES else ""
    return f"{', '.join(missing[:SHOWN_NAMES])}{more} {'is' if len(missing) == 1 else 'are'} missing"
