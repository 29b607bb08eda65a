"""Reaps orphans where we are the init of a container: nobody else would."""

from __future__ import annotations

import os
from collections.abc import Collection


def reap_orphans(own: Collection[int]) -> int:
    """Reap every dead child that is not in `own`, if this process is PID 1; return how many there were.

    `own` are waited for elsewhere. A dead one of them may hide orphans behind it until it is reaped there, because
    the kernel shows one dead child at a time; the next round finds them.
    """
    if os.getpid() != 1:
        return 0
    reaped = 0
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return reaped
        if found is None or found.si_pid in own:
            return reaped
        os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
        reaped += 1
