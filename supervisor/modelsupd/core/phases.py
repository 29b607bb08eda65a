"""The phases of a replica: a sum type, each member holding only its own data. All instants are on the core's clock.

```
            ┌──────────────────────────── want up ─────────────────────────┐
Stopped ────┴─▶ Resolving ─▶ Spawning ─▶ Starting ─▶ Ready ─▶ Draining ─▶ Stopping ─▶ Killing
   ▲                │ ▼          ▲           │          │         │           │          │
   │                │ Waiting ───┤           └──────────┴─────────┴─── exit ──┴──────────┘
   │                ▼            ▼                                      ▼
   │             Failed ◀──── Backoff ◀── fault ──┐                     │
   └──────────────── want down ───────────────────┴──────────────── Clearing
```

One that sleeps (Asleep) has left Draining for that, and comes back by Starting; it is ended as any other.

A replica that uses GPUs waits for them, one that starts on demand for its turn; `Replica.hold` is what it was given of
GPUs, until nothing of its run is left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from modelsupd.core.events import Failure, Process
from modelsupd.core.health import Pulse
from modelsupd.core.learning import Learned
from modelsupd.core.placement import Hold, Size
from modelsupd.core.restart import History
from modelsupd.core.spec import ModelSpec, Start


class Want(StrEnum):
    """What is wanted. Only operators and the configuration change it."""

    UP = "up"
    DOWN = "down"


class Halt(IntEnum):
    """How urgently the daemon itself is going. Not durable: what is wanted does not change by it."""

    NO = 0
    DRAIN = 1
    TERM = 2
    KILL = 3


class Reason(StrEnum):
    """Why a run is ended on purpose. None of these is a failure."""

    OPERATOR = "operator"
    RESTART = "restart"
    REPLACED = "replaced"
    REMOVED = "removed"
    SHUTDOWN = "shutdown"
    EVICTED = "evicted"
    SLEEP = "sleep"
    STRAY = "stray"


class Resting(StrEnum):
    """Where between awake and asleep an engine is."""

    FALLING = "falling"
    ASLEEP = "asleep"
    WAKING = "waking"


@dataclass(frozen=True, slots=True)
class Fault:
    """A run's failure; it had been ready for `ready_s` seconds, None if never."""

    failure: Failure
    ready_s: float | None = None


Cause = Reason | Fault


@dataclass(frozen=True, slots=True)
class Stopped:
    """No process, and none is wanted now."""

    since: float


@dataclass(frozen=True, slots=True)
class Resolving:
    """Looking for the weights and the binary of the next run."""

    since: float
    run: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waits for its turn and for GPUs, of which it takes `size`, None where nobody knows; `why` it waits still."""

    since: float
    run: int
    digest: str
    size: Size | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Spawning:
    """A process is about to exist; this is on disk before it does."""

    since: float
    run: int
    digest: str


@dataclass(frozen=True, slots=True)
class Starting:
    """The process exists and has not yet generated; with `woken`, not since it slept."""

    since: float
    process: Process
    pulse: Pulse
    woken: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine has generated, and nothing has shown since that it no longer does."""

    since: float
    process: Process
    pulse: Pulse


@dataclass(frozen=True, slots=True)
class Asleep:
    """The process exists and sleeps at `level`; awake it holds `before` of GPUs."""

    since: float
    process: Process
    level: int
    before: Hold | None
    state: Resting = Resting.FALLING


@dataclass(frozen=True, slots=True)
class Draining:
    """No new requests; those in flight may finish until `until`. A drain probe is in flight when `probing`.

    One that is `held` has nothing to finish any more: it is ended at `until`, or when the load beside it is over.
    """

    since: float
    process: Process
    cause: Cause
    until: float
    next_at: float
    probing: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class Stopping:
    """SIGTERM was sent; SIGKILL follows at `until`."""

    since: float
    process: Process
    cause: Cause
    until: float


@dataclass(frozen=True, slots=True)
class Killing:
    """SIGKILL was sent; it is sent again at `until`, and the process called stuck."""

    since: float
    process: Process
    cause: Cause
    until: float
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class Clearing:
    """The engine is gone; descendants of it may not be. `again_at` is when to look again, None while looking."""

    since: float
    run: int
    cause: Cause
    again_at: float | None = None
    stuck: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Backoff:
    """The next start is due at `until`."""

    since: float
    run: int
    failure: Failure
    until: float


@dataclass(frozen=True, slots=True)
class Failed:
    """Given up, until `retry_at`, if that is not None, or until `inputs` change; they are looked at at `recheck_at`."""

    since: float
    run: int
    failure: Failure
    retry_at: float | None
    inputs: str = ""
    recheck_at: float | None = None


Phase = (
    Stopped
    | Resolving
    | Waiting
    | Spawning
    | Starting
    | Ready
    | Asleep
    | Draining
    | Stopping
    | Killing
    | Clearing
    | Backoff
    | Failed
)
Live = Starting | Ready | Asleep | Draining | Stopping | Killing


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One supervised copy of a model.

    `digest` is the launch digest of `spec`, `inputs` the last known fingerprint of weights and binary, `reason` the
    words for the last change, `restarts` how often a run followed a failure. `hold` is what the run has of GPUs,
    `beside` the replica that loads on one of them, `learned` what the last start that succeeded has shown. One that
    starts on demand has a process only while it is `demanded_by` somebody, "" for nobody.
    """

    name: str
    model: str
    spec: ModelSpec
    digest: str
    want: Want
    phase: Phase = field(default_factory=lambda: Stopped(0.0))
    last_run: int = 0
    history: History = field(default_factory=History)
    restarts: int = 0
    inputs: str = ""
    reason: str = ""
    halt: Halt = Halt.NO
    removed: bool = False
    hold: Hold | None = None
    beside: str = ""
    learned: Learned | None = None
    demanded_by: str = ""

    @property
    def idle(self) -> bool:
        """Tell whether it is wanted and starts on demand, and nobody asks for it: then it should have no process."""
        asked = self.spec.start is not Start.ON_DEMAND or bool(self.demanded_by)
        return self.want is Want.UP and not self.removed and not asked

    @property
    def runs_wanted(self) -> bool:
        """Tell whether a process should exist."""
        return self.want is Want.UP and self.halt is Halt.NO and not self.removed and not self.idle

    @property
    def process(self) -> Process | None:
        """Return the running process, if there is one."""
        return self.phase.process if isinstance(self.phase, Live) else None


def phase_name(phase: Phase) -> str:
    """Return the phase as users see it: `ready`."""
    return type(phase).__name__.lower()
