"""Buffers in which the file was received in order, on their way to its digest: nobody has to read back what they hold.

Rules:

1. Only what was written and recorded is passed on, so that the digest is of no byte that a later call would not find.
2. What is passed on has no gap: each buffer begins where the one before it ended. What comes in another order is read
   back from the file.
3. Who receives in order waits while all buffers are under way: a network that is faster than a core hashes would only
   take the cores' time from hashing.
"""

from __future__ import annotations

import threading
from collections import deque

_LOOK_EVERY_S = 0.1


class InOrder:
    """The buffers of one transfer. Every method is called with the condition held that it was made with."""

    def __init__(self, changed: threading.Condition, count: int, size: int) -> None:
        """Make `count` buffers of `size` bytes when they are needed, beside those that `new` gives out."""
        self._changed = changed
        self._size = size
        self._left = count
        self._free: list[memoryview] = []
        self._passed: deque[tuple[memoryview, memoryview]] = deque()
        self._next_at = 0
        #: Whether somebody waits for a buffer to pass on what is next.
        self.is_coming = False

    def new(self) -> memoryview:
        """Return a buffer for somebody who receives."""
        return memoryview(bytearray(self._size))

    def begin(self, at: int) -> None:
        """Have the next buffer begin there: the digest reads what is before it from the file.

        None may be under way, nor coming.
        """
        self._next_at = at

    def passed(self, start: int, end: int, buffer: list[memoryview], ended: threading.Event) -> bool:
        """Pass the bytes `[start, end)` on, which are at the beginning of a buffer, and replace it by a free one.

        Tell whether it was done; it is not where other bytes are next.
        """
        if start != self._next_at or start == end:
            return False
        self.is_coming = True
        while not self._free and not self._left and not ended.is_set():
            self._changed.wait(_LOOK_EVERY_S)
        self.is_coming = False
        if ended.is_set():
            return False
        self._passed.append((buffer[0][: end - start], buffer[0]))
        self._next_at = end
        if self._free:
            buffer[0] = self._free.pop()
        else:
            self._left -= 1
            buffer[0] = self.new()
        self._changed.notify_all()
        return True

    def taken(self) -> tuple[memoryview, memoryview] | None:
        """Return the next bytes and their buffer, which is to be given back; None where none is under way."""
        return self._passed.popleft() if self._passed else None

    def give_back(self, buffer: memoryview) -> None:
        """Take a buffer back whose bytes were hashed."""
        self._free.append(buffer)
        self._changed.notify_all()
