"""What `show` tells of a model's weights: what they are, how much memory they will take, which files and digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from modelsupd.cli.stock import Model
from modelsupd.control.words import printable
from modelsupd.weights.base import Role, size_words

if TYPE_CHECKING:
    from modelsupd.core.spec import ModelSpec
    from modelsupd.weights.base import Part, Pinned, Settings
    from modelsupd.weights.claim import Facts, Use

_FACTS = (
    "form",
    "architecture",
    "name",
    "parameters",
    "quantisation",
    "context_length",
    "layers",
    "experts",
    "weights_bytes",
)


def weights_of(model: Model, settings: Settings) -> list[dict[str, Any]]:
    """Return for each part of a model what is known of it, from headers alone."""
    return [_part(part, locked, model, settings) for part, locked in zip(model.parts, model.locked, strict=True)]


def paths_of(model: Model, settings: Settings) -> dict[str, list[str]]:
    """Return for each role the paths that an engine is given, or would be."""
    from modelsupd.weights.base import WeightsError  # noqa: PLC0415 - only where it is shown
    from modelsupd.weights.look import located  # noqa: PLC0415 - the same
    from modelsupd.weights.resolved import known  # noqa: PLC0415 - the same

    found: dict[str, list[str]] = {}
    for part, locked in zip(model.parts, model.locked, strict=True):
        try:
            of = known(part, locked, settings, model.spec.engine)
        except (WeightsError, OSError):
            of = locked
        found.setdefault(part.role, []).append(str(located(part, of, settings)))
    return found


def _part(part: Part, locked: Pinned | None, model: Model, settings: Settings) -> dict[str, Any]:
    from modelsupd.weights.base import FormatError, WeightsError  # noqa: PLC0415 - only where it is shown
    from modelsupd.weights.claim import claim, describe  # noqa: PLC0415 - the same
    from modelsupd.weights.resolved import known, placed  # noqa: PLC0415 - the same

    shown: dict[str, Any] = {
        "role": part.role,
        "source": str(part.source),
        "commit": None,
        "locked": "models.lock" if locked else "sha256" if part.sha256 else None,
        "files": [],
        "facts": None,
        "claim": None,
        "words": "",
    }
    try:
        of = known(part, locked, settings, model.spec.engine)
        if of is None:
            return shown | {"words": "not here yet: 'modelsupd pull' fetches it"}
        files = placed(part, of, settings)
        shown["commit"] = of.commit
        shown["files"] = [asdict(pin) | {"here": path.exists()} for pin, path in files]
        missing = [pin.path for pin, path in files if not path.exists()]
        if missing:
            return shown | {"words": f"{len(missing)} of {len(files)} files are missing"}
        facts = describe({pin.path: path for pin, path in files})
        if facts is not None:
            shown["facts"] = {name: getattr(facts, name) for name in _FACTS}
            use = _use_of(model.spec, facts) if part.role is Role.WEIGHTS else None
            if use is not None:
                shown["claim"] = asdict(claim(facts, use)) | {"use": asdict(use)}
    except (WeightsError, FormatError, OSError) as error:
        shown["words"] = str(error)
    return shown


def _use_of(spec: ModelSpec, facts: Facts) -> Use | None:
    """Return how the weights will be run, as far as it is declared; None where only the engine's command tells."""
    from modelsupd.engines.memory import of_llama  # noqa: PLC0415 - only where it is shown
    from modelsupd.weights.claim import Use  # noqa: PLC0415 - the same
    from modelsupd.weights.ggml import type_name  # noqa: PLC0415 - the same

    found = of_llama(spec, type_name) if facts.form == "gguf" else None
    return None if found is None else Use(**found)


# For people


def lines(parts: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the parts of a model as comments, which a shell and TOML skip."""
    for part in parts:
        at = f" at {part['commit']}" if part["commit"] else ""
        locked = f", locked by {part['locked']}" if part["locked"] else ""
        yield f"# {part['role']}: {part['source']}{at}{locked}"
        if part["facts"]:
            yield f"#   {_facts(part['facts'])}"
        if part["claim"]:
            yield from (f"#   {line}" for line in _claim(part["claim"]))
        for file in part["files"]:
            digest = f"git sha1 {file['blob']}" if file["blob"] else "no digest"
            digest = f"sha256 {file['sha256']}" if file["sha256"] else digest
            gone = "" if file["here"] else "  missing"
            yield f"#   {printable(file['path'])}  {size_words(file['size_bytes'])}  {digest}{gone}"
        if part["words"]:
            yield f"#   {printable(part['words'])}"


def _facts(facts: Mapping[str, Any]) -> str:
    said = [
        f"architecture {facts['architecture'] or 'unknown'}",
        f"{_parameters(facts['parameters'])} parameters" if facts["parameters"] else "",
        f"quantisation {facts['quantisation']}" if facts["quantisation"] else "",
        f"trained for a context of {facts['context_length']}" if facts["context_length"] else "",
        f"{facts['experts']} experts" if facts["experts"] else "",
        f"weights {size_words(facts['weights_bytes'])}" if facts["weights_bytes"] else "",
    ]
    return printable(", ".join(text for text in said if text))


def _claim(claim: Mapping[str, Any]) -> Iterator[str]:
    use = claim["use"]
    slots = "" if use["parallel"] in (None, 1) else f" in {use['parallel']} slots"
    context = f"context {claim['context'] or 'unknown'}{slots}, cache {use['type_k']}/{use['type_v']}"
    sizes = [
        f"{name} {size_words(claim[key]) if claim[key] is not None else 'unknown'}"
        for name, key in (("cache", "kv_bytes"), ("VRAM", "vram_bytes"), ("RAM", "ram_bytes"))
    ]
    yield f"claim with {context}: {', '.join(sizes)}, without compute buffers"
    if claim["words"]:
        yield f"of which not all can be told: {printable(claim['words'])}"


def _parameters(count: int) -> str:
    for unit, one in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= one:
            return f"{count / one:.3g} {unit}"
    return str(count)
