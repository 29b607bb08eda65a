"""What the modules of the gateway hand to one another. Instants are on the event loop's clock, sizes in bytes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Availability(StrEnum):
    """What a request for a model can expect.

    One that is loading, or that starts on demand and has no process now, is waited for; the other two are refused.
    """

    READY = "ready"
    LOADING = "loading"
    ON_DEMAND = "on-demand"
    DOWN = "down"
    FAILED = "failed"


@dataclass(frozen=True)  # with slots it could not keep its key
class Run:
    """An engine's process that may be routed to. `endpoint` is `unix:/path` or `http://127.0.0.1:port`.

    `unread_timeout_s` is how long a client may take nothing of its answer, where that holds up all others; None where
    the gateway's own limit will do.
    """

    replica: str
    run: int
    endpoint: str
    draining: bool = False
    unread_timeout_s: float | None = None

    @functools.cached_property
    def key(self) -> str:
        """Return what it is called in headers, records and metrics: `qwen/0#7`."""
        return f"{self.replica}#{self.run}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as clients may ask for it, and what it can do now.

    `reason` is for people where it is not ready (`loading: 62 %`), `retry_after_s` how long a client may wait before it
    asks again. `context_length` counts tokens, None where it is not known. `capabilities` are words such as `images`,
    `tools`, `embedding`, by which `auto` chooses. `on_demand` says that requests start it, whatever its state is now.
    """

    name: str
    aliases: tuple[str, ...] = ()
    engine: str = ""
    availability: Availability = Availability.DOWN
    on_demand: bool = False
    reason: str = ""
    retry_after_s: float = 5.0
    runs: tuple[Run, ...] = ()
    context_length: int | None = None
    capabilities: tuple[str, ...] = ()
    created_s: int = 0
    max_concurrent: int = 0
    max_queued: int = 64
    queue_timeout_s: float = 60.0
    start_wait_s: float = 120.0
    stream_stall_s: float = 120.0
    first_byte_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Table:
    """All models, in the configured order, and the names that stand for `auto`'s choice, best first."""

    models: Mapping[str, Model] = field(default_factory=dict)

    def find(self, name: str) -> Model | None:
        """Return the model of this name or alias."""
        found = self.models.get(name)
        if found is not None:
            return found
        return next((model for model in self.models.values() if name in model.aliases), None)


class Api(StrEnum):
    """The API that a request speaks: it decides the shape of errors."""

    CHAT = "chat"
    COMPLETION = "completion"
    RESPONSES = "responses"
    MESSAGES = "messages"
    OTHER = "other"


class EndedBy(StrEnum):
    """Who ended an exchange."""

    ENGINE = "engine"
    CLIENT = "client"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a gateway's connections. Times in seconds."""

    max_head_bytes: int = 32768
    max_headers: int = 128
    max_body_bytes: int = 64 * 1024 * 1024
    buffered_bytes: int = 512 * 1024 * 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 300.0
    stream_buffer_bytes: int = 262144
    max_connections: int = 16384
    upstream_idle_s: float = 4.0
    vanished_after_s: float = 60.0
