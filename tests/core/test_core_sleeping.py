"""What is drained in order to sleep does so only if that is still what is wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.samples import CRASH, HOLD, INPUTS, LEARNED, OTHER_DIGEST, SLEEPER, probed, process, replica
from modelsupd.core.actions import Sleep, Terminate, Wake
from modelsupd.core.events import (
    Beside,
    Cleared,
    Event,
    Evicted,
    Exit,
    Exited,
    GpuLost,
    Outcome,
    Placed,
    ProbeKind,
    RestartAsked,
    StopAsked,
    Vitals,
    Waits,
)
from modelsupd.core.health import begin
from modelsupd.core.phases import (
    Asleep,
    Draining,
    Halt,
    Phase,
    Ready,
    Reason,
    Replica,
    Resting,
    Starting,
    Stopping,
    Want,
    phase_name,
)
from modelsupd.core.replica import step
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.core.spec import StopLimits, launch_digest

DRAINED = probed(Outcome.ANSWERED, ProbeKind.DRAIN, vitals=Vitals(in_flight=0))


def draining(**changes: Any) -> Replica:  # noqa: ANN401 - as of replace
    phase = Draining(10, process(), Reason.SLEEP, 40, 10, probing=True)
    return replace(replica(phase, last_run=1, spec=SLEEPER), hold=HOLD, learned=LEARNED, inputs=INPUTS, **changes)


def test_drained_it_falls_asleep_and_keeps_little() -> None:
    asleep, actions = step(draining(), DRAINED, 12)
    assert isinstance(asleep.phase, Asleep)
    assert (actions, asleep.reason) == ((Sleep(1, 1, 60.0),), "drained")
    rests, actions = step(asleep, Slept(1), 13)
    assert rests.phase == Asleep(13, process(), 1, HOLD, Resting.ASLEEP)
    assert rests.hold == HOLD, "what it holds is less than what is reckoned with for one that sleeps"
    assert actions == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"want": Want.DOWN},
        {"halt": Halt.DRAIN},
        {"removed": True},
        {"digest": OTHER_DIGEST},
        {"spec": replace(SLEEPER, demand=replace(SLEEPER.demand, sleep=0))},
    ],
    ids=["wanted down", "the daemon goes", "removed", "configured otherwise", "declared not to sleep"],
)
def test_it_is_ended_where_sleep_is_not_wanted_any_more(changes: dict[str, Any]) -> None:
    ended, actions = step(draining(**changes), DRAINED, 12)
    assert isinstance(ended.phase, Stopping)
    assert actions == (Terminate(1),)


def test_without_time_to_drain_it_falls_asleep_at_once() -> None:
    spec = replace(SLEEPER, stop=StopLimits(drain_timeout_s=0))
    ready = replace(replica(Ready(5, process(), begin(5)), last_run=1, spec=spec), hold=HOLD, demanded_by="clients")
    asleep, actions = step(ready, Evicted(1, "gives way", sleep=True), 12)
    assert asleep.phase == Asleep(12, process(), 1, HOLD, Resting.FALLING)
    assert (actions, asleep.reason) == ((Sleep(1, 1, 60.0),), "gives way")


def test_a_sleeper_ends_when_no_load_is_beside_it_any_more() -> None:
    phase = Asleep(10, process(), 1, HOLD, Resting.ASLEEP)
    sleeper = replace(replica(phase, last_run=1, spec=SLEEPER), beside="other/0")
    waits, actions = step(sleeper, StopAsked(), 12)
    assert isinstance(waits.phase, Draining)
    assert (waits.phase.held, actions) == (True, ())
    ends, actions = step(waits, Beside(""), 13)
    assert isinstance(ends.phase, Stopping)
    assert actions == (Terminate(1),)


def test_an_operator_who_restarts_it_while_it_is_drained_to_sleep_gets_a_new_run() -> None:
    asked, actions = step(draining(), RestartAsked("ada"), 11)
    assert actions == ()
    ended, actions = step(asked, DRAINED, 12)
    assert isinstance(ended.phase, Stopping)
    assert actions == (Terminate(1),)


def resting(**changes: Any) -> Replica:  # noqa: ANN401 - as of replace
    phase = Asleep(10, process(), 1, HOLD, Resting.ASLEEP)
    return replace(replica(phase, last_run=1, spec=SLEEPER), hold=HOLD, learned=LEARNED, inputs=INPUTS, **changes)


def test_one_that_waits_to_wake_and_has_to_go_is_asked_for_all_the_same() -> None:
    gone, actions = step(resting(demanded_by="ada"), Evicted(1, "gives way to b/0"), 11)
    assert isinstance(gone.phase, Stopping)
    assert actions == (Terminate(1),)
    assert gone.demanded_by == "ada", "an operator does not ask twice"


def test_a_sleeper_that_nobody_asks_for_does_not_say_that_it_waits() -> None:
    told = replace(resting(), reason="nobody waits for it any more")
    assert step(told, Waits(1, "b/0 is in use"), 11) == (told, ())
    asked_for, actions = step(replace(told, demanded_by="clients"), Waits(1, "b/0 is in use"), 11)
    assert (asked_for.reason, actions) == ("asleep, and waits for its turn: b/0 is in use", ())


@pytest.mark.parametrize("phase", [Ready(5, process(), begin(5)), Starting(5, process(), begin(5))], ids=phase_name)
def test_one_that_is_found_asleep_though_nothing_is_on_record_of_it_is_woken_as_any_other(phase: Phase) -> None:
    """A disk that was full took no record of it, or somebody else had it sleep."""
    found = replace(resting(demanded_by="clients"), phase=phase)
    asleep, actions = step(found, probed(Outcome.ASLEEP), 11)
    assert asleep.phase == Asleep(11, process(), 2, HOLD, Resting.ASLEEP), "woken as from either level"
    assert (asleep.history, asleep.demanded_by, actions) == (found.history, "clients", ())
    _waking, actions = step(asleep, Placed(1, HOLD), 12)
    assert actions == (Wake(1, 2, 60.0),)


LATE = [Placed(1, HOLD), Waits(1, "b/0 is in use")]


@pytest.mark.parametrize("late", LATE, ids=["placed", "waits"])
@pytest.mark.parametrize(
    "ends",
    [
        [StopAsked("ada")],
        [RestartAsked("ada")],
        [GpuLost(1, "fell off the bus")],
        [Exited(1, Exit(code=1), CRASH, cleared=True)],
        [Exited(1, Exit(code=1), CRASH, cleared=True), Cleared(1)],
        [Beside("b/0"), Evicted(1, "gives way to b/0")],
    ],
    ids=["stopped", "restarted", "its GPU is lost", "died", "failed", "held beside a load"],
)
def test_its_turn_comes_too_late_for_one_that_was_ended_in_its_sleep(ends: list[Event], late: Event) -> None:
    ended = resting(demanded_by="clients")
    for event in ends:
        ended, _actions = step(ended, event, 11)
    assert step(ended, late, 12) == (ended, ())


def test_what_it_holds_from_falling_asleep_to_being_awake() -> None:
    before = replace(HOLD, gpus=("GPU-0", "GPU-1"), bytes=(9, 2), idle_bytes=(1, 1), exclusive=True)
    spec = replace(SLEEPER, demand=replace(SLEEPER.demand, asleep_vram_bytes=4))
    falling = Asleep(10, process(), 1, before, Resting.FALLING)
    told = replace(resting(spec=spec, demanded_by="ada"), phase=falling, hold=before, reason="gives way to b/0")
    asleep, _actions = step(told, Slept(1), 11)
    assert asleep.hold == replace(before, bytes=(4, 2), exclusive=False)
    assert asleep.reason == "asleep at level 1; gives way to b/0"
    found, _actions = step(replace(told, phase=Ready(5, process(), begin(5))), probed(Outcome.ASLEEP), 11)
    assert (found.hold, found.reason) == (asleep.hold, "asleep, of which nothing was on record")
    for given, holds in ((None, before), (replace(before, bytes=(8, 2)), replace(before, bytes=(8, 2)))):
        waking, actions = step(asleep, Placed(1, given), 12)
        assert (waking.hold, waking.reason) == (holds, "wakes up")
        assert actions == (Wake(1, 1, 60.0),)
        awake, _actions = step(waking, Woke(1), 13)
        assert isinstance(awake.phase, Starting)
        assert (awake.phase.since, awake.phase.woken, awake.hold) == (13, True, holds)
        assert awake.reason == "is awake, and has yet to prove it"


@pytest.mark.parametrize("woken", [True, False])
def test_of_how_long_a_start_takes_nothing_is_learned_by_waking(*, woken: bool) -> None:
    proving = Starting(10, process(), begin(10), woken=woken)
    before = replace(replica(proving, last_run=1, spec=SLEEPER), learned=LEARNED, inputs=INPUTS)
    ready, _ = step(before, probed(Outcome.TOKENS, ProbeKind.START), 12)
    assert isinstance(ready.phase, Ready)
    assert ready.learned is not None
    assert (ready.learned == LEARNED) is woken
    assert woken or ready.learned.start_s == 2


def test_an_engine_that_may_sleep_is_started_otherwise_and_the_same_way_by_every_version() -> None:
    """A digest that changed with the daemon would replace every engine that runs."""
    assert launch_digest(SLEEPER, "engine") == "8412220f0e1732b2"
    deeper, never = (replace(SLEEPER, demand=replace(SLEEPER.demand, sleep=level)) for level in (2, 0))
    assert launch_digest(deeper, "engine") == launch_digest(SLEEPER, "engine") != launch_digest(never, "engine")
