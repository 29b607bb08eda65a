"""Recovery phase by phase: what is kept of a record, what is not, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from core.recovering import DECLARED, NOW, OTHER, SAME, resume, states
from core.samples import CRASH, DIGEST, HOLD, ON_GPU, SPEC, process, replica
from modelsupd.core.actions import Action, Clear, Kill, Resolve, Sleep, Terminate, Wake, Watch
from modelsupd.core.events import Failure, FailureClass, Process
from modelsupd.core.fleet import Declared
from modelsupd.core.health import begin
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Draining,
    Failed,
    Killing,
    Phase,
    Ready,
    Reason,
    Replica,
    Resolving,
    Resting,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
    phase_name,
)
from modelsupd.core.placement import Hold, Size
from modelsupd.core.recovery import Boot, Recovered, recover
from modelsupd.core.replica import deadline
from modelsupd.core.restart import History
from modelsupd.core.spec import Start

PULSE = begin(1000)
MANUAL = {"m": Declared(replace(SPEC, start=Start.MANUAL), DIGEST)}

#: Every phase in which there is a process, and what a new daemon does about it.
LIVE: tuple[tuple[Phase, tuple[Action, ...]], ...] = (
    (Starting(1500, process(3), PULSE), (Watch(3),)),
    (Ready(1500, process(3), PULSE), (Watch(3),)),
    (Asleep(1500, process(3), 1, None, Resting.ASLEEP), (Watch(3),)),
    (Asleep(1500, process(3), 1, None, Resting.FALLING), (Watch(3), Sleep(3, 1, 60.0))),
    (Asleep(1500, process(3), 2, None, Resting.WAKING), (Watch(3), Wake(3, 2, 60.0))),
    (Draining(1500, process(3), Reason.OPERATOR, 2999, NOW), (Watch(3),)),
    (Stopping(1500, process(3), Reason.OPERATOR, 2999), (Watch(3), Terminate(3))),
    (Killing(1500, process(3), Reason.OPERATOR, 2999), (Watch(3), Kill(3))),
)
CLEARING: tuple[Phase, tuple[Action, ...]] = (Clearing(1500, 3, Reason.OPERATOR), (Clear(3, 11),))


def named(case: object) -> str:
    return type(case[0]).__name__ if isinstance(case, tuple) and case else str(type(case).__name__)


def recovered(
    before: Replica | None,
    found: Sequence[Process] = (),
    leftovers: Sequence[tuple[str, int]] = (),
    *,
    gpus: tuple[str, ...] = (),
) -> Recovered:
    known = states(before) if before else {}
    return recover(known, {"m/0": list(found)} if found else {}, {}, DECLARED, SAME, dict.fromkeys(leftovers, gpus))


@pytest.mark.parametrize("case", [*LIVE, CLEARING], ids=named)
def test_what_was_recorded_of_a_process_stays(case: tuple[Phase, tuple[Action, ...]]) -> None:
    phase, expected = case
    for found in ((process(3),), ()):
        after, actions, strays = resume(replica(phase, last_run=3), found)
        assert (type(after.phase), after.phase.since) == (type(phase), 1500)
        assert (actions, strays) == (expected, ())


@pytest.mark.parametrize("case", [*LIVE, CLEARING], ids=named)
def test_what_is_left_of_a_run_whose_end_is_not_known_waits_for_it(case: tuple[Phase, tuple[Action, ...]]) -> None:
    phase, expected = case
    found = recovered(replica(phase, last_run=3), leftovers=[("m/0", 3)])
    after = found.replicas["m/0"].phase
    assert (type(after), after.since, found.actions["m/0"]) == (type(phase), 1500, expected)


@pytest.mark.parametrize("phase", [*(phase for phase, _ in LIVE), CLEARING[0], Spawning(1, 3, DIGEST), Resolving(1, 3)])
def test_a_later_run_than_the_journal_knows_ends_what_it_knows(phase: Phase) -> None:
    after, actions, _ = resume(replica(phase, last_run=3), highest=9)
    assert actions == (Resolve(10),)
    assert after.reason == "run 9 came after what the journal tells; taken up again"


def test_a_later_run_than_the_journal_knows_does_not_shorten_a_pause() -> None:
    after, actions, _ = resume(replica(Backoff(1, 3, CRASH, 2001), last_run=3), highest=9)
    assert (after.phase, after.last_run, actions) == (Backoff(1, 3, CRASH, 2001), 9, ())


def test_the_latest_of_several_processes_is_the_run() -> None:
    after, actions, strays = resume(replica(Ready(1500, process(3), PULSE), last_run=3), (process(5), process(3)))
    assert isinstance(after.phase, Starting)
    assert (after.phase.process, actions, strays) == (process(5), (Watch(5),), (("m/0", process(3)),))


def test_a_process_of_an_earlier_run_alone_is_a_stray_too() -> None:
    after, actions, strays = resume(replica(Ready(1500, process(3), PULSE), last_run=3), (process(2),))
    assert isinstance(after.phase, Ready)
    assert (actions, strays) == ((Watch(3),), (("m/0", process(2)),))


def test_what_never_ran_begins_with_its_first_run() -> None:
    found = recovered(replica(Stopped(1)))
    assert found.actions["m/0"] == (Resolve(1),)


def test_a_run_with_an_engine_is_adopted_even_if_something_else_is_found_of_it() -> None:
    found = recovered(None, [process(5)], leftovers=[("m/0", 5)])
    assert found.actions["m/0"] == (Watch(5),)


def test_what_is_left_of_a_replica_that_nobody_knows_is_cleared_and_the_replica_forgotten() -> None:
    found = recover({}, {}, {"org/x/1": 4}, DECLARED, SAME, {("org/x/1", 4): ()})
    after = found.replicas["org/x/1"]
    assert (after.model, after.removed, after.want, after.last_run) == ("org/x", True, Want.DOWN, 4)
    assert (after.phase, after.reason) == (
        Clearing(NOW, 4, Reason.STRAY),
        "something of run 4 was found and is ended",
    )
    assert found.actions["org/x/1"] == (Clear(4, 10),)


def test_what_nobody_recorded_and_nobody_wants_is_stopped_now() -> None:
    after, actions, strays = resume(None, (process(2),), highest=5, declared=MANUAL)
    assert (after.phase, after.last_run, actions) == (Stopped(NOW), 5, ())
    assert strays == (("m/0", process(2)),)


@pytest.mark.parametrize("phase", [Spawning(1999, 3, DIGEST), Resolving(1999, 3)])
def test_what_was_about_to_start_and_is_not_wanted_is_stopped(phase: Phase) -> None:
    after, actions, _ = resume(replica(phase, want=Want.DOWN, last_run=3))
    assert (after.phase, actions) == (Stopped(NOW), ())


def test_a_drain_that_the_operator_asked_for_is_not_taken_back() -> None:
    """Wanted up again it may be, but by a new run."""
    draining = Draining(1, process(3), Reason.OPERATOR, 2999, 2)
    after, actions, _ = resume(replica(draining, last_run=3), (process(3),))
    assert isinstance(after.phase, Draining)
    assert (after.phase.cause, actions) == (Reason.OPERATOR, (Watch(3),))
    assert deadline(after) == NOW, "it is looked at once, how much is still in flight"


def test_what_recovery_did_is_said() -> None:
    ready = replica(Ready(1500, process(3), PULSE), last_run=3)
    assert resume(ready, (process(3),))[0].reason == "run 3 adopted with pid 1003"
    assert resume(ready)[0].reason == "what came before"
    assert resume(ready, boot=OTHER)[0].reason == "the machine was restarted; taken up again"
    assert resume(None, (process(5),))[0].reason == "run 5 adopted with pid 1005"
    unwanted = resume(None, (process(5),), declared=MANUAL)[0].reason
    assert unwanted == "run 5 was found running and is not wanted"
    draining = replica(Draining(1, process(3), Reason.SHUTDOWN, 9, 2), last_run=3)
    assert resume(draining, (process(3),))[0].reason == "adopted; the daemon that drained it is gone"


def test_a_record_that_cannot_be_read_is_said_and_costs_only_itself() -> None:
    state = {"m/0": {"phase": {"name": "dreaming"}}, "n/0": states(replica(Stopped(1)))["m/0"]}
    found = recover(state, {"m/0": [process(3)]}, {}, DECLARED, SAME)
    after = found.replicas["m/0"]
    assert isinstance(after.phase, Starting)
    assert found.actions["m/0"] == (Watch(3),)
    quiet = recover(state, {}, {}, MANUAL, SAME).replicas["m/0"]
    assert quiet.reason.startswith("what was recorded of it cannot be read: KeyError(")
    assert isinstance(found.replicas["n/0"].phase, Resolving)


def test_a_history_is_read_back_whole() -> None:
    before = replace(replica(Failed(1, 3, CRASH, 2500, "i", 7), last_run=3), history=History((1.0, 2.0), 3, 4, 5))
    assert resume(before)[0].history == History((1.0, 2.0), 3, 4, 5)


def on_gpus(phase: Phase, **changes: Any) -> Replica:  # noqa: ANN401 - fields of any type
    return replace(replica(phase), spec=ON_GPU, last_run=3, **changes)


def read_back(before: Replica, leftovers: Mapping[tuple[str, int], tuple[str, ...]], boot: Boot = SAME) -> Replica:
    declared = {"m": Declared(ON_GPU, DIGEST)}
    return recover(states(before), {}, {"m/0": 3}, declared, boot, leftovers).replicas["m/0"]


def test_what_waits_for_a_gpu_and_is_not_wanted_any_more_waits_no_longer() -> None:
    waiting = on_gpus(Waiting(1500, 3, DIGEST, Size(2)), want=Want.DOWN)
    after, actions, _ = resume(waiting, highest=2, declared={"m": Declared(ON_GPU, DIGEST)})
    assert (after.phase, actions) == (Stopped(NOW), ())
    after, actions, _ = resume(replace(waiting, want=Want.UP), highest=2, declared={"m": Declared(ON_GPU, DIGEST)})
    assert (after.phase, actions) == (Resolving(NOW, 3), (Resolve(3),))


def test_what_is_left_of_a_run_holds_what_the_journal_tells_or_else_its_gpus_for_itself() -> None:
    left = {("m/0", 3): ("GPU-1",)}
    spawning = on_gpus(Spawning(1500, 3, DIGEST), hold=HOLD)
    assert read_back(spawning, left).hold == HOLD
    unknown = Hold(gpus=("GPU-1",), bytes=(0,), exclusive=True)
    assert read_back(replace(spawning, hold=None), left).hold == unknown
    assert read_back(spawning, left, OTHER).hold == unknown, "of an earlier boot nothing is held any more"


def test_a_record_brings_back_the_gpus_of_a_process_and_how_long_a_server_asked_to_wait() -> None:
    ready = on_gpus(Ready(1500, replace(process(3), gpus=("GPU-0",)), PULSE), hold=HOLD)
    assert read_back(ready, {}).process == replace(process(3), gpus=("GPU-0",))
    failure = Failure(FailureClass.UNREACHABLE, "cannot fetch it: answers 429", 7.0)
    after = read_back(on_gpus(Backoff(1500, 3, failure, NOW + 7)), {})
    assert isinstance(after.phase, Backoff)
    assert after.phase.failure == failure


ON_DEMAND_NOW = {"m": Declared(replace(SPEC, start=Start.ON_DEMAND), DIGEST)}


@pytest.mark.parametrize("phase", [Starting(1500, process(3), PULSE), Ready(1500, process(3), PULSE)], ids=phase_name)
def test_one_that_runs_and_starts_on_demand_since_goes_on_until_it_is_idle(phase: Phase) -> None:
    before = replica(phase, last_run=3)
    after, _actions, _strays = resume(before, (process(3),), declared=ON_DEMAND_NOW)
    assert (phase_name(after.phase), after.process, after.demanded_by) == (
        phase_name(phase),
        process(3),
        "the configuration",
    )
    asked_for, _actions, _strays = resume(replace(before, demanded_by="ada"), (process(3),), declared=ON_DEMAND_NOW)
    assert asked_for.demanded_by == "ada"
    always, _actions, _strays = resume(before, (process(3),))
    assert always.demanded_by == ""


@pytest.mark.parametrize("phase", [Backoff(1500, 3, CRASH, 2500), Failed(1500, 3, CRASH, 2500)], ids=phase_name)
def test_one_that_failed_and_starts_on_demand_since_is_not_tried_again_before_anybody_asks(phase: Phase) -> None:
    before = replica(phase, last_run=3)
    after, actions, _strays = resume(before, declared=ON_DEMAND_NOW)
    assert (after.phase, after.demanded_by, actions) == (Stopped(NOW), "", ())
    kept, actions, _strays = resume(replace(before, demanded_by="clients"), declared=ON_DEMAND_NOW)
    assert (phase_name(kept.phase), kept.phase.since, actions) == (phase_name(phase), 1500, ())


def test_whoever_asked_for_one_before_the_machine_was_restarted_has_gone() -> None:
    before = replica(Ready(1500, process(3), PULSE), last_run=3)
    after, actions, _ = resume(replace(before, demanded_by="ada"), boot=OTHER, declared=ON_DEMAND_NOW)
    assert (after.phase, after.demanded_by, actions) == (Stopped(OTHER.now), "", ())
