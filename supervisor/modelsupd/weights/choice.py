"""Which files of a whole repository are meant, when nobody says: what an engine loads, and each thing once.

The weights in one format, safetensors before PyTorch's pickles before anything else, and what is small beside them:
config, tokenizer, chat template, code. Left out are the same weights in other formats, what training left behind,
and what is for readers.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import Pin, WeightsError

#: Formats that engines load, the best first; in each folder the best one that is there is taken.
_RANK = {".safetensors": 0, ".bin": 1, ".pt": 2, ".pth": 2, ".ckpt": 2}

#: Formats and folders of other frameworks: taken only where there is nothing else.
_FOREIGN = frozenset(
    {".onnx", ".onnx_data", ".h5", ".msgpack", ".tflite", ".ot", ".mlmodel", ".npz", ".pb", ".nemo", ".engine", ".xml"}
)
_FOREIGN_FOLDER = re.compile(
    r"(?:original|onnx|openvino|coreml|metal|flax|tflite|checkpoint-[0-9]+|global_step[0-9]+|.*\.mlpackage)"
)
_FOREIGN_NAME = re.compile(r"openvino_.*|ggml-.*\.bin")

#: For readers, and what training left behind.
_NEVER = re.compile(
    r"""(?ix)
    .*\.(?:md|rst|pdf|ipynb|html|csv|parquet|png|jpe?g|gif|svg|webp|bmp|ico|mp[34]|wav|flac|ogg|webm|mov|zip|gz|tgz)
    | .*\.tfevents\..* | readme.* | training_args\.bin | trainer_state\.json
    | (?:optimizer|scheduler|scaler)(?:_.*)?\.(?:bin|pt|pth|safetensors) | rng_state.*\.pth
    """
)

#: Precisions in which some repositories hold the same weights a second time: `model.fp16.safetensors`.
_VARIANT = re.compile(r"(?P<stem>.+)\.(?:fp16|fp32|bf16|fp8|int8|non_ema|ema)(?P<rest>(?:-[0-9]+-of-[0-9]+)?\.\w+)")
_SHARD = re.compile(r"(?P<stem>.*)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_SPLIT = re.compile(r"-[0-9]+-of-[0-9]+(?=\.)")

_SHOWN = 5


def choose(files: Sequence[Pin], allow: Sequence[str] = (), ignore: Sequence[str] = ()) -> tuple[Pin, ...]:
    """Return the files that are meant, sorted by path; `allow` and `ignore` are glob patterns over the whole path.

    What `allow` names is taken as it is; without it, what an engine loads. Raises WeightsError where nothing is left,
    and where a repository holds several GGUF models, of which only the operator knows the right one.
    """
    wanted = [pin for pin in files if not allow or _matches(pin.path, allow)]
    wanted = [pin for pin in wanted if not _matches(pin.path, ignore)]
    kept = wanted if allow else preferred(wanted)
    if not kept:
        why = "no file matches 'allow' and 'ignore'" if allow or ignore else "it holds nothing that an engine loads"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, f"cannot choose files of the repository: {why}")
    models = sorted({_SHARD.sub(r"\g<stem>.gguf", pin.path) for pin in kept if _is_gguf_model(pin.path)})
    if len(models) > 1 and not allow:
        few = ", ".join(models[:_SHOWN]) + (f" and {len(models) - _SHOWN} more" if len(models) > _SHOWN else "")
        words = f"cannot choose among {few}: append the file's name to the source, or give 'allow'"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words)
    return tuple(sorted(kept, key=lambda pin: pin.path))


def preferred(files: Iterable[Pin]) -> list[Pin]:
    """Return what an engine loads of these files, in their order; all GGUF models where there is nothing better."""
    kept = [pin for pin in files if not _hidden(pin.path) and not _NEVER.fullmatch(_name(pin.path))]
    native = [pin for pin in kept if not _is_foreign(pin.path) and (_suffix(pin.path) in _RANK or _is_gguf(pin.path))]
    if not native:
        return kept
    kept = [pin for pin in kept if not _is_foreign(pin.path)]
    if any(not _is_gguf(pin.path) for pin in native):
        kept = [pin for pin in kept if not _is_gguf(pin.path)]
    best: dict[str, int] = {}
    for pin in native:
        rank = _RANK.get(_suffix(pin.path), len(_RANK))
        best[_folder(pin.path)] = min(best.get(_folder(pin.path), rank), rank)
    kept = [
        pin for pin in kept if _RANK.get(_suffix(pin.path), best.get(_folder(pin.path))) == best.get(_folder(pin.path))
    ]
    kept = _without_second_copies(kept)
    return _without_other_indices(kept)


def _without_second_copies(files: list[Pin]) -> list[Pin]:
    """Leave out weights in another precision or another cut, where the plain ones are there too."""
    weights = {pin.path for pin in files if _suffix(pin.path) in _RANK}
    # How many pieces there are may differ between two precisions of the same weights.
    stems = {_SPLIT.sub("", path) for path in weights}
    plain = {_folder(path) for path in weights if not _is_consolidated(path)}

    def is_copy(path: str) -> bool:
        if _suffix(path) == ".safetensors" and _is_consolidated(path):
            return _folder(path) in plain
        seen = _VARIANT.fullmatch(path)
        return seen is not None and path in weights and _SPLIT.sub("", seen["stem"] + seen["rest"]) in stems

    return [pin for pin in files if not is_copy(pin.path)]


def _without_other_indices(files: list[Pin]) -> list[Pin]:
    """Leave out the index of weights that were left out."""
    there = {(_folder(pin.path), _suffix(pin.path), _is_consolidated(pin.path)) for pin in files}

    def is_stray(path: str) -> bool:
        of = path.removesuffix(".index.json")
        return of != path and (_folder(of), _suffix(of), _is_consolidated(of)) not in there

    return [pin for pin in files if not is_stray(pin.path)]


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """Tell whether a path matches one of the patterns; a folder's, with a slash at its end, stands for all in it."""
    return any(fnmatch.fnmatchcase(path, f"{glob}*" if glob.endswith("/") else glob) for glob in patterns)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def _hidden(path: str) -> bool:
    return any(name.startswith(".") for name in path.split("/"))


def _is_gguf(path: str) -> bool:
    return _suffix(path) == ".gguf"


def _is_gguf_model(path: str) -> bool:
    return _is_gguf(path) and not _name(path).startswith("mmproj")


def _is_consolidated(path: str) -> bool:
    return _name(path).startswith("consolidated")


def _is_foreign(path: str) -> bool:
    folders = path.split("/")[:-1]
    return (
        _suffix(path) in _FOREIGN
        or any(_FOREIGN_FOLDER.fullmatch(folder) for folder in folders)
        or bool(_FOREIGN_NAME.fullmatch(_name(path)))
    )
