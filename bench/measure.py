"""Numbers, and how they are told."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from modelsupd import __version__

#: So many are needed before anything is said about the slowest hundredth.
ENOUGH_FOR_P99 = 300


def median(values: Sequence[float]) -> float:
    """Return the middle one."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float | None:
    """Return what 99 of 100 stay below, None where there are too few to tell."""
    if len(values) < ENOUGH_FOR_P99:
        return None
    return sorted(values)[int(len(values) * 0.99)]


def milliseconds(seconds: Sequence[float]) -> str:
    """Return median, p99 and number of times, in words."""
    slow = p99(seconds)
    tail = f"p99 {slow * 1e3:8.2f} ms" if slow is not None else f"max {max(seconds) * 1e3:8.2f} ms"
    return f"p50 {median(seconds) * 1e3:8.2f} ms   {tail}   ({len(seconds)} runs)"


def compare(rows: dict[str, Sequence[float]], ours: str) -> None:
    """Print a row for each, with how many times its median ours takes."""
    for name, seconds in rows.items():
        ratio = "" if name == ours else f"   ours is {median(rows[ours]) / median(seconds):6.3f}x of it"
        print(f"  {name:28} {milliseconds(seconds)}{ratio}")


def timed(action: Callable[[], object]) -> float:
    """Return how many seconds it took."""
    began_at = time.perf_counter()
    action()
    return time.perf_counter() - began_at


def heading(title: str) -> None:
    """Print what is measured, on what machine, of what version, and when."""
    print(f"{title}\n  modelsupd {__version__} ({_commit()}), {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}")


def machine() -> str:
    """Return the machine in words."""
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = cpus[0].partition(":")[2].strip() if cpus else platform.machine()
    load = Path("/proc/loadavg").read_text().split()[0]
    return f"{len(cpus)}x {model}, Linux {platform.release()}, CPython {platform.python_version()}, load {load}"


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "no commit"
