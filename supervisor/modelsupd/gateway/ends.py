"""What a relay and its connection to an engine ask of one another."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.parsing import Headers


class Listening(Protocol):
    """A relay, as a connection to an engine sees it."""

    exchange: Exchange

    def took(self, line: EngineLine, data: bytes) -> None:
        """Learn that the last bytes held something, which stands in the line's attributes."""

    def lost(self, words: str) -> None:
        """Learn that the connection is gone before the answer was complete."""

    def failed(self, kind: str, words: str) -> None:
        """Learn that what came is no answer."""


class EngineLine(ABC):
    """A connection to an engine, as a relay sees it: what the last bytes from it held."""

    __slots__ = (
        "chunked",
        "complete",
        "headers",
        "heard",
        "length",
        "pieces",
        "reused",
        "status",
        "transport",
        "whole",
    )

    transport: asyncio.Transport
    status: int
    """Of the answer's head, 0 until that is complete."""
    pieces: list[bytes]
    headers: Headers
    """Those of the answer that go on."""
    length: int | None
    """The Content-Length."""
    chunked: bool
    """The body comes in chunks."""
    whole: bool
    """The last bytes were whole chunks and nothing else."""
    complete: bool
    heard: bool
    """Anything came for this request."""
    reused: bool

    @abstractmethod
    def begin(self, relay: Listening, *, bodiless: bool) -> None:
        """Expect the answer to a request that is about to be written."""

    @abstractmethod
    def release(self) -> None:
        """Give it back: its answer is complete."""

    @abstractmethod
    def drop(self) -> None:
        """Close it at once; nothing more is heard of it."""

    @abstractmethod
    def pause(self) -> None:
        """Stop reading."""

    @abstractmethod
    def resume(self) -> None:
        """Go on reading."""
