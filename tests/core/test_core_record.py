"""The durable state: what is kept, what is left out, and that it comes back."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from core import table
from core.samples import CRASH, DIGEST, HOLD, LEARNED, SPEC, exited, probed, process, replica, spawned
from core.situations import situations
from modelsupd.core.events import Event, Outcome, ProbeKind, Respecified, Stuck, Ticked, Vitals
from modelsupd.core.health import begin
from modelsupd.core.phases import Clearing, Draining, Failed, Halt, Ready, Reason, Replica
from modelsupd.core.record import durable, plain_event, restore, same
from modelsupd.core.replica import step


@pytest.mark.parametrize(("words", "before"), list(situations()))
def test_every_situation_comes_back_as_it_was(words: str, before: Replica) -> None:
    state = json.loads(json.dumps(durable(before)))
    after = restore(before.name, state, before.spec, 1000.0)
    assert json.loads(json.dumps(durable(after))) == state, words
    assert type(after.phase) is type(before.phase)
    for item in ("since", "run", "process", "cause", "until", "failure", "retry_at", "inputs", "stuck"):
        kept, was = getattr(after.phase, item, None), getattr(before.phase, item, None)
        assert (type(kept), kept) == (type(was), was), (words, item)
    assert (after.want, after.last_run, after.process) == (before.want, before.last_run, before.process)
    assert after.halt is Halt.NO


def test_same_is_what_durable_says() -> None:
    kept = {item.name for item in fields(Replica)} - {"name", "spec", "halt", "phase", "beside"}
    known = replace(replica(), hold=HOLD, learned=LEARNED, demanded_by="clients")
    assert kept | {"phase"} == set(durable(known))
    assert set(durable(known)) - set(durable(replica())) == {"hold", "learned", "demanded_by"}
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
    for before in (Clearing(1, 1, Reason.RESTART, 2), Failed(1, 1, CRASH, None, "", 2)):
        looking, actions = step(replica(before, last_run=1), Ticked(), 2)
        assert actions
        assert durable(looking) == durable(replica(before, last_run=1))


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


def test_an_event_s_data_is_all_of_it_in_lists_tables_and_values() -> None:
    assert plain_event(spawned(3)) == {
        "type": "Spawned",
        "run": 3,
        "process": {
            "run": 3,
            "pid": 1003,
            "shim_pid": 2003,
            "endpoint": "unix:/r/3/engine.sock",
            "digest": DIGEST,
        },
    }
    report = plain_event(probed(Outcome.TOKENS, vitals=Vitals(1.5, 2, 3, 4)))
    assert report["vitals"] == {"cpu_s": 1.5, "read_bytes": 2, "log_bytes": 3, "delivered": 4, "in_flight": None}
    assert plain_event(exited())["exit"] == {"code": 1, "signal": None, "peak_rss_bytes": None, "cpu_s": None}
    assert plain_event(exited())["failure"] == {"kind": "crash", "detail": "exit code 1", "retry_after_s": None}
    assert plain_event(Stuck(3, (7, 8))) == {"type": "Stuck", "run": 3, "pids": [7, 8], "why": "", "gpus": []}
    assert plain_event(Respecified(SPEC, DIGEST)) == {"type": "Respecified", "digest": DIGEST}


def test_a_state_s_phase_is_plain_data() -> None:
    state = durable(replica(Clearing(1, 1, Reason.RESTART, 2, (7, 8)), last_run=1))["phase"]
    assert state == {"name": "clearing", "since": 1, "run": 1, "cause": "restart", "stuck": [7, 8]}
    assert type(state["cause"]) is str
