"""What happened, in the past tense.

Whatever enters `step` is one of these. A report about a process carries the number of the run that it is about: a
report of an older run is stale and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from modelsupd.core.placement import Hold, Size
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.core.spec import ModelSpec


class FailureClass(StrEnum):
    """Why an engine failed; what follows depends on it (see `restart`)."""

    CRASH = "crash"
    HUNG = "hung"
    START_STALLED = "start-stalled"
    OUT_OF_MEMORY = "out-of-memory"
    OUT_OF_GPU_MEMORY = "out-of-gpu-memory"
    ADDRESS_IN_USE = "address-in-use"
    BAD_FLAG = "bad-flag"
    BAD_WEIGHTS = "bad-weights"
    UNSUPPORTED_MODEL = "unsupported-model"
    MISSING_LIBRARY = "missing-library"
    MISSING_BINARY = "missing-binary"
    SPAWN = "spawn"
    NO_SPACE = "no-space"
    UNREACHABLE = "unreachable"
    GPU_LOST = "gpu-lost"
    WEIGHTS_UNAVAILABLE = "weights-unavailable"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure of a run: its class, and the words for it; where there is one, the engine's own line.

    `retry_after_s` is how long a server asked to wait before it is asked again.
    """

    kind: FailureClass
    detail: str
    retry_after_s: float | None = None


class ProbeKind(StrEnum):
    """What is asked: tokens (start, generation), an answer (alive), or what is in flight (drain)."""

    START = "start"
    ALIVE = "alive"
    GENERATION = "generation"
    DRAIN = "drain"


class Outcome(StrEnum):
    """What a probe found.

    `TOKENS` proves generation. `ANSWERED` proves that the loop turns. `BUSY` (429, 503 of a ready server) proves
    neither and is no failure. `LOADING` and `REFUSED` are expected of a start. `NO_TOKENS` is an answer without a
    token, `FAILED` a broken or refused one, `TIMED_OUT` none in time. `ASLEEP` is an engine's own word that it sleeps,
    where it was taken to be awake. `VOID` says nothing: the prober itself got no CPU.
    """

    TOKENS = "tokens"
    ANSWERED = "answered"
    BUSY = "busy"
    LOADING = "loading"
    REFUSED = "refused"
    NO_TOKENS = "no-tokens"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    ASLEEP = "asleep"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Vitals:
    """Signs of life that need no answer, read by the runtime when a probe ends. All counters only grow.

    CPU time in seconds and bytes read are of the run's whole process tree; `delivered` is the engine's own counter of
    tokens processed, `in_flight` the number of requests it works on, both None where the engine does not tell.
    """

    cpu_s: float = 0.0
    read_bytes: int = 0
    log_bytes: int = 0
    delivered: int | None = None
    in_flight: int | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """One run, as far as others need to know it. `digest` tells by what declaration it was started, `gpus` where."""

    run: int
    pid: int
    shim_pid: int
    endpoint: str
    digest: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Exit:
    """How an engine ended: an exit code or a signal, neither where that could not be learned. Sizes in bytes."""

    code: int | None = None
    signal: int | None = None
    peak_rss_bytes: int | None = None
    cpu_s: float | None = None

    def __str__(self) -> str:
        """Say it in words."""
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return "exit status unknown" if self.code is None else f"exit code {self.code}"


# Of operators and the configuration


@dataclass(frozen=True, slots=True)
class StartAsked:
    """An operator (`by`) asked for `up`, from now on and across reboots."""

    by: str = "operator"


@dataclass(frozen=True, slots=True)
class StopAsked:
    """An operator asked for `down`, from now on and across reboots."""

    by: str = "operator"


@dataclass(frozen=True, slots=True)
class RestartAsked:
    """An operator asked for a new run; wanted is `up` from now on."""

    by: str = "operator"


@dataclass(frozen=True, slots=True)
class Respecified:
    """The declaration changed; `digest` is its launch digest."""

    spec: ModelSpec
    digest: str


@dataclass(frozen=True, slots=True)
class Removed:
    """The declaration no longer has this replica."""


@dataclass(frozen=True, slots=True)
class Halted:
    """The daemon is going; what is wanted does not change."""


@dataclass(frozen=True, slots=True)
class Hurried:
    """Whoever stops the daemon asked again: first to skip the drain, then (`kill`) to skip the grace."""

    kill: bool = False


# Of demand


@dataclass(frozen=True, slots=True)
class Demanded:
    """Somebody (`by`) waits for a model that starts on demand."""

    by: str


@dataclass(frozen=True, slots=True)
class Evicted:
    """The run is to give way, or nobody needs it; `words` say to whom, or since when. With `sleep` it only sleeps."""

    run: int
    words: str
    sleep: bool = False


# Of time


@dataclass(frozen=True, slots=True)
class Ticked:
    """The deadline has come."""


@dataclass(frozen=True, slots=True)
class Lagged:
    """The daemon itself got no CPU for `gap_s` seconds until now: nothing that it missed is evidence."""

    gap_s: float


# Of effects; each carries its run


@dataclass(frozen=True, slots=True)
class Resolved:
    """The weights and the binary are there; `inputs` a fingerprint of both, `evidence` how the weights were proven.

    `size` is what it takes of GPUs, None where it uses none or that cannot be told.
    """

    run: int
    digest: str
    inputs: str
    evidence: str = ""
    size: Size | None = None


@dataclass(frozen=True, slots=True)
class Unresolved:
    """The weights or the binary cannot be used."""

    run: int
    failure: Failure
    inputs: str


@dataclass(frozen=True, slots=True)
class Rechecked:
    """The fingerprint of weights and binary of a failed replica, looked at again."""

    run: int
    inputs: str


@dataclass(frozen=True, slots=True)
class Placed:
    """It is the run's turn; of GPUs it holds `hold` from now on, None where it uses none."""

    run: int
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Waits:
    """It is not the run's turn, or no GPUs were found for it; `why` says it, GPU by GPU."""

    run: int
    why: str


@dataclass(frozen=True, slots=True)
class Beside:
    """`loading` is another replica's run that loads on a GPU of this one's, "" for none."""

    loading: str


@dataclass(frozen=True, slots=True)
class Measured:
    """The ready run was seen to use so many bytes of each GPU that it holds."""

    run: int
    bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GpuLost:
    """A GPU that the run holds does not work any more."""

    run: int
    words: str


@dataclass(frozen=True, slots=True)
class Spawned:
    """The engine's process exists. Always reported before `Exited`."""

    run: int
    process: Process


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no engine; unless `cleared`, it is not sure that nothing of the run is left."""

    run: int
    failure: Failure
    cleared: bool = True


@dataclass(frozen=True, slots=True)
class Probed:
    """A probe ended. `evidence` is for people; `before` was read when the probe was sent, `vitals` when it ended.

    What moved between the two moved while the probe waited, so that what an engine did before it froze is not
    taken for life.
    """

    run: int
    kind: ProbeKind
    outcome: Outcome
    evidence: str
    before: Vitals
    vitals: Vitals
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Delivered:
    """The gateway saw this run deliver something to a client."""

    run: int


@dataclass(frozen=True, slots=True)
class FailedClient:
    """The gateway saw this run fail a client; `words` say how, for people."""

    run: int
    words: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The engine's process ended; `failure` is how that reads had it not been asked to.

    `cleared` tells that the shim saw every descendant gone, `asked` that it had been told to end the engine, by a
    daemon whose record of it was lost, or by `modelsupd reap`.
    """

    run: int
    exit: Exit
    failure: Failure
    cleared: bool
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing of the run is left."""

    run: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """The run is not cleared: `pids` withstood SIGKILL, or `why`. The runtime looks again when asked again.

    With `gpus` every process is gone, and only their memory has not come back: they are in quarantine by now.
    """

    run: int
    pids: tuple[int, ...]
    why: str = ""
    gpus: tuple[str, ...] = ()


Event = (
    StartAsked
    | StopAsked
    | RestartAsked
    | Respecified
    | Removed
    | Halted
    | Hurried
    | Demanded
    | Evicted
    | Ticked
    | Lagged
    | Resolved
    | Unresolved
    | Rechecked
    | Placed
    | Waits
    | Beside
    | Measured
    | GpuLost
    | Spawned
    | SpawnFailed
    | Probed
    | Delivered
    | FailedClient
    | Exited
    | Cleared
    | Stuck
    | Slept
    | Woke
)
