"""A replica on GPUs: it waits, holds, keeps out of loads, learns, and is not put back beside what it left."""

from __future__ import annotations

from dataclasses import replace

from core.samples import (
    CRASH,
    DIGEST,
    HOLD,
    INPUTS,
    LEARNED,
    ON_GPU,
    OTHER_INPUTS,
    SIZE,
    SPEC,
    exited,
    probed,
    process,
    replica,
    resolved,
    spawned,
)
from core.script import at, play, probe
from modelsupd.core.actions import Clear, Kill, Resolve, Spawn, Terminate, Watch
from modelsupd.core.events import (
    Beside,
    Cleared,
    Failure,
    FailureClass,
    GpuLost,
    Halted,
    Hurried,
    Measured,
    Outcome,
    Placed,
    Probed,
    ProbeKind,
    Process,
    Resolved,
    Respecified,
    RestartAsked,
    SpawnFailed,
    StartAsked,
    StopAsked,
    Stuck,
    Ticked,
    Vitals,
    Waits,
)
from modelsupd.core.fleet import Declared
from modelsupd.core.gpu_spec import PlacementSpec
from modelsupd.core.health import begin, observe_start, stood_still_s, taken_over
from modelsupd.core.learning import Learned, stall_after_s
from modelsupd.core.phases import Clearing, Draining, Fault, Ready, Reason, Replica, Starting, Stopped, Waiting, Want
from modelsupd.core.placement import Hold, Size
from modelsupd.core.record import durable, restore
from modelsupd.core.recovery import Boot, recover
from modelsupd.core.replica import deadline, fail_internally, step
from modelsupd.core.spec import HealthLimits, gpu_count
from modelsupd.core.timing import known_start, stall_s, start_left_s

IDLE = replica(want=Want.DOWN, spec=ON_GPU)
ANSWER = Resolved(1, DIGEST, INPUTS, "all verified", SIZE)


def ready_on_gpu(**changes: object) -> Replica:
    quiet = replica(Ready(0.0, process(1), replace(begin(0.0), next_at=5.0)), last_run=1, spec=ON_GPU)
    return replace(quiet, hold=HOLD, inputs=INPUTS, **changes)  # type: ignore[arg-type]  # fields by name


# Waiting


def test_it_waits_until_it_is_placed_and_says_why() -> None:
    after = play(
        IDLE,
        at(0, StartAsked(), "resolving", Resolve(1)),
        at(1, ANSWER, "waiting", reason="waits for GPUs; all verified"),
        at(2, Waits(1, "GPU 0: full"), "waiting", reason="waits for GPUs: GPU 0: full"),
        at(3, Placed(1, HOLD), "spawning", Spawn(1), reason="starting run 1 on GPU-0"),
        at(4, spawned(1), "starting", Watch(1)),
    )
    assert after.hold == HOLD
    assert after.inputs == INPUTS


def test_the_wait_knows_the_size_and_the_reason() -> None:
    waiting = play(IDLE, at(0, StartAsked(), "resolving", Resolve(1)), at(1, ANSWER, "waiting"))
    assert waiting.phase == Waiting(1, 1, DIGEST, SIZE)
    told = step(waiting, Waits(1, "full"), 2)[0]
    assert told.phase == Waiting(1, 1, DIGEST, SIZE, "full")
    assert restore("m/0", durable(told), ON_GPU, 3) == told
    assert deadline(told) is None


def test_several_gpus_are_all_named() -> None:
    waiting = play(IDLE, at(0, StartAsked(), "resolving", Resolve(1)), at(1, ANSWER, "waiting"))
    two = Hold(gpus=("GPU-0", "GPU-1"), bytes=(1, 1))
    play(waiting, at(2, Placed(1, two), "spawning", Spawn(1), reason="starting run 1 on GPU-0 and GPU-1"))


def test_without_gpus_nothing_waits() -> None:
    play(
        replica(want=Want.DOWN),
        at(0, StartAsked(), "resolving", Resolve(1)),
        at(1, Resolved(1, DIGEST, INPUTS, "all verified"), "spawning", Spawn(1), reason="starting run 1; all verified"),
    )
    play(
        replica(want=Want.DOWN),
        at(0, StartAsked(), "resolving", Resolve(1)),
        at(1, resolved(), "spawning", Spawn(1), reason="starting run 1"),
    )


def test_a_wait_ends_as_it_is_asked_to() -> None:
    waiting = play(IDLE, at(0, StartAsked(), "resolving", Resolve(1)), at(1, ANSWER, "waiting"))
    play(waiting, at(2, StopAsked(), "stopped"), at(3, Placed(1, HOLD), "stopped"), at(3, Waits(1, "x"), "stopped"))
    play(waiting, at(2, Halted(), "stopped"))
    play(waiting, at(2, RestartAsked(), "waiting"))
    changed = Respecified(ON_GPU, "other")
    play(waiting, at(2, changed, "resolving", Resolve(2)), at(3, Placed(1, HOLD), "resolving"))
    failed = fail_internally(waiting, "lost", 2)[0]
    play(failed, at(3, Placed(1, HOLD), "failed"))


def test_what_cannot_be_spawned_holds_nothing() -> None:
    waiting = play(IDLE, at(0, StartAsked(), "resolving", Resolve(1)), at(1, ANSWER, "waiting"))
    after = play(
        waiting,
        at(2, Placed(1, HOLD), "spawning", Spawn(1)),
        at(3, SpawnFailed(1, CRASH), "backoff"),
    )
    assert after.hold is None


# Ends


def test_a_run_on_gpus_is_over_when_their_memory_is_back() -> None:
    after = play(
        ready_on_gpu(),
        at(20, exited(1), "clearing", Clear(1, 11)),
        at(21, Cleared(1), "resolving", Resolve(2)),
    )
    assert after.hold is None


def test_memory_that_is_not_back_is_left_and_said() -> None:
    stuck = Stuck(1, (), "GPU 0: 3.0 GiB have not come back", ("GPU-0",))
    after = play(
        ready_on_gpu(),
        at(0.5, exited(1), "clearing", Clear(1, 11)),
        at(21, stuck, "backoff", reason="crash: exit code 1; GPU 0: 3.0 GiB have not come back"),
    )
    assert after.hold is None
    stopped = play(ready_on_gpu(want=Want.DOWN, phase=Clearing(1, 1, Reason.OPERATOR)), at(9, stuck, "stopped"))
    assert stopped.reason == stuck.why
    play(
        ready_on_gpu(phase=Clearing(1, 1, Reason.RESTART)),
        at(9, stuck, "resolving", Resolve(2), reason="3.0 GiB have not come back; a new run follows"),
    )


def test_processes_that_withstand_keep_the_gpus() -> None:
    after = play(
        ready_on_gpu(),
        at(20, exited(1, cleared=False), "clearing", Clear(1, 11)),
        at(30, Stuck(1, (5,)), "clearing", reason="processes 5 of run 1 withstand SIGKILL"),
    )
    assert after.hold == HOLD


def test_a_lost_gpu_ends_the_run_and_is_no_fault_of_it() -> None:
    after = play(
        ready_on_gpu(),
        at(20, GpuLost(1, "GPU 0 is lost"), "killing", Kill(1), reason="gpu-lost: GPU 0 is lost"),
        at(21, GpuLost(1, "GPU 0 is lost"), "killing"),
        at(22, exited(1), "clearing", Clear(1, 11)),
        at(23, Cleared(1), "backoff", reason="gpu-lost"),
    )
    assert after.history.failed_at == ()
    starting = ready_on_gpu(phase=Starting(0.0, process(1), begin(0.0)))
    play(starting, at(20, GpuLost(1, "GPU 0 is lost"), "killing", Kill(1)))


# Beside a load


def test_a_stop_waits_for_the_load_beside_it() -> None:
    held = play(
        ready_on_gpu(),
        at(10, Beside("n/0"), "ready"),
        at(11, StopAsked(), "draining", probe(ProbeKind.DRAIN)),
        at(12, drained(), "draining", reason="drained; waits while n/0 loads beside it"),
        at(12.5, drained(), "draining"),
        at(13, Ticked(), "draining"),
    )
    assert held.phase == Draining(11, process(1), Reason.OPERATOR, 132, next_at=132, held=True)
    assert deadline(held) == 132
    play(held, at(20, Beside("o/0"), "draining"), at(21, Beside(""), "stopping", Terminate(1), reason="no longer does"))
    play(held, at(132, Ticked(), "stopping", Terminate(1), reason="it still does after 120 s"))
    play(held, at(20, Hurried(), "stopping", Terminate(1)))


def test_requests_that_do_not_end_and_no_drain_at_all_wait_too() -> None:
    draining = play(
        ready_on_gpu(beside="n/0"),
        at(11, RestartAsked(), "draining", probe(ProbeKind.DRAIN)),
        at(41, Ticked(), "draining", reason="requests were still in flight after 30 s; waits while n/0 loads"),
    )
    assert isinstance(draining.phase, Draining)
    assert (draining.phase.held, draining.phase.since, draining.phase.until) == (True, 11, 161)
    at_once = replace(ON_GPU, stop=replace(ON_GPU.stop, drain_timeout_s=0))
    held = play(ready_on_gpu(spec=at_once, beside="n/0"), at(11, RestartAsked(), "draining"))
    assert held.phase == Draining(11, process(1), Reason.RESTART, 131, next_at=131, held=True)
    starting = ready_on_gpu(phase=Starting(0.0, process(1), begin(0.0)), beside="n/0")
    play(starting, at(11, RestartAsked(), "draining"))


def test_a_stop_waits_for_less_than_a_second_where_that_is_the_limit() -> None:
    brief = replace(ON_GPU, stop=replace(ON_GPU.stop, drain_timeout_s=0, beside_load_timeout_s=0.5))
    held = play(ready_on_gpu(spec=brief, beside="n/0"), at(11, StopAsked(), "draining"))
    assert deadline(held) == 11.5


def test_what_does_not_wait_for_a_load() -> None:
    at_once = replace(ON_GPU, stop=replace(ON_GPU.stop, drain_timeout_s=0))
    never = replace(ON_GPU, stop=replace(at_once.stop, beside_load_timeout_s=0))
    play(ready_on_gpu(spec=never, beside="n/0"), at(11, StopAsked(), "stopping", Terminate(1)))
    play(ready_on_gpu(spec=at_once, beside="n/0"), at(11, Halted(), "stopping", Terminate(1)))
    play(ready_on_gpu(spec=at_once), at(11, StopAsked(), "stopping", Terminate(1)))
    hung = ready_on_gpu(phase=Draining(0, process(1), Fault(CRASH), 11, 99, probing=True), beside="n/0")
    play(hung, at(11, Ticked(), "stopping", Terminate(1)))


def test_beside_is_forgotten_with_the_gpus() -> None:
    after = play(ready_on_gpu(beside="n/0"), at(20, exited(1), "clearing", Clear(1, 11)))
    assert after.beside == "n/0"
    assert step(after, Cleared(1), 21)[0].beside == ""
    assert step(ready_on_gpu(beside="n/0"), Beside(""), 5) == (ready_on_gpu(), ())


def drained() -> Probed:
    return probed(Outcome.ANSWERED, ProbeKind.DRAIN, vitals=Vitals(in_flight=0))


# Recovery


BOOT = Boot(100.0, "boot", 0.0)


def recovered(
    before: Replica | None, *found: Process, boot: Boot = BOOT, left: tuple[str, ...] | None = None
) -> Replica:
    states = {"m/0": durable(before) | {"boot": BOOT.mark}} if before else {}
    leftovers = {} if left is None else {("m/0", 1): left}
    live = {"m/0": list(found)} if found else {}
    return recover(states, live, {"m/0": 1}, {"m": Declared(ON_GPU, DIGEST)}, boot, leftovers).replicas["m/0"]


def test_the_next_daemon_knows_what_is_held() -> None:
    assert recovered(ready_on_gpu(), process(1)).hold == HOLD
    assert recovered(ready_on_gpu()).hold == HOLD, "until its end has been told"
    assert recovered(ready_on_gpu(), boot=replace(BOOT, id="next")).hold is None


def test_a_wait_is_taken_up_with_another_look() -> None:
    waiting = replica(Waiting(1, 1, DIGEST, SIZE), last_run=1, spec=ON_GPU)
    after = recover({"m/0": durable(waiting) | {"boot": BOOT.mark}}, {}, {}, {"m": Declared(ON_GPU, DIGEST)}, BOOT)
    assert after.actions["m/0"] == (Resolve(1),)
    assert isinstance(recovered(replace(waiting, want=Want.DOWN)).phase, Stopped)
    # Its record was lost, and the run was started all the same.
    on = replace(process(1), gpus=("GPU-1",))
    assert recovered(waiting, on).hold == Hold(gpus=("GPU-1",), bytes=(0,), exclusive=True)


def test_what_is_found_without_a_record_shares_with_nobody() -> None:
    on = replace(process(1), gpus=("GPU-1", "GPU-2"))
    unknown = Hold(gpus=("GPU-1", "GPU-2"), bytes=(0, 0), exclusive=True)
    assert recovered(None, on).hold == unknown
    assert recovered(None, process(1)).hold is None
    assert recovered(None, left=("GPU-1", "GPU-2")).hold == unknown
    assert recovered(None, left=()).hold is None
    older = replica(Ready(0.0, process(0), begin(0.0)), last_run=0, spec=ON_GPU)
    assert recovered(replace(older, hold=HOLD), left=("GPU-1", "GPU-2")).hold == unknown
    known = ready_on_gpu(phase=Clearing(1, 1, Reason.RESTART))
    assert recovered(known, left=("GPU-1",)).hold == HOLD


def test_a_stop_that_waited_for_a_load_is_looked_at_anew() -> None:
    held = ready_on_gpu(phase=Draining(11, process(1), Reason.RESTART, 132, 132, held=True))
    after = recovered(held, process(1))
    assert isinstance(after.phase, Draining)
    assert not after.phase.held
    assert deadline(after) == 100


# What is learned


def test_a_start_teaches_how_long_it_takes_and_stands_still() -> None:
    silent, busy = Vitals(), Vitals(log_bytes=9)
    refused = probed(Outcome.REFUSED, ProbeKind.START, vitals=silent)
    moved = probed(Outcome.REFUSED, ProbeKind.START, vitals=busy)
    pulse = begin(0.0)
    for now, seen, longest in ((3.0, refused, 3.0), (7.0, moved, 7.0), (9.0, refused, 7.0)):
        pulse = observe_start(pulse, seen, HealthLimits(), 0.0, now)
        assert pulse.still_s == longest
    assert stood_still_s(pulse, 10.0) == 7.0
    assert stood_still_s(pulse, 20.0) == 13.0
    assert stood_still_s(taken_over(0.0), 20.0) is None
    starting = replica(Starting(0.0, process(1), pulse), last_run=1)
    after = step(replace(starting, inputs=INPUTS), probed(Outcome.TOKENS, ProbeKind.START), 12.0)[0]
    assert after.learned == Learned(DIGEST, INPUTS, 12.0, 7.0, None)


def test_of_a_start_that_was_not_seen_whole_only_its_length_is_learned() -> None:
    state = durable(replica(Starting(0.0, process(1), begin(0.0)), last_run=1))
    later = restore("m/0", state, SPEC, 50.0)
    after = step(later, probed(Outcome.TOKENS, ProbeKind.START), 60.0)[0]
    assert after.learned is not None
    assert (after.learned.start_s, after.learned.still_s) == (60.0, None)
    assert restore("m/0", durable(after), SPEC, 61.0).learned == after.learned


def test_what_a_run_uses_is_learned_and_kept_over_starts_of_the_same() -> None:
    ready = ready_on_gpu(learned=LEARNED)
    after = step(ready, Measured(1, (5, 7)), 20)[0]
    assert after.learned == replace(LEARNED, bytes=7)
    assert step(ready, Measured(1, ()), 20)[0] == ready
    assert step(ready_on_gpu(), Measured(1, (5,)), 20)[0] == ready_on_gpu()
    starting = replace(after, phase=Starting(0.0, process(1), begin(0.0)))
    assert step(starting, Measured(1, (99,)), 20)[0] == starting
    again = step(starting, probed(Outcome.TOKENS, ProbeKind.START), 30.0)[0]
    assert again.learned == Learned(DIGEST, INPUTS, 30.0, 30.0, 7)
    other = step(replace(starting, inputs=OTHER_INPUTS), probed(Outcome.TOKENS, ProbeKind.START), 30.0)[0]
    assert other.learned == Learned(DIGEST, OTHER_INPUTS, 30.0, 30.0, None)


def test_a_stall_is_found_sooner_where_the_same_is_known_and_never_later() -> None:
    limits = HealthLimits(start_stall_s=300, start_stall_factor=4, start_stall_least_s=60)
    for still_s, expected in ((0.0, 60), (15.0, 60), (20.0, 80), (74.0, 296), (80.0, 300), (None, 300)):
        assert stall_after_s(limits, Learned(DIGEST, INPUTS, 1.0, still_s)) == expected
    assert stall_after_s(limits, None) == 300
    assert stall_after_s(replace(limits, start_stall_factor=0), Learned(DIGEST, INPUTS, 1.0, 1.0)) == 300
    assert stall_after_s(replace(limits, start_stall_s=5), Learned(DIGEST, INPUTS, 1.0, 1.0)) == 5


def test_a_start_of_the_same_is_condemned_when_it_stands_still_for_too_long() -> None:
    spec = replace(SPEC, health=replace(SPEC.health, start_stall_least_s=60))
    phase = Starting(0.0, process(1), replace(begin(0.0), probe=ProbeKind.START))
    known = replace(replica(phase, last_run=1, spec=spec), inputs=INPUTS, learned=replace(LEARNED, still_s=20.0))
    assert deadline(known) == 80
    assert stall_s(known) == 80
    play(known, at(79, Ticked(), "starting"), at(80, Ticked(), "killing", Kill(1), reason="no progress for 80 s"))
    assert deadline(replace(known, inputs=OTHER_INPUTS)) == 300
    assert deadline(replace(known, digest="other", phase=phase)) == 300


def test_how_long_a_start_still_takes_is_told_of_the_same_only() -> None:
    starting = replace(replica(Starting(100.0, process(1), begin(100.0)), last_run=1), inputs=INPUTS, learned=LEARNED)
    assert start_left_s(starting, 104.0) == 8.0
    assert start_left_s(starting, 120.0) == 0.0
    assert known_start(starting) == LEARNED
    assert start_left_s(replace(starting, inputs=OTHER_INPUTS), 104.0) is None
    assert start_left_s(replace(starting, phase=Stopped(1.0)), 104.0) is None
    assert isinstance(starting.phase, Starting)
    woken = replace(starting, phase=replace(starting.phase, woken=True))
    assert start_left_s(woken, 104.0) is None, "it has loaded already"
    assert start_left_s(replace(starting, learned=None), 104.0) is None


def test_a_step_that_changes_nothing_returns_what_it_was_given() -> None:
    idle = replica()
    assert step(idle, Ticked(), 1.0)[0] is idle


def test_gpus_are_counted_however_they_are_declared() -> None:
    assert [gpu_count(replace(SPEC, gpus=gpus)) for gpus in (0, 2, ("GPU-a",), ("GPU-a", "GPU-b"))] == [0, 2, 1, 2]
    assert Size() == Size(0, 0.0, estimated=False)
    assert Failure(FailureClass.GPU_LOST, "x").kind == "gpu-lost"


def test_what_waits_is_sized_anew_when_its_claim_is_declared_otherwise() -> None:
    declared = replace(ON_GPU, placement=PlacementSpec(vram_bytes=5))
    waiting = replica(Waiting(0.0, 1, DIGEST), last_run=1, spec=declared)
    same, nothing = step(waiting, Respecified(declared, DIGEST), 1.0)
    assert (same, nothing) == (waiting, ())
    again, actions = step(waiting, Respecified(ON_GPU, DIGEST), 1.0)
    assert (again.last_run, again.spec, actions) == (2, ON_GPU, (Resolve(2),))
    running = replica(Ready(0.0, process(1), begin(0.0)), last_run=1, spec=declared)
    goes_on, nothing = step(running, Respecified(ON_GPU, DIGEST), 1.0)
    assert (type(goes_on.phase), nothing) == (Ready, ())
