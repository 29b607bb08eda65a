"""Counts what an engine without counters of its own delivers, so that a probe that waits its turn proves no hang.

Two things count: a request that the engine logs as served, and bytes of a connection that had been open before, as the
client's kernel acknowledged them. A new connection is a baseline only, because the head of an answer is sent before
anything is generated.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

#: How much of the end of the log is searched for the last served request.
LOG_TAIL_BYTES = 16384

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h and linux/tcp.h, none of which change.
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_REQUEST_AND_DUMP = 0x301
_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_ERROR, _DONE = 2, 3
_INFO = 2  # INET_DIAG_INFO, and the bit before it in the request
_ESTABLISHED = 1
_MESSAGE_BYTES = 72
_INODE_AT = 68
_ACKED_AT = 120  # tcp_info.tcpi_bytes_acked, since Linux 4.1


Connection = tuple[int, int]
"""The client's port, and the inode of the server's end."""


@dataclass(slots=True)
class _Seen:
    count: int = 0
    last_line: str = ""
    probe_unlogged: bool = False  # a request of a probe of ours was answered, and its line is still to come
    bytes_of: dict[Connection, int] = field(default_factory=dict)


class Deliveries:
    """What has been seen of each run; one for the daemon."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._seen: dict[tuple[str, int], _Seen] = {}

    def forget(self, name: str, run: int) -> None:
        """Drop what is known of a run that has ended."""
        self._seen.pop((name, run), None)

    def count(
        self, run: tuple[str, int], served: Sequence[str], sent: Mapping[Connection, int], *, probed: bool
    ) -> int:
        """Return a number that has grown if the run delivered anything since it was last asked for.

        `served` are the lines at the end of its log that tell of served requests, `sent` what `acknowledged` returns
        now. With `probed`, a probe of ours has just been answered with what it had asked to be generated: the line of
        that request, whenever it comes, is no further evidence, for the answer itself says more.
        """
        seen = self._seen.get(run)
        if seen is None:
            self._seen[run] = _Seen(last_line=served[-1] if served else "", bytes_of=dict(sent))
            return 0
        fresh = len(served) if seen.last_line not in served else len(served) - 1 - _last(served, seen.last_line)
        seen.probe_unlogged = seen.probe_unlogged or probed
        if fresh and seen.probe_unlogged:
            fresh, seen.probe_unlogged = fresh - 1, False
        moved = any(number > seen.bytes_of.get(connection, number) for connection, number in sent.items())
        seen.count += fresh + moved
        seen.last_line = served[-1] if served else seen.last_line
        seen.bytes_of = dict(sent)
        return seen.count


def _last(lines: Sequence[str], line: str) -> int:
    return len(lines) - 1 - lines[::-1].index(line)


def acknowledged(endpoint: str) -> dict[Connection, int]:
    """Return, for each connection to that endpoint of loopback TCP, how many bytes its client has acknowledged.

    Empty where the kernel does not tell. It needs no privilege (sock_diag(7)).
    """
    port = int(endpoint.rpartition(":")[2])
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asked:
            asked.settimeout(1)
            asked.send(_question(port))
            return dict(_answers(asked, port))
    except OSError:
        return {}


def _question(port: int) -> bytes:
    family = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, 1 << _ESTABLISHED)
    who = struct.pack(">HH", port, 0) + bytes(32) + struct.pack("=I", 0) + b"\xff" * 8  # any address, device, cookie
    body = family + who
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_AND_DUMP, 1, 0) + body


def _answers(asked: socket.socket, port: int) -> Iterator[tuple[Connection, int]]:
    while True:
        data = asked.recv(1 << 18)
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _DONE:
                return
            if kind == _ERROR or length < _HEADER.size:
                raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
            yield from _connection(data[_HEADER.size : length], port)
            data = data[(length + 3) & ~3 :]


def _connection(message: bytes, port: int) -> Iterator[tuple[Connection, int]]:
    ours, client = struct.unpack_from(">HH", message, 4)
    (inode,) = struct.unpack_from("=I", message, _INODE_AT)
    at = _MESSAGE_BYTES
    while ours == port and at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INFO and length >= 4 + _ACKED_AT + 8:
            (acked,) = struct.unpack_from("=Q", message, at + 4 + _ACKED_AT)
            yield (client, inode), acked
        at += max(4, (length + 3) & ~3)
