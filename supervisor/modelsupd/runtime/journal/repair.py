"""Mending damage without hiding it.

Two rules:

1. A repair never moves a byte. Bad bytes are replaced by as many others: by the original ones where a single flipped
   bit explains everything, else by a record `gap` that says how many records are lost, or, at the start of a segment,
   by a snapshot. So every offset and every intact record keeps its meaning, and the mended file reads like any other.
2. Nothing is written before the plan says what is lost, and the damaged file is kept beside the mended one.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zlib import crc32

from modelsupd.runtime.journal.disk import Disk, write_all
from modelsupd.runtime.journal.frame import Chain, encode, framed, payload_of
from modelsupd.runtime.journal.reader import Damaged, Fold, Torn, beginning
from modelsupd.runtime.journal.survey import Bad, Place, Segment, place_of, segments, walk

#: In longer stretches a single flipped bit is not looked for: the search takes the square of the length.
FLIP_SEARCH_BYTES = 8192
_REPLICA = re.compile(rb'"replica":("(?:[^"\\]|\\.)*")')


class Unrepairable(Exception):  # noqa: N818 - like Damaged and Unwritable
    """The journal cannot be mended, or is no longer what the plan was made for."""


@dataclass(frozen=True, slots=True)
class Patch:
    """What replaces the bytes `begin:end` of a segment.

    `lost` are the numbers of the first and last record that this gives up, None if it brings all of them back;
    `replicas` are the names that can still be read in the bad bytes.
    """

    segment: str
    begin: int
    end: int
    replacement: bytes
    what: str
    lost: tuple[int, int] | None = None
    replicas: tuple[str, ...] = ()

    @property
    def lost_records(self) -> int:
        """How many records this gives up."""
        return 0 if self.lost is None else self.lost[1] - self.lost[0] + 1

    def __str__(self) -> str:
        """Say it in a line."""
        named = f", of {', '.join(self.replicas)}" if self.lost and self.replicas else ""
        lost = f"; records {self.lost[0]} to {self.lost[1]} are lost{named}" if self.lost else "; no record is lost"
        return f"{self.segment}, bytes {self.begin} to {self.end}: {self.what}{lost}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a repair would do, and what would be lost.

    `replicas_in_doubt` are those whose state, as recovered afterwards, may be older than what was recorded. `torn` is
    no damage: opening the journal cuts it off. `_files` holds each segment's name, crc and mended contents.
    """

    directory: Path
    patches: tuple[Patch, ...]
    replicas_in_doubt: tuple[str, ...]
    torn: tuple[Torn, ...]
    _files: tuple[tuple[str, int, bytes], ...]

    @property
    def lost_records(self) -> int:
        """How many records are lost."""
        return sum(patch.lost_records for patch in self.patches)

    @property
    def lost_bytes(self) -> int:
        """How many bytes are replaced by something else than what was written there."""
        return sum(patch.end - patch.begin for patch in self.patches if patch.lost is not None)

    def __str__(self) -> str:
        """Say it in full, for people."""
        if not self.patches:
            return "the journal is not damaged: there is nothing to repair"
        doubt = "the recovered state of each replica is the last one recorded"
        if self.replicas_in_doubt:
            doubt = f"the recovered state may be an older one of {', '.join(self.replicas_in_doubt)}"
        total = f"in all {self.lost_records} records in {self.lost_bytes} bytes are lost; {doubt}"
        return "\n".join([*map(str, self.patches), total])


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """One segment: `status` is the worst of what was found, `notes` say it in words."""

    name: str
    size_bytes: int
    records: int
    first_seq: int | None
    last_seq: int | None
    status: Literal["intact", "torn", "damaged", "abandoned"]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """All segments, oldest first."""

    segments: tuple[SegmentReport, ...]

    @property
    def damaged(self) -> bool:
        """Whether something that had been synced is bad."""
        return any(segment.status == "damaged" for segment in self.segments)


def verify(directory: Path) -> Report:
    """Read every byte of every segment and report what is there; raise only Unreadable and OSError."""
    found, others = segments(directory)
    reports = [_report(segment) for segment in found]
    # Without a link from a newer one a segment is either left over from a write that failed, or cut off by a loss.
    why = "no newer segment follows it, so that nothing in it counts"
    reports += [SegmentReport(path.name, path.stat().st_size, 0, None, None, "abandoned", (why,)) for path in others]
    return Report(tuple(sorted(reports, key=lambda report: report.name)))


def _report(segment: Segment) -> SegmentReport:
    notes = [f"damaged from byte {bad.begin} to {bad.end}" for bad in segment.bad]
    if segment.torn:
        notes.append(f"torn tail of {segment.torn.end - segment.torn.begin} bytes from byte {segment.torn.begin} on")
    notes += [
        f"records {seq} and later are lost since a repair: byte {begin}"
        for begin, payload in segment.intact
        if b'"kind":"gap"' in payload and (seq := place_of(payload).seq)
    ]
    places = [place_of(payload).seq for _, payload in segment.intact]
    status: Literal["intact", "torn", "damaged"] = "damaged" if segment.bad else "torn" if segment.torn else "intact"
    return SegmentReport(
        segment.path.name,
        segment.size_bytes,
        len(places),
        places[0] if places else None,
        places[-1] if places else None,
        status,
        tuple(notes),
    )


def plan_repair(directory: Path) -> Plan:
    """Return what a repair would do, having changed nothing; raise Unrepairable, Unreadable or OSError."""
    found, _ = segments(directory)
    patches: list[Patch] = []
    files: list[tuple[str, int, bytes]] = []
    base = Fold()
    before: Place | None = None
    for segment in found:
        if segment.bad:
            mine, data = _mend(segment, before, base)
            patches += mine
            files.append((segment.path.name, crc32(segment.path.read_bytes()), data))
            mended = Segment(segment.path, len(data), data, segment.link, segment.newest)
            walk(mended, segment.end.end, None)
            base = mended.fold(base)
        else:
            base = segment.fold(base)
        before = Place(segment.end.seq, segment.end.prev)
    torn = tuple(
        Torn(segment.path.name, segment.torn.begin, segment.torn.end - segment.torn.begin)
        for segment in found
        if segment.torn
    )
    return Plan(directory, tuple(patches), _in_doubt(found, patches, base), torn, tuple(files))


def apply_repair(plan: Plan, disk: Disk | None = None) -> tuple[str, ...]:
    """Carry out a plan and return the files in which the damaged segments are kept.

    The caller holds the lock of the state directory. Raise Unrepairable if a segment changed since the plan was made.
    """
    disk = disk or Disk()
    for name, crc, _ in plan._files:  # noqa: SLF001 - the plan is this module's own
        if crc32((plan.directory / name).read_bytes()) != crc:
            raise Unrepairable(f"cannot repair the journal: {name} changed since the plan was made")
    kept = []
    for name, _, data in plan._files:  # noqa: SLF001 - the same
        path = plan.directory / name
        kept.append(_second_name(disk, path))
        temporary = path.with_name("repair.tmp")
        fd = disk.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(disk, fd, data, 0)
            disk.fsync(fd)
        except OSError:
            with suppress(OSError):
                disk.unlink(temporary)
            raise
        finally:
            disk.close(fd)
        disk.rename(temporary, path)
    disk.sync_directory(plan.directory)
    return tuple(kept)


def _second_name(disk: Disk, path: Path) -> str:
    number = 0
    while True:
        kept = path.with_name(f"{path.name}.damaged.{number}" if number else f"{path.name}.damaged")
        try:
            disk.link(path, kept)
        except FileExistsError:
            number += 1
        else:
            return kept.name


def _mend(segment: Segment, before: Place | None, base: Fold) -> tuple[list[Patch], bytes]:
    """Return the patches of one segment and its mended bytes; `before` and `base` are where the one before it ends."""
    patches: list[Patch] = []
    data = segment.data
    mended_to = -1
    for bad in segment.bad:
        if bad.begin < mended_to:
            continue  # an earlier patch had to take it in
        patch = _flip_back(segment, bad, before)
        if patch is None:
            patch = _gap(segment, bad) if bad.expected else _snapshot(segment, bad, before, base)
        patches.append(patch)
        mended_to = patch.end
        data = data[: patch.begin] + patch.replacement + data[patch.end :]
    return patches, data


def _flip_back(segment: Segment, bad: Bad, before: Place | None) -> Patch | None:
    """Return the patch that flips a single bit, if there is one after which everything fits, crc by crc."""
    region = segment.data[bad.begin : bad.end]
    if len(region) > FLIP_SEARCH_BYTES:
        return None
    for bit in range(len(region) * 8):
        flipped = bytearray(region)
        flipped[bit // 8] ^= 1 << bit % 8
        if _fits(segment, bytes(flipped), bad, before):
            what = f"one bit of byte {bad.begin + bit // 8} is flipped back"
            return Patch(segment.path.name, bad.begin, bad.end, bytes(flipped), what)
    return None


def _fits(segment: Segment, region: bytes, bad: Bad, before: Place | None) -> bool:
    if bad.expected is not None:
        chain = Chain(bad.expected.seq, bad.expected.prev)
    else:
        line = region[: region.find(b"\n") + 1]
        if payload_of(line) is None:
            return False
        try:
            _, chain = beginning(segment.path.name, line)
        except Damaged:
            return False
        if before is not None and before != Place(chain.seq, chain.prev):
            return False
    for _ in chain.follow(io.BytesIO(region)):
        pass
    return chain.end == len(region) and bad.after in (None, Place(chain.seq, chain.prev))


def _ends(segment: Segment, bad: Bad) -> list[tuple[int, Place | None]]:
    """Return where a patch may end, nearest first, each with the place of what follows there."""
    ends: list[tuple[int, Place | None]] = [
        (begin, place_of(payload)) for begin, payload in segment.intact if begin >= bad.end
    ]
    if not ends and bad.after is None:
        return [(bad.end, None)]
    return [*ends, (segment.end.end, Place(segment.end.seq, segment.end.prev))]


def _line_of(size: int, payload: bytes) -> bytes | None:
    """Return a line of exactly `size` bytes that holds a payload, filled with blanks; None if there is no such line."""
    for digits in range(1, 11):
        length = size - len(b"01234567  \n") - digits
        if length >= len(payload) and len(str(length)) == digits:
            return framed(payload[:-1] + b" " * (length - len(payload)) + b"}")[0]
    return None


def _names(data: bytes) -> tuple[str, ...]:
    """Return the names of replicas that can still be read in bad bytes."""
    found = set()
    for match in _REPLICA.finditer(data):
        with suppress(ValueError):
            found.add(json.loads(match[1]))
    return tuple(sorted(found))


def _gap(segment: Segment, bad: Bad) -> Patch:
    expected = bad.expected
    for end, after in _ends(segment, bad):
        if expected is None or after is None:
            continue
        mark = b'"gap":{"seq":%d,"prev":"%08x"},"kind":"gap"}' % (after.seq, after.prev)
        line = _line_of(end - bad.begin, Chain(expected.seq, expected.prev).head() + mark)
        if line is not None:
            names = _names(segment.data[bad.begin : end])
            lost = (expected.seq, after.seq - 1) if after.seq > expected.seq else None
            what = "a mark takes the place of what cannot be read"
            return Patch(segment.path.name, bad.begin, end, line, what, lost, names)
    raise Unrepairable(
        f"cannot repair the journal: {segment.path.name} has no room at byte {bad.begin} for a mark of what is lost"
    )


def _snapshot(segment: Segment, bad: Bad, before: Place | None, base: Fold) -> Patch:
    """Return the patch that begins a segment anew, with the state in which the segment before it ended."""
    for end, after in _ends(segment, bad):
        place = before or Place(max(after.seq - 1, 1) if after else 1, 0)
        fold = Fold(dict(base.states), base.start)
        for begin, payload in segment.intact:
            if begin < end:
                fold.add(json.loads(payload))
        gap = b"" if after is None else b'"gap":{"seq":%d,"prev":"%08x"},' % (after.seq, after.prev)
        link = None if segment.link is None else {"segment": segment.link.segment, "to": segment.link.to}
        payload = b'%b%b"follows":%b,"kind":"snapshot",%b}' % (
            Chain(place.seq, place.prev).head(),
            gap,
            encode(link),
            fold.fragment(),
        )
        line = _line_of(end - bad.begin, payload)
        if line is not None:
            names = _names(segment.data[bad.begin : end])
            name = segment.path.name
            if before is None:
                what = "the snapshot is lost, and with it every replica that no later record is about"
                return Patch(
                    name, 0, end, line, what, (place.seq, max(place.seq, after.seq - 1 if after else 1)), names
                )
            what = "the snapshot is made anew from the segment before"
            lost = (place.seq + 1, after.seq - 1) if after and after.seq > place.seq + 1 else None
            return Patch(name, 0, end, line, what, lost, names)
    raise Unrepairable(f"cannot repair the journal: {segment.path.name} has no room for a new snapshot")


def _in_doubt(found: Sequence[Segment], patches: Sequence[Patch], final: Fold) -> tuple[str, ...]:
    """Return the replicas of which a later state than the recovered one may be among what is lost."""
    if not found:
        return ()
    newest = found[-1]
    lossy = [patch for patch in patches if patch.segment == newest.path.name and patch.lost is not None]
    if not lossy:
        return ()
    doubted = set(final.states).union(*(patch.replicas for patch in lossy))
    for begin, payload in newest.intact:
        if begin >= lossy[-1].end and b'"kind":"replica"' in payload:
            doubted.discard(json.loads(payload)["replica"])
    return tuple(sorted(doubted))
