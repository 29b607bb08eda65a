"""Finds descriptors that are closed twice: whoever opens something in between loses it to the second time."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

#: How many turns of an event loop a connection takes at most, and some more.
TURNS = 12


async def connections_are_closed_once(place: Path, connect: Callable[[str], Coroutine[Any, Any, object]]) -> None:
    """Connect again and again, cancelled after each number of turns of the loop; the other end closes at once.

    `connect` is given the path of a unix socket. Fails where a descriptor is closed that is somebody else's by then.
    """
    loop = asyncio.get_running_loop()
    path = str(place / "closing.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(100)
        listener.setblocking(False)
        loop.add_reader(listener.fileno(), _turn_away, listener)
        try:
            for cancelled in (True, False):
                for turns in range(TURNS):
                    task = loop.create_task(connect(path))
                    # Opened in each turn, they get the lowest numbers that are free: those of what was closed last.
                    canaries: list[int] = []
                    for turn in range(TURNS):
                        if cancelled and turn == turns:
                            task.cancel()
                        await asyncio.sleep(0)
                        canaries += os.pipe()
                    await asyncio.wait({task})
                    if not task.cancelled():
                        task.exception()  # how it ended is not what this is about
                    del task
                    canaries += os.pipe()
                    gc.collect()
                    _all_open(canaries, f"{turns} turns, {cancelled=}")
        finally:
            loop.remove_reader(listener.fileno())


def _turn_away(listener: socket.socket) -> None:
    listener.accept()[0].close()


def _all_open(canaries: list[int], when: str) -> None:
    lost = []
    for end in canaries:
        try:
            os.close(end)
        except OSError:
            lost.append(end)
    assert not lost, f"closed by somebody else: {lost} ({when})"
