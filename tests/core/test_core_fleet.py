"""Many replicas: names, targets, and what a configuration asks of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.samples import DIGEST, OTHER_DIGEST, SPEC, replica
from modelsupd.core.actions import Resolve
from modelsupd.core.events import Removed, Respecified
from modelsupd.core.fleet import Declared, UnknownTarget, all_still, fresh, is_gone, plan, replica_names, targets
from modelsupd.core.phases import Backoff, Replica, Resolving, Stopped, Want
from modelsupd.core.restart import History
from modelsupd.core.spec import Start

TWO = replace(SPEC, replicas=2, aliases=("gpt",))
DECLARED = Declared(SPEC, DIGEST)


def fleet(*names: str) -> dict[str, Replica]:
    return {name: replace(replica(), name=name, model=name.rpartition("/")[0], spec=TWO) for name in names}


def test_names_of_replicas() -> None:
    assert replica_names("org/qwen3:8b", Declared(TWO, "d")) == ("org/qwen3:8b/0", "org/qwen3:8b/1")


def test_targets_are_a_model_an_alias_or_one_replica() -> None:
    known = fleet("m/0", "m/1", "other/0")
    known["other/0"] = replace(known["other/0"], spec=SPEC)
    assert targets(known, "m") == ("m/0", "m/1")
    assert targets(known, "gpt") == ("m/0", "m/1")
    assert targets(known, "m/1") == ("m/1",)
    with pytest.raises(UnknownTarget, match="there is no model or replica 'othr'; did you mean 'other'"):
        targets(known, "othr")
    with pytest.raises(UnknownTarget, match="did you mean 'other/0'"):
        targets(known, "other/7")
    with pytest.raises(UnknownTarget, match="known are none"):
        targets({}, "m")


def test_fresh_starts_by_itself_or_waits_to_be_asked() -> None:
    up, actions = fresh("m/0", "m", DECLARED, 5.0)
    assert (up.want, up.phase, actions) == (Want.UP, Resolving(5.0, 1), (Resolve(1),))
    manual = Declared(replace(SPEC, start=Start.MANUAL), DIGEST)
    down, actions = fresh("m/0", "m", manual, 5.0)
    assert (down.want, down.phase, actions) == (Want.DOWN, Stopped(5.0), ())


def test_fresh_goes_on_counting_runs_where_that_name_left_off() -> None:
    again, actions = fresh("m/0", "m", DECLARED, 5.0, last_run=7)
    assert again.last_run == 8
    assert actions == (Resolve(8),)


def test_plan_tells_only_what_differs() -> None:
    known = {"m/0": replica(), "gone/0": replace(replica(), name="gone/0", model="gone")}
    planned = plan(known, {"m": DECLARED, "new": DECLARED})
    assert dict(planned.added) == {"new/0": ("new", DECLARED)}
    assert dict(planned.events) == {"gone/0": Removed()}
    changed = plan(known, {"m": Declared(SPEC, OTHER_DIGEST), "gone": DECLARED})
    assert dict(changed.events) == {"m/0": Respecified(SPEC, OTHER_DIGEST)}
    limits = replace(SPEC, aliases=("x",))
    assert plan(known, {"m": Declared(limits, DIGEST), "gone": DECLARED}).events == {"m/0": Respecified(limits, DIGEST)}


def test_plan_says_once_that_something_goes_and_again_that_it_comes_back() -> None:
    going = {"m/0": replace(replica(), removed=True)}
    assert plan(going, {}).events == {}
    assert plan(going, {"m": DECLARED}).events == {"m/0": Respecified(SPEC, DIGEST)}


def test_plan_shrinks_and_grows_a_model() -> None:
    known = fleet("m/0", "m/1")
    assert plan(known, {"m": Declared(replace(TWO, replicas=1), DIGEST)}).events["m/1"] == Removed()
    grown = plan(known, {"m": Declared(replace(TWO, replicas=3), DIGEST)})
    assert set(grown.added) == {"m/2"}


def test_plan_tells_the_unsettled_in_any_case() -> None:
    """What waits in a queue may say the opposite of what is published."""
    known = {"m/0": replica()}
    assert plan(known, {"m": DECLARED}, {"m/0", "new/0"}).events == {
        "m/0": Respecified(SPEC, DIGEST),
        "new/0": Removed(),
    }
    both = plan(known, {"m": DECLARED, "new": DECLARED}, {"new/0"})
    assert both.added == {}
    assert both.events == {"new/0": Respecified(SPEC, DIGEST)}
    assert plan({"m/0": replace(replica(), removed=True)}, {}, {"m/0"}).events == {"m/0": Removed()}


def test_gone_and_still() -> None:
    assert is_gone(replace(replica(), removed=True))
    assert not is_gone(replica())
    assert not is_gone(replace(replica(Backoff(0, 1, failure=None, until=1)), removed=True))  # type: ignore[arg-type]  # only its type matters
    assert all_still([replica()])
    assert not all_still([replica(), replica(Resolving(0, 1), last_run=1)])
    assert replica().history == History()


def test_per_gpu_makes_no_replica_where_no_gpu_is_known() -> None:
    assert replica_names("m", Declared(replace(SPEC, gpus=1, replicas="per-gpu"), DIGEST)) == ()


def test_without_a_gpu_there_is_no_replica_for_each() -> None:
    assert Declared(replace(SPEC, replicas="per-gpu", gpus=1), DIGEST).replicas == 0
