"""The process that reads the GPUs: a line comes in, a look is taken, a line goes out. Ends with its stdin.

A driver that hangs takes this process with it, and not the daemon, which gives it up.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

from modelsupd.runtime.gpus import amd
from modelsupd.runtime.gpus.reading import NVIDIA, Reading, Seen, written
from modelsupd.runtime.shim import title

#: Of which the kernel shows 15 bytes.
NAME = "modelsupd-gpus"


class Reader:
    """Looks at every GPU there is."""

    def __init__(self, nvml: str, drm: Path) -> None:
        """Load nothing yet: a driver may be installed later than we are started."""
        self._path, self._drm = nvml, drm
        self._nvml: object = None
        self._amd: dict[str, Seen] = {}

    def look(self) -> Reading:
        """Return what there is now."""
        nvidia = self._nvidia()
        return replace(nvidia, gpus=(*nvidia.gpus, *amd.read(self._drm, self._amd)))

    def _nvidia(self) -> Reading:
        import pynvml  # noqa: PLC0415 - it is large, and only this process needs it

        from modelsupd.runtime.gpus.nvml import Nvml  # noqa: PLC0415 - the same

        try:
            if not isinstance(self._nvml, Nvml):
                self._nvml = Nvml(self._path)
            found = tuple(self._nvml.read())
            return Reading(found, tuple(self._nvml.notes), divided=tuple(sorted(self._nvml.divided)))
        except (pynvml.NVMLError, OSError) as error:
            return Reading(notes=(f"{NVIDIA}: {error}",), unread=(NVIDIA,))


def main() -> None:
    """Serve looks until nobody asks any more."""
    title.die_with_parent(signal.SIGKILL)
    title.set_name(NAME)
    reader = Reader(sys.argv[1], Path(sys.argv[2]))
    for _line in sys.stdin.buffer:
        sys.stdout.buffer.write(written(reader.look()))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
