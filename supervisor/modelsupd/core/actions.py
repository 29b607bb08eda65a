"""What to do, in the imperative.

Every action but `Abandon`, `Terminate` and `Kill` starts an effect that ends by exactly one event of the same run;
`Watch` is the effect behind a running process and ends by `Exited`.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsupd.core.events import ProbeKind


@dataclass(frozen=True, slots=True)
class Resolve:
    """Look for weights and binary, fetch what is missing; ends by `Resolved` or `Unresolved`."""

    run: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Let go of the `Resolve` of this run, which then ends soon; what was fetched is kept."""

    run: int


@dataclass(frozen=True, slots=True)
class Recheck:
    """Take the fingerprint of weights and binary; ends by `Rechecked`."""

    run: int


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start shim and engine; ends by `Spawned` or `SpawnFailed`."""

    run: int


@dataclass(frozen=True, slots=True)
class Watch:
    """Wait for the end of the process; ends by `Exited`."""

    run: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Send one health request; ends by `Probed` within `timeout_s`."""

    run: int
    kind: ProbeKind
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to the engine, through its shim."""

    run: int


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to everything of the run, through its shim or, without one, directly."""

    run: int


@dataclass(frozen=True, slots=True)
class Clear:
    """Make sure that nothing of the run is left; ends by `Cleared`, or by `Stuck` after `timeout_s`."""

    run: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Have the engine sleep at a level; ends by `Slept` within `timeout_s`."""

    run: int
    level: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wake:
    """Have the engine wake up that sleeps at a level; ends by `Woke` within `timeout_s`."""

    run: int
    level: int
    timeout_s: float


Action = Resolve | Abandon | Recheck | Spawn | Watch | Probe | Terminate | Kill | Clear | Sleep | Wake
