"""Reads listening addresses."""

from __future__ import annotations

import ipaddress
import re

from modelsupd.core.spec import Problem

_ADDRESS = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_LAST_PORT = 65535
_PATH = ("daemon", "metrics_listen")


def loopback(host: str) -> bool:
    """Tell whether an IP address, in digits, is one that only this host reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_and_port(value: str) -> tuple[str, int] | None:
    """Return the host, `localhost` in digits, and port of `HOST:PORT` or `[HOST]:PORT`; None for anything else."""
    seen = _ADDRESS.fullmatch(value)
    if not seen or int(seen["port"]) > _LAST_PORT:
        return None
    host = seen["v6"] or seen["host"]
    return "127.0.0.1" if host == "localhost" else host, int(seen["port"])


def listen_address(value: str | None, problems: list[Problem]) -> tuple[str, int] | None:
    """Return host and port, or None for no listener ('' or a problem, which is added to `problems`).

    Only loopback: what is told there (names of models, sizes, failures) is not for the network. Port 0 is any free one.
    """
    if not value:
        return None
    seen = host_and_port(value)
    if seen is None:
        problems.append(Problem(_PATH, value, "must be HOST:PORT, such as '127.0.0.1:9310' or '[::1]:9310'"))
        return None
    if not loopback(seen[0]):
        problems.append(Problem(_PATH, value, "must be a loopback address, such as '127.0.0.1:9310'; '' turns it off"))
        return None
    return seen
