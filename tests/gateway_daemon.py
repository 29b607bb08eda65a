"""The daemon's end of the link, for tests: listens, keeps what came, and says what it is told to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

from modelsupd.gateway import wire
from modelsupd.gateway.base import Availability, Model, Run
from modelsupd.gateway.channel import Channel


def model(name: str = "qwen", *runs: Run, availability: Availability = Availability.READY) -> Model:
    return Model(name=name, availability=availability, runs=runs)


def listening_socket() -> socket.socket:
    """Return a socket as the daemon makes it: bound and listening, on a free port of loopback."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", 0))
    made.listen(1024)
    return made


class Daemon:
    """Takes one gateway after another; `channel` is the last one's."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / wire.SOCKET_NAME
        self.channels: list[Channel] = []
        self.messages: list[wire.Message] = []
        self.sockets: list[socket.socket] = []
        self.closed: list[str] = []
        self._listening: socket.socket | None = None

    def listen(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._listening.bind(str(self.path))
        self._listening.listen(16)
        asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def leave(self) -> None:
        """Be gone, as a daemon that was killed: every connection ends."""
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
            self.path.unlink()
        for channel in self.channels:
            channel.close()

    def close(self) -> None:
        self.leave()
        for each in self.sockets:
            each.close()

    @property
    def channel(self) -> Channel:
        return self.channels[-1]

    def of(self, kind: type[wire.Message]) -> list[wire.Message]:
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def hellos(self) -> list[wire.Hello]:
        return [message for message in self.messages if isinstance(message, wire.Hello)]

    def welcome(self, *models: Model, seq: int = 1, accept: bool = True, sockets: Sequence[socket.socket] = ()) -> None:
        self.channel.send(wire.Welcome(seq=seq, models=models, accept=accept, sockets=len(sockets)), sockets)

    def _accept(self) -> None:
        assert self._listening is not None
        connected, _ = self._listening.accept()
        self.channels.append(Channel(connected, on_message=self._take, on_closed=self.closed.append))

    def _take(self, message: wire.Message, sockets: tuple[socket.socket, ...]) -> None:
        self.messages.append(message)
        self.sockets.extend(sockets)
