"""What an engine uses while it has nothing to do is taken for no sign of work."""

from __future__ import annotations

import math

from modelsupd.runtime.vitals import TreeVitals, less_idle

BEFORE = TreeVitals(cpu_s=100.0, read_bytes=5000, log_bytes=7)
AFTER = TreeVitals(cpu_s=101.0, read_bytes=5008, log_bytes=9)


def test_an_engine_that_sleeps_is_seen_as_it_is() -> None:
    assert less_idle(BEFORE, AFTER, 0.0) is AFTER


def test_what_goes_beyond_it_is_work_and_so_is_what_was_read() -> None:
    assert less_idle(BEFORE, AFTER, 0.4) == TreeVitals(cpu_s=100.6, read_bytes=5008, log_bytes=9)


def test_what_does_not_is_none_and_neither_is_what_was_read() -> None:
    for idle_s in (1.0, 5.0, math.inf):
        assert less_idle(BEFORE, AFTER, idle_s) == TreeVitals(cpu_s=100.0, read_bytes=5000, log_bytes=9)
