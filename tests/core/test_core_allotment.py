"""Who gets which GPU, who waits, and who must keep still meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from core.samples import CRASH, DIGEST, INPUTS, LEARNED, ON_GPU, process
from modelsupd.core.allotment import Card, allot, claim_of
from modelsupd.core.events import Beside, Placed
from modelsupd.core.gpu_spec import PlacementSpec, Strategy
from modelsupd.core.health import begin
from modelsupd.core.phases import (
    Backoff,
    Clearing,
    Draining,
    Killing,
    Phase,
    Ready,
    Reason,
    Replica,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
)
from modelsupd.core.placement import Gpu, Hold, Size

GIB = 1024**3
NEEDS = Size(2 * GIB)
READY = Ready(0.0, process(1), begin(0.0))
STARTING = Starting(0.0, process(1), begin(0.0))
WAITING = Waiting(0.0, 1, DIGEST, NEEDS)


def cards(*sizes: int, **more: Any) -> list[Card]:  # noqa: ANN401 - fields of any type
    return [
        Card(gpu=Gpu(uuid=f"GPU-{index}", index=index, total_bytes=size * GIB), idle_bytes=index + 1, **more)
        for index, size in enumerate(sizes)
    ]


def on(name: str, phase: Phase, *gpus: int, size: int = 2, **changes: Any) -> Replica:  # noqa: ANN401 - the same
    uuids = tuple(f"GPU-{index}" for index in gpus)
    hold = Hold(gpus=uuids, bytes=(size * GIB,) * len(gpus)) if gpus else None
    model = name.partition("/")[0]
    found = Replica(
        name=name, model=model, spec=ON_GPU, digest=DIGEST, want=Want.UP, phase=phase, last_run=1, hold=hold
    )
    return replace(found, **changes)


def fleet(*replicas: Replica) -> Mapping[str, Replica]:
    return {replica.name: replica for replica in replicas}


def test_what_waits_is_given_a_gpu_and_what_was_in_use_there_is_noted() -> None:
    answer = allot(fleet(on("a/0", WAITING), on("b/0", READY, 0)), {}, cards(8, 8))
    hold = Hold(gpus=("GPU-1",), bytes=(2 * GIB,), exclusive=False, idle_bytes=(2,))
    assert answer.placed == {"a/0": Placed(1, hold)}
    assert (answer.beside, answer.waiting) == ({}, {})


def test_nobody_is_asked_where_nobody_waits() -> None:
    answer = allot(fleet(on("b/0", READY, 0), on("c/0", Stopped(0.0))), {}, [])
    assert (answer.placed, answer.beside, answer.waiting) == ({}, {}, {})


def test_one_load_at_a_time_on_a_gpu() -> None:
    for phase in (Spawning(0.0, 1, DIGEST), STARTING):
        answer = allot(fleet(on("a/0", WAITING), on("b/0", phase, 0)), {}, cards(8))
        assert answer.placed == {}
        assert answer.waiting == {"a/0": "there is room, and b/0 loads on GPU 0: nothing loads beside that"}
    both = allot(fleet(on("a/0", WAITING), on("b/0", WAITING)), {}, cards(8))
    assert set(both.placed) == {"a/0"}
    assert both.waiting == {"b/0": "there is room, and a/0 loads on GPU 0: nothing loads beside that"}


@pytest.mark.parametrize(
    "phase",
    [
        Draining(0.0, process(1), Reason.OPERATOR, 9, 9),
        Stopping(0.0, process(1), Reason.OPERATOR, 9),
        Killing(0.0, process(1), Reason.OPERATOR, 9),
        Clearing(0.0, 1, Reason.OPERATOR),
    ],
    ids=lambda phase: type(phase).__name__,
)
def test_nothing_loads_beside_a_run_that_ends(phase: Phase) -> None:
    answer = allot(fleet(on("a/0", WAITING), on("b/0", phase, 0)), {}, cards(8))
    assert answer.placed == {}
    assert answer.waiting == {"a/0": "there is room, and b/0 ends on GPU 0: nothing loads beside that"}


def test_a_stop_that_waits_for_a_load_does_not_end_yet() -> None:
    held = Draining(0.0, process(1), Reason.OPERATOR, 9, 9, held=True)
    answer = allot(fleet(on("a/0", WAITING), on("b/0", held, 0, beside="a/0")), {}, cards(8))
    assert set(answer.placed) == {"a/0"}


def test_on_several_gpus_all_must_be_quiet() -> None:
    two = replace(ON_GPU, gpus=2)
    waits = on("a/0", WAITING, spec=two)
    answer = allot(
        fleet(waits, on("b/0", STARTING, 0), on("c/0", Clearing(0.0, 1, Reason.OPERATOR), 1)), {}, cards(8, 8)
    )
    assert answer.waiting == {
        "a/0": "there is room, and b/0 loads on GPU 0, c/0 ends on GPU 1: nothing loads beside that"
    }


def test_whoever_is_beside_a_load_is_told_before_it_begins() -> None:
    waits, beside = on("a/0", WAITING), on("b/0", READY, 0)
    first = allot(fleet(waits, beside), {}, cards(8))
    assert first.beside == {"b/0": Beside("a/0")}
    assert first.placed == {}
    assert first.waiting == {}
    then = allot(fleet(waits, replace(beside, beside="a/0")), {}, cards(8))
    assert (set(then.placed), then.beside) == ({"a/0"}, {})
    elsewhere = allot(fleet(waits, beside, on("c/0", READY, 1)), {}, cards(5, 8))
    assert (set(elsewhere.placed), elsewhere.beside) == (set(), {"c/0": Beside("a/0")})


def test_whoever_was_told_is_told_that_it_is_over() -> None:
    told = on("b/0", READY, 0, beside="a/0")
    assert allot(fleet(told), {}, cards(8)).beside == {"b/0": Beside("")}
    assert allot(fleet(told, on("a/0", STARTING, 0)), {}, cards(8)).beside == {}
    assert allot(fleet(told, on("a/0", STARTING, 1)), {}, cards(8, 8)).beside == {"b/0": Beside("")}
    assert allot(fleet(on("a/0", STARTING, 0)), {}, cards(8)).beside == {}, "nobody is beside itself"


def test_what_was_given_and_is_not_published_yet_counts() -> None:
    given = {"a/0": Hold(gpus=("GPU-0",), bytes=(7 * GIB,))}
    answer = allot(fleet(on("a/0", WAITING), on("b/0", WAITING)), given, cards(8))
    assert answer.placed == {}
    assert answer.waiting == {"b/0": "GPU 0: needs 2.0 GiB, 1.0 GiB of 8.0 GiB left (7.0 GiB claimed by a/0)"}
    small = {"a/0": Hold(gpus=("GPU-0",), bytes=(GIB,))}
    answer = allot(fleet(on("a/0", WAITING), on("b/0", WAITING), on("c/0", READY, 0)), small, cards(8))
    assert answer.waiting == {"b/0": "there is room, and a/0 loads on GPU 0: nothing loads beside that"}
    assert answer.beside == {"c/0": Beside("a/0")}


def test_a_run_that_uses_more_than_it_claimed_is_reckoned_with_what_it_uses() -> None:
    replicas = fleet(on("a/0", WAITING), on("b/0", READY, 0, beside="a/0"))
    assert set(allot(replicas, {}, cards(8, used={"b/0": 6 * GIB})).placed) == {"a/0"}
    assert allot(replicas, {}, cards(8, used={"b/0": 7 * GIB})).placed == {}
    assert set(allot(replicas, {}, cards(8, used={"b/0": 1})).placed) == {"a/0"}


def test_a_hold_on_a_gpu_that_is_gone_and_a_run_kept_apart() -> None:
    gone = on("b/0", READY, 5)
    assert set(allot(fleet(on("a/0", WAITING), gone), {}, cards(8)).placed) == {"a/0"}
    apart = replace(ON_GPU, placement=PlacementSpec(apart_from=("a",)))
    answer = allot(fleet(on("a/0", WAITING), on("b/0", READY, 0, spec=apart)), {}, cards(8))
    assert answer.waiting == {"a/0": "GPU 0: to be kept apart from b/0"}
    alone = on("b/0", READY, 0)
    alone = replace(alone, hold=Hold(gpus=("GPU-0",), bytes=(0,), exclusive=True))
    assert allot(fleet(on("a/0", WAITING), alone), {}, cards(8)).waiting == {"a/0": "GPU 0: b/0 has it for itself"}
    idle = on("c/0", Backoff(0.0, 1, CRASH, 9))
    assert allot(fleet(idle), {}, cards(8)).placed == {}


# Claims


def claimed(size: Size | None, **placement: Any) -> Any:  # noqa: ANN401 - fields of any type
    spec = replace(ON_GPU, placement=PlacementSpec(**placement))
    return claim_of(on("a/0", replace(WAITING, size=size), spec=spec))


def test_a_claim_is_declared_told_learned_or_reckoned() -> None:
    estimate, known = Size(4 * GIB, estimated=True), replace(LEARNED, bytes=3 * GIB)
    assert (claimed(Size(5), vram_bytes=9).bytes, claimed(Size(share=0.5), vram_bytes=9).share) == (9, 0.0)
    assert claimed(estimate).bytes == 5 * GIB
    assert claimed(estimate, margin_bytes=1).bytes == 4 * GIB + 1
    assert claimed(Size(5)).bytes == 5, "what an engine is told to take needs no margin"
    assert (claimed(Size(share=0.9)).bytes, claimed(Size(share=0.9)).share) == (0, 0.9)
    waits = on("a/0", replace(WAITING, size=estimate), learned=known, inputs=INPUTS)
    assert claim_of(waits).bytes == 3 * GIB
    assert claim_of(replace(waits, learned=replace(known, bytes=None))).bytes == 5 * GIB
    assert claim_of(replace(waits, inputs="other")).bytes == 5 * GIB
    told = replace(waits, phase=WAITING)
    assert claim_of(told).bytes == 2 * GIB, "a share or size that the engine takes anyway is not lowered"


def test_a_claim_over_several_gpus_is_even() -> None:
    for gpus, expected in ((2, 3), (("GPU-a", "GPU-b", "GPU-c"), 2)):
        spec = replace(ON_GPU, gpus=gpus, placement=PlacementSpec(margin_bytes=0))
        claim = claim_of(on("a/0", replace(WAITING, size=Size(5, estimated=True)), spec=spec))
        assert claim.bytes == expected
        assert claim_of(on("a/0", replace(WAITING, size=Size(5)), spec=spec)).bytes == expected
        assert claim.count == (gpus if isinstance(gpus, int) else 3)
        assert claim.uuids == (gpus if isinstance(gpus, tuple) else ())


def test_where_nothing_tells_the_size_a_run_shares_with_nobody_unless_it_is_said() -> None:
    assert claimed(None).exclusive
    assert not claimed(None, exclusive=False).exclusive
    assert not claimed(None, vram_bytes=0).exclusive
    assert not claimed(Size(1)).exclusive
    assert claimed(Size(1), exclusive=True).exclusive
    assert claimed(None).bytes == 0


def test_where_it_may_go_is_as_declared() -> None:
    assert claimed(NEEDS).pack is False
    assert claimed(NEEDS, strategy=Strategy.PACK).pack is True
    assert claimed(NEEDS, apart_from=("x",)).apart == {"x"}
    spec = replace(ON_GPU, replicas="per-gpu")
    assert claim_of(on("a/0", WAITING, spec=spec)).apart == {"a"}
    assert (claimed(NEEDS).name, claimed(NEEDS).model) == ("a/0", "a")
    off = replace(ON_GPU, gpus=0)
    assert claim_of(on("a/0", READY, 0, spec=off)).count == 1, "it was declared otherwise while it ran"


def test_what_is_not_said_of_a_card_is_nothing() -> None:
    card = Card(gpu=Gpu(uuid="GPU-0", index=0, total_bytes=8))
    assert (card.idle_bytes, dict(card.used)) == (0, {})


def test_a_run_that_takes_nothing_leaves_all() -> None:
    whole = replace(ON_GPU, placement=PlacementSpec(vram_bytes=8 * GIB))
    answer = allot(fleet(on("a/0", WAITING, spec=whole), on("b/0", READY, 0, size=0)), {}, cards(8))
    assert set(answer.beside) == {"b/0"} or set(answer.placed) == {"a/0"}
    assert answer.waiting == {}


def test_a_run_that_is_given_a_gpu_for_itself_holds_it_so() -> None:
    alone = replace(ON_GPU, placement=PlacementSpec(exclusive=True))
    answer = allot(fleet(on("a/0", WAITING, spec=alone)), {}, cards(8))
    hold = answer.placed["a/0"].hold
    assert hold is not None
    assert hold.exclusive


def test_who_is_told_of_a_load_beside_it() -> None:
    """Everyone who lives, those that are being ended too; of two loads the one on its first GPU. The dead hear none."""
    loads = on("b/0", Spawning(0.0, 1, DIGEST), 0)
    for phase in (
        READY,
        Draining(0.0, process(1), Reason.OPERATOR, 9, 9),
        Stopping(0.0, process(1), Reason.OPERATOR, 9),
        Killing(0.0, process(1), Reason.OPERATOR, 9),
    ):
        assert allot(fleet(on("a/0", phase, 0), loads), {}, cards(8)).beside == {"a/0": Beside("b/0")}
    assert allot(fleet(on("a/0", Clearing(0.0, 1, Reason.OPERATOR), 0), loads), {}, cards(8)).beside == {}
    both = fleet(on("a/0", READY, 0, 1), loads, on("c/0", Spawning(0.0, 1, DIGEST), 1))
    assert allot(both, {}, cards(8, 8)).beside == {"a/0": Beside("b/0")}


def test_a_hold_has_a_size_for_each_of_its_gpus() -> None:
    broken = on("b/0", READY, hold=Hold(gpus=("GPU-0",), bytes=(1, 2)))
    with pytest.raises(ValueError, match="longer"):
        allot(fleet(on("a/0", WAITING), broken), {}, cards(8, 8))
