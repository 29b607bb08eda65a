"""What the daemon and a gateway say to each other: one JSON object a line, over the unix stream `RUNTIME/gateway.sock`.

The daemon listens, every gateway dials, and dials again whenever it finds itself alone. Both sides begin with all that
they know, and go on with what changes:

| message | from | when |
|---|---|---|
| `Hello` | gateway | first, with the listening sockets that it holds and all of its traffic |
| `Welcome` | daemon | its answer: the whole table, with listening sockets if the gateway is to use these |
| `Models` | daemon | models changed or went |
| `Accept`, `Drain` | daemon | take new connections from now on; or take none, and finish what there is |
| `TrafficReport` | gateway | runs of which something changed; every `TRAFFIC_EVERY_S`, and as below |
| `Demand` | gateway | what is waited for changed; behind a `TrafficReport`, if anything of traffic did, too |
| `Seen` | gateway | at once: the table of this number is what requests go by from now on |
| `Evidence` | gateway | at once: a run failed a client |

Each line is `{"v": 1, "type": "hello", …}`. A type or key that is not known is passed over: the other side may be
newer. A line that cannot be read ends the connection, and the next one begins from the whole again. Listening sockets
travel as SCM_RIGHTS on the first byte of the message that says how many there are (`sockets`).

Demand is told at once when requests begin to wait for a model that is not ready, or none of them waits any more. While
there are such, the daemon decides who gives way to whom; so until then it also hears at once when the first request
begins to wait for any other model or the last one stops, and when a run has nothing in flight any more. What changes in
one turn of the loop is told together, and no more than `URGENT_BURST` times in a row do tellings follow each other in
less than `URGENT_EVERY_S`. All else goes with the next report.

Instants are seconds of CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from modelsupd.gateway import plain
from modelsupd.gateway.base import Model, Table

VERSION = 1

#: The socket's name in the runtime directory.
SOCKET_NAME = "gateway.sock"

#: A longer line is a defect, or not ours. A model is some 500 bytes, with its runs.
MAX_LINE_BYTES = 16 * 1024 * 1024

#: As many addresses can be listened on (the kernel lets 253 descriptors travel with one message).
MAX_SOCKETS = 64

TRAFFIC_EVERY_S = 0.5

#: Of what is told at once: the least time between two on average, and how many may come without regard to it. The first
#: bounds what a busy model costs while another one is waited for, the second keeps a change of models from waiting.
URGENT_EVERY_S = 0.005
URGENT_BURST = 20


class WireError(ValueError):
    """A line that cannot be read, with the reason. The connection it came by is of no more use."""


class Kind(StrEnum):
    """How a run failed a client; `Evidence.kind` is one of these, or a word of a newer gateway."""

    REFUSED = "refused"
    CLOSED = "closed"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    BAD_ANSWER = "bad-answer"
    DYING = "status-5xx-by-dying"
    ERROR_IN_STREAM = "error-in-stream"
    NO_TOKENS = "no-tokens"
    NO_FINISH_REASON = "no-finish-reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one run has delivered through this gateway since it first heard of it. All but `in_flight` only grow."""

    run: str
    """`Run.key`, as `qwen/0#7`."""
    in_flight: int = 0
    requests: int = 0
    """Begun, whatever came of them."""
    bytes: int = 0
    """Of bodies."""
    events: int = 0
    """Of streams; an answer that is no stream counts as one."""
    errors: int = 0
    """Requests that the run failed: evidence of each was sent."""
    last_delivery_at: float | None = None
    """When the last byte of a body came; None while there was none."""
    quiet_since: float | None = None
    """Since when nothing was delivered although requests are in flight; None while there are none."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many requests wait for a model, by its own name, be it for its start or their turn; the oldest since when."""

    model: str
    waiting: int
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """Who dials, and all that it knows. `listening` says that it takes connections; `sockets` come with the message.

    One that does not say of itself that it `tells_seen` is older than that.
    """

    run: str
    pid: int
    listening: bool = False
    draining: bool = False
    sockets: int = 0
    connections: int = 0
    table_seq: int | None = None
    tells_seen: bool = False
    traffic: tuple[Traffic, ...] = ()
    wanted: tuple[Wanted, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficReport:
    """The runs of which something changed. One that is no longer in the table and has nothing in flight is left out."""

    traffic: tuple[Traffic, ...]


@dataclass(frozen=True, slots=True)
class Demand:
    """Every model that requests wait for; who is left out is waited for by none. The whole of it each time."""

    wanted: tuple[Wanted, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """No request goes by an older table any more than that of this number."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A run failed a client. `words` are for people, and hold nothing of prompts or answers."""

    run: str
    kind: str
    words: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The whole table, in the configured order. With `sockets`, they take the place of those that the gateway had."""

    seq: int
    models: tuple[Model, ...]
    accept: bool
    sockets: int = 0

    @property
    def table(self) -> Table:
        """Return the table as the gateway works with it."""
        return Table({model.name: model for model in self.models})


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Models that changed, or went. `order` is the configured order of all names, empty where it has not changed."""

    seq: int
    changed: tuple[Model, ...] = ()
    removed: tuple[str, ...] = ()
    order: tuple[str, ...] = ()

    def applied_to(self, table: Table) -> Table:
        """Return the table with these changes in it."""
        models = {name: model for name, model in table.models.items() if name not in self.removed}
        models |= {model.name: model for model in self.changed}
        if self.order:
            place = {name: index for index, name in enumerate(self.order)}
            models = dict(sorted(models.items(), key=lambda item: place.get(item[0], len(place))))
        return Table(models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept:
    """Take new connections from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take no new connection; answer what comes by those that are there. The sockets stay open until the very end."""


Message = Hello | TrafficReport | Demand | Seen | Evidence | Welcome | Models | Accept | Drain

_TYPES: dict[str, type[Message]] = {
    "hello": Hello,
    "traffic": TrafficReport,
    "demand": Demand,
    "seen": Seen,
    "evidence": Evidence,
    "welcome": Welcome,
    "models": Models,
    "accept": Accept,
    "drain": Drain,
}
_WORDS = {cls: word for word, cls in _TYPES.items()}


def encode(message: Message) -> bytes:
    """Return a message as its line, newline included."""
    body = {"v": VERSION, "type": _WORDS[type(message)], **plain.write(message)}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode(errors="replace") + b"\n"


def decode(line: bytes) -> Message | None:
    """Return the message of a line; None for a type that is not known here. Raises `WireError`."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError(f"cannot read a line: {error}") from error
    if not isinstance(raw, dict) or raw.get("v") != VERSION:
        version = raw.get("v") if isinstance(raw, dict) else None
        raise WireError(f"cannot read a line of version {version!r}: this is {VERSION}")
    cls = _TYPES.get(str(raw.get("type")))
    if cls is None:
        return None
    try:
        return plain.read(cls, raw)
    except plain.Unreadable as error:
        raise WireError(f"cannot read '{raw['type']}': {error}") from error


def sockets_of(message: Message) -> int:
    """Return how many listening sockets come with a message."""
    return message.sockets if isinstance(message, Hello | Welcome) else 0
