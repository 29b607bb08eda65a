"""Runs in doubt: which ones, and for how long. What is chosen by it is tested with the core."""

from __future__ import annotations

from modelsupd.gateway.suspects import Suspects


def test_failures_at_the_same_time_are_one_and_an_answer_clears_all_doubt() -> None:
    suspects = Suspects()
    for _ in range(100):
        suspects.failed("m/0#1", 10.0)
    assert suspects.until("m/0#1", 10.0) == 11.0
    suspects.failed("m/0#1", 11.0)
    assert suspects.until("m/0#1", 11.0) == 13.0
    # One request tries it when the doubt has run out; others stay away until that has ended.
    assert suspects.until("m/0#1", 14.0) <= 14.0
    assert suspects.until("m/0#1", 14.0, in_flight=1) > 14.0
    suspects.proved("m/0#1")
    assert suspects.until("m/0#1", 14.0, in_flight=1) == 0.0
    suspects.failed("m/0#1", 20.0)
    suspects.forget_all_but([])
    assert suspects.until("m/0#1", 20.0) == 0.0
