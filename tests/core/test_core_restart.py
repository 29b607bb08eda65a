"""What follows a failure: pauses, intensity, classes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.samples import ADDRESS, BAD_WEIGHTS, CRASH, NO_MEMORY
from modelsupd.core.events import Failure, FailureClass
from modelsupd.core.restart import (
    FREE_ADDRESS_RETRIES,
    PERMANENT,
    GiveUp,
    History,
    Retry,
    after_failure,
    backoff_s,
    shifted,
)
from modelsupd.core.spec import RestartPolicy

PLAIN = RestartPolicy(jitter=0)

policies = st.builds(
    RestartPolicy,
    healthy_after_s=st.floats(0, 100),
    backoff_initial_s=st.floats(0.01, 100),
    backoff_factor=st.floats(1, 1e6),
    backoff_max_s=st.floats(0.01, 1e6),
    jitter=st.floats(0, 1),
    max_crashes=st.integers(0, 10),
    window_s=st.floats(0.1, 1e5),
    cool_down_s=st.floats(0.1, 1e4),
    cool_down_factor=st.floats(1, 1e6),
    cool_down_max_s=st.floats(0.1, 1e6),
)
failures = st.builds(Failure, st.sampled_from(FailureClass), st.just("words"))
histories = st.builds(
    History,
    st.lists(st.floats(-1e6, 1000), max_size=12).map(lambda ats: tuple(sorted(ats))),
    st.integers(0, 10_000),
    st.integers(0, 10_000),
    st.integers(0, 10),
)


def test_pauses_double_up_to_the_limit() -> None:
    assert [backoff_s(streak, PLAIN, "k") for streak in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


@given(st.integers(1, 100_000), policies, st.text(max_size=20))
def test_pause_stays_within_its_limits_and_is_the_same_again(streak: int, policy: RestartPolicy, key: str) -> None:
    pause_s = backoff_s(streak, policy, key)
    assert min(policy.backoff_initial_s, policy.backoff_max_s) <= pause_s * (1 + 1e-9)
    assert pause_s <= policy.backoff_max_s * (1 + policy.jitter) * (1 + 1e-9)
    assert pause_s == backoff_s(streak, policy, key)


def test_jitter_tells_replicas_and_runs_apart() -> None:
    pauses = {backoff_s(1, RestartPolicy(jitter=0.5), f"m/{index}#{run}") for index in range(20) for run in range(20)}
    assert len(pauses) == 400
    assert min(pauses) < 1.05
    assert max(pauses) > 1.45


@given(histories, failures, st.none() | st.floats(0, 1e5), policies)
def test_what_follows_is_always_in_reach(
    history: History, failure: Failure, ready_s: float | None, policy: RestartPolicy
) -> None:
    """No failure is retried in the past, and only a permanent one is given up for good."""
    decision = after_failure(history, failure, ready_s, policy, "m/0#1", 1000.0)
    assert decision == after_failure(history, failure, ready_s, policy, "m/0#1", 1000.0)
    if isinstance(decision, Retry):
        assert 1000 <= decision.at <= 1000 + policy.backoff_max_s * 2 * (1 + 1e-9)
        assert failure.kind not in PERMANENT
        assert len(decision.history.failed_at) <= max(policy.max_crashes, len(history.failed_at))
    elif decision.retry_at is None:
        assert failure.kind in PERMANENT
        assert decision.history == history
    else:
        assert 1000 < decision.retry_at <= 1000 + max(policy.cool_down_max_s, policy.cool_down_s)


@given(policies)
def test_crash_loop_always_ends_in_failed_within_its_count(policy: RestartPolicy) -> None:
    """With all failures inside one window, the count is kept exactly."""
    history = History()
    for _ in range(policy.max_crashes):
        decision = after_failure(history, CRASH, None, policy, "k", 5.0)
        assert isinstance(decision, Retry)
        history = decision.history
    assert isinstance(after_failure(history, CRASH, None, policy, "k", 5.0), GiveUp)


def test_failures_outside_the_window_are_forgotten() -> None:
    history = History(failed_at=(1, 2, 3, 4, 5))
    assert isinstance(after_failure(history, CRASH, None, PLAIN, "k", 500), GiveUp)
    later = after_failure(history, CRASH, None, PLAIN, "k", 603.5)
    assert isinstance(later, Retry)
    assert later.history.failed_at == (4, 5, 603.5)


def test_cool_down_grows_and_a_healthy_period_resets_it() -> None:
    history, pauses = History(failed_at=(0,) * 5), []
    for _ in range(6):
        decision = after_failure(history, CRASH, None, PLAIN, "k", 0)
        assert isinstance(decision, GiveUp)
        assert decision.retry_at is not None
        pauses.append(decision.retry_at)
        history = decision.history
    assert pauses == [300, 600, 1200, 2400, 3600, 3600]
    healthy = after_failure(history, CRASH, 10, PLAIN, "k", 0)
    assert isinstance(healthy, Retry)
    assert healthy.at == 0
    assert healthy.history.cool_downs == 0


def test_healthy_is_reckoned_from_ready_and_not_from_start() -> None:
    for ready_s, pause_s in ((None, 1), (9.9, 1), (10, 0)):
        decision = after_failure(History(), CRASH, ready_s, PLAIN, "k", 100)
        assert isinstance(decision, Retry)
        assert decision.at == 100 + pause_s


def test_address_taken_again_and_again_counts_in_the_end() -> None:
    history = History()
    for _ in range(FREE_ADDRESS_RETRIES):
        decision = after_failure(history, ADDRESS, None, PLAIN, "k", 1)
        assert isinstance(decision, Retry)
        assert decision.at == 1
        assert decision.history.failed_at == ()
        history = decision.history
    counted = after_failure(history, ADDRESS, None, PLAIN, "k", 1)
    assert counted.history.failed_at == (1,)


def test_permanent_leaves_history_and_memory_waits() -> None:
    assert after_failure(History((1,), 1), BAD_WEIGHTS, None, PLAIN, "k", 2).history == History((1,), 1)
    decision = after_failure(History(), NO_MEMORY, 1e6, PLAIN, "k", 0)
    assert isinstance(decision, Retry)
    assert decision.at == 1


@pytest.mark.parametrize(
    ("asked_s", "pause_s"), [(None, 0.25), (0.125, 0.25), (100.0, 100.0), (1e9, PLAIN.cool_down_max_s)]
)
def test_a_server_that_asks_to_wait_is_not_asked_before(asked_s: float | None, pause_s: float) -> None:
    policy = RestartPolicy(jitter=0, backoff_initial_s=0.25)
    for kind in (FailureClass.UNREACHABLE, FailureClass.NO_SPACE):
        assert after_failure(History(), Failure(kind, "words", asked_s), None, policy, "k", 5.0) == Retry(
            5.0 + pause_s, History((), 1)
        )


_PERMANENT = {"bad-flag", "bad-weights", "unsupported-model", "missing-library", "missing-binary"}
_BACKS_OFF_ALWAYS = {"out-of-memory", "out-of-gpu-memory", "spawn"}
_NEVER_COUNTED = {"no-space", "unreachable"}


@pytest.mark.parametrize("kind", FailureClass)
def test_what_follows_each_kind_of_failure_after_a_healthy_period(kind: FailureClass) -> None:
    """Permanent: nothing until a change. Scarce or not the engine's fault: a pause. All others: at once."""
    before = History((1.0,), 4, 0, 2)
    decision = after_failure(before, Failure(kind, "words"), 1e6, PLAIN, "k", 100.0)
    if kind in _PERMANENT:
        assert decision == GiveUp(None, before, "another start would end the same way")
    elif kind in _NEVER_COUNTED:
        assert decision == Retry(116.0, History((1.0,), 5, 0, 2))
    elif kind == "internal":
        assert decision == GiveUp(400.0, History((), 0, 1, 0), "the supervisor could not follow this run")
    elif kind == "weights-unavailable":
        assert decision == GiveUp(400.0, before, "asked for again after the cool-down")
    elif kind == "address-in-use":
        assert decision == Retry(100.0, History((1.0,), 4, 0, 3))
    else:
        assert decision == Retry(101.0 if kind in _BACKS_OFF_ALWAYS else 100.0, History((1.0, 100.0), 1, 0, 0))


def test_a_failure_as_old_as_the_window_is_outside_it() -> None:
    policy = RestartPolicy(jitter=0, max_crashes=1, window_s=600)
    assert isinstance(after_failure(History((400.0,)), CRASH, None, policy, "k", 999.9), GiveUp)
    assert isinstance(after_failure(History((400.0,)), CRASH, None, policy, "k", 1000.0), Retry)


def test_a_pause_that_does_not_grow_stays_and_one_that_is_too_long_is_cut() -> None:
    constant = RestartPolicy(jitter=0, backoff_initial_s=7, backoff_factor=1, cool_down_s=9, cool_down_factor=1)
    assert [backoff_s(streak, constant, "k") for streak in (1, 2, 50)] == [7, 7, 7]
    long = RestartPolicy(jitter=0, backoff_initial_s=99, backoff_max_s=50, cool_down_s=99, cool_down_max_s=50)
    assert [backoff_s(streak, long, "k") for streak in (1, 2)] == [50, 50]
    for policy, pause_s in ((constant, 9), (long, 50)):
        decision = after_failure(History((), 9, 3), CRASH, None, policy, "k", 0)
        assert isinstance(decision, GiveUp)
        assert (decision.retry_at, decision.history) == (pause_s, History((), 0, 4))


def test_history_moves_to_another_boots_clock_and_never_into_the_future() -> None:
    assert shifted(History((5, 50), 2, 1, 3), -10, 30).failed_at == (-5, 30)
    assert shifted(History((5,), 2, 1, 3), -10, 30) == History((-5,), 2, 1, 3)
