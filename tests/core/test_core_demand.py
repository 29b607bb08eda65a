"""Who is asked for, who is idle, who gives way to whom, and what operators and clients change of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.demanding import fleet, on_demand, ready, starting, told, waits
from core.samples import CRASH, DIGEST, process
from modelsupd.core.demand import (
    CLIENTS,
    CONFIGURATION,
    Usage,
    Use,
    Wanted,
    Yielding,
    asked_for,
    exclude,
    idle_since,
    needless,
    waits_since,
    yields,
)
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.events import Demanded, Evicted, Respecified
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Draining,
    Failed,
    Halt,
    Phase,
    Reason,
    Replica,
    Resolving,
    Resting,
    Spawning,
    Stopped,
    Stopping,
    Want,
    phase_name,
)
from modelsupd.core.replica import step
from modelsupd.core.spec import ModelSpec, Start

IDLE_SINCE_0 = told()
STOPPED = on_demand("a/0", Stopped(0.0))
BACKOFF = Backoff(5.0, 1, CRASH, 99.0)
FAILED = Failed(5.0, 1, CRASH, None)


# Idle


def test_one_that_nobody_asks_for_is_idle_if_it_would_run_when_somebody_did() -> None:
    assert STOPPED.idle
    for changes in ({"demanded_by": "ada"}, {"want": Want.DOWN}, {"removed": True}):
        assert not replace(STOPPED, **changes).idle
    for start in (Start.ALWAYS, Start.MANUAL):
        assert not on_demand("a/0", Stopped(0.0), start=start).idle


def test_one_is_idle_since_its_last_byte_or_since_it_became_ready() -> None:
    assert idle_since(ready("a/0", 5), told()) == 5
    assert idle_since(ready("a/0", 5), told(a=9.0)) == 9
    assert idle_since(ready("a/0", 5), told(a=2.0)) == 5
    assert idle_since(ready("a/0", 0), Usage({"a/0#1": Use(0, None)}, known=True)) == 0


def test_one_in_use_is_not_idle_nor_one_of_which_nothing_is_known() -> None:
    assert idle_since(ready("a/0"), told(busy={"a": 1}, a=9.0)) is None
    assert idle_since(ready("a/0"), Usage()) is None
    assert idle_since(starting("a/0"), told()) is None
    other_run = Usage({"a/0#2": Use(3)}, known=True)
    assert idle_since(ready("a/0", 5), other_run) == 5, "what another run has in flight is not its own"


# Asked for


def test_whoever_is_waited_for_and_rests_is_asked_for() -> None:
    asked = Usage(wanted={"a": Wanted(1, 3.0)})
    assert list(asked_for(fleet(STOPPED, on_demand("b/0", Stopped(0.0))), asked)) == ["a/0"]
    assert list(asked_for(fleet(STOPPED), Usage(wanted={"a": Wanted(0, 3.0)}))) == []
    assert list(asked_for(fleet(replace(STOPPED, demanded_by="clients")), asked)) == []
    ending = replace(ready("a/0"), phase=Draining(0, process(1), Reason.EVICTED, 9, 9), demanded_by="")
    assert list(asked_for(fleet(ending), asked)) == ["a/0"], "it starts again when it is gone"


def test_nobody_is_asked_for_who_may_not_run() -> None:
    asked = Usage(wanted={"a": Wanted(1, 3.0)})
    for changes in ({"want": Want.DOWN}, {"removed": True}, {"halt": Halt.DRAIN}):
        assert list(asked_for(fleet(replace(STOPPED, **changes)), asked)) == []
    for start in (Start.ALWAYS, Start.MANUAL):
        assert list(asked_for(fleet(on_demand("a/0", Stopped(0.0), start=start)), asked)) == []


# Needless


def test_one_goes_when_nothing_came_for_so_long() -> None:
    served = ready("a/0", 5, idle_timeout_s=60)
    assert needless(served, told(), 64.9) == ("", 65)
    assert needless(served, told(), 65) == ("no request for 60 s", None)
    assert needless(served, told(a=10.0), 65) == ("", 70)
    assert needless(served, told(a=10.0), 70) == ("no request for 60 s", None)


@pytest.mark.parametrize(
    ("usage", "changes"),
    [
        (told(busy={"a": 1}), {}),
        (told(wanted={"a": 1.0}), {}),
        (Usage(), {}),
        (told(), {"demanded_by": ""}),
    ],
    ids=["in use", "waited for", "nothing told", "going already"],
)
def test_one_stays_that_is_needed_or_of_which_nothing_is_known(usage: Usage, changes: dict[str, str]) -> None:
    assert needless(replace(ready("a/0"), **changes), usage, 1e6) == ("", None)  # type: ignore[arg-type]  # fields by name


def test_one_that_is_pinned_or_has_no_timeout_or_is_not_on_demand_stays() -> None:
    assert needless(ready("a/0", idle_timeout_s=0), told(), 1e6) == ("", None)
    assert needless(ready("a/0", pinned=True), told(), 1e6) == ("", None)
    always = replace(ready("a/0", start=Start.ALWAYS), demanded_by="clients")
    assert needless(always, told(), 1e6) == ("", None)
    assert needless(starting("a/0"), told(), 1e6) == ("", None)


def test_what_clients_no_longer_wait_for_waits_no_longer_and_what_an_operator_asked_for_does() -> None:
    for before in (
        replace(waits("a/0", pinned=True), demanded_by="clients"),
        on_demand("a/0", BACKOFF, idle_timeout_s=0),
    ):
        assert needless(before, told(), 1) == ("nobody waits for it any more", None)
        assert needless(before, told(wanted={"a": 0.0}), 1) == ("", None)
        assert needless(replace(before, demanded_by="ada"), told(), 1e6) == ("", None)


def test_a_failed_one_is_forgotten_after_the_same_time() -> None:
    failed = on_demand("a/0", FAILED, idle_timeout_s=60)
    assert needless(failed, told(), 64) == ("", 65)
    assert needless(failed, told(), 65) == ("no request for 60 s", None)


# Who gives way


TO = waits("b/0", turn_s=30)


def asks(other: Replica, usage: Usage, now: float, since: float = 0.0, **demand: object) -> Yielding:
    to = replace(TO, spec=replace(TO.spec, demand=replace(TO.spec.demand, **demand)))  # type: ignore[arg-type]  # fields by name
    return yields(other, to, since, usage, now)


def test_the_idle_give_way_to_their_own_priority_when_they_have_been_ready_for_long_enough() -> None:
    other = ready("a/0", 5, residence_s=10)
    assert asks(other, told(), 15) == Yielding(now=True, cost=3.0)
    young = asks(other, told(), 14.9)
    assert (young.now, young.closed, young.soon, young.again_at) == (False, False, False, 15)
    assert young.why == "a/0 has only just become ready"
    its_turn = asks(ready("a/0", 25, residence_s=10), told(), 30)
    assert its_turn == Yielding(soon=True, cost=6.0, why="a/0 has only just become ready", again_at=35)


def test_to_start_one_again_costs_less_the_longer_it_has_been_idle() -> None:
    assert asks(ready("a/0"), told(), 60).cost == 0.5
    assert asks(ready("a/0", residence_s=0), told(), 0.5).cost == 30.0
    unknown = replace(ready("a/0"), learned=None)
    assert asks(unknown, told(), 10).cost == 6.0, "a minute, where it was never seen"
    assert asks(ready("a/0"), told(busy={"a": 1}), 60).cost == 30.0


def test_whoever_is_in_use_gives_way_when_the_others_turn_has_come() -> None:
    busy = told(busy={"a": 1})
    early = asks(ready("a/0"), busy, 29.9)
    assert (early.now, early.closed, early.again_at, early.why) == (False, False, 30, "a/0 is in use")
    assert asks(ready("a/0"), busy, 30) == Yielding(closed=True, busy=True, cost=30.0)
    assert asks(ready("a/0"), busy, 25, since=-5).closed
    assert asks(ready("a/0"), Usage(), 30).closed, "before anything is told it is taken to be in use"


def test_one_that_is_waited_for_is_in_use_until_the_others_turn_has_come() -> None:
    wanted = told(wanted={"a": 20.0}, a=10.0)
    assert asks(ready("a/0"), wanted, 29.9).why == "a/0 is in use"
    assert asks(ready("a/0"), wanted, 29.9).again_at == 30
    assert asks(ready("a/0"), wanted, 30) == Yielding(now=True, cost=1.5)


def test_whose_turn_it_is_has_it_until_those_that_waited_for_it_have_reached_it() -> None:
    """Else two whose residence is nothing would take turns for ever, and serve nobody."""
    just = ready("a/0", 100, residence_s=0)
    wanted = told(wanted={"a": 20.0})
    kept = asks(just, wanted, 100)
    assert (kept.now, kept.closed, kept.soon, kept.again_at) == (False, False, True, 105)
    assert asks(just, wanted, 105).now, "but not for ever"
    assert asks(just, told(wanted={"a": 100.5}, a=100.5), 101).now, "they have reached it"
    assert asks(just, told(), 100).now
    assert asks(ready("a/0", 100, residence_s=60), wanted, 110).again_at == 160


def test_to_a_higher_priority_one_gives_way_at_once_and_to_a_lower_one_never() -> None:
    assert asks(ready("a/0", 5), told(busy={"a": 1}), 5, priority=1) == Yielding(now=True, busy=True, cost=30.0)
    assert asks(ready("a/0", 5), told(), 5, priority=1) == Yielding(now=True, cost=30.0)
    above = asks(ready("a/0", priority=1), told(), 1e6)
    assert above == Yielding(why="a/0 has a higher priority")


def test_the_pinned_and_those_not_on_demand_never_give_way() -> None:
    assert asks(ready("a/0", pinned=True), told(), 1e6, priority=9) == Yielding(why="a/0 is pinned")
    words = "a/0 does not start on demand, and stays"
    for start in (Start.ALWAYS, Start.MANUAL):
        assert asks(ready("a/0", start=start), told(), 1e6, priority=9) == Yielding(why=words)


@pytest.mark.parametrize("phase", [Spawning(0.0, 1, DIGEST), starting("a/0").phase], ids=["spawning", "starting"])
def test_one_that_is_not_ready_gives_way_to_nobody_yet(phase: Phase) -> None:
    other = on_demand("a/0", phase)
    early = asks(other, told(), 29)
    assert early == Yielding(cost=30.0, why="a/0 is not ready yet")
    assert asks(other, told(), 30) == replace(early, soon=True)
    assert asks(other, told(), 0, priority=1) == replace(early, soon=True)


# Sleepers


def asleep(state: Resting = Resting.ASLEEP, by: str = "", **demand: Any) -> Replica:  # noqa: ANN401 - settings of any type
    """Return one that has slept since 50."""
    return replace(on_demand("a/0", Asleep(50.0, process(1), 1, None, state), **demand), demanded_by=by)


def test_one_that_nobody_asks_for_sleeps_for_so_long_and_no_longer() -> None:
    sleeper = asleep(asleep_timeout_s=10)
    assert needless(sleeper, told(), 59.9) == ("", 60)
    assert needless(sleeper, told(), 60) == ("slept for 10 s", None)
    assert needless(sleeper, Usage(), 60) == ("slept for 10 s", None), "what a gateway might tell changes nothing"
    assert needless(asleep(asleep_timeout_s=1), told(), 50.5) == ("", 51)
    assert needless(asleep(asleep_timeout_s=1), told(), 51) == ("slept for 1 s", None)
    assert needless(asleep(asleep_timeout_s=0), told(), 1e6) == ("", None)
    assert needless(asleep(asleep_timeout_s=0.5), told(), 51) == ("slept for 0.5 s", None)
    assert needless(sleeper, told(wanted={"a": 55.0}), 1e6) == ("", None)


def test_one_that_was_asked_for_and_sleeps_is_needed_until_nobody_waits_for_it() -> None:
    assert needless(asleep(by=CLIENTS, asleep_timeout_s=10), told(), 60) == ("nobody waits for it any more", None)
    assert needless(asleep(by="ada", asleep_timeout_s=10), told(), 60) == ("", None)
    assert needless(asleep(by=CLIENTS), told(wanted={"a": 55.0}), 60) == ("", None)
    assert needless(asleep(by=CLIENTS), Usage(), 60) == ("", None)


@pytest.mark.parametrize("state", [Resting.FALLING, Resting.WAKING])
def test_one_that_falls_asleep_or_wakes_is_left_alone(state: Resting) -> None:
    assert needless(asleep(state, asleep_timeout_s=10), told(), 1e6) == ("", None)
    assert asks(asleep(state), told(), 60) == Yielding(soon=True, cost=30.0, why="a/0 is not ready yet")


def test_a_sleeper_gives_way_at_once_and_costs_less_the_longer_it_sleeps() -> None:
    assert asks(asleep(), told(), 60) == Yielding(now=True, cost=3.0)
    assert asks(asleep(), told(), 50.5) == Yielding(now=True, cost=30.0)
    assert asks(asleep(by="ada"), told(), 60) == Yielding(now=True, cost=30.0)
    assert asks(asleep(priority=1), told(), 60) == Yielding(why="a/0 has a higher priority")


def test_a_sleeper_waits_since_it_was_asked_for() -> None:
    assert waits_since(asleep(), told()) == 50
    for since in (40.0, 60.0):
        assert waits_since(asleep(), told(wanted={"a": since})) == since


# Since when one waits


def test_a_wait_counts_from_the_oldest_request() -> None:
    assert waits_since(waits("a/0", 7), told()) == 7
    assert waits_since(waits("a/0", 7), told(wanted={"a": 3.0})) == 3
    assert waits_since(waits("a/0", 7), told(wanted={"a": 9.0})) == 7
    assert waits_since(on_demand("a/0", Resolving(0.0, 1)), told(wanted={"a": 9.0})) == 9
    assert waits_since(STOPPED, told()) == float("inf")


# Who excludes whom


def spec(**demand: object) -> ModelSpec:
    return replace(STOPPED.spec, demand=DemandSpec(**demand))  # type: ignore[arg-type]  # settings by name


def test_two_exclude_each_other_whichever_says_so_by_name_or_group() -> None:
    named, grouped, plain = spec(excludes=("b",)), spec(excludes=("g",)), spec()
    member = spec(group="g")
    for one, other in ((named, plain), (grouped, member)):
        assert exclude(one, "a", other, "b")
        assert exclude(other, "b", one, "a")
    assert not exclude(plain, "a", member, "b")
    assert not exclude(named, "a", plain, "c")
    assert not exclude(grouped, "a", spec(group="h"), "b")
    own = spec(group="g", excludes=("g",))
    assert exclude(own, "a", own, "b")
    assert not exclude(own, "a", own, "a"), "replicas of one model are not kept apart"


# What starts on demand since


def by_since(phase: Phase, start: Start = Start.ON_DEMAND, **changes: Any) -> str:  # noqa: ANN401 - fields of any type
    """Return by whom one is asked for that ran always, and is declared to start in this way since."""
    always = replace(on_demand("a/0", phase, start=Start.ALWAYS), **changes)
    after, _actions = step(always, Respecified(replace(always.spec, start=start), always.digest), 9.0)
    return after.demanded_by


@pytest.mark.parametrize("phase", [ready("a/0").phase, starting("a/0").phase, Resolving(0.0, 1)], ids=phase_name)
def test_what_runs_and_starts_on_demand_since_goes_on_in_the_name_of_the_configuration(phase: Phase) -> None:
    assert by_since(phase) == CONFIGURATION
    assert by_since(phase, demanded_by="ada") == "ada"
    assert by_since(phase, Start.ALWAYS, demanded_by="ada") == ""


def test_what_does_not_run_or_is_on_its_way_out_does_not() -> None:
    assert by_since(Stopped(0.0)) == ""
    draining = Draining(0.0, process(1), Reason.OPERATOR, 30.0, 30.0)
    assert by_since(draining, want=Want.DOWN) == ""


def test_nobody_who_may_not_run_is_started_by_being_asked_for() -> None:
    down = replace(STOPPED, want=Want.DOWN)
    assert step(down, Demanded("clients"), 9.0) == (down, ())
    goes, actions = step(replace(STOPPED, halt=Halt.DRAIN), Demanded("clients"), 9.0)
    assert (goes.phase, goes.demanded_by, actions) == (STOPPED.phase, "clients", ())


# What gives way


def test_a_sleeper_that_nobody_waits_for_any_more_says_so_once() -> None:
    gone = Evicted(1, "nobody waits for it any more", sleep=True)
    rests, actions = step(asleep(by=CLIENTS, sleep=1), gone, 60.0)
    assert (rests.demanded_by, rests.reason, actions) == ("", "nobody waits for it any more", ())
    before = replace(asleep(sleep=1), reason="drained")
    assert step(before, gone, 60.0) == (before, ())


def test_what_is_not_ready_ends_where_it_was_to_sleep() -> None:
    ends, _actions = step(starting("a/0", sleep=1), Evicted(1, "gives way", sleep=True), 9.0)
    assert isinstance(ends.phase, Stopping)
    assert ends.phase.cause is Reason.EVICTED
