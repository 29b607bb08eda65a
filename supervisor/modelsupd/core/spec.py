"""What the operator declared.

Frozen dataclasses that `config` fills from models.toml through pydantic; there is no second model of the same thing.
Each field's metadata holds its one-line description and its range; `config` reads both for its checks and for the JSON
Schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Literal

from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.gpu_spec import STRICT as _STRICT
from modelsupd.core.gpu_spec import GpusSpec, PlacementSpec
from modelsupd.core.gpu_spec import limit as _limit

#: What may follow `[models.` : what OpenAI clients send as a model's name, such as `qwen3:8b` or `org/model`.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/+@-]{0,126}[A-Za-z0-9])?")

Argument = str | int | float | bool | tuple[str | int | float, ...]
"""One of the engine's own flags: a scalar, or several values for a flag that is repeated."""


class Engine(StrEnum):
    """A kind of backend."""

    LLAMA_CPP = "llama.cpp"
    LLAMA_CPP_PYTHON = "llama-cpp-python"
    VLLM = "vllm"
    COMMAND = "command"
    GATEWAY = "gateway"
    """modelsupd's own; nobody declares a model of it."""


class Start(StrEnum):
    """When a model is started without being asked to."""

    ALWAYS = "always"
    ON_DEMAND = "on-demand"
    MANUAL = "manual"


class ProbeRequest(StrEnum):
    """The request by which an engine shows that it generates."""

    COMPLETION = "completion"
    CHAT = "chat"
    EMBEDDING = "embedding"


class Capability(StrEnum):
    """What a model can do, by which `auto` chooses. One with `embedding` generates only if it has `chat`, too."""

    CHAT = "chat"
    IMAGES = "images"
    AUDIO = "audio"
    TOOLS = "tools"
    EMBEDDING = "embedding"
    RERANK = "rerank"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """How life is proven, and after how long its absence is a verdict. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    probe_interval_s: float = _limit(5.0, "pause between two probes of a ready engine", gt=0)
    probe_timeout_s: float = _limit(10.0, "how long one probe may take", gt=0)
    hang_after_s: float = _limit(60.0, "no answer, no delivery and no progress for this long: hung", gt=0)
    busy_limit_s: float = _limit(
        600.0, "how long use of CPU alone, with no probe answered, puts the verdict 'hung' off", ge=0
    )
    prove_every_s: float = _limit(60.0, "without delivered tokens for this long, a generation probe asks for one", gt=0)
    look_timeout_s: float = _limit(
        30.0, "how long the file system of weights and binary may take to answer, before a start", gt=0
    )
    start_interval_s: float = _limit(
        0.25, "longest pause between two probes of a starting engine; 4 % of the time it has taken, if less", gt=0
    )
    start_stall_s: float = _limit(300.0, "a start without any progress for this long has stalled", gt=0)
    start_stall_factor: float = _limit(
        4.0,
        "the same, in multiples of the longest pause of its last start that succeeded; 0: no matter",
        ge=0,
    )
    start_stall_least_s: float = _limit(60.0, "but no start is called stalled before this", gt=0)
    start_limit_s: float = _limit(3600.0, "hard cap on one start, progress or not", gt=0)
    probe_request: ProbeRequest | None = _limit(
        None, "request that proves generation; by default 'chat' for command, else 'completion'"
    )
    probe_tokens: int = _limit(4, "tokens that a generation probe asks for", gt=0)
    alive_path: str | None = _limit(
        None, "path whose 200 shows that the server answers; by default the engine's own, for command '/v1/models'"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLimits:
    """How an engine is ended. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    drain_timeout_s: float = _limit(30.0, "how long requests in flight may take to finish", ge=0)
    term_timeout_s: float = _limit(10.0, "between SIGTERM and SIGKILL", ge=0)
    load_term_timeout_s: float = _limit(2.0, "the same while the engine still loads", ge=0)
    kill_timeout_s: float = _limit(10.0, "after SIGKILL, before a process is called stuck", gt=0)
    beside_load_timeout_s: float = _limit(
        120.0, "how long a stop waits for another run that loads on the same GPU", ge=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """What follows a failure. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    healthy_after_s: float = _limit(10.0, "ready for this long: the next crash is restarted at once", ge=0)
    backoff_initial_s: float = _limit(1.0, "first pause of a repeated crash", gt=0)
    backoff_factor: float = _limit(2.0, "by what the pause grows", ge=1)
    backoff_max_s: float = _limit(60.0, "longest pause", gt=0)
    jitter: float = _limit(0.1, "part by which a pause is stretched at most, derived from name and run", ge=0, le=1)
    max_crashes: int = _limit(5, "more failures than this within window_s: failed", ge=0)
    window_s: float = _limit(600.0, "the window in which failures are counted", gt=0)
    cool_down_s: float = _limit(300.0, "a failed replica is tried once more after this long", gt=0)
    cool_down_factor: float = _limit(2.0, "by what the cool-down grows", ge=1)
    cool_down_max_s: float = _limit(3600.0, "longest cool-down", gt=0)
    recheck_s: float = _limit(
        5.0, "how often weights, binary and config of a replica that failed for good are looked at for a change", gt=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """How much of an engine's output is kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    max_bytes: int = _limit(16 * 1024 * 1024, "size at which a run's log is rotated", ge=4096)
    files: int = _limit(3, "rotated files kept beside the current one, per run", ge=0, le=1000)
    keep_runs: int = _limit(10, "ended runs of a replica whose logs are kept", ge=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGateway:
    """What the gateway lets a model's clients do, and how long they may wait. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    max_concurrent: int = _limit(0, "requests in flight at once, over all replicas; 0 for no limit", ge=0)
    max_queued: int = _limit(64, "requests that may wait for their turn; one more gets 429", ge=0)
    queue_timeout_s: float = _limit(60.0, "longest wait for a turn, before 429", gt=0)
    start_wait_s: float = _limit(120.0, "longest wait for a model that is loading, before 503", ge=0)
    first_byte_timeout_s: float = _limit(600.0, "longest wait for the first byte of an engine's answer", gt=0)
    stream_stall_s: float = _limit(120.0, "a stream in which nothing comes for this long is ended with an error", gt=0)
    context_length: int | None = _limit(
        None, "tokens that prompt and answer may have together; by default as the engine is told", ge=1
    )
    capabilities: tuple[Capability, ...] = _limit(
        (), "what it can do, by which 'auto' chooses: chat | images | audio | tools | embedding | rerank"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A `[models.NAME]` entry: what clients ask for, and how it is run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    engine: Engine = field(metadata={"doc": "kind of backend: vllm | llama.cpp | llama-cpp-python | command"})
    weights: str | None = _limit(
        None, "hf:ORG/REPO[@REVISION][/FILE] of the hub, or a local file or folder, relative to models.toml"
    )
    mmproj: str | None = _limit(None, "multimodal projector that belongs to the weights, from hub or disk as they are")
    draft: str | None = _limit(None, "smaller model that drafts for the weights, from hub or disk as they are")
    lora: tuple[str, ...] = _limit((), "LoRA adapters over the weights, each from hub or disk as they are")
    lora_scales: tuple[float, ...] = _limit(
        (), "how strongly each LoRA adapter is applied, in their order; by default 1"
    )
    allow: tuple[str, ...] = _limit((), "of a whole repository of the hub, only the files that match one of these")
    ignore: tuple[str, ...] = _limit((), "of a whole repository of the hub, no file that matches one of these")
    sha256: str | None = _limit(None, "of weights that are a single file: start with no other content than this")
    command: tuple[str, ...] = _limit(
        (), "for engine = command: the argv; {socket}, or {host} and {port}, {weights} and {model} are filled in"
    )
    binary: str | None = _limit(None, "the engine's binary, over [engines]")
    python: str | None = _limit(None, "the interpreter whose environment holds the engine, over [engines]")
    aliases: tuple[str, ...] = _limit((), "further names by which clients may ask for it")
    replicas: int | Literal["per-gpu"] = _limit(1, "how many copies run: 1 to 512, or 'per-gpu'")
    gpus: int | tuple[str, ...] = _limit(0, "GPUs per replica: how many, or the UUIDs of those that it runs on")
    start: Start = _limit(Start.ALWAYS, "always | on-demand | manual")
    args: Mapping[str, Argument] = field(
        default_factory=dict, metadata={"doc": "the engine's own flags, in its own names"}
    )
    env: Mapping[str, str] = field(
        default_factory=dict, metadata={"doc": "added to an environment that is built, not inherited"}
    )
    placement: PlacementSpec = field(
        default_factory=PlacementSpec, metadata={"doc": "which GPUs it runs on, and what it takes there"}
    )
    demand: DemandSpec = field(default_factory=DemandSpec, metadata={"doc": "how models on demand take turns"})
    health: HealthLimits = field(default_factory=HealthLimits, metadata={"doc": "limits of health"})
    stop: StopLimits = field(default_factory=StopLimits, metadata={"doc": "limits of stopping"})
    restart: RestartPolicy = field(default_factory=RestartPolicy, metadata={"doc": "what follows a failure"})
    log: LogLimits = field(default_factory=LogLimits, metadata={"doc": "how much output is kept"})
    gateway: ModelGateway = field(default_factory=ModelGateway, metadata={"doc": "what its clients may do"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An `[engines.KIND]` entry: where an engine lives."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    binary: str | None = _limit(None, "path of the engine's binary; by default found on PATH")
    python: str | None = _limit(
        None, "for an engine that is a Python package: the interpreter whose environment holds it; by default our own"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLimits:
    """How much history the journal keeps."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    segment_bytes: int = _limit(8 * 1024 * 1024, "size at which a new segment is opened from a snapshot", ge=65536)
    keep_bytes: int = _limit(64 * 1024 * 1024, "history kept, in bytes", ge=0)
    keep_days: float = _limit(90.0, "history kept, in days", ge=0)
    reserve_bytes: int = _limit(1024 * 1024, "space held back for when the disk is full", ge=4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonSpec:
    """The `[daemon]` entry. Empty paths mean the defaults for root or for a plain user."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    state_dir: str | None = _limit(None, "journal, logs, verdicts")
    runtime_dir: str | None = _limit(None, "sockets, live runs")
    metrics_listen: str | None = _limit("127.0.0.1:9310", "loopback address of the Prometheus scrape; '' for none")
    log_level: str = _limit("info", "debug | info | warning | error")
    journal: JournalLimits = field(default_factory=JournalLimits, metadata={"doc": "how much history is kept"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """The `[weights]` entry: where weights of the hub are kept and how they are fetched. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    cache_dir: str | None = _limit(None, "cache in the hub's own layout, which other tools may share")
    endpoint: str | None = _limit(None, "address of the hub or a mirror; by default HF_ENDPOINT, else the hub's own")
    token_file: str | None = _limit(None, "file that holds the token for private and gated repositories")
    offline: bool = _limit(False, "ask no hub: use what is there; HF_HUB_OFFLINE=1 does the same")
    downloads: int = _limit(2, "models that are fetched side by side", ge=1, le=32)
    parts: int = _limit(4, "connections over which a large file is fetched", ge=1, le=32)
    part_bytes: int = _limit(
        8 * 1024 * 1024, "what a connection fetches at a time; less is fetched twice after a kill", ge=65536, le=2**30
    )
    stall_timeout_s: float = _limit(30.0, "a connection that delivers nothing for this long is given up", gt=0)
    attempts: int = _limit(8, "attempts in a row without any progress, before a fetch is given up", ge=1, le=1000)
    backoff_initial_s: float = _limit(1.0, "first pause between two attempts", gt=0)
    backoff_max_s: float = _limit(60.0, "longest pause between two attempts", gt=0)
    change_look_s: float = _limit(
        60.0, "how often it is looked whether what running engines were started from has changed on disk", gt=0
    )
    min_free_bytes: int = _limit(256 * 1024 * 1024, "space on the disk that a fetch leaves free", ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLimits:
    """Limits of the gateway's connections. Times in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    max_head_bytes: int = _limit(32768, "request line and headers; more gets 431", ge=1024, le=1048576)
    max_headers: int = _limit(128, "headers of a request; more gets 431", ge=8, le=10000)
    max_body_bytes: int = _limit(64 * 1024 * 1024, "body of a request; more gets 413", ge=1024)
    buffered_bytes: int = _limit(512 * 1024 * 1024, "bodies of all requests together; more gets 503", ge=65536)
    head_timeout_s: float = _limit(10.0, "longest time for a request's head to come in whole", gt=0)
    body_timeout_s: float = _limit(60.0, "longest pause within a request's body", gt=0)
    idle_timeout_s: float = _limit(75.0, "how long a connection without a request is kept open", gt=0)
    write_timeout_s: float = _limit(300.0, "how long a client may take nothing of its answer", gt=0)
    stream_buffer_bytes: int = _limit(
        262144, "what is held of an answer that a client does not take; then the engine waits", ge=4096
    )
    max_connections: int = _limit(16384, "connections of clients at once; one more gets 503", ge=1)
    upstream_idle_s: float = _limit(4.0, "how long an unused connection to an engine is kept; vLLM closes at 5", gt=0)
    vanished_after_s: float = _limit(
        60.0,
        "a client whose machine has answered nothing for this long, not even TCP's own questions, is gone",
        ge=4,
        le=43200,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLogLimits:
    """How much is kept of the gateway's record of requests."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    max_bytes: int = _limit(64 * 1024 * 1024, "size at which access.log is rotated", ge=4096)
    files: int = _limit(5, "rotated files kept beside the current one", ge=0, le=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoRule:
    """A `[[gateway.auto]]` entry: a request for `auto` that is all of this goes to the first of `models` that can."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    models: tuple[str, ...] = field(metadata={"doc": "names or aliases, best first"})
    images: bool | None = _limit(None, "true: with images; false: without; by default either")
    tools: bool | None = _limit(None, "true: with tools; false: without; by default either")
    prompt_over_tokens: int = _limit(0, "prompts of more than this many tokens, estimated; 0 for any", ge=0)
    prompt_up_to_tokens: int | None = _limit(None, "prompts of at most this many tokens, estimated", ge=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySpec:
    """The `[gateway]` entry: one OpenAI-compatible address for all models. Without it there is no gateway."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    enabled: bool = _limit(True, "false: no gateway, as if there were no such table")
    listen: str | tuple[str, ...] = _limit("127.0.0.1:8080", "HOST:PORT, or a list of several")
    open_to_network: bool = _limit(
        False, "listen beyond loopback though there are no keys: whoever reaches it is served"
    )
    tls_cert: str | None = _limit(None, "file with the certificate and its chain, in PEM; by default plain HTTP")
    tls_key: str | None = _limit(None, "file with the certificate's private key, in PEM")
    cors_origins: tuple[str, ...] = _limit((), "origins whose pages may use it from a browser; '*' for all")
    drain_timeout_s: float = _limit(30.0, "how long answers may take to finish when it stops or is replaced", ge=0)
    warm_after_s: float = _limit(
        15.0, "a streaming client that waits for a model gets a comment each time so long has passed; 0: never", ge=0
    )
    session_headers: tuple[str, ...] = _limit(
        ("x-session-id", "x-session-affinity"),
        "headers whose value says which requests belong together, the first that is there: one replica gets them",
    )
    limits: GatewayLimits = field(default_factory=GatewayLimits, metadata={"doc": "limits of connections"})
    access_log: AccessLogLimits = field(
        default_factory=AccessLogLimits, metadata={"doc": "how much is kept of the record of requests"}
    )
    auto: tuple[AutoRule, ...] = _limit((), "which models stand for 'auto'; the first rule that fits decides")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """All of models.toml."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT
    daemon: DaemonSpec = field(default_factory=DaemonSpec, metadata={"doc": "the daemon itself"})
    weights: WeightsSpec = field(
        default_factory=WeightsSpec, metadata={"doc": "where weights of the hub are kept and how they are fetched"}
    )
    gateway: GatewaySpec | None = _limit(None, "one OpenAI-compatible address for all models")
    gpus: GpusSpec = field(default_factory=GpusSpec, metadata={"doc": "how the host's GPUs are looked after"})
    engines: Mapping[str, EngineSpec] = field(default_factory=dict, metadata={"doc": "where engines live"})
    models: Mapping[str, ModelSpec] = field(default_factory=dict, metadata={"doc": "what clients may ask for"})


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a declaration: the setting's path, its value, and why it cannot be used."""

    path: tuple[str, ...]
    value: object
    why: str


#: Of the number of replicas.
MOST_REPLICAS = 512


def gpu_count(spec: ModelSpec) -> int:
    """Return on how many GPUs a replica runs; 0 means on none."""
    return spec.gpus if isinstance(spec.gpus, int) else len(spec.gpus)


#: What decides about a process only where it is given. Left out of the digest where it is not, so that those which the
#: journal holds from before there was such a field stay what they are.
_WHERE_GIVEN = ("mmproj", "draft", "lora", "lora_scales", "allow", "ignore")


def launch_digest(spec: ModelSpec, binary: str = "") -> str:
    """Return 16 hex digits that change when, and only when, the engine's process would be started differently.

    Limits, aliases and the number of replicas are the supervisor's own and can change under a running engine. So can
    what its weights have to be, by `sha256` and the lock file: an engine goes on with what it loaded, and says so.
    """
    launched = {
        "engine": spec.engine,
        "weights": spec.weights,
        "command": spec.command,
        "binary": spec.binary or binary,
        "gpus": spec.gpus,
        "args": dict(spec.args),
        "env": dict(spec.env),
        "log": dataclasses.asdict(spec.log),
    }
    launched |= {name: value for name in _WHERE_GIVEN if (value := getattr(spec, name))}
    launched |= {"sleeps": True} if spec.demand.sleep else {}
    return hashlib.sha256(json.dumps(launched, sort_keys=True).encode()).hexdigest()[:16]
