"""300 streams through the gateway while the daemon is killed or replaced, and while the gateway itself is.

A real daemon, the real gateway, an engine that keeps its pace, and a hundred fresh connections a second besides. Each
disturbance has a run of its own, in turn with one in which nothing happens; what counts is how much later events come
than they were due, in the seconds from the disturbance on, and whether any stream breaks or connection is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import child
import gateway_restart_load
import measure
from hosts import Host
from waiting import until

ROUNDS = 3

#: A disturbance comes when all streams have long begun, and what it costs is looked for in the seconds after it.
BEFORE_S = 4.0
WATCHED_S = 5.0

_HERE = Path(__file__).parent


@dataclass
class Seen:
    """What was seen of one kind of run, over all rounds."""

    lag_s: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)
    fresh_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


def _models() -> str:
    command = json.dumps([sys.executable, str(_HERE / "gateway_paced.py"), "{socket}"])
    return (
        "[gateway]\nlisten = '127.0.0.1:0'\ndrain_timeout_s = 60\n#\n"
        f"[models.m]\nengine = 'command'\ncommand = {command}\nhealth.start_interval_s = 0.05\n"
    )


def _gateway(host: Host) -> dict[str, Any]:
    """Return the run that takes connections."""
    with contextlib.suppress(Exception):  # no daemon answers yet
        told = host.client.status()["gateway"]
        return next((dict(run) for run in told["runs"] if run["accepts"]), {})
    return {}


def _nothing(host: Host) -> None:
    """Let it run."""


def _killed(host: Host) -> None:
    """Kill the daemon, and start the next at once."""
    host.stop(signal.SIGKILL)
    host.start()


def _restarted(host: Host) -> None:
    """Replace the daemon as an upgrade does."""
    host.stop(signal.SIGUSR1)
    host.start()


def _replaced(host: Host) -> None:
    """Have the daemon replace the gateway, by a setting that changes."""
    before = _gateway(host)["pid"]
    text = host.config.read_text()
    fresh = f"cors_origins = ['https://p{before}.example']\n#\n"
    head, _, tail = text.partition("#\n")
    host.config.write_text("\n".join(line for line in head.split("\n") if "cors_origins" not in line) + fresh + tail)
    host.run("reload")
    until(lambda: _gateway(host).get("pid") not in (None, before), what=host.said)


def _died(host: Host) -> None:
    """Kill the gateway: its streams end with it, which nothing can help; new connections must not notice."""
    before = _gateway(host)["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: _gateway(host).get("pid") not in (None, before), what=host.said)


KINDS: dict[str, Callable[[Host], None]] = {
    "undisturbed": _nothing,
    "daemon: kill -9, started again": _killed,
    "daemon: SIGUSR1, started again": _restarted,
    "gateway replaced (reload)": _replaced,
    "gateway: kill -9": _died,
}


def one(host: Host, place: Path, disturb: Callable[[Host], None], seen: Seen) -> None:
    """Make one run, and add what it showed."""
    port = host.client.status()["gateway"]["listen"][0].rpartition(":")[2]
    out = place / "came.json"
    words = [sys.executable, _HERE / "gateway_restart_load.py", port, str(BEFORE_S + WATCHED_S), out]
    with subprocess.Popen(words) as load:
        time.sleep(BEFORE_S)
        began_at = time.monotonic()
        disturb(host)
        seen.took_s.append(time.monotonic() - began_at)
        load.wait(60)
    came = json.loads(out.read_text())
    watched = [
        there - due
        for due, there in zip(came["due_at"], came["came_at"], strict=True)
        if began_at <= there < began_at + WATCHED_S
    ]
    seen.lag_s += watched
    seen.p99_s.append(measure.p99(watched) or 0.0)
    seen.fresh_s += came["fresh_s"]
    seen.counts.update(came["counts"])
    seen.wrong.update(came["wrong"])
    # The gateway that was replaced is gone with its last stream, so that the next run has all of the machine.
    until(lambda: len(host.client.status()["gateway"]["runs"]) == 1, timeout_s=30)


def main(runs: int = 0) -> None:
    """Measure and print; `runs` is rounds."""
    streams, pace = gateway_restart_load.STREAMS, gateway_restart_load.PACE_MS
    measure.heading(f"{streams} streams, an event every {pace} ms, while daemon or gateway are replaced")
    seen = {name: Seen() for name in KINDS}
    with child.place() as place, child.daemon(place, _models()) as host:
        host.until_ready(1)
        until(lambda: bool(_gateway(host)), what=host.said)
        for _ in range(runs or ROUNDS):
            for name, disturb in KINDS.items():
                one(host, place, disturb, seen[name])
    floor_s = measure.median(seen["undisturbed"].p99_s)
    for name, each in seen.items():
        added_ms = (measure.median(each.p99_s) - floor_s) * 1e3
        print(
            f"  {name:32} event later than due: {measure.milliseconds(each.lag_s)}, at most"
            f" {max(each.lag_s) * 1e3:.1f} ms; p99 + {added_ms:6.2f} ms; took {measure.median(each.took_s):.2f} s"
        )
        print(
            f"    fresh connections answered: {measure.milliseconds(each.fresh_s)}, at most {max(each.fresh_s):.2f} s"
        )
        print(f"    {dict(each.counts)}; went wrong: {dict(each.wrong) or 'nothing'}")
