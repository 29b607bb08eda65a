"""The daemon's end of the link to gateways: takes them in, tells them what there is, and hears what they see.

A gateway dials whenever it finds itself alone, so this end only listens. What is known of each is its process, by the
kernel's word for the peer, and the listening sockets that it holds: they outlive a daemon, and a new one takes them
over from here instead of binding anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from modelsupd.gateway import wire
from modelsupd.gateway.base import Model
from modelsupd.gateway.channel import Channel

log = structlog.get_logger("gateway")

#: Gateways are two at most, while one takes over from another.
_BACKLOG = 8

_CREDENTIALS = struct.Struct("3i")


@dataclass(eq=False)
class Peer:
    """A connected gateway: its process, and whether it was told to take connections."""

    pid: int
    channel: Channel = field(init=False)
    hello: wire.Hello | None = None
    accepts: bool | None = None


class GatewayLinks:
    """All connected gateways. `sockets` are the listening sockets that the daemon holds, for gateways to use."""

    def __init__(
        self,
        path: Path,
        *,
        on_hello: Callable[[Peer], None],
        on_traffic: Callable[[Sequence[wire.Traffic]], None],
        on_evidence: Callable[[wire.Evidence], None],
    ) -> None:
        """Listen at `path` once opened. `on_hello` decides by `welcome`; the others are told what gateways saw."""
        self._path = path
        self._on_hello, self._on_traffic, self._on_evidence = on_hello, on_traffic, on_evidence
        self._listener: socket.socket | None = None
        self._models: tuple[Model, ...] = ()
        self._seq = 0
        self.peers: set[Peer] = set()
        self.sockets: list[socket.socket] = []

    def open(self) -> None:
        """Begin to listen. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        listener.listen(_BACKLOG)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Let every gateway go on alone."""
        for peer in list(self.peers):
            peer.channel.close()
        self.peers.clear()
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
        self.drop_sockets()

    def drop_sockets(self) -> None:
        """Let go of the listening sockets; a gateway that has them keeps its own until it ends."""
        for held in self.sockets:
            held.close()
        self.sockets.clear()

    def publish(self, models: tuple[Model, ...]) -> None:
        """Tell every gateway what has changed."""
        before = {model.name: model for model in self._models}
        after = {model.name: model for model in models}
        if models == self._models:
            return
        self._seq += 1
        reordered = [model.name for model in self._models] != [model.name for model in models]
        message = wire.Models(
            seq=self._seq,
            changed=tuple(model for model in models if before.get(model.name) != model),
            removed=tuple(name for name in before if name not in after),
            order=tuple(after) if reordered else (),
        )
        self._models = models
        for peer in list(self.peers):
            if peer.hello is not None:
                peer.channel.send(message)

    def welcome(self, peer: Peer, *, accept: bool, with_sockets: bool) -> None:
        """Answer a gateway's hello: all there is, and the sockets if it is to use these."""
        sockets = self.sockets if with_sockets else []
        peer.accepts = accept
        message = wire.Welcome(seq=self._seq, models=self._models, accept=accept, sockets=len(sockets))
        peer.channel.send(message, sockets)

    def accept(self, peer: Peer) -> None:
        """Have a gateway take new connections."""
        if peer.accepts is not True:
            peer.accepts = True
            peer.channel.send(wire.Accept())

    def drain(self, peer: Peer) -> None:
        """Have a gateway take no new connection, and finish what there is."""
        if peer.accepts is not False:
            peer.accepts = False
            peer.channel.send(wire.Drain())

    def _accept(self) -> None:
        assert self._listener is not None  # noqa: S101 - it is what was readable
        try:
            connected, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            log.warning("cannot take a gateway in", error=error.strerror)
            return
        pid, uid, _gid = _CREDENTIALS.unpack(
            connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if uid not in (0, os.geteuid()):
            connected.close()
            return
        peer = Peer(pid)
        peer.channel = Channel(
            connected,
            on_message=lambda message, sockets: self._heard(peer, message, sockets),
            on_closed=lambda why: self._gone(peer, why),
        )
        self.peers.add(peer)

    def _heard(self, peer: Peer, message: wire.Message, sockets: tuple[socket.socket, ...]) -> None:
        match message:
            case wire.Hello():
                peer.hello = message
                if self.sockets:
                    for passed in sockets:
                        passed.close()
                else:
                    self.sockets.extend(sockets)
                self._on_hello(peer)
                self._on_traffic(message.traffic)
            case wire.TrafficReport():
                self._on_traffic(message.traffic)
            case wire.Evidence():
                self._on_evidence(message)
            case _:
                for passed in sockets:
                    passed.close()

    def _gone(self, peer: Peer, why: str) -> None:
        self.peers.discard(peer)
        log.debug("a gateway has gone", pid=peer.pid, why=why)


def bound(addresses: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Return listening sockets at these addresses, all or none. Raises OSError, with the address as its file name."""
    made: list[socket.socket] = []
    for host, port in addresses:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        held = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        made.append(held)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind((host, port))
            held.listen(socket.SOMAXCONN)
        except OSError as error:
            for each in made:
                each.close()
            raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return made


def address(held: socket.socket) -> tuple[str, int]:
    """Return host and port that a socket listens at."""
    host, port = held.getsockname()[:2]
    return str(host), int(port)
