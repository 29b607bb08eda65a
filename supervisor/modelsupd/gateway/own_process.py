"""What Prometheus is told of the gateway's own process, under the names that every exporter has for it.

prometheus_client counts open files by listing them, and lets go of the interpreter's lock for each: with ten thousand
connections and clients that keep the other thread busy, a scrape would take most of a second. Linux 6.2 and later tell
the number itself.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_OPEN_FILES = Path("/proc/self/fd")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def _started_at() -> float:
    """Return when this process began, in seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    # By the clock that ticks are counted on: not every container shows /proc/stat, where the time of boot stands.
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / _TICKS


def open_files() -> int:
    """Return how many files are open."""
    return _OPEN_FILES.stat().st_size or sum(1 for _ in os.scandir(_OPEN_FILES))


class OwnProcess(Collector):
    """Reads what the kernel knows of this process."""

    def __init__(self) -> None:
        """Note when it began."""
        self._started_at = _started_at()

    def collect(self) -> Iterator[Metric]:
        """Yield it, as it is now."""
        virtual, resident = (int(word) * _PAGE_BYTES for word in Path("/proc/self/statm").read_text().split()[:2])
        used = resource.getrusage(resource.RUSAGE_SELF)
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        for name, doc, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes.", virtual),
            ("resident_memory_bytes", "Resident memory size in bytes.", resident),
            ("start_time_seconds", "Start time of the process since unix epoch in seconds.", self._started_at),
            ("open_fds", "Number of open file descriptors.", open_files()),
            ("max_fds", "Maximum number of open file descriptors.", most),
        ):
            yield GaugeMetricFamily(f"process_{name}", doc, value)
        cpu_s = used.ru_utime + used.ru_stime
        yield CounterMetricFamily("process_cpu_seconds_total", "Total user and system CPU time in seconds.", cpu_s)
