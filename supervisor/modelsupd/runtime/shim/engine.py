"""Starts an engine: its endpoint, its argv and environment, fork and exec."""

# ruff: noqa: PTH108, PTH123 - no pathlib in the shim: strings keep it small

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from modelsupd.runtime.shim import title, tree

HOST = "127.0.0.1"
_PIPE_BYTES = 1024 * 1024  # the most that an unprivileged process may ask for (/proc/sys/fs/pipe-max-size)
_PLACEHOLDER = re.compile(r"\{(port|host|socket|tmp|run_dir|cache_dir)\}")
_RESET = [
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGPIPE,
    signal.SIGTERM,
    signal.SIGCHLD,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGXFSZ,
]


class CannotStartError(Exception):
    """The engine was not started: at which step ('exec', 'chdir', 'lock', 'spawn'), the errno, and the words."""

    def __init__(self, step: str, number: int, words: str) -> None:
        """Hold what the daemon is told."""
        super().__init__(words)
        self.step = step
        self.number = number


class Started(NamedTuple):
    """A running engine. `log_fd` reads its output; `held` is the socket that keeps its port."""

    pid: int
    start: int
    pidfd: int
    log_fd: int
    log_inode: int
    endpoint: str
    held: socket.socket | None


def start(spec: dict[str, Any]) -> Started:
    """Start the engine that a spec.json describes; raises CannotStartError, and then there is no process."""
    held = None
    fills = places(spec)
    if spec["listen"] == "tcp":
        held = _bind()
        fills |= {"host": HOST, "port": str(held.getsockname()[1])}
    else:
        # A socket file of an earlier engine makes the bind fail (llama-server, vLLM: "address in use").
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spec["socket"])
    argv, env = filled(spec, fills)
    pid, pidfd, log_fd = _fork(argv, env, spec["cwd"] or spec["tmp"])
    seen = tree.stat(pid)
    if seen is None:  # cannot happen: a child that was not reaped keeps its entry
        raise CannotStartError("spawn", errno.ESRCH, f"cannot read /proc/{pid}/stat of the engine")
    return Started(
        pid=pid,
        start=seen.start,
        pidfd=pidfd,
        log_fd=log_fd,
        log_inode=os.fstat(log_fd).st_ino,
        endpoint=f"http://{HOST}:{fills['port']}" if held else f"unix:{spec['socket']}",
        held=held,
    )


def places(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return what is filled in for the files of a run: its socket, and folders for scratch, sockets, and caches."""
    socket_path = str(spec["socket"])
    return {
        "socket": socket_path,
        "tmp": str(spec["tmp"]),
        "run_dir": socket_path.rpartition("/")[0],
        "cache_dir": str(spec["cache"]),
    }


def filled(spec: Mapping[str, Any], fills: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of a spec.json with its placeholders replaced, and what marks the run added.

    SPT_NOENV keeps programs that rename themselves, vLLM does, from overwriting the mark in /proc/PID/environ.
    """
    argv = [_fill(part, fills) for part in spec["argv"]]
    env = {tree.TOKEN_NAME: str(spec["token"]), "TMPDIR": str(spec["tmp"]), "SPT_NOENV": "1"}
    env |= {name: _fill(value, fills) for name, value in spec["env"].items() if name not in env}
    return argv, env


def _bind() -> socket.socket:
    """Return a loopback socket that is bound and never listens, so that nobody else is given its port.

    An engine may bind the same port as long as both sides set one of these options, and servers do: cpp-httplib sets
    SO_REUSEPORT, asyncio and uvicorn SO_REUSEADDR.
    """
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((HOST, 0))
    return held


def _fill(text: str, fills: Mapping[str, str]) -> str:
    """Replace the known placeholders in one pass, so that what was filled in is not read again."""
    return _PLACEHOLDER.sub(lambda match: fills.get(match[1], match[0]), text)


def _fork(argv: list[str], env: dict[str, str], cwd: str) -> tuple[int, int, int]:
    """Return pid, pidfd and the reading end of the log pipe, once exec is known to have worked."""
    log_read, log_write = os.pipe()
    error_read, error_write = os.pipe()
    with contextlib.suppress(OSError):
        fcntl.fcntl(log_read, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    os.set_blocking(log_read, False)
    shim_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(argv, env, cwd, shim_pid, (log_write, error_write))
    os.close(log_write)
    os.close(error_write)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        os.kill(pid, signal.SIGKILL)  # our own child, which nobody else reaps: the pid is still its own
        os.waitpid(pid, 0)
        raise
    said = b""
    while part := os.read(error_read, 4096):
        said += part
    os.close(error_read)
    if said:
        os.waitpid(pid, 0)
        told = json.loads(said)
        raise CannotStartError(told["step"], told["errno"], told["why"])
    return pid, pidfd, log_read


def _become(argv: list[str], env: dict[str, str], cwd: str, shim_pid: int, pipes: tuple[int, int]) -> NoReturn:
    """Turn the forked child into the engine; what goes wrong is told through the close-on-exec pipe."""
    log_write, error_write = pipes
    step = "spawn"
    try:
        os.setsid()
        title.die_with_parent(signal.SIGKILL)
        if os.getppid() != shim_pid:  # the shim died before the line above
            os._exit(127)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log_write, 1)
        os.dup2(log_write, 2)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _give_up_oom_protection()
        step = "chdir"
        os.chdir(cwd)
        step = "exec"
        os.execvpe(argv[0], argv, env)  # noqa: S606 - starting what the operator declared is the purpose
    except BaseException as error:  # noqa: BLE001 - the forked child must never return into the shim's code
        if not isinstance(error, OSError):
            error = OSError(0, repr(error))
        why = error.strerror or str(error)
        told = {"step": step, "errno": error.errno, "why": f"cannot enter {cwd!r}: {why}" if step == "chdir" else why}
        with contextlib.suppress(OSError):
            os.write(error_write, json.dumps(told).encode())
    finally:
        os._exit(127)


def _give_up_oom_protection() -> None:
    """Undo a daemon's protection from the OOM killer: its shims keep it, an engine must stay the one to be killed."""
    path = "/proc/self/oom_score_adj"
    value = tree.read_file(path)
    if value and int(value) < 0:
        with contextlib.suppress(OSError), open(path, "wb") as file:
            file.write(b"0")
