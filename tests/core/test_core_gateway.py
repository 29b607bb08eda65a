"""What the gateway sees of an engine: a delivery is the best proof of life, a failed client a reason to ask at once."""

from __future__ import annotations

from dataclasses import replace

from core.samples import probed, process, replica
from core.script import at, play, probe, ready_at
from modelsupd.core.events import Delivered, FailedClient, Outcome, ProbeKind, Ticked
from modelsupd.core.health import begin
from modelsupd.core.phases import Draining, Ready, Reason, Replica, Starting


def ready_of(replica: Replica) -> Ready:
    assert isinstance(replica.phase, Ready)
    return replica.phase


def test_a_delivery_clears_every_doubt_and_puts_off_the_next_proof() -> None:
    pulse = replace(begin(0), failures=3, doubted=True, answered=False, complaint="it was timed-out")
    doubted = replica(Ready(0, process(), pulse), last_run=1)
    seen = ready_of(play(doubted, at(50, Delivered(1), "ready"))).pulse
    assert (seen.alive_at, seen.proven_at, seen.failures) == (50, 50, 0)
    assert (seen.doubted, seen.answered, seen.complaint) == (False, True, "")
    assert seen.moved_at == 0


def test_a_failed_client_has_the_engine_asked_for_a_token_at_once() -> None:
    failed = play(ready_at(2), at(3, FailedClient(1, "stalled: nothing for 120 s"), "ready"))
    assert ready_of(failed).pulse.complaint == "stalled: nothing for 120 s"
    assert ready_of(failed).pulse.failures == 0
    asked = play(failed, at(3, Ticked(), "ready", probe(ProbeKind.GENERATION)))
    proven = play(asked, at(3.1, probed(Outcome.TOKENS, ProbeKind.GENERATION), "ready"))
    assert ready_of(proven).pulse.complaint == ""


def test_what_is_told_of_a_process_on_its_way_changes_nothing() -> None:
    for phase in (Starting(0, process(), begin(0)), Draining(0, process(), Reason.OPERATOR, 30, 1)):
        current = replica(phase, last_run=1)
        for late in (Delivered(1), FailedClient(1, "closed")):
            assert play(current, at(1, late, type(phase).__name__.lower())) == current
