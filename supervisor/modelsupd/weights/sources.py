"""Where weights come from, as declared: reads sources, and tells which files of them are meant.

What a hub says is not trusted: no path of it may lead out of the folder that it is for, or mean two things.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from modelsupd.core.events import FailureClass
from modelsupd.core.spec import ModelSpec
from modelsupd.weights.base import HubSource, LocalSource, Part, Pin, Role, Source, WeightsError
from modelsupd.weights.choice import choose, preferred

__all__ = ["FORM", "SourceError", "choose", "chosen", "files_of", "inside", "local_files", "parse", "parts", "refuse"]

FORM = "hf:ORG/REPO[@REVISION][/FILE]"

# What the hub allows as names (huggingface_hub, `validate_repo_id`), with an owner: the cache's folders have one.
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_WORD}/{_WORD}")
# Of git's names with a slash only those that the hub makes itself, since any other could not be told from a file.
_REVISION = r"refs/pr/[0-9]+|refs/convert/\w+|[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}"
_HUB = re.compile(
    rf"hf:(?P<repo>{_WORD}/{_WORD})(?:@(?P<revision>{_REVISION}))?(?:/(?P<file>.+))?", re.ASCII | re.DOTALL
)
_ADDRESS = re.compile(
    rf"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)(?P<repo>{_WORD}/{_WORD}?)"
    r"(?:/(?:resolve|blob|tree|raw)/(?P<revision>[^/?#]+)(?:/(?P<file>[^?#]+))?)?/?(?:[?#].*)?",
    re.ASCII,
)

#: `llama_split_path` of llama.cpp: `%s-%05d-of-%05d.gguf`, counted from 1.
_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)

_NAME_MAX_BYTES = 255  # limits.h
_PATH_MAX_BYTES = 1024  # a quarter of PATH_MAX, so that a cache may lie deep

#: More files than any model has; a folder named by mistake, such as /, is refused before it is read to its end.
_MOST_FILES = 10_000


class SourceError(ValueError):
    """Why a text is no source, in words that follow the value."""


def parse(text: str, base: Path = Path()) -> Source:
    """Return the source that `text` declares; relative paths are relative to `base`. Raises SourceError."""
    if "://" in text:
        raise SourceError(f"must be {FORM} or the path of a local file or folder, not an address{_nearest(text)}")
    if not text.startswith("hf:"):
        if not text or "\0" in text:
            raise SourceError("must be a path, and is empty or holds a NUL")
        return LocalSource(base / text)
    seen = _HUB.fullmatch(text)
    if not seen:
        raise SourceError(f"must be {FORM}, such as 'hf:Qwen/Qwen2-0.5B-Instruct'{_what_is_missing(text)}")
    for name in seen["repo"].split("/"):
        if "--" in name or ".." in name or name.endswith(".git"):
            raise SourceError(f"cannot be a repository: '{name}' holds '--' or '..' or ends with '.git'")
    revision, file = seen["revision"] or "main", seen["file"]
    if ".." in revision or revision == "refs":
        raise SourceError(f"cannot be a source: '{revision}' is no revision")
    if file is not None and (why := path_problem(file)):
        raise SourceError(f"cannot name the file '{file}' of a repository: it {why}")
    return HubSource(seen["repo"], revision, file)


def _what_is_missing(text: str) -> str:
    rest = text.removeprefix("hf:")
    if not rest.strip("/"):
        return ""
    if "/" not in rest.rstrip("/"):
        return "; a repository has an owner"
    if rest.endswith("/"):
        return f"; did you mean '{text.rstrip('/')}'?"
    return ""


def _nearest(address: str) -> str:
    seen = _ADDRESS.fullmatch(address)
    if not seen or not _REPO.fullmatch(seen["repo"]):
        return ""
    revision = seen["revision"] or "main"
    return f"; did you mean '{HubSource(seen['repo'], revision, seen['file'])}'?"


def parts(spec: ModelSpec) -> tuple[Part, ...]:
    """Return what a model's engine loads, the weights first. The paths of `spec` are absolute, as `config` leaves them.

    Raises SourceError for a source that `config` would have refused.
    """
    found = []
    if spec.weights is not None:
        found.append(Part(Role.WEIGHTS, parse(spec.weights), spec.allow, spec.ignore, spec.sha256))
    beside = ((Role.MMPROJ, spec.mmproj), (Role.DRAFT, spec.draft), *((Role.LORA, lora) for lora in spec.lora))
    found += [Part(role, parse(text)) for role, text in beside if text is not None]
    return tuple(found)


def files_of(file: str) -> tuple[str, ...]:
    """Return the files that a file's name means: all shards where it is one of a split GGUF, else itself."""
    seen = _SHARD.fullmatch(file)
    if not seen or not 1 <= int(seen["number"]) <= int(seen["count"]):
        return (file,)
    return tuple(f"{seen['stem']}-{number:05d}-of-{seen['count']}.gguf" for number in range(1, int(seen["count"]) + 1))


def chosen(part: Part, files: Sequence[Pin]) -> tuple[Pin, ...]:
    """Return which of a repository's `files` a part means, sorted by path. Raises WeightsError.

    What the repository has not is WEIGHTS_UNAVAILABLE, a path that leads out of its folder BAD_WEIGHTS.
    """
    file = part.source.file if isinstance(part.source, HubSource) else None
    if file is None:
        return refuse(choose(files, part.allow, part.ignore))
    there = {pin.path: pin for pin in files}
    missing = [name for name in files_of(file) if name not in there]
    if missing:
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, _not_there(part.source, missing[0], list(there)))
    return refuse(tuple(there[name] for name in files_of(file)))


def _not_there(source: Source, name: str, there: list[str]) -> str:
    said = f"cannot use '{source}': the repository has no file '{name}'"
    if any(path.startswith(f"{name}/") for path in there):
        return f"{said}, but a folder of that name; name the repository, with allow = ['{name}/*']"
    import difflib  # noqa: PLC0415 - only for this message

    alike = sorted(path for path in there if path.endswith(".gguf")) or there
    near = difflib.get_close_matches(name, alike, n=1, cutoff=0.5)
    few = ", ".join(alike[:5]) + (f" and {len(alike) - 5} more" if len(alike) > 5 else "")  # noqa: PLR2004 - both are the five shown
    return f"{said}; did you mean '{near[0]}'?" if near else f"{said}; it has {few or 'none at all'}"


# Paths that others made up


def path_problem(path: str) -> str:
    """Return why a path inside a source cannot be used, as `it …`, or nothing."""
    if not path or path.startswith("/"):
        return "is empty" if not path else "is absolute"
    if "\\" in path or not path.isprintable():
        return "holds a backslash or a character that cannot be printed"
    names = path.split("/")
    if any(name in ("", ".", "..") for name in names):
        return "holds '.', '..' or nothing between two slashes"
    if len(path.encode()) > _PATH_MAX_BYTES or any(len(name.encode()) > _NAME_MAX_BYTES for name in names):
        return f"is longer than {_PATH_MAX_BYTES} bytes, or one of its names than {_NAME_MAX_BYTES}"
    return ""


def refuse(pins: Iterable[Pin]) -> tuple[Pin, ...]:
    """Return the pins, sorted by path. Raises WeightsError where one leads out of its folder or means two things."""
    kept = tuple(sorted(pins, key=lambda pin: pin.path))
    wrong = next(((pin.path, why) for pin in kept if (why := path_problem(pin.path))), None)
    names = {pin.path for pin in kept}
    if not wrong and len(names) < len(kept):
        wrong = next(one.path for one, other in itertools.pairwise(kept) if one.path == other.path), "is twice"
    if not wrong:
        folders = {str(folder) for name in names for folder in Path(name).parents}
        wrong = next(((name, "is a file and a folder") for name in sorted(names & folders)), None)
    if wrong:
        words = f"cannot use the repository's list of files: {wrong[0]!r} {wrong[1]}"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words)
    return kept


def inside(path: Path, root: Path) -> Path:
    """Return `path` with its symbolic links followed. Raises WeightsError where they lead out of `root`, or nowhere."""
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # the latter for a loop of links
        words = f"cannot follow '{path}': {getattr(error, 'strerror', None) or error}"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=path) from error
    if not real.is_relative_to(root.resolve()):
        words = f"cannot use '{path}': it leads to '{real}', out of '{root}'"
        raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=path)
    return real


def local_files(source: LocalSource) -> tuple[tuple[str, Path], ...]:
    """Return the files that a local source means, each with its path inside the source, sorted by that.

    Of a split GGUF all shards, whether they are there or not; of a folder what an engine would load of it, as `choose`
    does, hidden files left out. Raises OSError, and WeightsError for a folder with far too many files.
    """
    path = source.path
    if not path.is_dir():
        return tuple((name, path.parent / name) for name in files_of(path.name))
    found: dict[str, int] = {}
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():
                if not _is_text(str(file)):
                    words = f"cannot use '{path}': the name of {name!a} in it is not UTF-8; rename the file"
                    raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=path)
                found[file.relative_to(path).as_posix()] = file.stat().st_size
        if len(found) > _MOST_FILES:
            words = f"cannot use '{path}': it holds more than {_MOST_FILES} files, and is no model's folder"
            raise WeightsError(FailureClass.BAD_WEIGHTS, words, path=path)
    pins = [Pin(name, size) for name, size in sorted(found.items())]
    return tuple((pin.path, path / pin.path) for pin in preferred(pins) or pins)


def _is_text(name: str) -> bool:
    """Tell whether a name can be told, logged and recorded: Python has stand-ins for bytes that are no text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _raise(error: OSError) -> None:
    raise error
