"""Looking at a verified, unchanged model of 50 files until it is known that an engine may be started on it.

Ours also sees to the folder of links that the engine is given. The floor is one stat of each file. What is looked at
lies on a disk, as installed, with the kernel's cache warm.
"""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path

import measure
from filled_cache import fill
from modelsupd.weights import folders
from modelsupd.weights.base import HubSource, Part, Role, Settings
from modelsupd.weights.job import carry_out
from modelsupd.weights.look import look
from modelsupd.weights.wire import Job

RUNS = 300
FILES = 50


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading(f"resolving: a verified model of {FILES} files")
    with tempfile.TemporaryDirectory() as place:
        settings = Settings(Path(place) / "hub", Path(place) / "state")
        contents = {f"model-{number:05d}.bin": os.urandom(4096) for number in range(FILES - 1)}
        fill(settings, "hf:org/name", contents | {"config.json": b"{}"})
        part = Part(Role.WEIGHTS, HubSource("org/name"))
        carry_out(Job((part,), (None,), settings, "command"), lambda _: None, threading.Event())

        def ours() -> list[Path]:
            whole = look((part,), (None,), settings, "command").whole[0]
            if whole is None:
                raise SystemExit("cannot measure: what was made whole is not found to be")
            folders.lay_out(whole.path, whole.links)
            return [path for _, path in whole.links]

        paths = [str(path) for path in ours()]

        def floor() -> None:
            for path in paths:
                os.stat(path)  # noqa: PTH116 - the system call, and little else

        ways = {"ours": ours, "one stat a file": floor}
        assert len(paths) == FILES  # noqa: S101 - else something else would be measured
        rows: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs or RUNS):
            for name, way in ways.items():
                rows[name].append(measure.timed(way))
    for name, seconds in rows.items():
        print(f"  {name:26} {measure.milliseconds(seconds)}")
