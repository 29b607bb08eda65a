"""Whatever happens, in whatever order: `step` is total, and the invariants hold after each."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from core import invariants, table
from core.samples import DIGEST, OTHER_DIGEST, OTHER_SPEC, SPEC, process, replica, spawned
from core.situations import NOW, situations
from modelsupd.core.events import (
    Event,
    Lagged,
    Outcome,
    Probed,
    ProbeKind,
    Respecified,
    StartAsked,
    StopAsked,
    Ticked,
    Vitals,
)
from modelsupd.core.fleet import Declared
from modelsupd.core.phases import Live, Replica, Spawning, Want
from modelsupd.core.record import durable, restore, same
from modelsupd.core.recovery import Boot, recover
from modelsupd.core.replica import InvalidTransition, deadline, fail_internally, step

numbers = st.floats(0, 1e4)
vitals = st.builds(
    Vitals, numbers, st.integers(0, 9), st.integers(0, 9), st.none() | st.integers(0, 9), st.none() | st.integers(0, 3)
)


@st.composite
def events(draw: st.DrawFn, last_run: int) -> Event:
    """Return any event; reports are mostly of the current run, now and then of another."""
    run = draw(st.sampled_from([last_run] * 8 + [last_run - 1, last_run + 1]))
    special: Any = st.one_of(
        st.just(Ticked()),
        st.builds(Lagged, numbers),
        st.builds(Respecified, st.sampled_from([SPEC, OTHER_SPEC]), st.sampled_from([DIGEST, OTHER_DIGEST])),
        st.builds(spawned, st.just(run), st.sampled_from([DIGEST, OTHER_DIGEST])),
        st.builds(
            Probed,
            st.just(run),
            st.sampled_from(ProbeKind),
            st.sampled_from(Outcome),
            st.just("seen"),
            vitals,
            vitals,
            st.floats(0, 20),
        ),
    )
    drawn: Event = draw(st.sampled_from(_listed(run)) if draw(st.booleans()) else special)
    return drawn


@functools.cache
def _listed(run: int) -> tuple[Event, ...]:
    return tuple(event for _name, _variant, event in table.events(run, ()))


def follow(data: st.DataObject, current: Replica, now: float, steps: int) -> tuple[Replica, float]:
    """Give random events, checking each step; impossible ones change nothing."""
    for _ in range(steps):
        due = deadline(current)
        if due is not None and data.draw(st.booleans()):
            now, event = max(now, due), Ticked()
        else:
            now += data.draw(st.sampled_from([0.0, 0.1, 5.0, 100.0]))
            event = data.draw(events(current.last_run))  # type: ignore[assignment]  # wider than the tick of the other branch
        try:
            after, actions = step(current, event, now)
        except InvalidTransition as impossible:
            assert current.name in str(impossible)  # noqa: PT017 - that anything else fails the test is the point
            fail_internally(current, "words", now)
            continue
        invariants.check_step(current, event, after, actions, now)
        assert step(current, event, now) == (after, actions)
        assert same(current, after) == (durable(current) == durable(after))
        assert not invariants.wanted_idle(after)
        current = after
    return current, now


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([before for _words, before in situations()]))
def test_any_events_in_any_order_from_any_situation(data: st.DataObject, before: Replica) -> None:
    if invariants.wanted_idle(before):
        return
    follow(data, before, NOW, 20)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_any_state_is_recovered_into_one_that_moves(data: st.DataObject) -> None:
    started = step(replica(want=Want.DOWN), StartAsked(), 0.0)[0]
    current, now = follow(data, data.draw(st.sampled_from([replica(want=Want.DOWN), started])), 0.0, 15)
    state = durable(current)
    assert durable(restore(current.name, state, current.spec, now)) == state
    run = current.last_run
    may_live = isinstance(current.phase, Live | Spawning)
    found = [current.process or process(run)] if may_live and data.draw(st.booleans()) else []
    boot = Boot(now + 1, "boot", 0.0)
    declared = {"m": Declared(current.spec, current.digest)}
    recovered = recover({"m/0": state | {"boot": boot.mark}}, {"m/0": found}, {}, declared, boot)
    after = recovered.replicas["m/0"]
    invariants.check_state(after, now + 1)
    assert after.want is current.want
    assert after.removed == current.removed
    follow(data, after, now + 1, 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([before for _words, before in situations()]))
def test_time_alone_never_spins(data: st.DataObject, before: Replica) -> None:
    """With nothing but ticks at the deadlines, time moves on: no instant sees more than a few of them."""
    current, now = before, NOW + data.draw(st.floats(0, 1000))
    at_this_instant = 0
    for _ in range(60):
        due = deadline(current)
        if due is None:
            break
        at_this_instant = 0 if due > now else at_this_instant + 1
        assert at_this_instant < 5, f"spins at {now} in {current.phase}"
        now = max(now, due)
        after, actions = step(current, Ticked(), now)
        assert (after, actions) != (current, ())
        current = after


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([before for _words, before in situations()]))
def test_what_operators_say_last_is_what_is_wanted(data: st.DataObject, before: Replica) -> None:
    current, now = follow(data, before, NOW, 5)
    for event, want in ((StopAsked(), Want.DOWN), (StartAsked(), Want.UP)):
        after, _ = step(current, event, now)
        assert after.want is want
        current, now = follow(data, after, now, 0)
