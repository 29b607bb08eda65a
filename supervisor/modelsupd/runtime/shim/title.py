"""Lets a forked process show its own name, command line and environment in /proc.

A shim is forked without exec, so /proc would show the spawner's. Command line and environment live in the process's
own memory, at addresses that field 48 to 51 of /proc/PID/stat give, and may be overwritten there; this is how ps shows
`modelsupd: shim qwen/0#7`, and how a shim is found by its token like every other process of its run.
"""

from __future__ import annotations

import ctypes

from modelsupd.runtime.shim import tree

ROOM_BYTES = 512
"""Room that the spawner's environment keeps for a token; the longest replica name has 132 bytes."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def placeholder() -> str:
    """Return the value of the token variable in the spawner's environment: room, and nobody's token."""
    return "-" * ROOM_BYTES


def become_subreaper() -> None:
    """Make orphaned descendants children of this process, so that none can leave the tree."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper")


def die_with_parent(number: int) -> None:
    """Ask the kernel to send this process a signal when the thread that forked it is gone."""
    if _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot set the parent-death signal")


def set_name(name: str) -> None:
    """Set the name in /proc/PID/comm, of which the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, ctypes.cast(ctypes.c_char_p(name.encode()), ctypes.c_void_p), 0, 0, 0)


def set_title(title: str, token: str) -> bool:
    """Overwrite command line and token; return whether the token now shows, which fails where there is no room."""
    raw = tree.read_file("/proc/self/stat")
    before = tree.read_file("/proc/self/environ")
    if not raw or not before:
        return False
    arg_start, arg_end, env_start, env_end = (int(field) for field in raw[raw.rindex(b")") + 2 :].split()[45:49])
    entry = f"{tree.TOKEN_NAME}={token}".encode()
    room = f"{tree.TOKEN_NAME}={placeholder()}".encode()
    at = before.find(room)
    if at < 0 or not env_start or env_end - env_start < at + len(room) or len(entry) > len(room):
        return False
    ctypes.memmove(env_start + at, entry.ljust(len(room), b"\0"), len(room))
    size = arg_end - arg_start
    if arg_start and size > 1:
        ctypes.memmove(arg_start, title.encode()[: size - 1].ljust(size, b"\0"), size)
    return True
