"""The parent of one engine, for as long as anything of its run is alive.

1. The lock of the run directory is taken before anything else and held for life: it says "a shim lives", and nothing
   else does.
2. Gone means that the kernel says so: as child subreaper every descendant stays below us, and only ECHILD from wait()
   proves that none is left.
3. What is written for others (run.json, exit.json) appears by rename, whole.

SIGTERM ends the engine's leader and is idempotent; it arms the backstop. SIGUSR2 kills everything.
"""

# ruff: noqa: PTH103, PTH104, PTH110, PTH116, PTH123 - no pathlib in the shim: strings keep it small

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import time
import traceback
from typing import Any, NoReturn

from modelsupd.runtime.shim import debris, engine, packet, title, tree
from modelsupd.runtime.shim.log import Log, stamp

NAME = "modelsupd-shim"
"""What a shim is called in /proc/PID/comm."""

SAY_UNCLEARED_AFTER_S = 2.0
"""With the engine gone for this long and descendants left, exit.json says so."""

_READ_BYTES = 256 * 1024
_KILL_AGAIN_S = (0.002, 0.25)  # first and longest pause between two rounds of SIGKILL
_EXIT_ROOM_BYTES = 4096
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE, signal.SIGTSTP)


def main(directory: str, report: socket.socket) -> NoReturn:
    """Be the shim of the run in `directory`; called in the forked child and never returns."""
    code = 1
    watching: Shim | None = None
    try:
        shim = Shim(directory)
        try:
            answer, fds = shim.start()
        except (engine.CannotStartError, OSError) as error:
            step, number = (
                (error.step, error.number) if isinstance(error, engine.CannotStartError) else ("spawn", error.errno)
            )
            _tell(report, {"v": 1, "step": step, "errno": number, "why": str(error)}, [])
        else:
            _tell(report, answer, fds)
            watching = shim
            shim.watch()
            code = 0
    except BaseException:  # noqa: BLE001 - whatever happens here must be told, and must not run on in the spawner's code
        _tell(report, {"v": 1, "step": "spawn", "errno": 0, "why": traceback.format_exc()}, [])
        if watching is not None:
            watching.fail(traceback.format_exc())
    finally:
        os._exit(code)


def _tell(report: socket.socket, answer: dict[str, Any], fds: list[int]) -> None:
    """Answer the daemon; one that is gone learns the same from the run directory."""
    with contextlib.suppress(OSError):
        packet.send(report, answer, fds)
    report.close()


def write_json(path: str, value: dict[str, Any]) -> None:
    """Write a file of a run directory, whole or not at all.

    Without fsync: it tells of processes, and a power cut ends those. Readers take a file cut short for none.
    """
    fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = json.dumps(value).encode()
        while left:  # a disk with room for a part of it takes that part, and says why not the rest when asked again
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
    os.rename(f"{path}.tmp", path)


class Shim:
    """One run: its files, its engine, and what was asked of it."""

    def __init__(self, directory: str) -> None:
        """Take signals from here on; what they ask for is done once there is an engine."""
        self._directory = directory
        self._term_asked = self._term_sent = self._kill_asked = False
        self._note = ""
        self._status: int | None = None  # of the engine's leader, once it is gone
        self._backstop_at: float | None = None
        self._gone_at = 0.0  # when the leader was seen gone
        self._killing = False
        self._kill_at = 0.0
        self._kill_pause_s = _KILL_AGAIN_S[0]
        self._uncleared_said = False
        self._shared: debris.Found | None = None  # what the run has in /dev/shm, once it is being ended
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR2, self._on_kill)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        os.setsid()
        title.set_name(NAME)

    def _on_term(self, *_: object) -> None:
        self._term_asked = True

    def _on_kill(self, *_: object) -> None:
        self._kill_asked = True

    def start(self) -> tuple[dict[str, Any], list[int]]:
        """Start the engine; return the report to the daemon, and pidfds of shim and engine to go with it."""
        self._lock()
        with open(f"{self._directory}/spec.json", "rb") as file:
            spec = self._spec = json.load(file)
        title.set_title(f"modelsupd: shim {spec['replica']}#{spec['run']}", spec["token"])
        title.become_subreaper()
        own = tree.stat(os.getpid())
        if own is None:
            raise OSError(errno.ENOENT, "cannot read /proc: modelsupd needs it")
        with contextlib.suppress(OSError):
            os.makedirs(spec["tmp"], 0o700, exist_ok=True)
        counters = f"{self._directory}/counters"
        self._log = Log(spec["state"], spec["log_max_bytes"], spec["log_files"], counters)
        self._there = debris.there()
        self._engine = started = engine.start(spec)
        answer = {
            "v": 1,
            "replica": spec["replica"],
            "run": spec["run"],
            "digest": spec["digest"],
            "token": spec["token"],
            "boot_id": spec["boot_id"],
            "shim": {"pid": own.pid, "start": own.start},
            "engine": {"pid": started.pid, "start": started.start},
            "log_inode": started.log_inode,
            "endpoint": started.endpoint,
            "at": stamp(time.time()).decode().strip(),
            "mono_s": time.monotonic(),
        }
        write_json(f"{self._directory}/run.json", answer)
        return answer, [os.pidfd_open(own.pid), started.pidfd]

    def _lock(self) -> None:
        path = f"{self._directory}/lock"
        self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = "another shim holds the lock of this run"
            raise engine.CannotStartError("lock", errno.EWOULDBLOCK, words) from None
        # A daemon that gave this run up takes the lock, voids the directory and may remove it.
        try:
            moved = not os.path.samestat(os.stat(path), os.fstat(self._lock_fd))
        except FileNotFoundError:
            moved = True
        if moved or os.path.exists(f"{self._directory}/void"):
            raise engine.CannotStartError("lock", errno.ECANCELED, "this run was given up before its shim started")

    def _reserve_exit(self) -> int:
        """Hold room for exit.json, so that a full disk does not swallow how the engine ended; -1 if there is none."""
        path = f"{self._spec['state']}/exit.json.tmp"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError:
            return -1
        try:
            os.posix_fallocate(fd, 0, _EXIT_ROOM_BYTES)
        except OSError:
            os.close(fd)
            return -1
        return fd

    def fail(self, why: str) -> None:
        """Leave the engine's last words in the log, and why nobody follows them."""
        self._read_rest()
        self._log.say(f"the shim failed, and the engine ends with it: {why}")

    # The loop

    def watch(self) -> None:
        """Pass on output and signals until nothing of the run is left, then record how it ended."""
        self._exit_fd = self._reserve_exit()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._engine.log_fd, select.POLLIN)
        while not self._over():
            for fd, _ in poll.poll(self._timeout_ms()):
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 65536)
                elif not self._read_log():
                    poll.unregister(fd)
        self._read_rest()
        for path in debris.remove(self._shared or {}):
            self._log.say(f"removed {path}, which the run left behind")
        self._log.close()
        self._record(cleared=True, pids_left=[])

    def _read_log(self) -> bool:
        """Take one piece of output; return False at its end, which an engine that lives on may reach."""
        try:
            data = os.read(self._engine.log_fd, _READ_BYTES)
        except BlockingIOError:
            return True
        self._log.feed(data)
        return bool(data)

    def _read_rest(self) -> None:
        """Take what is left in the pipe: no more than it holds, for someone outside may have been given its end."""
        left = fcntl.fcntl(self._engine.log_fd, fcntl.F_GETPIPE_SZ)
        with contextlib.suppress(BlockingIOError):
            while left > 0 and (data := os.read(self._engine.log_fd, _READ_BYTES)):
                self._log.feed(data)
                left -= len(data)

    def _timeout_ms(self) -> int | None:
        """Return when the loop must turn without being woken."""
        due: list[float] = []
        if self._killing:
            due.append(self._kill_at)
        elif self._status is not None:
            due.append(self._gone_at + self._spec["orphan_grace_s"])
        elif self._backstop_at is not None:
            due.append(self._backstop_at)
        if self._status is not None and not self._uncleared_said:
            due.append(self._gone_at + SAY_UNCLEARED_AFTER_S)
        return max(0, int((min(due) - time.monotonic()) * 1000) + 1) if due else None

    def _over(self) -> bool:
        """Reap, do what was asked or is due, and return whether nothing is left."""
        alone = self._reap()
        if alone:
            return True
        now = time.monotonic()
        if self._term_asked and not self._term_sent and self._status is None:
            self._term_sent = True
            self._backstop_at = now + self._backstop_s()
            signal.pidfd_send_signal(self._engine.pidfd, signal.SIGTERM)
        if self._kill_asked:
            self._killing = True
        elif self._backstop_at is not None and now >= self._backstop_at and not self._killing:
            self._killing = True
            self._note = f"nobody followed up on SIGTERM within {self._backstop_s():g} s, so the shim killed the run"
            self._log.say(self._note)
        elif self._status is not None and now >= self._gone_at + self._spec["orphan_grace_s"]:
            self._killing = True
        if self._killing and now >= self._kill_at:
            self._send_all(signal.SIGKILL)
            self._kill_at = now + self._kill_pause_s
            self._kill_pause_s = min(self._kill_pause_s * 2, _KILL_AGAIN_S[1])
        if self._status is not None and not self._uncleared_said and now >= self._gone_at + SAY_UNCLEARED_AFTER_S:
            self._uncleared_said = True
            left = [each.pid for each in tree.descendants(os.getpid()) if not each.dead]
            self._record(cleared=False, pids_left=left)
        return False

    def _backstop_s(self) -> float:
        """Return how long to wait for a follow-up: as the daemon said last, or as it was at the start."""
        with contextlib.suppress(OSError, ValueError, KeyError), open(f"{self._directory}/backstop.json", "rb") as file:
            return float(json.load(file)["backstop_s"])
        return float(self._spec["backstop_s"])

    def _reap(self) -> bool:
        """Reap whoever is dead; return whether no child, and with it no descendant, is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._engine.pid:
                self._status = status
                self._gone_at = time.monotonic()
                # Others may have died with it and wait behind it, so they are reaped before anyone is signalled.
                if not self._reap():
                    self._send_all(signal.SIGTERM)
                    return False
                return True

    def _send_all(self, number: int) -> None:
        if self._shared is None:
            alive = (each.pid for each in tree.descendants(os.getpid()) if not each.dead)
            self._shared = debris.shared_by(alive, self._there)
        # The leader first and by the descriptor in hand: it must not outlive a shortage of descriptors, which hides
        # the others until it is over.
        if self._status is None:
            signal.pidfd_send_signal(self._engine.pidfd, number)
        for each in tree.descendants(os.getpid()):
            if not each.dead:
                tree.send(each.pid, each.start, number)

    # The end

    def _record(self, *, cleared: bool, pids_left: list[int]) -> None:
        """Write exit.json: into the reserved room, else anew, else beside run.json."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        said = {
            "v": 1,
            "replica": self._spec["replica"],
            "run": self._spec["run"],
            "token": self._spec["token"],
            "boot_id": self._spec["boot_id"],
            "code": code if code is not None and code >= 0 else None,
            "signal": -code if code is not None and code < 0 else None,
            "at": stamp(time.time()).decode().strip(),
            "mono_s": time.monotonic(),
            "peak_rss_bytes": used.ru_maxrss * 1024,
            "cpu_s": round(used.ru_utime + used.ru_stime, 6),
            "cleared": cleared,
            "pids_left": pids_left[:100],
            "log_bytes": self._log.read_bytes,
            "log_lost_bytes": self._log.lost_bytes,
            "asked": self._term_asked or self._kill_asked,
            "note": self._note,
        }
        if self._exit_fd >= 0 and self._record_in_room(json.dumps(said).encode()):
            return
        for directory in (self._spec["state"], self._directory):
            with contextlib.suppress(OSError):
                write_json(f"{directory}/exit.json", said)
                return

    def _record_in_room(self, text: bytes) -> bool:
        path = f"{self._spec['state']}/exit.json"
        fd, self._exit_fd = self._exit_fd, -1
        try:
            if os.pwrite(fd, text, 0) < len(text):
                return False
            os.ftruncate(fd, len(text))
            os.rename(f"{path}.tmp", path)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True
