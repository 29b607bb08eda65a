"""The warm process that forks shims.

Starting Python takes 10 to 25 ms; a fork of a process that has imported everything takes one, and its memory is
shared. Spawner and daemon share a SEQPACKET socketpair: each packet asks for one shim and brings the descriptor on
which that shim reports. At the end of that socket the spawner goes; its shims stay.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
from typing import NoReturn

from modelsupd.runtime.shim import packet, shim, title


def main(fd: int) -> NoReturn:
    """Serve on descriptor `fd` until the daemon is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims leave no zombies
    os.umask(0o077)
    title.set_name("modelsupd-spawn")
    control = socket.socket(fileno=fd)
    control.set_inheritable(False)
    gc.collect()
    gc.freeze()  # so that the collector of a shim touches none of the shared pages
    while True:
        asked, fds = packet.receive(control, 1)
        if asked is None:
            os._exit(0)
        if fds:  # without descriptors left here, the daemon sees its end of the report closed
            _spawn(control, asked["directory"], socket.socket(fileno=fds[0]))


def _spawn(control: socket.socket, directory: str, report: socket.socket) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        told = {"v": 1, "step": "spawn", "errno": error.errno, "why": f"cannot fork a shim: {error.strerror}"}
        with contextlib.suppress(OSError):
            packet.send(report, told, [])
        pid = -1
    if pid == 0:
        control.close()
        shim.main(directory, report)
    report.close()
