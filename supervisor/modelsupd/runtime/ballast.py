"""Space held back in the runtime directory, so that a crashed engine can be started again while its disk is full.

Under systemd and for root the runtime directory is memory; a plain user may have it on the disk that is full.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

#: A run directory holds half a dozen small files, each a block or two.
BALLAST_BYTES = 128 * 1024


class Ballast:
    """The file `ballast`."""

    def __init__(self, directory: Path) -> None:
        """Hold it in this directory, as far as there is space."""
        self._path = directory / "ballast"
        self.trim()

    def trim(self) -> None:
        """Give the space up where there is no other, take it again where there is; never raises.

        It is the last of its kind: whoever else fills the disk may take what is given up.
        """
        with contextlib.suppress(OSError):
            found = os.statvfs(self._path.parent)
            free_bytes = found.f_frsize * (found.f_bfree if os.geteuid() == 0 else found.f_bavail)
            if free_bytes < BALLAST_BYTES:
                self._path.unlink(missing_ok=True)
            elif not self._path.exists():
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, BALLAST_BYTES)
                except OSError:
                    self._path.unlink()
                finally:
                    os.close(fd)
