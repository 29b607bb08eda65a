"""What an exchange, its client's connection and its relay ask of one another, and how a relay ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from modelsupd.gateway.base import EndedBy
from modelsupd.gateway.parsing import Headers

Pair = tuple[bytes, bytes]

#: As names of the module they are found at once; in its class CPython 3.11 looks a member up by code of its own.
BY_CLIENT: Final = EndedBy.CLIENT
BY_ENGINE: Final = EndedBy.ENGINE


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine's answer that was held back whole."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class UpstreamFailed:
    """How a run failed an exchange.

    `kind` is one of `refused`, `closed`, `timeout` (no first byte, or a stall after it), `bad-answer`,
    `status-5xx-by-dying`; or one of the two that are no evidence against the run: `unable` (the connection could not
    be made for want of something of our own) and `status` (an answer of 400 or above into a stream that had already
    begun with a status of ours). With `bytes_sent_to_client == 0` the exchange may be relayed again. `answer` is what
    the engine said, with the kinds that begin with `status`, where it came whole.
    """

    kind: str
    words: str
    bytes_sent_to_client: int
    answer: Answer | None = None


class Done:
    """How a relay ended that did not fail; `size_bytes` counts the body, `first_byte_at` is of its beginning, if any.

    `ended_by` is the engine where the answer is whole, the client where it went away, the gateway where we ended it.
    """

    __slots__ = ("ended_by", "first_byte_at", "size_bytes", "status", "words")

    def __init__(
        self, status: int, size_bytes: int, first_byte_at: float | None, ended_by: EndedBy, words: str
    ) -> None:
        """Hold this. No dataclass: one that is frozen takes a microsecond to make, and every request makes one."""
        self.status = status
        self.size_bytes = size_bytes
        self.first_byte_at = first_byte_at
        self.ended_by = ended_by
        self.words = words


class Observer(Protocol):
    """Sees an engine's answer pass by."""

    def head(self, status: int, headers: Headers) -> None:
        """See status and headers; once, before any data."""

    def data(self, piece: bytes, /) -> bytes | None:
        """See a piece of the body. None lets it pass as it is; bytes pass instead of it, none at all if they are empty.

        It is for holding back what is not whole, such as the half of an event; the rest comes with a later piece.
        """

    def end(self) -> bytes | None:
        """See the end of a whole answer. Bytes are passed as its last piece: what was held back, or a final event."""


Judge = Callable[[Answer], bool]
"""Tells whether an answer of 5xx is the word of an engine that is dying."""


class Client(ABC):
    """The connection that an exchange came by.

    A class, as all are here that have one implementation, and no protocol: compiled, its methods are called as C's are.
    """

    __slots__ = ("minor", "paused")

    minor: int
    """1 with HTTP/1.1, 0 with HTTP/1.0."""
    paused: bool
    """The client is slow to take what it has."""

    @property
    @abstractmethod
    def peer(self) -> str:
        """Return its address."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send."""

    @abstractmethod
    def closing(self) -> bool:
        """Tell whether the connection is closed after the exchange."""

    @abstractmethod
    def close_after(self) -> None:
        """Close it after the exchange."""

    @abstractmethod
    def ended(self) -> None:
        """Learn that the exchange's last byte was written."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once, so that the client sees that it did not get everything."""

    @abstractmethod
    def date(self) -> bytes:
        """Return the line that tells the time."""

    @abstractmethod
    def release_body(self) -> None:
        """Learn that the body is not needed any more."""

    @abstractmethod
    def new_id(self) -> str:
        """Return an id that no other request has."""


class Relaying(ABC):
    """A relay, as an exchange sees it."""

    __slots__ = ()

    @abstractmethod
    def start(
        self,
        observer: Observer,
        on_failed: Callable[[UpstreamFailed], None],
        on_done: Callable[[Done], None],
        first_byte_timeout_s: float,
        stall_s: float,
        judge: Judge | None,
    ) -> None:
        """Send the request."""

    @abstractmethod
    def cancel(self, ended_by: EndedBy, words: str) -> None:
        """Close the engine's connection, and report the relay done."""

    @abstractmethod
    def pause(self) -> None:
        """Take no more from the engine for now."""

    @abstractmethod
    def resume(self) -> None:
        """Go on."""
