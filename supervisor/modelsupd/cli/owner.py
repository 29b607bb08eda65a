"""Root's way of working on the directories of a service that runs as another user: as that user."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pwd
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG = 1  # prctl(2)
_INTERRUPTED, _BROKEN_PIPE = 130, 141


def become_owner(state_dir: Path, runtime_dir: Path | None = None) -> None:
    """As root, become the user that the state directory belongs to, for good; otherwise do nothing.

    What root writes there would be closed to the daemon, and root would follow links that the user may have placed.
    A `runtime_dir` that is missing (as after a reboot) is made first, since only root may; it becomes the user's too.
    Raises OSError.
    """
    if not _is_others(state_dir):
        return
    owner = state_dir.stat()
    if runtime_dir is not None and not runtime_dir.exists():
        runtime_dir.mkdir(mode=0o700, parents=True)
        os.chown(runtime_dir, owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwuid(owner.st_uid)
    except KeyError:
        # No table knows the user, as in some containers; then the directory's group is all that is known.
        os.setgroups([])
        os.setgid(owner.st_gid)
    else:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
    os.setuid(owner.st_uid)


def as_owner(folder: Path, act: Callable[[], Any]) -> Any:  # noqa: ANN401 - what JSON can hold
    """Do something below a folder as the user whom it belongs to, and return what `act` returns: plain data.

    Root does it in a child that becomes that user for good, and stays root itself, for what the user may not do
    afterwards. What the child says of its errors is said; its exit status becomes ours.
    """
    if not _is_others(folder):
        return act()
    sys.stdout.flush()
    sys.stderr.flush()
    readable, writable = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _live(folder, act, writable, parent)
    os.close(writable)
    with _leaving_it_to(child), open(readable, "rb") as answer:  # noqa: PTH123 - a descriptor, no path
        said = answer.read()
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        sys.exit(code if code > 0 else 128 - code)
    return json.loads(said)


def _is_others(folder: Path) -> bool:
    return os.geteuid() == 0 and folder.exists() and folder.stat().st_uid != 0


@contextmanager
def _leaving_it_to(child: int) -> Iterator[None]:
    """Let the child decide what an interruption means: Ctrl-C reaches both of us, SIGTERM only the one it was for."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    terminate = signal.signal(signal.SIGTERM, lambda *_: _signal(child))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminate)


def _signal(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGTERM)


def _live(folder: Path, act: Callable[[], Any], answer: int, parent: int) -> NoReturn:
    """Be the child, to its end."""
    status = 1
    try:
        become_owner(folder)
        # Only now: a change of user takes it back.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(_INTERRUPTED)
        with contextlib.suppress(KeyError):
            os.environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
        said = json.dumps(act()).encode()
        sys.stdout.flush()
        with open(answer, "wb") as file:
            file.write(said)
        status = 0
    except BaseException as error:  # noqa: BLE001 - the child must not run on in its parent's code
        status = _told(error)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _told(error: BaseException) -> int:
    """Say what an error says, as the command line does, and return its exit status."""
    from modelsupd.cli.place import exit_status  # noqa: PLC0415 - only after a mistake

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return _BROKEN_PIPE
    known = exit_status(error) if isinstance(error, Exception) else None
    if known is None:
        traceback.print_exception(error)
        return 1
    sys.stderr.write(f"modelsupd: {error}\n")
    return known
