"""An observer of answers that only counts, for tests and measurements of the relay."""

from __future__ import annotations

from modelsupd.gateway.parsing import Headers


class Counter:
    """The observer that only counts."""

    __slots__ = ("bytes", "ended", "status")

    def __init__(self) -> None:
        """Count from nothing."""
        self.bytes = 0
        self.status = 0
        self.ended = False

    def head(self, status: int, headers: Headers) -> None:  # noqa: ARG002 - the protocol's
        """Note the status."""
        self.status = status

    def data(self, piece: bytes, /) -> bytes | None:
        """Count."""
        self.bytes += len(piece)
        return None

    def end(self) -> bytes | None:
        """Note the end."""
        self.ended = True
        return None
