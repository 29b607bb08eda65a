"""What systemd is told (sd_notify(3)), and nothing where there is no systemd.

One datagram a message to `$NOTIFY_SOCKET`. The variables are taken out of our environment when read, so that no child
can speak in our name; engines get an environment of their own in any case.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping


class Notifier:
    """The way to the service manager."""

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        """Take what the service manager left in the environment, and leave nothing of it there."""
        environment = os.environ if environment is None else environment
        self._address = environment.pop("NOTIFY_SOCKET", None)
        watchdog_usec = environment.pop("WATCHDOG_USEC", None)
        watchdog_pid = environment.pop("WATCHDOG_PID", None)
        mine = watchdog_pid is None or watchdog_pid == str(os.getpid())
        self._status = ""
        self.watchdog_s = int(watchdog_usec) / 1e6 if watchdog_usec and mine else None

    def tell(self, **fields: str | int) -> None:
        """Send fields such as `READY=1`; that nobody listens, or descriptors are short, is no reason to fail."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        message = "\n".join(f"{key}={value}" for key, value in fields.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                # A service manager that does not read must not be able to hold up the daemon.
                channel.setblocking(False)
                channel.connect(address)
                channel.sendall(message.encode())
        except OSError:
            return

    def status(self, words: str) -> None:
        """Send the line that `systemctl status` shows, if it is another one than the last."""
        if words != self._status:
            self.tell(STATUS=words)
            self._status = words

    def extend(self, by_s: float) -> None:
        """Ask for this much more time before the service manager loses patience."""
        self.tell(EXTEND_TIMEOUT_USEC=int(by_s * 1e6))
