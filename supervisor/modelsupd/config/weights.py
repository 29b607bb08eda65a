"""What models.toml says of weights: sources of each model, and where and how those of a hub are kept and fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from modelsupd.config.paths import is_path
from modelsupd.config.places import Host
from modelsupd.core.spec import Engine, ModelSpec, Problem, WeightsSpec
from modelsupd.errors import ConfigError, describe
from modelsupd.weights import lock as locks
from modelsupd.weights.base import HubSource, Settings
from modelsupd.weights.cache import cache_dir_of
from modelsupd.weights.sources import SourceError, files_of, parse, parts

Where = tuple[str, ...]

SHA256 = re.compile(r"[0-9a-f]{64}")

_GGUF = (Engine.LLAMA_CPP, Engine.LLAMA_CPP_PYTHON)
_SAME = ("parts", "part_bytes", "stall_timeout_s", "attempts", "backoff_initial_s", "backoff_max_s", "min_free_bytes")
_CACHE_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME")


# A model's sources


def of_model(spec: ModelSpec) -> Iterator[Problem]:
    """Yield what is wrong with the sources of one model; paths below `[models.NAME]`."""
    declared: list[tuple[Where, str | None]] = [
        (("weights",), spec.weights),
        (("mmproj",), spec.mmproj),
        (("draft",), spec.draft),
    ]
    declared += [(("lora", f"[{index}]"), lora) for index, lora in enumerate(spec.lora)]
    for where, value in declared:
        if value is not None and (why := _refusal(value, spec.engine)):
            yield Problem(where, value, why)
    for index, value in enumerate(spec.lora):
        if value in spec.lora[:index]:
            yield Problem(("lora", f"[{index}]"), value, "is there twice")
    yield from _choice(spec)


def _refusal(value: str, engine: Engine) -> str:
    """Return why a value is no source for that engine; what is wrong with a path is said when it is made absolute."""
    try:
        source = parse(value) if not is_path(value) else None
    except SourceError as error:
        return str(error)
    if not isinstance(source, HubSource) or engine not in _GGUF:
        return ""
    if source.file is None:
        return f"must name the GGUF file that is loaded: '{value.rstrip('/')}/FILE.gguf'"
    if not source.file.lower().endswith(".gguf"):
        return f"must name a GGUF file: {engine} loads nothing else"
    return ""


def _choice(spec: ModelSpec) -> Iterator[Problem]:
    """Yield what is wrong with the settings that narrow down what `weights` means."""
    try:
        source = parse(spec.weights) if spec.weights else None
    except SourceError:
        return  # said already
    whole = isinstance(source, HubSource) and source.file is None
    for name in ("allow", "ignore"):
        patterns: tuple[str, ...] = getattr(spec, name)
        if patterns and not whole:
            yield Problem((name,), patterns, "chooses among the files of a whole repository: weights = 'hf:ORG/REPO'")
        elif not all(patterns):
            yield Problem((name,), patterns, "holds an empty pattern")
    if spec.sha256 is None:
        return
    shards = files_of(source.file if isinstance(source, HubSource) and source.file else (spec.weights or ""))
    if not SHA256.fullmatch(spec.sha256):
        yield Problem(("sha256",), spec.sha256, "must be 64 hex digits in lower case")
    elif source is None:
        yield Problem(("sha256",), spec.sha256, "is of 'weights', which are not given")
    elif whole or len(shards) > 1:
        what = "a whole repository" if whole else f"{len(shards)} files"
        why = f"is of a single file, and 'weights' are {what}: lock them with 'modelsupd pull'"
        yield Problem(("sha256",), spec.sha256, why)


# Where they are kept and how they are fetched


def of_weights(spec: WeightsSpec) -> Iterator[Problem]:
    """Yield what is wrong with `[weights]`, paths left out."""
    if spec.endpoint is not None and (why := _no_endpoint(spec.endpoint)):
        # An address with a password in it is not repeated.
        yield Problem(("weights", "endpoint"), None if "@" in spec.endpoint else spec.endpoint, why)
    if spec.backoff_max_s < spec.backoff_initial_s:
        why = f"must be at least backoff_initial_s, which is {spec.backoff_initial_s:g}"
        yield Problem(("weights", "backoff_max_s"), spec.backoff_max_s, why)


def _no_endpoint(address: str) -> str:
    try:
        seen = urlsplit(address)
        usable = seen.scheme in ("http", "https") and seen.hostname and (seen.port is None or seen.port > 0)
    except ValueError:
        usable = False
    if not usable or not address.isprintable() or " " in address:
        return "must be an address such as 'https://hub.example'"
    if "@" in seen.netloc:
        return "must not hold a password; a token is given in a file: token_file"
    return "must end with its path: no '?' and no '#'" if "?" in address or "#" in address else ""


def settings(spec: WeightsSpec, host: Host, state_dir: Path, lock_file: Path, problems: list[Problem]) -> Settings:
    """Return `[weights]` with defaults filled in from the host; its paths are absolute already."""
    endpoint = spec.endpoint
    if endpoint is None and (endpoint := host.environ.get("HF_ENDPOINT") or None) and (why := _no_endpoint(endpoint)):
        problems.append(Problem(("weights", "endpoint"), None, f"is HF_ENDPOINT of the environment, which {why}"))
    return Settings(
        cache_dir=_cache_dir(spec, host, state_dir),
        state_dir=state_dir,
        endpoint=endpoint.rstrip("/") if endpoint else None,
        token_file=Path(spec.token_file) if spec.token_file else None,
        offline=spec.offline or _says_yes(host, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
        lock_file=lock_file,
        **{name: getattr(spec, name) for name in _SAME},
    )


def _cache_dir(spec: WeightsSpec, host: Host, state_dir: Path) -> Path:
    if spec.cache_dir:
        return Path(spec.cache_dir)
    named = any(host.environ.get(name) for name in _CACHE_VARIABLES)
    # A service has no home worth the name, and root's is closed to the user whom the service runs as.
    if not named and (host.uid == 0 or host.environ.get("STATE_DIRECTORY")):
        return state_dir / "hub"
    # huggingface_hub takes a variable that is set to nothing for a folder of that name: the one it is run in.
    given = {name: value for name, value in host.environ.items() if value or name not in _CACHE_VARIABLES}
    return host.cwd / cache_dir_of({**given, "HOME": str(host.home)})


def _says_yes(host: Host, *names: str) -> bool:
    """Tell whether the first of these variables that is set says yes, in the words of huggingface_hub."""
    value = next((value for name in names if (value := host.environ.get(name))), "")
    return value.upper() in {"1", "ON", "YES", "TRUE"}


# The lock file


def lock_file(config: Path) -> Path:
    """Return the lock file that belongs to a configuration: `models.lock` beside `models.toml`."""
    beside = config.with_suffix(".lock")
    return beside if beside != config else config.with_name(f"{config.name}.lock")


def read_lock(path: Path, models: Mapping[str, ModelSpec], problems: list[Problem]) -> locks.Lock:
    """Return the lock; what is wrong with it, and where models.toml says otherwise, is added to `problems`."""
    try:
        lock = locks.read(path)
    except ConfigError as error:
        problems.extend(Problem((), None, f"{path.name}: {describe(problem)}") for problem in error.problems)
        return locks.Lock()
    for name, model in models.items():
        where = ("models", name, "sha256")
        if model.sha256 is None or any(problem.path[:2] == where[:2] for problem in problems):
            continue
        entry = lock.of(parts(model)[0])
        if entry and [pin.sha256 for pin in entry.files] != [model.sha256]:
            why = f"but {path.name} says '{entry.files[0].sha256}'; take the wrong one of the two out"
            problems.append(Problem(where, model.sha256, why))
    return lock
