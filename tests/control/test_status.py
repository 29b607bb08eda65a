"""The status document, which other people's scripts rely on."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from control_world import EPOCH, SPEC, MemoryPort, Tape, wall
from modelsupd.cli.quick import code
from modelsupd.control.status import document, last_known
from modelsupd.core.events import (
    Demanded,
    Evicted,
    Outcome,
    Placed,
    ProbeKind,
    Process,
    Removed,
    Spawned,
    StopAsked,
    Ticked,
)
from modelsupd.core.spec import Start

ROW_KEYS = [
    "name",
    "phase",
    "run",
    "pid",
    "shim_pid",
    "endpoint",
    "gpus",
    "since",
    "restarts",
    "reason",
    "idle",
    "weights",
    "left_s",
]


def ready(name: str = "tiny/0") -> Tape:
    tape = Tape(name)
    tape.up(0)
    return tape


def stopped(name: str) -> Tape:
    tape = Tape(name)
    tape.now(StopAsked("ada"), 1)
    return tape


def of(place: Path, *tapes: Tape) -> MemoryPort:
    async def make() -> MemoryPort:
        return MemoryPort(place, *tapes)

    return asyncio.run(make())


def test_the_document_is_as_the_contract_says(place: Path) -> None:
    port = of(place, ready())
    assert document(port) == {
        "daemon": {
            "state": "running",
            "pid": port.pid,
            "version": "1.2.3",
            "since": "2026-01-31T12:00:00.000Z",
            "journal": {"seq": 4, "read_only": None},
        },
        "models": [
            {
                "name": "tiny",
                "engine": "command",
                "want": "up",
                "ready": True,
                "idle": False,
                "replicas": [
                    {
                        "name": "tiny/0",
                        "phase": "ready",
                        "run": 1,
                        "pid": 100,
                        "shim_pid": 99,
                        "endpoint": "unix:/run/m/runs/x-1/engine.sock",
                        "gpus": [],
                        "since": "2026-01-31T12:00:02.000Z",
                        "restarts": 0,
                        "reason": "generates: 4 tokens in 20 ms",
                        "idle": False,
                        "weights": None,
                        "left_s": None,
                    }
                ],
            }
        ],
        "gpus": [],
        "gateway": None,
    }


def test_a_model_is_ready_when_all_its_wanted_replicas_are(place: Path) -> None:
    one_down = document(of(place, ready("a/0"), stopped("a/1")))
    assert (one_down["models"][0]["want"], one_down["models"][0]["ready"]) == ("up", True)
    one_starts = document(of(place, ready("a/0"), Tape("a/1")))
    assert one_starts["models"][0]["ready"] is False
    assert code(one_starts) == 1
    all_down = document(of(place, stopped("a/0")))
    assert (all_down["models"][0]["want"], all_down["models"][0]["ready"]) == ("down", False)
    assert code(all_down) == 0


def on_demand(name: str = "a/0") -> Tape:
    return Tape(name, spec=replace(SPEC, start=Start.ON_DEMAND))


def test_one_that_starts_on_demand_and_that_nobody_asks_for_is_idle_and_nothing_is_wrong(place: Path) -> None:
    idle = document(of(place, on_demand()))
    model = idle["models"][0]
    assert (model["want"], model["ready"], model["idle"]) == ("up", False, True)
    assert (model["replicas"][0]["phase"], model["replicas"][0]["idle"]) == ("stopped", True)
    assert model["replicas"][0]["reason"] == "starts when a client asks for it (start = 'on-demand')"
    assert code(idle) == 0
    tape = on_demand()
    tape.now(Demanded("clients"), 1)
    asked = document(of(place, tape))
    assert (asked["models"][0]["ready"], asked["models"][0]["idle"], code(asked)) == (False, False, 1)
    tape.resolved_first(2)
    tape.now(Placed(1, None), 3)
    tape.now(Spawned(1, Process(1, 100, 99, "unix:/x.sock", "d1")), 4)
    tape.probed(Outcome.TOKENS, "4 tokens", 5)
    served = document(of(place, tape))
    assert (served["models"][0]["ready"], served["models"][0]["idle"], code(served)) == (True, False, 0)
    tape.now(Evicted(1, "no request for 600 s"), 605)
    going = document(of(place, tape))
    assert (going["models"][0]["ready"], going["models"][0]["idle"], code(going)) == (False, True, 0)
    assert going["models"][0]["replicas"][0]["reason"].endswith(
        "no request for 600 s; starts when a client asks for it"
    )


def test_of_several_on_demand_those_that_are_asked_for_count(place: Path) -> None:
    one = on_demand("a/1")
    one.now(Demanded("clients"), 1)
    some = document(of(place, on_demand("a/0"), one))
    assert (some["models"][0]["ready"], some["models"][0]["idle"], code(some)) == (False, False, 1)


def test_one_on_demand_that_an_operator_stopped_is_not_idle(place: Path) -> None:
    tape = on_demand()
    tape.now(StopAsked("ada"), 1)
    model = document(of(place, tape))["models"][0]
    assert (model["want"], model["ready"], model["idle"]) == ("down", False, False)
    assert "stays down until started" in model["replicas"][0]["reason"]


def test_what_an_operator_stopped_says_that_it_stays_so(place: Path) -> None:
    row = document(of(place, stopped("a/0")))["models"][0]["replicas"][0]
    assert row["reason"] == "stop asked for by ada; stays down until started, after a reboot too"
    assert row["pid"] is None
    assert list(row) == ROW_KEYS


def test_a_complaint_of_the_last_probe_shows(place: Path) -> None:
    tape = Tape()
    tape.spawned_first(0.2)
    tape.probed(Outcome.LOADING, "Loading model", 1)
    assert "not ready yet: Loading model" in document(of(place, tape))["models"][0]["replicas"][0]["reason"]
    tape.probed(Outcome.TOKENS, "4 tokens", 2)
    for at in (10.0, 20.0):
        tape.now(Ticked(), at)
        tape.probed(Outcome.TIMED_OUT, "no answer within 10 s", at + 1, ProbeKind.ALIVE)
    reason = document(of(place, tape))["models"][0]["replicas"][0]["reason"]
    assert reason == "generates: 4 tokens; the last 2 probes failed: no answer within 10 s"


def test_a_model_without_replicas_yet_is_awaited(place: Path) -> None:
    port = of(place, ready())
    port.models = lambda: {"new": port.tapes["tiny/0"].replica.spec}  # type: ignore[method-assign]  # declared, not there
    models = {model["name"]: model for model in document(port)["models"]}
    assert models["new"] == {
        "name": "new",
        "engine": "command",
        "want": "up",
        "ready": False,
        "idle": False,
        "replicas": [],
    }
    assert models["tiny"]["ready"]


def test_what_leaves_the_configuration_is_not_wanted(place: Path) -> None:
    tape = ready()
    tape.now(Removed(), 5)
    model = document(of(place, tape))["models"][0]
    assert model["want"] == "down"
    assert model["replicas"][0]["phase"] == "draining"


def test_the_last_known_state_has_the_same_shape() -> None:
    tapes = [ready("b/0"), ready("a/10"), ready("a/9"), stopped("c/0")]
    states = {tape.replica.name: tape.records[-1]["state"] for tape in tapes}
    start = {"version": "0.9", "at": 0.0, "wall": EPOCH.isoformat()}
    known = last_known(states, start, 17, {"a": "llama.cpp"}, wall)
    assert known["daemon"] == {
        "state": "not running",
        "pid": None,
        "version": "0.9",
        "since": None,
        "journal": {"seq": 17, "read_only": None},
    }
    assert [row["name"] for model in known["models"] for row in model["replicas"]] == ["a/9", "a/10", "b/0", "c/0"]
    assert [model["engine"] for model in known["models"]] == ["llama.cpp", None, None]
    row = known["models"][0]["replicas"][0]
    assert list(row) == ROW_KEYS
    assert (row["phase"], row["pid"], row["since"]) == ("ready", 100, "2026-01-31T12:00:02.000Z")
    assert "after a reboot too" in known["models"][2]["replicas"][0]["reason"]
