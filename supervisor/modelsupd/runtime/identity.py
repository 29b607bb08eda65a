"""Whose a process is.

A pid alone names nobody. A process is ours if its environment says so by our token, or if it has the pid *and* the
start time that a shim of ours recorded on this boot. Only such processes are ever signalled, and only through pidfds.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import select
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelsupd.runtime import paths
from modelsupd.runtime.shim import tree

_INSTALLATION = re.compile(r"[0-9a-f]{32}")


def installation_id(state_dir: Path) -> str | None:
    """Return the id of the installation that a state directory belongs to, None if it has none yet."""
    try:
        text = (state_dir / "installation").read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
    return text if _INSTALLATION.fullmatch(text) else None


def make_installation_id(state_dir: Path) -> str:
    """Return the id of a state directory's installation; it is drawn at random the first time."""
    found = installation_id(state_dir)
    if found is not None:
        return found
    paths.make_private(state_dir)
    made = secrets.token_hex(16)
    temporary = state_dir / "installation.tmp"
    with temporary.open("w", encoding="ascii") as file:
        temporary.chmod(0o600)
        file.write(made + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(state_dir / "installation")
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return made


def boot_id() -> str:
    """Return the id of this boot; a pid and a start time mean nothing in another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@dataclass(frozen=True, slots=True)
class Token:
    """What a run's processes carry in their environment."""

    installation: str
    replica: str
    run: int

    def __str__(self) -> str:
        """Return the form that stands in the environment."""
        return f"{self.installation}:{self.replica}#{self.run}"

    @classmethod
    def parse(cls, text: str) -> Token | None:
        """Return what `str` of a token was made from, None if it is none."""
        installation, colon, rest = text.partition(":")
        replica, mark, run = rest.rpartition("#")
        if not colon or not mark or not run.isascii() or not run.isdigit():
            return None
        return cls(installation, replica, int(run))


class Pidfd:
    """One process that cannot be mistaken for another, for as long as this is open."""

    def __init__(self, fd: int) -> None:
        """Take over the descriptor."""
        self._fd = fd
        self._gone: asyncio.Future[None] | None = None

    @classmethod
    def open(cls, who: Mapping[str, Any], token: str | None = None) -> Pidfd | None:
        """Return the process with `who`'s pid and start time if it lives; one that carries another token is not it."""
        pid, start = who["pid"], who["start"]
        fd = tree.open_pidfd(pid, start)
        if fd is None:
            return None
        carried = tree.token_of(pid)
        if token is not None and carried is not None and carried != token:
            os.close(fd)
            return None
        return cls(fd)

    @property
    def dead(self) -> bool:
        """Whether the process has ended; a zombie has."""
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(0))

    async def gone(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the process; return False where `timeout_s` passed first."""
        if self.dead:
            return True
        if self._gone is None:
            loop = asyncio.get_running_loop()
            self._gone = loop.create_future()
            loop.add_reader(self._fd, self._on_gone)
        # Several may wait at once; asyncio.wait leaves the future alone when one of them is cancelled.
        await asyncio.wait({self._gone}, timeout=timeout_s)
        return self._gone.done()

    def send(self, number: int) -> bool:
        """Send a signal; return whether there was still someone to take it."""
        if self._fd < 0:
            return False
        try:
            signal.pidfd_send_signal(self._fd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go; whoever waits is told that it is over."""
        if self._fd < 0:
            return
        if self._gone is not None and not self._gone.done():
            self._on_gone()
        os.close(self._fd)
        self._fd = -1

    def _on_gone(self) -> None:
        if self._gone is None:
            return
        loop = self._gone.get_loop()
        if not loop.is_closed():
            loop.remove_reader(self._fd)
            if not self._gone.done():
                self._gone.set_result(None)


@dataclass(frozen=True, slots=True)
class Owned:
    """A live process and the token that it carries."""

    pid: int
    start: int
    token: Token


def owned(installation: str) -> list[Owned]:
    """Return every live process of an installation, shims included, found by what its environment says."""
    found = []
    for pid in tree.pids():
        text = tree.token_of(pid)
        token = Token.parse(text) if text is not None and text.startswith(installation + ":") else None
        seen = tree.stat(pid) if token is not None else None
        if token is not None and seen is not None and not seen.dead:
            found.append(Owned(pid, seen.start, token))
    return found


def left_of(token: Token, record: Mapping[str, Any] | None) -> list[tuple[int, int]]:
    """Return pid and start time of what is alive of a run whose shim is gone.

    Found by token; and, for a process that lost its environment, by the engine's session. A session's number may be
    used again once its last process is gone, so a member counts only if the leader is still the recorded engine or the
    member still writes to the recorded log pipe.
    """
    found = {(each.pid, each.start) for each in owned(token.installation) if each.token == token}
    if record is not None and record["boot_id"] == boot_id() and record["token"] == str(token):
        found |= set(_session_members(record))
    return sorted(found)


def _session_members(record: Mapping[str, Any]) -> Iterable[tuple[int, int]]:
    session = record["engine"]["pid"]
    leader = tree.stat(session)
    led = leader is not None and leader.start == record["engine"]["start"]
    pipe = f"pipe:[{record['log_inode']}]"
    for pid in tree.pids():
        seen = tree.stat(pid)
        if seen is None or seen.dead or seen.session != session:
            continue
        if led or any(_link(f"/proc/{pid}/fd/{fd}") == pipe for fd in (1, 2)):
            yield pid, seen.start


def _link(path: str) -> str | None:
    try:
        return str(Path(path).readlink())
    except OSError:
        return None


def alive(pids: Iterable[tuple[int, int]]) -> list[int]:
    """Return the pids of those that still live and are still the same."""
    left = []
    for pid, start in pids:
        seen = tree.stat(pid)
        if seen is not None and seen.start == start and not seen.dead:
            left.append(pid)
    return left
