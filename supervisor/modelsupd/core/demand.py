"""What gateways tell of how models are used, and of who waits for them. All instants are on the core's clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Use:
    """What gateways tell of a run: requests in flight, and when the last byte of an answer came; None before any."""

    in_flight: int = 0
    last_at: float | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many requests wait for a model, and since when the oldest does."""

    waiting: int
    since: float


@dataclass(frozen=True, slots=True)
class Usage:
    """All that gateways tell: use by run key (`qwen/0#7`), and what is waited for, by model.

    `known` says whether a gateway has told anything since this daemon began.
    """

    runs: Mapping[str, Use] = field(default_factory=dict)
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    known: bool = False
