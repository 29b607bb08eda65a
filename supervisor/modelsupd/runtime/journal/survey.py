"""Looking at every segment for what is intact, torn, damaged and abandoned, beyond the first bad byte."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from modelsupd.runtime.journal.frame import Chain, Found, head_of, resynchronise, synced_to
from modelsupd.runtime.journal.reader import Damaged, Fold, Link, Unreadable, beginning, link_of, numbered


@dataclass(frozen=True, slots=True)
class Place:
    """What a record must begin with: its `seq`, and as `prev` the crc of the one before."""

    seq: int
    prev: int


@dataclass(frozen=True, slots=True)
class Bad:
    """Bytes `begin:end` that hold no record in order; `expected` and `after` are the places of what belongs there and
    of what follows, None where that is not known.
    """  # noqa: D205 - the attributes need more than a line

    begin: int
    end: int
    expected: Place | None
    after: Place | None


@dataclass(slots=True)
class Segment:
    """One segment as found: `bad` is damage, `torn` the torn tail, `intact` the records in order around them.

    `data` is as long as the segment is known to have been: where the file is shorter, NULs stand for what is missing.
    """

    path: Path
    size_bytes: int
    data: bytes
    link: Link | None
    newest: bool
    bad: list[Bad] = field(default_factory=list)
    torn: Bad | None = None
    intact: list[tuple[int, bytes]] = field(default_factory=list)
    end: Chain = field(default_factory=lambda: Chain(1, 0))

    def fold(self, base: Fold) -> Fold:
        """Return `base` with the intact records, damage skipped."""
        folded = Fold(dict(base.states), base.start)
        for _, payload in self.intact:
            folded.add(json.loads(payload))
        return folded


def _lines(data: bytes, begin: int, end: int) -> Iterator[bytes]:
    stream = io.BytesIO(data[:end])
    stream.seek(begin)
    return iter(stream)


def _next_in_order(data: bytes, begin: int, end: int, expected: Place | None) -> Found | None:
    """Return the next whole line that can stand after what was expected."""
    for found in resynchronise(data[:end], begin):
        place = place_of(found.payload)
        later = expected is None or place.seq > expected.seq or place == expected
        if later and data[found.end - 1 : found.end] == b"\n":
            return found
    return None


def place_of(payload: bytes) -> Place:
    """Return the place that an intact record of ours states."""
    head = head_of(payload)
    if head is None:
        raise ValueError(f"cannot place a record: it begins {payload[:40]!r}")
    return Place(*head)


def walk(segment: Segment, end: int, after: Place | None) -> None:
    """Fill in what is intact and what is bad up to `end`; `after` is the place of the next segment's first record."""
    data = segment.data
    try:
        _, chain = beginning(segment.path.name, next(_lines(data, 0, end), b""))
    except Unreadable:
        raise
    except Damaged:
        found = _next_in_order(data, 0, end, None)
        place = place_of(found.payload) if found else after
        segment.bad.append(Bad(0, found.begin if found else end, None, place))
        if found is None:
            segment.end = Chain(after.seq if after else 1, after.prev if after else 0, end)
            return
        chain = Chain(place.seq, place.prev, found.begin) if place else Chain(1, 0)
    while True:
        begin = chain.end
        for payload in chain.follow(_lines(data, begin, end)):
            segment.intact.append((begin, payload))
            begin = chain.end
        expected = Place(chain.seq, chain.prev)
        if chain.end >= end:
            if after is not None and expected != after:  # whole records are missing, and no byte stands for them
                segment.bad.append(Bad(end, end, expected, after))
            break
        found = _next_in_order(data, chain.end, end, expected)
        place = place_of(found.payload) if found else after
        segment.bad.append(Bad(chain.end, found.begin if found else end, expected, place))
        if found is None or place is None:
            chain = Chain(place.seq, place.prev, end) if place else replace(chain, end=end)
            break
        chain = Chain(place.seq, place.prev, found.begin)
    segment.end = chain


def _settle(segment: Segment) -> None:
    """Tell damage from a torn tail where no other segment does: damage is what an intact record proves synced."""
    if not segment.bad:
        return
    first_bad = segment.bad[0].begin
    proofs = [synced_to(found.payload) or 0 for found in resynchronise(segment.data, first_bad)]
    proven = max(proofs, default=0)
    unproven = [bad for bad in segment.bad if bad.begin >= max(proven, 1)]  # a first record is always proven
    if not unproven:
        return
    torn = unproven[0]
    segment.bad = [bad for bad in segment.bad if bad.begin < torn.begin]
    segment.intact = [item for item in segment.intact if item[0] < torn.begin]
    segment.torn = Bad(torn.begin, len(segment.data), torn.expected, None)
    expected = torn.expected or Place(1, 0)
    segment.end = Chain(expected.seq, expected.prev, torn.begin)


def segments(directory: Path) -> tuple[list[Segment], list[Path]]:
    """Return the segments that count, oldest first, and the files of those that do not. Raise Unreadable.

    Where a segment's first record is bad, the one with the next lower number is taken for the one before.
    """
    files = numbered(directory) if directory.is_dir() else {}
    others = set(files.values())
    found: list[Segment] = []
    path = files[max(files)] if files else None
    counts_to: int | None = None
    after: Place | None = None
    while path is not None and path in others:
        others.remove(path)
        data = path.read_bytes()
        size = len(data)
        newest = not found
        data = data.rstrip(b"\0") if counts_to is None else data[:counts_to].ljust(counts_to, b"\0")
        segment = Segment(path, size, data, None, newest)
        walk(segment, len(data), after)
        if counts_to is None:
            _settle(segment)
        first = next((json.loads(payload) for begin, payload in segment.intact if begin == 0), None)
        if first is not None:
            segment.link = link_of(first)
            after = place_of(segment.intact[0][1])
            counts_to = segment.link.to if segment.link else None
            path = directory / segment.link.segment if segment.link else None
        else:
            after, counts_to = None, None
            path = max((other for other in others if other.name < path.name), default=None)
        found.append(segment)
    found.reverse()
    for earlier, later in pairwise(found):
        if later.link is None:  # its first record is bad: the one before counts as far as it goes
            later.link = Link(earlier.path.name, earlier.end.end)
    return found, sorted(others)
