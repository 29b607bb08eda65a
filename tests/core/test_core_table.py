"""The table of all behaviour, as committed."""

from __future__ import annotations

import difflib

from core import table
from core.situations import RUN, situations
from modelsupd.core import events as all_events
from modelsupd.core import phases as all_phases
from modelsupd.core.events import ProbeKind


def test_table_is_the_committed_one() -> None:
    committed, generated = table.TABLE.read_text(encoding="utf-8"), table.generate()
    diff = "".join(
        difflib.unified_diff(committed.splitlines(True), generated.splitlines(True), "committed", "now", n=8)
    )
    assert not diff, f"behaviour changed; if you meant it, run tests/core/table.py --write:\n{diff}"


def test_table_has_every_phase_and_every_event() -> None:
    seen = {type(replica.phase) for _words, replica in situations()}
    assert seen == set(all_phases.Phase.__args__)
    names = {type(event) for _name, _variant, event in table.events(1, tuple(ProbeKind))}
    assert names == set(all_events.Event.__args__)
    carry_a_run = {event for event in all_events.Event.__args__ if "run" in event.__slots__}
    assert {type(event) for _name, _variant, event in table.reports(1)} == carry_a_run


def test_no_older_report_changes_anything_and_every_newer_one_is_impossible() -> None:
    for words, before in situations():
        for name, variant, event in table.reports(RUN - 1, tuple(ProbeKind)):
            assert table.outcome_of(before, event) == table.STALE, (words, name, variant)
        for name, variant, event in table.reports(RUN + 1, tuple(ProbeKind)):
            assert table.outcome_of(before, event) == table.IMPOSSIBLE, (words, name, variant)
