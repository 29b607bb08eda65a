"""The daemon's end of the link to gateways: takes them in, tells them what there is, and hears what they see.

A gateway dials whenever it finds itself alone, so this end only listens. What is known of each is its process, by the
kernel's word for the peer, and the listening sockets that it holds: they outlive a daemon, and a new one takes them
over from here instead of binding anew. And what it has in hand: requests in flight, by run, and requests that wait, by
model. That goes with it; when a run last delivered stays true.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from modelsupd.core.demand import Usage, Use, Wanted
from modelsupd.gateway import wire
from modelsupd.gateway.base import Model
from modelsupd.gateway.channel import Channel

log = structlog.get_logger("gateway")

#: Gateways are two at most, while one takes over from another.
_BACKLOG = 8

_CREDENTIALS = struct.Struct("3i")


@dataclass(eq=False)
class Peer:
    """A connected gateway: its process, whether it was told to take connections, and what it has in hand.

    `in_flight` is by run key; `wanted` is what requests wait for there. `seen` is the number of the table that it works
    by, as far as it has told.
    """

    pid: int
    channel: Channel = field(init=False)
    hello: wire.Hello | None = None
    accepts: bool | None = None
    in_flight: dict[str, int] = field(default_factory=dict)
    wanted: tuple[wire.Wanted, ...] = ()
    seen: int = -1


class GatewayLinks:
    """All connected gateways. `sockets` are the listening sockets that the daemon holds, for gateways to use."""

    def __init__(
        self,
        path: Path,
        *,
        on_hello: Callable[[Peer], None],
        on_delivered: Callable[[str], None],
        on_evidence: Callable[[wire.Evidence], None],
        on_used: Callable[[], object],
    ) -> None:
        """Listen at `path` once opened. `on_hello` decides by `welcome`; the others are told what gateways saw.

        `on_delivered` is given the key of a run that has delivered something since; `on_used` is called when `usage`
        may have changed in more than how long ago or how many: what is waited for, or whether a run is in use.
        """
        self._path = path
        self._on_hello, self._on_delivered, self._on_evidence = on_hello, on_delivered, on_evidence
        self._on_used = on_used
        self._delivered_at: dict[str, float] = {}
        self._known = False
        self._listener: socket.socket | None = None
        self._models: tuple[Model, ...] = ()
        self._news = asyncio.Event()
        self.seq = 0
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
        self.seq += 1
        reordered = [model.name for model in self._models] != [model.name for model in models]
        message = wire.Models(
            seq=self.seq,
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
        message = wire.Welcome(seq=self.seq, models=self._models, accept=accept, sockets=len(sockets))
        peer.channel.send(message, sockets)

    def has_seen(self, peer: Peer, seq: int) -> bool:
        """Tell whether a gateway works by the table of this number, or a later one; one that is older never says so."""
        return peer.hello is not None and (peer.seen >= seq or not peer.hello.tells_seen)

    async def news(self, within_s: float) -> None:
        """Wait until a gateway has told which table it works by, or is gone."""
        self._news.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), within_s)

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
                self._known = True
                peer.wanted = message.wanted
                self._on_hello(peer)
                self._count(peer, message.traffic)
                self._on_used()
            case wire.TrafficReport():
                if self._count(peer, message.traffic):
                    self._on_used()
            case wire.Demand():
                peer.wanted = message.wanted
                self._on_used()
            case wire.Seen():
                peer.seen = message.seq
                self._news.set()
            case wire.Evidence():
                self._on_evidence(message)
            case _:
                for passed in sockets:
                    passed.close()

    def _gone(self, peer: Peer, why: str) -> None:
        self.peers.discard(peer)
        self._news.set()
        log.debug("a gateway has gone", pid=peer.pid, why=why)
        self._on_used()

    def _count(self, peer: Peer, seen: Sequence[wire.Traffic]) -> bool:
        """Take in what a gateway tells of runs, and return whether one of them was taken into use there, or let go."""
        matters = False
        for traffic in seen:
            matters |= bool(peer.in_flight.get(traffic.run)) != bool(traffic.in_flight)
            peer.in_flight[traffic.run] = traffic.in_flight
            before, at = self._delivered_at.get(traffic.run), traffic.last_delivery_at
            if at is not None and (before is None or at > before):
                self._delivered_at[traffic.run] = at
                self._on_delivered(traffic.run)
        return matters

    def usage(self) -> Usage:
        """Return what all connected gateways have in hand, together; one that drains counts as well."""
        in_flight = dict.fromkeys(self._delivered_at, 0)
        wanted: dict[str, Wanted] = {}
        for peer in self.peers:
            for run, count in peer.in_flight.items():
                in_flight[run] = in_flight.get(run, 0) + count
            for each in peer.wanted:
                other = wanted.get(each.model, Wanted(0, each.since))
                wanted[each.model] = Wanted(other.waiting + each.waiting, min(other.since, each.since))
        runs = {run: Use(count, self._delivered_at.get(run)) for run, count in in_flight.items()}
        return Usage(runs, wanted, self._known)

    def forget_all_but(self, runs: Collection[str]) -> None:
        """Drop what is known of runs that are gone, given the keys of those that are there."""
        self._delivered_at = {run: at for run, at in self._delivered_at.items() if run in runs}
        for peer in self.peers:
            peer.in_flight = {run: count for run, count in peer.in_flight.items() if run in runs}


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
