"""Reads a listening address."""

from __future__ import annotations

import ipaddress
import re

from modelsupd.core.spec import Problem

_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65535
_PATH = ("daemon", "metrics_listen")


def listen_address(value: str | None, problems: list[Problem]) -> tuple[str, int] | None:
    """Return host and port, or None for no listener ('' or a problem, which is added to `problems`).

    Only loopback: what is told there (names of models, sizes, failures) is not for the network. Port 0 is any free one.
    """
    if not value:
        return None
    seen = _ADDRESS.fullmatch(value)
    if not seen or int(seen["port"]) > _LAST_PORT:
        problems.append(Problem(_PATH, value, "must be HOST:PORT, such as '127.0.0.1:9310' or '[::1]:9310'"))
        return None
    host = seen["v6"] or seen["host"]
    if host == "localhost":
        host = "127.0.0.1"
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        problems.append(Problem(_PATH, value, "must be a loopback address, such as '127.0.0.1:9310'; '' turns it off"))
        return None
    return host, int(seen["port"])
