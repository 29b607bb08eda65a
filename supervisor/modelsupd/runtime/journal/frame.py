"""How one record lies on disk.

`<crc32, 8 hex> <length> <json>` and a newline. The crc covers length and json, so that a record proves itself wherever
it is found. The json begins, byte for byte, `{"v":1,"seq":N,"prev":"<crc of the record before>",`, so that records
prove their order.

Two rules:

1. Nothing is parsed leniently. A line is intact only if rendering it anew gives the same bytes: `int(" 2345678", 16)`
   and a flipped newline have both lost records without a word elsewhere.
2. A record never holds a raw newline or, inside a string, a raw quote. Thus a line is a record, and no text that an
   engine printed can pass for one when reading resynchronises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

VERSION = 1
#: Keys that the journal itself sets; bodies must not hold them.
RESERVED = frozenset({"v", "seq", "prev", "synced_to", "gap", "follows"})

_HEAD = re.compile(rb'\{"v":1,"seq":([1-9][0-9]*),"prev":"([0-9a-f]{8})",')
_GAP = re.compile(rb'"gap":\{"seq":([1-9][0-9]*),"prev":"([0-9a-f]{8})"\},')
_SYNCED_TO = re.compile(rb'"synced_to":(0|[1-9][0-9]*),')
_ANYWHERE = re.compile(rb'([0-9a-f]{8}) ([1-9][0-9]{0,9}) (?=\{"v":)')
_VERSION = re.compile(rb'\{"v":([0-9]+),')

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def encode(value: object) -> bytes:
    """Return compact ASCII JSON; raise TypeError or ValueError for what JSON cannot hold (NaN included)."""
    return _encode(value).encode("ascii")


def framed(payload: bytes) -> tuple[bytes, int]:
    """Return the line that holds `payload`, and its crc."""
    tail = b"%d %b" % (len(payload), payload)
    crc = crc32(tail)
    return b"%08x %b\n" % (crc, tail), crc


def payload_of(line: bytes) -> tuple[bytes, int] | None:
    """Return payload and crc of an intact line (its newline included), or None."""
    crc = crc32(line[9:-1])
    payload = line[line.find(b" ", 9) + 1 : -1]
    return (payload, crc) if line == b"%08x %d %b\n" % (crc, len(payload), payload) else None


@dataclass(slots=True)
class Chain:
    """Where reading or writing stands: the next record must have this `seq` and this `prev`, and begins at `end`."""

    seq: int
    prev: int
    end: int = 0
    records: int = 0

    def head(self) -> bytes:
        """Return how the json of the next record begins."""
        return b'{"v":1,"seq":%d,"prev":"%08x",' % (self.seq, self.prev)

    def render(self, rest: bytes, *, synced_to: int | None = None) -> bytes:
        """Return the next record as a line and move on; `rest` is its json after the part that we write."""
        mark = b"" if synced_to is None else b'"synced_to":%d,' % synced_to
        line, self.prev = framed(self.head() + mark + rest)
        self.seq += 1
        self.end += len(line)
        self.records += 1
        return line

    def follow(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield payloads as long as frames and order hold; afterwards `end` is the first byte that was not accepted."""
        seq, prev = self.seq, self.prev
        for line in lines:
            # Frame and order in one place and without calls of our own: this runs once for each record of a history.
            crc = crc32(line[9:-1])
            payload = line[line.find(b" ", 9) + 1 : -1]
            if line != b"%08x %d %b\n" % (crc, len(payload), payload):
                return
            head = b'{"v":1,"seq":%d,"prev":"%08x",' % (seq, prev)
            if not payload.startswith(head):
                return
            seq, prev = seq + 1, crc
            if payload.startswith(b'"gap":', len(head)) and (gap := _GAP.match(payload, len(head))):
                seq, prev = int(gap[1]), int(gap[2], 16)
            self.seq, self.prev = seq, prev
            self.end += len(line)
            self.records += 1
            yield payload


def head_of(payload: bytes) -> tuple[int, int] | None:
    """Return `seq` and `prev` as a payload itself states them, or None if it does not begin as one of ours does."""
    match = _HEAD.match(payload)
    return (int(match[1]), int(match[2], 16)) if match else None


def synced_to(payload: bytes) -> int | None:
    """Return up to which byte of its segment a record says that its writer had synced, if it says so."""
    match = _HEAD.match(payload)
    mark = _SYNCED_TO.match(payload, match.end()) if match else None
    return int(mark[1]) if mark else None


def version_of(payload: bytes) -> int | None:
    """Return the version that a payload states, or None."""
    match = _VERSION.match(payload)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Found:
    """An intact record found by resynchronising: its bytes `begin:end` (newline included where there is one)."""

    begin: int
    end: int
    payload: bytes
    crc: int


def resynchronise(data: bytes, begin: int) -> Iterator[Found]:
    """Yield every intact record of ours at or after `begin`, whatever lies between. A missing newline is forgiven."""
    at = begin
    while match := _ANYWHERE.search(data, at):
        end = match.end() + int(match[2])
        crc = int(match[1], 16)
        payload = data[match.end() : end]
        if end <= len(data) and crc32(data[match.start() + 9 : end]) == crc and head_of(payload):
            at = end + (data[end : end + 1] == b"\n")
            yield Found(match.start(), at, payload, crc)
        else:
            at = match.start() + 1


def rest_of(body: Mapping[str, Any]) -> bytes:
    """Return a body's json without its opening brace, as `Chain.render` takes it; refuse keys that are ours."""
    if taken := RESERVED.intersection(body):
        raise ValueError(f"cannot append a record: the key {min(taken)!r} is the journal's own")
    if not isinstance(body.get("kind"), str):
        raise TypeError(f"cannot append a record: its kind is {body.get('kind')!r}, not a string")
    return encode(dict(body))[1:]
