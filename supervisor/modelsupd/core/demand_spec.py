"""What the operator declares about demand: who gives way to whom, after how long, and who never runs beside whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from modelsupd.core.gpu_spec import STRICT, limit


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSpec:
    """The `[models.NAME.demand]` entry: how models that start on demand take turns. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    idle_timeout_s: float = limit(
        600.0, "stopped when so long has passed since the last byte of its last answer; 0: never for that", ge=0
    )
    priority: int = limit(
        0, "one of a higher priority goes first, and takes the place of a lower one even while that is in use"
    )
    pinned: bool = limit(False, "once started, stopped for no other model and for no lack of requests")
    group: str | None = limit(None, "a name for several models, for `excludes`")
    excludes: tuple[str, ...] = limit(
        (), "models and groups that never run beside it; its own group: one of the group at a time"
    )
    sleep: int = limit(
        0,
        "sleep at this level instead of being stopped: 1 keeps weights in the host's memory, 2 drops them; 0: never",
        ge=0,
        le=2,
    )
    asleep_vram_bytes: int = limit(
        2 * 1024**3,
        "reckoned with on each of its GPUs while it sleeps; more where it is seen to use more",
        ge=0,
    )
    asleep_timeout_s: float = limit(0.0, "stopped when it has slept for so long; 0: never for that", ge=0)
    sleep_timeout_s: float = limit(60.0, "how long it may take to fall asleep, or to wake up", gt=0)
    residence_s: float = limit(
        10.0, "once ready, it gives way to none of its own priority before so long has passed", ge=0
    )
    turn_s: float = limit(
        30.0, "having waited so long for others of its own priority, it gets its turn: they take nothing new", ge=0
    )
