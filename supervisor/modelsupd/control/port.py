"""What the admin API and the metrics need of the daemon; `daemon.Daemon` is it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from modelsupd.core.phases import Replica
from modelsupd.core.spec import ModelSpec
from modelsupd.errors import Refused
from modelsupd.weights.base import Progress

__all__ = ["LaunchPlan", "Port", "Refused"]


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The exact command of a replica, to be run by hand: placeholders filled as the shim would fill them."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_names: frozenset[str]


class Port(Protocol):
    """The daemon as seen from outside its event loop's inner workings. Instants are on the core's clock."""

    version: str
    pid: int
    started_at: float
    state_dir: Path
    runtime_dir: Path

    def now(self) -> float:
        """Return the present instant."""
        ...

    def wall(self, at: float) -> datetime:
        """Return the wall time, in UTC, of an instant of this boot."""
        ...

    def replicas(self) -> Mapping[str, Replica]:
        """Return the published state: what is on disk, not what is being decided."""
        ...

    def fetching(self) -> Mapping[str, Progress]:
        """Return how far the weights of each replica have come that waits for some."""
        ...

    def changes(self) -> Mapping[str, str]:
        """Return, by replica, what has changed on disk since its engine was started, in words."""
        ...

    async def gateway_metrics(self) -> bytes:
        """Return what the gateway tells Prometheus, in its plain format; nothing where there is none."""
        ...

    def gateway(self) -> Mapping[str, Any] | None:
        """Return what `status` tells of the gateway, None where there is none."""
        ...

    def gpus(self) -> Sequence[Mapping[str, Any]]:
        """Return what `status` tells of each GPU, none where no model uses any."""
        ...

    async def look_at_gpus(self) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
        """Look at the GPUs now; return what `gpus` does, and why a vendor's are not told of."""
        ...

    async def gpu_command(self, verb: str, target: str, by: str, why: str) -> str:
        """Put a GPU into quarantine or release it; return its UUID. Raises `Refused`."""
        ...

    def models(self) -> Mapping[str, ModelSpec]:
        """Return what is declared, by name."""
        ...

    def journal(self) -> tuple[int, str | None]:
        """Return the last sequence number and, when operators' commands are refused, why."""
        ...

    async def command(self, verb: str, target: str, by: str) -> tuple[str, ...]:
        """Carry out `start`, `stop` or `restart`; return the replicas meant, once their record is on disk.

        Raises `fleet.UnknownTarget` and `Refused`.
        """
        ...

    async def plan(self, target: str) -> Sequence[Mapping[str, Any]]:
        """Return what would happen if a model were asked for now (`core.preview.Preview`). Raises `UnknownTarget`."""
        ...

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again; return what changes, in words. Raises `ConfigError`, changing nothing."""
        ...

    def launch_plan(self, replica: str) -> LaunchPlan:
        """Return how the replica's engine is started. Raises KeyError for an unknown one."""
        ...

    def records(self, after_seq: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield journal records after `after_seq`, the ones on disk first, then each new one as it is written."""
        ...
