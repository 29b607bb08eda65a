"""kill -9 of a daemon with 100 live runs until the next one has adopted them all and answers `status`.

The clock begins with the kill; the next daemon is started at once, as systemd would do it. In turn with it the same
with one live run, which shows what the start of the daemon itself costs, and an interpreter that imports the daemon.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import child
import measure
from modelsupd.control.client import NoDaemon, Unanswered

RUNS = 20
LIVE = 100


@contextlib.contextmanager
def _fleet(place: Path, program: Path, replicas: int) -> Iterator[child.Daemon]:
    place.mkdir()
    with (
        contextlib.closing(child.Bell(place / "bell")) as bell,
        child.daemon(place, child.model("m", program, bell.path, replicas=replicas)) as host,
    ):
        host.until_ready(replicas)
        yield host


def alive(host: child.Daemon) -> set[tuple[object, object]]:
    """Return run and pid of what is ready; nothing while nobody answers."""
    try:
        return {(row["run"], row["pid"]) for row in host.rows() if row["phase"] == "ready"}
    except (NoDaemon, Unanswered):
        return set()


def recovered(host: child.Daemon) -> float:
    """Kill the daemon and return how long it takes until the next one knows the same runs as ready."""
    before = alive(host)
    old = host.daemon
    assert old is not None  # noqa: S101 - it was started
    began_at = time.perf_counter()
    old.send_signal(signal.SIGKILL)
    old.wait()
    with host.log.open("ab") as log:
        host.daemon = subprocess.Popen(host.command("run"), stdout=log, stderr=log)
    while alive(host) != before:
        time.sleep(0.002)
    return time.perf_counter() - began_at


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading(f"recovery: kill -9 of the daemon -> {LIVE} live runs adopted, status answered")
    many_name, few_name = f"{LIVE} live runs", "1 live run"
    rows: dict[str, list[float]] = {many_name: [], few_name: [], "import of the daemon": []}
    with child.place() as place:
        program = child.compiled(place)
        with _fleet(place / "many", program, LIVE) as many, _fleet(place / "few", program, 1) as few:
            for _ in range(runs or RUNS):
                rows[many_name].append(recovered(many))
                rows[few_name].append(recovered(few))
                importing = [sys.executable, "-c", "import modelsupd.cli.run, modelsupd.daemon"]
                rows["import of the daemon"].append(measure.timed(lambda: subprocess.run(importing, check=True)))  # noqa: B023 - it is called here
                time.sleep(0.2)
    shown: dict[str, Sequence[float]] = dict(rows)
    measure.compare(shown, many_name)
