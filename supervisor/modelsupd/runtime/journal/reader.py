"""Reading the journal; nothing here writes.

Two rules:

1. Bad bytes are *damage* only if something intact proves that they had been synced: a later record of the same segment
   by its `synced_to`, or the next segment by its `follows`. Otherwise they are a *torn* tail, as a power cut leaves it.
2. Which segments belong together is said by their `follows`, read from the newest backwards, and so is how far each
   counts. Bytes beyond that were written but never acknowledged, and a segment that none follows is abandoned.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelsupd.runtime.journal.frame import (
    VERSION,
    Chain,
    encode,
    head_of,
    payload_of,
    resynchronise,
    synced_to,
    version_of,
)

SEGMENT = re.compile(r"([0-9]{8,})\.seg")


class Damaged(Exception):  # noqa: N818 - the contract of this package: what is wrong is the name
    """Bytes that had been synced are not what was written.

    `segment` is the file's name, `offset` the first bad byte in it, `why` what is wrong there.
    """

    def __init__(self, segment: str, offset: int, why: str) -> None:
        """Say it with the way out."""
        super().__init__(
            f"cannot read the journal: {segment} is damaged at byte {offset}: {why}; "
            "`modelsupd journal repair` says what would be lost"
        )
        self.segment, self.offset, self.why = segment, offset, why


class Unreadable(Damaged):
    """The records are intact but of a version that this program does not know."""

    def __init__(self, segment: str, offset: int, version: int) -> None:
        """Keep the version found."""
        super().__init__(segment, offset, f"a record of version {version}")
        self.version = version

    def __str__(self) -> str:
        """Name both versions; there is nothing to repair."""
        return (
            f"cannot read the journal: {self.segment} holds at byte {self.offset} a record of version {self.version}, "
            f"this program knows only {VERSION}: it was written by a newer modelsupd"
        )


@dataclass(frozen=True, slots=True)
class Torn:
    """A tail that was never known to be synced: bytes `offset:offset + size_bytes` of a segment, NULs at the end aside.

    `kept` is the file in which the writer keeps them, None where it was not (yet) kept.
    """

    segment: str
    offset: int
    size_bytes: int
    kept: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What the journal says: the last state of each replica, the last `start` record, and how it was read."""

    states: dict[str, dict[str, Any]]
    start: dict[str, Any] | None
    seq: int
    torn: tuple[Torn, ...]
    records_read: int


@dataclass(frozen=True, slots=True)
class Link:
    """How a segment names the one before it: its file, and up to which byte it counts."""

    segment: str
    to: int


@dataclass(slots=True)
class Fold:
    """The durable state that records add up to. States are kept as JSON: no later change by a caller touches them."""

    states: dict[str, bytes] = field(default_factory=dict)
    start: bytes = b"null"

    def add(self, record: dict[str, Any]) -> None:
        """Take in one record, as read from a segment."""
        kind = record["kind"]
        if kind == "replica":
            self.change(record["replica"], None if record["state"] is None else encode(record["state"]))
        elif kind == "start":
            own = ("v", "seq", "prev", "synced_to")
            self.start = encode({key: value for key, value in record.items() if key not in own})
        elif kind == "snapshot":
            self.states = {name: encode(state) for name, state in record["states"].items()}
            self.start = encode(record["start"])

    def change(self, replica: str, state: bytes | None) -> None:
        """Set a replica's state, or forget the replica."""
        if state is None:
            self.states.pop(replica, None)
        else:
            self.states[replica] = state

    def fragment(self) -> bytes:
        """Return the members `states` and `start` of a snapshot's JSON."""
        states = b",".join(b"%b:%b" % (encode(name), state) for name, state in self.states.items())
        return b'"states":{%b},"start":%b' % (states, self.start)


@dataclass(frozen=True, slots=True)
class Scan:
    """What one segment's bytes are: records up to `chain.end`, then a torn tail of `torn_bytes`, then NULs."""

    first: dict[str, Any]
    chain: Chain
    torn_bytes: int


def numbered(directory: Path) -> dict[int, Path]:
    """Return the segments of a directory by number, oldest first."""
    found = {int(match[1]): path for path in directory.iterdir() if (match := SEGMENT.fullmatch(path.name))}
    return dict(sorted(found.items()))


def beginning(name: str, line: bytes) -> tuple[dict[str, Any], Chain]:
    """Return the snapshot that a segment begins with, and the chain from the snapshot itself on; raise Damaged."""
    intact = payload_of(line)
    if intact is None:
        raise Damaged(name, 0, "its first record is not intact, and no segment gets its name before it was synced")
    head = head_of(intact[0])
    if head is None:
        version = version_of(intact[0])
        if version is not None and version > VERSION:
            raise Unreadable(name, 0, version)
        raise Damaged(name, 0, "its first record is not one of ours")
    record: dict[str, Any] = json.loads(intact[0])
    if record.get("kind") != "snapshot":
        raise Damaged(name, 0, f"its first record is of the kind {record.get('kind')!r}, not a snapshot")
    return record, Chain(*head)


def link_of(snapshot: dict[str, Any]) -> Link | None:
    """Return what a snapshot says about the segment before it; None for the first segment of a journal."""
    follows = snapshot.get("follows")
    return None if follows is None else Link(follows["segment"], follows["to"])


def scan(name: str, data: bytes, fold: Fold | None = None) -> Scan:
    """Read one segment whose end nothing else proves; add its records to `fold`. Raise Damaged."""
    stream = io.BytesIO(data)
    first, chain = beginning(name, stream.readline())
    stream.seek(0)
    for payload in chain.follow(stream):
        if fold is not None:
            fold.add(json.loads(payload))
    tail = data[chain.end :].rstrip(b"\0")
    if not tail:
        return Scan(first, chain, 0)
    _refuse_damage(name, data, chain)
    return Scan(first, chain, len(tail))


def _refuse_damage(name: str, data: bytes, chain: Chain) -> None:
    """Raise if something later proves that the bytes at `chain.end` had been synced."""
    line = data[chain.end : data.find(b"\n", chain.end) + 1]
    intact = payload_of(line)
    if intact and (version_of(intact[0]) or 0) > VERSION:
        raise Unreadable(name, chain.end, version_of(intact[0]) or 0)
    for found in resynchronise(data, chain.end):
        proven = synced_to(found.payload)
        if proven is not None and proven > chain.end:
            what = "a record is out of order" if intact else "no intact record begins there"
            raise Damaged(
                name,
                chain.end,
                f"{what}, and the record at byte {found.begin} proves that it was synced up to {proven}",
            )


def read(directory: Path) -> Reading:
    """Return what the newest segment says; raise Damaged.

    A daemon may write meanwhile; the batch that it has in flight may then appear as a torn tail. An absent or empty
    directory reads as an empty journal.
    """
    return load(directory)[0]


def load(directory: Path) -> tuple[Reading, Fold, Link | None, Chain]:
    """Return the same with what a writer needs to go on: the fold, the end of the newest segment, and the chain."""
    segments = numbered(directory) if directory.is_dir() else {}
    if not segments:
        return Reading({}, None, 0, (), 0), Fold(), None, Chain(1, 0)
    path = segments[max(segments)]
    fold, result = settled(path)
    chain = result.chain
    torn = (Torn(path.name, chain.end, result.torn_bytes),) if result.torn_bytes else ()
    states = {name: json.loads(state) for name, state in fold.states.items()}
    reading = Reading(states, json.loads(fold.start), chain.seq - 1, torn, chain.records)
    return reading, fold, Link(path.name, chain.end), chain


def settled(path: Path) -> tuple[Fold, Scan]:
    """Scan a file that may be written to: what looks like damage counts once two readings agree on it."""
    data = path.read_bytes()
    while True:
        fold = Fold()
        try:
            return fold, scan(path.name, data, fold)
        except Damaged:
            again = path.read_bytes()
            if again == data:
                raise
            data = again


@dataclass(frozen=True, slots=True)
class Linked:
    """A segment that counts: its snapshot, and up to which byte it counts, None for the newest: as far as it goes."""

    path: Path
    counts_to: int | None
    first: dict[str, Any]


def linked(directory: Path) -> list[Linked]:
    """Return the segments that belong together, oldest first, without abandoned ones; raise Damaged.

    Where an older one is missing, the list begins after it.
    """
    found: list[Linked] = []
    segments = numbered(directory) if directory.is_dir() else {}
    path = segments[max(segments)] if segments else None
    counts_to: int | None = None
    while path is not None:
        try:
            with path.open("rb") as file:
                first, _ = beginning(path.name, file.readline())
        except FileNotFoundError:
            break
        found.append(Linked(path, counts_to, first))
        link = link_of(first)
        path, counts_to = (None, None) if link is None else (directory / link.segment, link.to)
    return found[::-1]


def history(directory: Path, *, after_seq: int = 0) -> Iterator[dict[str, Any]]:
    """Yield all records of all segments whose `seq` is greater than `after_seq`, oldest first, snapshots included.

    Records are as on disk, with `seq`, `prev` and `v`. Raise Damaged on reaching damage; a torn tail ends the newest
    segment quietly. Memory is bounded by the largest record.
    """
    segments = linked(directory)
    for segment, later in zip(segments, [*segments, None][1:], strict=True):
        if later is not None and later.first["seq"] <= after_seq + 1:
            continue
        chain = Chain(segment.first["seq"], int(segment.first["prev"], 16))
        seq = chain.seq
        try:
            file = segment.path.open("rb")
        except FileNotFoundError:  # a daemon that writes meanwhile gave up its oldest history
            continue
        with file:
            for payload in chain.follow(file if segment.counts_to is None else _upto(file, segment.counts_to)):
                if seq > after_seq:
                    yield json.loads(payload)
                seq = chain.seq
        _check_end(segment, chain, later)


def _upto(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    """Yield the lines of a file up to a byte."""
    for line in file:
        if size <= 0:
            return
        yield line if len(line) <= size else line[:size]
        size -= len(line)


def _check_end(segment: Linked, chain: Chain, later: Linked | None) -> None:
    """Raise Damaged if a segment's records stopped before where they are known to have been synced."""
    name = segment.path.name
    if segment.counts_to is None or later is None:
        with segment.path.open("rb") as file:
            file.seek(chain.end)
            blank = not file.read().strip(b"\0")
        if not blank:
            settled(segment.path)
    elif chain.end < segment.counts_to:
        why = f"no record in order begins there, and it was synced up to {segment.counts_to}"
        raise Damaged(name, chain.end, why)
    elif (chain.seq, f"{chain.prev:08x}") != (later.first["seq"], later.first["prev"]):
        raise Damaged(name, chain.end, f"{later.path.name} begins with record {later.first['seq']}, not {chain.seq}")
