"""The durable state: what is kept, what is left out, and that it comes back."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from core import table
from core.samples import DIGEST, SPEC, process, replica
from core.table import situations
from modelsupd.core.events import Event, ProbeKind, Respecified, Ticked
from modelsupd.core.health import begin
from modelsupd.core.phases import Draining, Halt, Ready, Reason, Replica
from modelsupd.core.record import durable, plain_event, restore, same
from modelsupd.core.replica import step


@pytest.mark.parametrize(("words", "before"), list(situations()))
def test_every_situation_comes_back_as_it_was(words: str, before: Replica) -> None:
    state = json.loads(json.dumps(durable(before)))
    after = restore(before.name, state, before.spec, 1000.0)
    assert json.loads(json.dumps(durable(after))) == state, words
    assert type(after.phase) is type(before.phase)
    assert (after.want, after.last_run, after.process) == (before.want, before.last_run, before.process)
    assert after.halt is Halt.NO


def test_same_is_what_durable_says() -> None:
    kept = {item.name for item in fields(Replica)} - {"name", "spec", "halt", "phase"}
    assert kept | {"phase"} == set(durable(replica()))
    others = [before for _words, before in situations()]
    for one in others:
        assert [same(one, other) for other in others] == [durable(one) == durable(other) for other in others]
        for name in kept:
            assert not same(one, replace(one, **{name: "something else"}))  # type: ignore[arg-type]  # by name


def test_secrets_and_what_a_new_daemon_finds_out_itself_are_left_out() -> None:
    secret = replace(SPEC, env={"HF_TOKEN": "geheim"}, args={"api": "geheim"})
    ready = replace(replica(Ready(1, process(), begin(1)), spec=secret, last_run=1), halt=Halt.KILL)
    words = json.dumps(durable(ready))
    assert "geheim" not in words
    assert "pulse" not in words
    assert "halt" not in words
    assert "geheim" not in json.dumps(plain_event(Respecified(secret, DIGEST)))


def test_probes_make_no_record() -> None:
    ready = replica(Ready(1, process(), begin(1)), last_run=1)
    after, actions = step(ready, Ticked(), 2)
    assert actions
    assert durable(after) == durable(ready)
    draining = replica(Draining(1, process(), Reason.RESTART, 9, 1), last_run=1)
    assert durable(step(draining, Ticked(), 2)[0]) == durable(draining)


@pytest.mark.parametrize(
    "damage",
    [
        {"phase": {"name": "dreaming"}},
        {"phase": {"name": "stopped"}},
        {"want": "sideways"},
        {"history": {}},
        {"phase": {"name": "backoff", "since": 1, "run": 1, "until": 2, "failure": {"kind": "??", "detail": ""}}},
    ],
)
def test_what_is_no_state_is_refused(damage: dict[str, object]) -> None:
    state = durable(replica()) | damage
    with pytest.raises((KeyError, TypeError, ValueError)):
        restore("m/0", state, SPEC, 0)


def test_every_event_is_plain_data_with_its_type() -> None:
    def words(event: Event) -> object:
        return json.loads(json.dumps(plain_event(event)))["type"]

    for name, _variant, event in table.events(1, tuple(ProbeKind)):
        assert words(event) == name
