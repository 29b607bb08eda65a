"""`why`, word for word: the stories are the core's own, told by its records."""

from __future__ import annotations

import json
from dataclasses import replace
from textwrap import dedent

import pytest

from control_world import SPEC, Tape, wall
from core.situations import situations
from modelsupd.control.why import Story, explain, names_of, sentence, story
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.events import (
    Demanded,
    Evicted,
    FailureClass,
    Outcome,
    Placed,
    ProbeKind,
    Process,
    RestartAsked,
    Spawned,
    StopAsked,
    Ticked,
    Waits,
)
from modelsupd.core.phases import Replica
from modelsupd.core.record import durable
from modelsupd.core.sleep_events import Slept
from modelsupd.core.spec import Start


def told(tape: Tape, at: float, *, running: bool = True, **row: object) -> str:
    name = tape.replica.name
    state = tape.records[-1]["state"]
    return explain(name, state, story(tape.records, name), tape.timeline(at), running=running, row=row)


def golden(text: str) -> str:
    return dedent(text).strip("\n")


def test_ready_after_a_crash() -> None:
    tape = Tape()
    tape.up(0)
    tape.died(3602)
    tape.up(3603, pid=200)
    assert told(tape, 3665) == golden("""
        tiny/0 has been ready since 2026-01-31 13:00:05 UTC (1 min ago).
          run 2, pid 200 under shim 199, at unix:/run/m/runs/x-2/engine.sock
          generates: 4 tokens in 20 ms
          1 restart after failures so far
          wanted up

        What led there:
          2026-01-31 12:00:00 UTC  resolving  new in the configuration
          2026-01-31 12:00:00 UTC  starting   run 1 started as pid 100
          2026-01-31 12:00:02 UTC  ready      generates: 4 tokens in 20 ms
          2026-01-31 13:00:02 UTC  resolving  run 1 ended: exit code 1, peak memory 300.0 MiB; a crash; started again at once
          2026-01-31 13:00:03 UTC  starting   run 2 started as pid 200
          2026-01-31 13:00:05 UTC  ready      generates: 4 tokens in 20 ms

        What happens next: nothing is due. It is probed all the time; if it hangs or dies, it is replaced.
    """)  # noqa: E501 - word for word


def test_waiting_for_the_next_start_of_a_crash_loop() -> None:
    tape = Tape()
    at = 0.0
    for _ in range(4):
        tape.spawned_first(at + 0.2)
        tape.died(at + 1)
        at = max(at + 1, tape.replica.phase.since) + 20
        tape.now(Ticked(), at)
    tape.spawned_first(at + 0.2)
    tape.died(at + 1)
    text = told(tape, at + 2)
    assert text.startswith(
        "tiny/0 has been waiting for its next start since 2026-01-31 12:01:25 UTC (1.0 s ago).\n  last run 5"
    )
    assert "3 failures before that since 2026-01-31 12:00:01 UTC: crash 3" in text
    assert text.count("run 4 ended: exit code 1, peak memory 300.0 MiB; a crash; next start in") == 1
    assert "run 3 ended" not in text
    assert text.endswith("What happens next: the next start is due in 16 s (2026-01-31 12:01:42 UTC).")


def test_bad_weights_wait_for_a_change() -> None:
    tape = Tape()
    tape.spawned_first(0.2)
    tape.died(1, FailureClass.BAD_WEIGHTS, "gguf_init_from_file: failed to read key-value pairs")
    assert told(tape, 31) == golden("""
        tiny/0 has been failed since 2026-01-31 12:00:01 UTC (30 s ago).
          last run 1
          bad-weights: gguf_init_from_file: failed to read key-value pairs; another start would end the same way
          wanted up

        What led there:
          2026-01-31 12:00:00 UTC  resolving  new in the configuration
          2026-01-31 12:00:00 UTC  starting   run 1 started as pid 100
          2026-01-31 12:00:01 UTC  failed     run 1 ended: exit code 1, peak memory 300.0 MiB; bad-weights: gguf_init_from_file: failed to read key-value pairs; another start would end the same way

        What happens next: nothing, until its weights, its program or its configuration change, which is looked at all the time, or 'modelsupd start tiny/0' asks for another try.
    """)  # noqa: E501 - word for word


def test_a_hang_tells_its_evidence() -> None:
    tape = Tape()
    tape.up(0)
    at = 7.0
    while tape.replica.process and type(tape.replica.phase).__name__ == "Ready":
        tape.now(Ticked(), at)
        tape.probed(Outcome.TIMED_OUT, "no answer within 10 s", at + 10, ProbeKind.ALIVE)
        tape.probed(Outcome.TIMED_OUT, "no answer within 10 s", at + 10, ProbeKind.GENERATION)
        at += 15
    text = told(tape, at - 14)
    assert "has been told to end (SIGKILL) since" in text
    assert "hung: no answer, no delivery and no progress for" in text
    assert "no answer within 10 s" in text
    assert "What happens next: it is called stuck and killed again in" in text
    assert "started again, at once or after a pause" in text


def test_stopped_by_an_operator_and_with_no_daemon() -> None:
    tape = Tape()
    tape.up(0)
    tape.now(StopAsked("ada"), 100)
    tape.now(Ticked(), 131)
    tape.died(132)
    with_daemon = told(tape, 192, reason="run 1 ended: exit code 1; stays down")
    assert with_daemon.splitlines()[0] == "tiny/0 has been stopped since 2026-01-31 12:02:12 UTC (1 min ago)."
    assert "  run 1 ended: exit code 1; stays down" in with_daemon
    assert "draining   stop asked for by ada" in with_daemon
    assert "requests were still in flight after 30 s" in with_daemon
    assert with_daemon.endswith("What happens next: nothing, until 'modelsupd start tiny/0'.")
    without = told(tape, 192, running=False)
    assert without.startswith("No daemon is running: this is what the journal last told")
    assert without.endswith("nothing, until a daemon runs and 'modelsupd start tiny/0' asks for it.")


def test_without_a_daemon_a_process_is_adopted_or_started_anew() -> None:
    tape = Tape()
    assert told(tape, 1, running=False).endswith("nothing, until 'modelsupd run': that daemon starts it.")
    tape.up(0)
    assert "that daemon adopts the process if it still runs" in told(tape, 10, running=False)


def test_every_phase_has_its_words() -> None:
    tape = Tape()
    tape.up(0)
    tape.now(RestartAsked("ada"), 10)
    assert "SIGTERM when no request is in flight any more, or in 30 s" in told(tape, 10)
    assert "then a new run is started." in told(tape, 10)
    tape.now(Ticked(), 40)
    assert "SIGKILL in 10 s" in told(tape, 40)
    tape.now(Ticked(), 50)
    assert "killed again in 10 s" in told(tape, 50)
    tape.died(51)
    assert "run 2 is started as soon as that is done." in told(tape, 52)
    tape.spawned_first(53)
    assert "ready with the first token" in told(tape, 54)


def test_one_that_starts_on_demand_says_what_it_waits_for() -> None:
    tape = Tape(spec=replace(SPEC, start=Start.ON_DEMAND))
    assert "What happens next: nothing, until a client asks for it or 'modelsupd start tiny/0'." in told(
        tape, 1, idle=True
    )
    tape.now(Demanded("clients"), 2)
    tape.resolved_first(3)
    tape.now(Waits(1, "b/0 is in use"), 4)
    waiting = told(tape, 5)
    assert "tiny/0 has been waiting for GPUs or for its turn since" in waiting
    assert "waits for its turn: b/0 is in use" in waiting
    assert "Models that start on demand give way in turn: see 'modelsupd plan --want tiny/0'." in waiting
    tape.now(Placed(1, None), 6)
    process = Process(1, 100, 99, "unix:/run/m/runs/x-1/engine.sock", "d1")
    tape.now(Spawned(1, process), 7)
    tape.probed(Outcome.TOKENS, "4 tokens", 8)
    tape.now(Evicted(1, "gives way to b/0"), 9)
    assert "then it starts again when a client asks for it." in told(tape, 10, idle=True)
    assert "gives way to b/0" in told(tape, 10)
    tape.now(Demanded("clients"), 11)
    assert "then it waits for its next turn, for it is asked for again." in told(tape, 12)


def test_one_that_sleeps_says_what_wakes_it() -> None:
    on_demand = replace(SPEC, start=Start.ON_DEMAND, demand=DemandSpec(sleep=1))
    tape = Tape(spec=on_demand)
    tape.now(Demanded("clients"), 2)
    tape.resolved_first(3)
    tape.now(Placed(1, None), 6)
    process = Process(1, 100, 99, "unix:/run/m/runs/x-1/engine.sock", tape.replica.digest)
    tape.now(Spawned(1, process), 7)
    tape.probed(Outcome.TOKENS, "4 tokens", 8)
    tape.now(Evicted(1, "no request for 600 s", sleep=True), 9)
    drained = told(tape, 10, idle=True)
    assert "next: it is told to sleep when no request is in flight any more, or in 29 s (" in drained
    assert drained.endswith(" at the latest.")
    tape.now(Ticked(), 39)
    falling = told(tape, 40, idle=True)
    assert "tiny/0 has been falling asleep since" in falling
    assert "next: it sleeps when its engine says so; one that cannot is stopped." in falling
    tape.now(Slept(1), 41)
    assert "next: nothing, until a client asks for it or 'modelsupd start tiny/0'; then it wakes up." in told(
        tape, 42, idle=True
    )
    tape.now(Demanded("clients"), 43)
    assert "next: it wakes up when its turn has come and its GPUs have room for it." in told(tape, 44)
    tape.now(Placed(1, None), 45)
    assert "next: it proves that it generates when it is awake; one that cannot wake is started anew." in told(tape, 46)


@pytest.mark.parametrize(("words", "found"), [pytest.param(*each, id=each[0]) for each in situations()])
def test_whatever_a_replica_does_there_are_words_for_it(words: str, found: Replica) -> None:
    tape = Tape()
    state = json.loads(json.dumps(durable(found)))
    for running in (True, False):
        text = explain("m/0", state, story([], "m/0"), tape.timeline(1000), running=running, row={})
        assert "it is settled what follows" not in text, words


def test_daemon_starts_stand_in_the_story() -> None:
    tape = Tape()
    tape.up(0)
    start = {"seq": 5, "kind": "start", "wall": wall(50).isoformat(), "why": "modelsupd 1.2.3 started"}
    told_so_far = story([*tape.records, start], "tiny/0")
    text = explain("tiny/0", tape.records[-1]["state"], told_so_far, tape.timeline(60), running=True)
    assert "2026-01-31 12:00:50 UTC  daemon     modelsupd 1.2.3 started" in text


def test_records_of_others_are_left_out_and_none_at_all_is_no_error() -> None:
    tape = Tape("other/0")
    tape.up(0)
    assert not story(tape.records, "tiny/0").records
    text = explain("other/0", tape.records[-1]["state"], Story(), tape.timeline(5), running=True)
    assert "What led there" not in text


def test_how_a_process_ended_is_told_once() -> None:
    record = {"event": {"type": "Exited", "run": 3, "exit": {"signal": 9}}, "why": "run 3 ended: killed by signal 9"}
    assert sentence(record) == "run 3 ended: killed by signal 9 (SIGKILL)"
    record["why"] = "crash: killed by signal 9; next start in 1.0 s"
    assert sentence(record) == "run 3 ended: killed by signal 9 (SIGKILL); a crash; next start in 1.0 s"
    record["event"] = {"type": "Exited", "run": 3, "exit": {}}
    record["why"] = "run 3 ended: exit status unknown; a new run follows"
    assert sentence(record) == "run 3 ended: exit status unknown; a new run follows"


def test_names_without_a_daemon() -> None:
    states = {name: {"model": name.rpartition("/")[0]} for name in ("org/m/1", "org/m/0", "b/0")}
    assert names_of(states, "org/m", {}) == ["org/m/0", "org/m/1"]
    assert names_of(states, "org/m/1", {}) == ["org/m/1"]
    assert names_of(states, "gpt", {"b": ["gpt"]}) == ["b/0"]
    assert names_of(states, "nope", {}) == []
