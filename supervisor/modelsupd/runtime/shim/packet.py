"""Packets of JSON with descriptors, over a SEQPACKET socket."""

from __future__ import annotations

import array
import json
import socket
from typing import Any

_PACKET_BYTES = 65536


def send(sock: socket.socket, value: dict[str, Any], fds: list[int]) -> None:
    """Send one packet; raises OSError."""
    socket.send_fds(sock, [json.dumps(value).encode()], fds)


def receive(sock: socket.socket, max_fds: int) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next packet and the descriptors that came with it, None at the end; raises OSError.

    `socket.recv_fds` is not used: it drops its flags (CPython 3.11, Lib/socket.py), so that an engine would inherit
    what was received. Where descriptors have run out, fewer come than were sent.
    """
    room = socket.CMSG_SPACE(max_fds * array.array("i").itemsize)
    packet, ancillary, _, _ = sock.recvmsg(_PACKET_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return (json.loads(packet) if packet else None), list(fds)
