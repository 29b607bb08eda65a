"""Accepts connections on sockets that it is given, and stops doing so without closing them.

The sockets belong to whoever gives them: connections that wait in their queues when this worker stops are taken by the
next one, so that nobody is refused. When the process has no descriptors left, libuv gives one up that it holds in
reserve, closes what waits, and goes on; `max_connections` is there so that it does not come to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import cast

from modelsupd.gateway.connection import Connection
from modelsupd.gateway.front import Front
from modelsupd.gateway.vanished import watch

BACKLOG = 4096
_HANDSHAKE_TIMEOUT_S = 10.0


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address; port 0 lets the kernel choose one. Raises OSError.

    An address of IPv6 takes no connections of IPv4: whoever wants both names both.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


class Listener:
    """Accepts for a front."""

    def __init__(self, front: Front) -> None:
        """Accept nothing yet."""
        self._front = front
        self._servers: list[asyncio.Server] = []

    @property
    def accepting(self) -> bool:
        """Tell whether connections are accepted."""
        return bool(self._servers)

    async def start(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None = None) -> None:
        """Accept connections on sockets that listen already; they stay the caller's. Raises OSError."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            own = sock.dup()
            try:
                own.setblocking(False)
                watch(own, self._front.limits.vanished_after_s)
                server = await loop.create_server(
                    lambda: cast("asyncio.Protocol", Connection(self._front, greets=tls is not None)),
                    sock=own,
                    backlog=BACKLOG,
                    ssl=tls,
                    ssl_handshake_timeout=_HANDSHAKE_TIMEOUT_S if tls is not None else None,
                )
            except BaseException:
                with contextlib.suppress(OSError):
                    own.close()
                self.stop()
                raise
            self._servers.append(server)

    def stop(self) -> None:
        """Accept no more. What is accepted goes on, and the sockets go on listening."""
        for server in self._servers:
            server.close()
        self._servers.clear()
