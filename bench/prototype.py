"""The least that a supervisor can be: asyncio, a pidfd, start again. `python prototype.py PROGRAM [ARG …]`.

No journal, no probes, no shim: what the restart of a real one is measured against.
"""

from __future__ import annotations

import asyncio
import os
import sys


async def main(command: list[str]) -> None:
    """Keep one process alive until killed."""
    loop = asyncio.get_running_loop()
    while True:
        pid = os.posix_spawn(command[0], command, os.environ)  # noqa: ASYNC221 - nothing else is to be done meanwhile
        pidfd = os.pidfd_open(pid)
        gone = asyncio.Event()
        loop.add_reader(pidfd, gone.set)
        await gone.wait()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)  # noqa: ASYNC222 - it has ended


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
