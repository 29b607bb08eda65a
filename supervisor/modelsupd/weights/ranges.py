"""Which bytes of a file are there."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence


class Ranges:
    """A set of bytes of a file, as ranges `[start, end)` that neither touch nor overlap."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        """Take ranges in any order."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.total = 0
        for start, end in ranges:
            self.add(start, end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the ranges, in order."""
        return iter(zip(self._starts, self._ends, strict=True))

    @property
    def prefix(self) -> int:
        """Return how many bytes are there from the file's start, without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def add(self, start: int, end: int) -> int:
        """Add a range; return how many of its bytes are new."""
        if end <= start:
            return 0
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        before = sum(self._ends[at] - self._starts[at] for at in range(first, last))
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        new = end - start - before
        self.total += new
        return new

    def gap(self, size: int) -> tuple[int, int] | None:
        """Return the first range below `size` that is not there, None when all is."""
        start = self.prefix
        if start >= size:
            return None
        after = self._starts[1:2] if start else self._starts[:1]
        return start, min([size, *after])
