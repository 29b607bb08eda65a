"""One end of the link between daemon and gateway: messages of `wire` over a connected unix stream, with descriptors.

It never blocks: what the peer does not read is kept, up to a bound, beyond which the connection is given up. Both ends
begin again from the whole after that, so that nothing is lost by it but time.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from modelsupd.gateway import wire

_READ_BYTES = 1 << 16

#: What a peer may leave unread. A daemon that is stopped for a minute misses a hundred traffic reports.
MAX_UNSENT_BYTES = 8 * 1024 * 1024


class Channel:
    """Send and receive messages. All calls and callbacks are on the loop's thread."""

    def __init__(
        self,
        connected: socket.socket,
        *,
        on_message: Callable[[wire.Message, tuple[socket.socket, ...]], None],
        on_closed: Callable[[str], None],
    ) -> None:
        """Take over a connected socket. `on_closed` is called once, with the reason, but not after `close`."""
        connected.setblocking(False)
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_closed = on_closed
        self._received = bytearray()
        self._descriptors: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, Sequence[int]]] = deque()
        self._unsent_bytes = 0
        self._open = True
        self._loop.add_reader(connected.fileno(), self._readable)

    @property
    def is_open(self) -> bool:
        """Tell whether messages still go out."""
        return self._open

    def send(self, message: wire.Message, sockets: Sequence[socket.socket] = ()) -> None:
        """Send a message, with as many listening sockets as it says. They stay the caller's. Dropped once closed."""
        assert wire.sockets_of(message) == len(sockets)  # noqa: S101 - the two always stand side by side
        if not self._open:
            return
        line = wire.encode(message)
        # Duplicates, since what waits here may be sent after the caller has closed its own.
        self._unsent.append((memoryview(line), [os.dup(each.fileno()) for each in sockets]))
        self._unsent_bytes += len(line)
        if self._unsent_bytes > MAX_UNSENT_BYTES:
            self._fail(f"the peer left {self._unsent_bytes} bytes unread")
        elif len(self._unsent) == 1:
            self._writable()

    def close(self) -> None:
        """End it. Nothing is called any more."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for descriptor in (*self._descriptors, *(fd for _, fds in self._unsent for fd in fds)):
            os.close(descriptor)
        self._descriptors.clear()
        self._unsent.clear()

    def _fail(self, why: str) -> None:
        self.close()
        self._on_closed(why)

    def _writable(self) -> None:
        while self._unsent:
            line, descriptors = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            try:
                sent = self._socket.sendmsg([line], rights)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket.fileno(), self._writable)
                return
            except OSError as error:
                self._fail(error.strerror or str(error))
                return
            for descriptor in descriptors:
                os.close(descriptor)
            self._unsent_bytes -= sent
            if sent == len(line):
                self._unsent.popleft()
            else:
                self._unsent[0] = (line[sent:], ())
        self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        room = socket.CMSG_SPACE(wire.MAX_SOCKETS * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(_READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                passed = array.array("i")
                passed.frombytes(content[: len(content) - len(content) % passed.itemsize])
                self._descriptors.extend(passed)
        if flags & socket.MSG_CTRUNC or len(self._descriptors) > wire.MAX_SOCKETS:
            self._fail("more descriptors came than a message may carry")
        elif not data:
            self._fail("the peer closed it")
        else:
            self._received += data
            self._take_lines()

    def _take_lines(self) -> None:
        while self._open and (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            try:
                self._take(line)
            except wire.WireError as error:
                self._fail(str(error))
        if self._open and len(self._received) > wire.MAX_LINE_BYTES:
            self._fail(f"cannot read a line of more than {wire.MAX_LINE_BYTES} bytes")

    def _take(self, line: bytes) -> None:
        message = wire.decode(line)
        if message is None:
            return
        count = wire.sockets_of(message)
        if count > len(self._descriptors):
            raise wire.WireError(f"{count} sockets were said to come, and {len(self._descriptors)} did")
        taken: list[socket.socket] = []
        for _ in range(count):
            descriptor = self._descriptors.popleft()
            try:
                taken.append(socket.socket(fileno=descriptor))
            except OSError as error:
                os.close(descriptor)
                for each in taken:
                    each.close()
                raise wire.WireError(f"a descriptor came that is no socket: {error.strerror}") from error
        self._on_message(message, tuple(taken))


def connect(path: str) -> socket.socket:
    """Return a socket connected to the daemon's. Raises OSError. A unix socket's connect does not wait."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.connect(path)
    except OSError:
        with contextlib.suppress(OSError):
            made.close()
        raise
    return made
