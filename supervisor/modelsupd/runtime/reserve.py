"""Descriptors held back, so that a run can be ended when there are no others.

A daemon that has run out of descriptors may refuse to start something, never to look after what runs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_SIZE = 8  # reading /proc and a run directory takes three at once; the others are for several runs at a time


class Reserve:
    """Descriptors that stand in for the ones that will be needed."""

    def __init__(self) -> None:
        """Take them now, as far as they are to be had."""
        self._fds: list[int] = []
        self._users = 0
        self._fill()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Give them up for as long as this lasts."""
        self._users += 1
        self.close()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._fill()

    def close(self) -> None:
        """Give them up."""
        while self._fds:
            os.close(self._fds.pop())

    def _fill(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._fds) < _SIZE:
                self._fds.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
