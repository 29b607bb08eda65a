"""Two machines' worth of network, each in a namespace of its own, and a cable between them that can be pulled out."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from waiting import until

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"


class Network:
    """The two namespaces, each held by a process that does nothing. A socket stays in the one that it was made in."""

    def __init__(self, server_pid: int, client_pid: int) -> None:
        self._pids = {SERVER: server_pid, CLIENT: client_pid}

    def enter(self, side: str) -> tuple[str, ...]:
        """Return what to put before a command for it to run there, under the same pid."""
        return ("nsenter", "--net", "--target", str(self._pids[side]), "--")

    def within(self, side: str, act: Callable[[], T]) -> T:
        """Do something there: in a thread of its own, since a namespace is a thread's."""

        def there() -> T:
            with Path(f"/proc/{self._pids[side]}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            return act()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()

    def ip(self, side: str, *words: str) -> None:
        subprocess.run([*self.enter(side), "ip", *words], check=True, capture_output=True)

    def unplug(self) -> None:
        """Pull the cable: not a packet passes any more, and nobody is told."""
        self.ip(CLIENT, "link", "set", "cable", "down")


@contextlib.contextmanager
def network() -> Iterator[Network | None]:
    """Make it, and None where that is not allowed or `ip` is missing."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(_held()) for _ in range(2)]
        made = Network(held[0].pid, held[1].pid)
        try:
            for side in (SERVER, CLIENT):
                until(lambda side=side: _apart(made, side), timeout_s=2)  # type: ignore[misc] # mypy sees no default
                made.ip(side, "link", "set", "lo", "up")
            peer = ("peer", "name", "cable", "netns", str(held[1].pid))
            made.ip(SERVER, "link", "add", "cable", "type", "veth", *peer)
            for side in (SERVER, CLIENT):
                made.ip(side, "address", "add", f"{side}/24", "dev", "cable")
                made.ip(side, "link", "set", "cable", "up")
        except (AssertionError, OSError, subprocess.CalledProcessError):
            yield None
        else:
            yield made


def _apart(made: Network, side: str) -> bool:
    """Tell whether a side's process has a network of its own yet."""
    return Path(f"/proc/{made._pids[side]}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()


@contextlib.contextmanager
def _held() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["unshare", "--net", "sleep", "600"], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
