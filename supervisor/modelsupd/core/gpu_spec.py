"""What the operator declares about GPUs: how the host's are looked after, and where a model's runs may go."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

#: Unknown keys are errors; pydantic reads this attribute, so that the core need not import it.
STRICT: dict[str, Any] = {"extra": "forbid"}


def limit(
    default: object, doc: str, *, gt: float | None = None, ge: float | None = None, le: float | None = None
) -> Any:  # noqa: ANN401 - the same as of dataclasses.field
    """Return a field with its description and its range."""
    bounds = {key: value for key, value in (("gt", gt), ("ge", ge), ("le", le)) if value is not None}
    return field(default=default, metadata={"doc": doc, **bounds})


class Strategy(StrEnum):
    """Where, of the GPUs that a run fits on, it goes."""

    SPREAD = "spread"
    PACK = "pack"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementSpec:
    """Where a model's runs go, and what they take there."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    vram_bytes: int | None = limit(
        None,
        "what a run takes of each of its GPUs; by default as its engine is told, or reckoned from weights",
        ge=0,
    )
    margin_bytes: int = limit(
        1024**3, "added, on each GPU, to what is reckoned from weights: for buffers that no header tells of", ge=0
    )
    exclusive: bool | None = limit(
        None, "share its GPUs with no other run; by default only where it is not known how much it takes"
    )
    strategy: Strategy = limit(Strategy.SPREAD, "spread: to where most is left | pack: to where least is")
    apart_from: tuple[str, ...] = limit(
        (), "models whose runs never share a GPU with its own; its own name keeps its replicas apart"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpusSpec:
    """The `[gpus]` entry: how the host's GPUs are looked after. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    nvml: str = limit("libnvidia-ml.so.1", "NVIDIA's management library: a name for the loader, or a path")
    reserve_bytes: int = limit(0, "memory of each GPU that is given to nobody", ge=0)
    host_reserve_bytes: int = limit(
        2 * 1024**3, "of the host's memory, what engines that sleep with their weights in it leave free", ge=0
    )
    interval_s: float = limit(5.0, "how often GPUs are looked at while nobody waits for one", gt=0)
    answer_timeout_s: float = limit(10.0, "how long a driver may take to answer, before its GPUs are not used", gt=0)
    memory_timeout_s: float = limit(
        30.0, "how long after the end of a run its memory may take to come back, before its GPU is not used", gt=0
    )
    memory_tolerance_bytes: int = limit(64 * 1024**2, "so much may be missing then all the same", ge=0)
