"""Clients that are gone without having said so: a machine that lost its network or its power sends neither FIN nor RST.

While nothing is on its way to a client, the kernel asks its machine now and then (TCP keepalive), and ends the
connection when no answer comes; that also keeps address translators on the way from forgetting a client that waits long
for its first token. While something is on its way, the kernel repeats it and asks nothing, for some fifteen minutes, so
that it is asked here how long it has heard nothing. TCP_USER_TIMEOUT would be shorter to write, and wrong: it also ends
clients who are there and have no room for more, for whom `write_timeout_s` is.
"""

from __future__ import annotations

import socket
import struct
from typing import Protocol

#: How often the kernel asks a machine that does not answer, before it gives up.
_QUESTIONS = 3

#: struct tcp_info of linux/tcp.h: eight bytes, of which the third counts repetitions; then numbers of 32 bits.
_INFO = struct.Struct("=2xB5x16xI28xI")
_INFO_BYTES = 60


class Socket(Protocol):
    """What is needed of a socket, and of what uvloop shows of one."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """Return an option."""


def watch(listening: socket.socket, after_s: float) -> None:
    """Have the kernel watch over every connection that is accepted from now on: they inherit it on Linux."""
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return
    between_s = max(1, int(after_s / (2 * _QUESTIONS)))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(after_s) - _QUESTIONS * between_s))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, between_s)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _QUESTIONS)


def unheard_s(connected: Socket | None) -> float:
    """Return for how long nothing was heard of a client's machine, which has yet to confirm what was sent; else 0.

    One that is there is heard of at least as often as the kernel asks it. There is no socket any more in the turn of
    the loop between the end of a connection with TLS and the moment when its protocol learns of that.
    """
    if connected is None:
        return 0.0
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        repeated, unconfirmed, heard_ms = _INFO.unpack(info)
    except (OSError, struct.error):
        return 0.0  # of another family, or closed meanwhile
    return heard_ms / 1000 if repeated and unconfirmed else 0.0
