"""The journal and what is found running: the fleet to start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from core import invariants
from core.recovering import DECLARED, NOW, OTHER, SAME, resume, states
from core.samples import BAD_WEIGHTS, CRASH, DIGEST, INPUTS, OTHER_DIGEST, SPEC, process, replica
from core.script import at, play
from core.situations import situations
from modelsupd.core.actions import Action, Clear, Kill, Resolve, Terminate, Watch
from modelsupd.core.events import Cleared
from modelsupd.core.fleet import Declared
from modelsupd.core.health import begin
from modelsupd.core.phases import (
    Backoff,
    Clearing,
    Draining,
    Failed,
    Fault,
    Killing,
    Live,
    Phase,
    Ready,
    Reason,
    Replica,
    Resolving,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Want,
    phase_name,
)
from modelsupd.core.recovery import Boot, recover
from modelsupd.core.replica import deadline
from modelsupd.core.restart import History
from modelsupd.core.spec import Start

PULSE = begin(1000)


def test_ready_is_adopted_and_nothing_is_done_to_it() -> None:
    ready = replica(Ready(1500, process(3), PULSE), last_run=3)
    after, actions, strays = resume(ready, (process(3),))
    assert isinstance(after.phase, Ready)
    assert (after.phase.since, after.phase.process, after.phase.pulse) == (1500, process(3), begin(NOW))
    assert actions == (Watch(3),)
    assert strays == ()


def test_run_that_ended_while_no_daemon_watched_is_watched_for_its_exit() -> None:
    after, actions, _ = resume(replica(Ready(1500, process(3), PULSE), last_run=3))
    assert isinstance(after.phase, Ready)
    assert actions == (Watch(3),)


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (Stopping(1, process(3), Reason.OPERATOR, 9), (Watch(3), Terminate(3))),
        (Killing(1, process(3), Fault(CRASH), 9), (Watch(3), Kill(3))),
        (Draining(1, process(3), Reason.OPERATOR, 2999, 2, probing=True), (Watch(3),)),
    ],
)
def test_ending_goes_on_where_it_was(phase: Phase, expected: tuple[Action, ...]) -> None:
    after, actions, _ = resume(replica(phase, want=Want.DOWN, last_run=3), (process(3),))
    assert phase_name(after.phase) == phase_name(phase)
    assert actions == expected
    assert deadline(after) is not None


def test_drain_for_a_shutdown_that_did_not_come_to_its_end_is_taken_back() -> None:
    draining = Draining(1, process(3), Reason.SHUTDOWN, 9, 2)
    after, actions, _ = resume(replica(draining, last_run=3), (process(3),))
    assert isinstance(after.phase, Ready)
    assert actions == (Watch(3),)


def test_drain_for_a_shutdown_goes_on_if_the_operator_said_stop_meanwhile() -> None:
    draining = Draining(1, process(3), Reason.SHUTDOWN, 9, 2)
    after, _, _ = resume(replica(draining, want=Want.DOWN, last_run=3), (process(3),))
    assert isinstance(after.phase, Draining)


def test_drain_for_a_shutdown_goes_on_if_the_configuration_changed_meanwhile() -> None:
    draining = replace(replica(Draining(1, process(3), Reason.SHUTDOWN, 9, 2), last_run=3), digest=OTHER_DIGEST)
    after, _, _ = resume(draining, (process(3),), declared={"m": Declared(SPEC, OTHER_DIGEST)})
    assert isinstance(after.phase, Draining)


def test_clearing_looks_again() -> None:
    clearing = replica(Clearing(1, 3, Fault(CRASH), again_at=5, stuck=(9,)), last_run=3)
    after, actions, _ = resume(clearing)
    assert isinstance(after.phase, Clearing)
    assert actions == (Clear(3, 11),)


def test_spawn_that_the_old_daemon_did_not_see_end_is_adopted() -> None:
    after, actions, _ = resume(replica(Spawning(1999, 3, DIGEST), last_run=3), (process(3),))
    assert isinstance(after.phase, Starting)
    assert actions == (Watch(3),)


def test_spawn_of_which_nothing_is_found_is_another_run() -> None:
    after, actions, _ = resume(replica(Spawning(1999, 3, DIGEST), last_run=3))
    assert after.phase == Resolving(NOW, 4)
    assert actions == (Resolve(4),)
    assert after.history == History()


def test_spawn_not_wanted_any_more_is_ended_as_a_stray() -> None:
    after, actions, _ = resume(replica(Spawning(1999, 3, DIGEST), want=Want.DOWN, last_run=3), (process(3),))
    assert isinstance(after.phase, Stopping)
    assert after.phase.cause is Reason.STRAY
    assert actions == (Watch(3), Terminate(3))


def test_run_of_another_declaration_is_ended() -> None:
    after, _, _ = resume(replica(Spawning(1999, 3, OTHER_DIGEST), last_run=3), (process(3, OTHER_DIGEST),))
    assert isinstance(after.phase, Stopping)


def test_run_that_the_journal_does_not_know_is_adopted_if_it_is_what_is_wanted() -> None:
    after, actions, _ = resume(None, (process(5),))
    assert isinstance(after.phase, Starting)
    assert (after.last_run, actions) == (5, (Watch(5),))


def test_run_that_neither_journal_nor_configuration_know_is_ended_and_then_forgotten() -> None:
    after, actions, _ = resume(None, (process(5),), declared={})
    assert after.removed
    assert isinstance(after.phase, Stopping)
    assert actions == (Watch(5), Terminate(5))


def test_journal_that_fell_behind_follows_the_processes() -> None:
    ready = replica(Ready(1500, process(3), PULSE), last_run=3)
    after, actions, strays = resume(ready, (process(5),), highest=5)
    assert isinstance(after.phase, Starting)
    assert (after.last_run, actions, strays) == (5, (Watch(5),), ())


@pytest.mark.parametrize(
    "phase", [Spawning(1999, 3, DIGEST), Stopped(1), Backoff(1, 3, CRASH, 2001), Ready(1, process(3), PULSE)]
)
def test_what_is_left_of_the_last_run_goes_before_there_is_another(phase: Phase) -> None:
    before = states(replica(phase, last_run=3))
    recovered = recover(before, {}, {"m/0": 3}, DECLARED, SAME, {("m/0", 3): (), ("other/0", 9): ()})
    after, actions = recovered.replicas["m/0"], recovered.actions["m/0"]
    invariants.check_state(after, NOW)
    if isinstance(phase, Ready):
        assert actions == (Watch(3),)
    else:
        assert after.phase == Clearing(NOW, 3, Reason.STRAY)
        assert actions == (Clear(3, 11),)
        play(after, at(NOW, Cleared(3), "resolving", Resolve(4)))


def test_process_of_an_earlier_run_is_a_stray() -> None:
    after, _, strays = resume(replica(Ready(1500, process(3), PULSE), last_run=3), (process(3), process(2)))
    assert isinstance(after.phase, Ready)
    assert strays == (("m/0", process(2)),)


def test_no_number_is_used_twice_even_if_the_journal_missed_it() -> None:
    after, actions, _ = resume(replica(Ready(1500, process(3), PULSE), last_run=3), highest=9)
    assert actions == (Resolve(10),)
    assert after.last_run == 10


def test_run_that_was_spawned_is_not_looked_for_again() -> None:
    """The journal stands at its weights, the run directory shows that it went further."""
    resolving = replica(Resolving(1999, 3), last_run=3)
    assert resume(resolving, highest=2)[1] == (Resolve(3),)
    assert resume(resolving, highest=3)[1] == (Resolve(4),)
    adopted, actions, _ = resume(resolving, (process(3),), highest=3)
    assert isinstance(adopted.phase, Starting)
    assert actions == (Watch(3),)


def test_operators_stop_outlives_daemon_and_reboot() -> None:
    for boot in (SAME, OTHER):
        after, actions, _ = resume(replica(Stopped(1), want=Want.DOWN, last_run=3), boot=boot)
        assert isinstance(after.phase, Stopped)
        assert (after.want, actions) == (Want.DOWN, ())


def test_reboot_is_no_failure_and_history_moves_to_the_new_clock() -> None:
    ready = replace(replica(Ready(1500, process(3), PULSE), last_run=3), history=History((1990.0, 1999.0), 2))
    after, actions, _ = resume(ready, boot=OTHER)
    assert after.phase == Resolving(50.0, 4)
    assert actions == (Resolve(4),)
    assert after.history == History((40.0, 49.0), 2)


def test_failed_and_backoff_keep_their_instants() -> None:
    failed = Failed(1, 3, CRASH, 2500, INPUTS)
    after, actions, _ = resume(replica(failed, last_run=3))
    assert (after.phase, actions) == (replace(failed, recheck_at=NOW), ())
    for_good = Failed(1, 3, BAD_WEIGHTS, None, INPUTS, 1)
    after, _, _ = resume(replica(for_good, last_run=3))
    assert deadline(after) == NOW
    backoff = Backoff(1, 3, CRASH, 2001)
    after, _, _ = resume(replica(backoff, last_run=3))
    assert after.phase == backoff


def test_new_model_is_not_recoverys_business() -> None:
    assert recover({}, {}, {}, DECLARED, SAME).replicas == {}


def test_manual_model_found_without_a_record_is_not_started() -> None:
    manual = {"m": Declared(replace(SPEC, start=Start.MANUAL), DIGEST)}
    after, _, _ = resume(None, (process(5),), declared=manual)
    assert after.want is Want.DOWN
    assert isinstance(after.phase, Stopping)


def _recoveries() -> Iterator[tuple[str, Replica, bool, Boot]]:
    """Yield every situation with and without its process, on the same boot and, where nothing can run, on another."""
    for words, before in situations():
        for boot in (SAME, OTHER):
            for alive in (False, True):
                if not alive or ((boot is SAME) and isinstance(before.phase, Live | Spawning)):
                    yield words, before, alive, boot


@pytest.mark.parametrize(("words", "before", "alive", "boot"), list(_recoveries()))
def test_every_situation_is_recovered_into_one_that_moves(words: str, before: Replica, alive: bool, boot: Boot) -> None:
    run = before.last_run
    digest = before.process.digest if before.process else DIGEST
    after, actions, _ = resume(before, (process(run, digest),) if alive else (), boot)
    assert after.want is before.want, words
    if isinstance(after.phase, Live):
        assert Watch(run) in actions
    if (boot is SAME) and alive:
        assert after.last_run == run
    if isinstance(before.phase, Live) and not alive and (boot is SAME):
        assert after.last_run == run, "its exit is not known yet"
