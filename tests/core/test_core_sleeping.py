"""What is drained in order to sleep does so only if that is still what is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.samples import HOLD, INPUTS, LEARNED, OTHER_DIGEST, SLEEPER, probed, process, replica
from modelsupd.core.actions import Sleep, Terminate
from modelsupd.core.events import Outcome, ProbeKind, Vitals
from modelsupd.core.phases import Asleep, Draining, Halt, Reason, Replica, Resting, Stopping, Want
from modelsupd.core.replica import step
from modelsupd.core.sleep_events import Slept

DRAINED = probed(Outcome.ANSWERED, ProbeKind.DRAIN, vitals=Vitals(in_flight=0))


def draining(**changes: Any) -> Replica:  # noqa: ANN401 - as of replace
    phase = Draining(10, process(), Reason.SLEEP, 40, 10, probing=True)
    return replace(replica(phase, last_run=1, spec=SLEEPER), hold=HOLD, learned=LEARNED, inputs=INPUTS, **changes)


def test_drained_it_falls_asleep_and_keeps_little() -> None:
    asleep, actions = step(draining(), DRAINED, 12)
    assert isinstance(asleep.phase, Asleep)
    assert actions == (Sleep(1, 1, 60.0),)
    rests, actions = step(asleep, Slept(1), 13)
    assert rests.phase == Asleep(13, process(), 1, HOLD, Resting.ASLEEP)
    assert rests.hold == HOLD, "what it holds is less than what is reckoned with for one that sleeps"
    assert actions == ()


@pytest.mark.parametrize(
    "changes",
    [{"want": Want.DOWN}, {"halt": Halt.DRAIN}, {"removed": True}, {"digest": OTHER_DIGEST}],
    ids=["wanted down", "the daemon goes", "removed", "configured otherwise"],
)
def test_it_is_ended_where_sleep_is_not_wanted_any_more(changes: dict[str, Any]) -> None:
    ended, actions = step(draining(**changes), DRAINED, 12)
    assert isinstance(ended.phase, Stopping)
    assert actions == (Terminate(1),)
