"""Whose memory it is, and what of a run that is gone has not come back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.samples import HOLD, ON_GPU, process, replica
from fake_gpus import GIB
from modelsupd.core.health import begin
from modelsupd.core.phases import Ready, Replica
from modelsupd.core.placement import Hold
from modelsupd.runtime.gpus import ledger
from modelsupd.runtime.gpus.ledger import Account, Missing
from modelsupd.runtime.gpus.reading import Seen

#: No process has this pid (proc_sys_kernel(5), pid_max).
NOBODY = 2**22 + 1


@pytest.fixture
def engine() -> Iterator[int]:
    """Yield the pid of a process below this one, which stands for a shim."""
    child = subprocess.Popen(["sleep", "100"])
    yield child.pid
    child.kill()
    child.wait()


def run(*gpus: str, size: int = 4, name: str = "m/0") -> Replica:
    shim = replace(process(1), shim_pid=os.getpid())
    hold = Hold(gpus=gpus, bytes=(size * GIB,) * len(gpus), idle_bytes=(0,) * len(gpus))
    ready = replica(Ready(0.0, shim, begin(0.0)), last_run=1, spec=ON_GPU)
    return replace(ready, name=name, hold=hold)


def seen(used: int, *processes: tuple[int, int | None], told: bool = True, uuid: str = "GPU-0") -> Seen:
    pairs = tuple((pid, None if size is None else size * GIB) for pid, size in processes) if told else None
    return Seen(uuid=uuid, index=0, name="x", total_bytes=16 * GIB, used_bytes=used * GIB, processes=pairs)


def account(gpu: Seen, *replicas: Replica) -> Account:
    [found] = ledger.accounts([gpu], {replica.name: replica for replica in replicas})
    return found


def test_memory_is_told_apart_by_who_descends_from_which_shim(engine: int) -> None:
    found = account(seen(6, (engine, 3), (1, 2)), run("GPU-0"))
    assert found.used == {"m/0": 3 * GIB}
    assert found.pids == {"m/0": (engine,)}
    assert found.foreign_bytes == 3 * GIB, "another's 2, and 1 that no process is told to have"
    assert found.idle_bytes == GIB
    assert found.holders == {"m/0"}


def test_a_run_where_it_should_not_be_is_a_stranger(engine: int) -> None:
    found = account(seen(3, (engine, 3)), run("GPU-1"))
    assert (found.used, found.foreign_bytes, found.pids) == ({}, 3 * GIB, {"m/0": (engine,)})
    assert account(seen(3, (engine, 3))).foreign_bytes == 3 * GIB


def test_where_the_driver_does_not_tell_a_claim_stands_for_use(engine: int) -> None:
    for gpu in (
        seen(6, told=False),
        seen(6, (engine, None)),
        seen(6, (NOBODY, 6)),  # of another pid namespace
    ):
        assert account(gpu, run("GPU-0")).foreign_bytes == 2 * GIB, gpu
    assert account(seen(3, told=False), run("GPU-0")).foreign_bytes == 0
    # One that is told of is not reckoned twice, and one that is told to have nothing has nothing.
    assert account(seen(6, (engine, 3), (NOBODY, 3)), run("GPU-0")).foreign_bytes == 3 * GIB
    assert account(seen(6, (1, 6)), run("GPU-0")).foreign_bytes == 6 * GIB


def test_what_placement_sees_is_the_account(engine: int) -> None:
    card = ledger.card(account(seen(6, (engine, 3), (1, 2)), run("GPU-0")), 7, "in quarantine", 3.0)
    gpu = card.gpu
    assert (gpu.uuid, gpu.total_bytes, gpu.foreign_bytes, gpu.reserve_bytes) == ("GPU-0", 16 * GIB, 3 * GIB, 7)
    assert (gpu.trouble, card.used, card.idle_bytes) == ("in quarantine", {"m/0": 3 * GIB}, GIB)


def missing(gpu: Seen, *pids: int, hold: Hold = HOLD, others: tuple[Replica, ...] = ()) -> list[Missing]:
    accounts = {"GPU-0": account(gpu, *others)}
    return ledger.missing(hold, frozenset(pids), "m/0", accounts, 2)


def test_what_the_dead_still_have_is_missing() -> None:
    assert missing(seen(0)) == []
    assert missing(seen(3, (NOBODY, 3)), NOBODY) == [Missing("GPU-0", 0, 3 * GIB, (NOBODY,))]
    assert missing(seen(3, (NOBODY, None)), NOBODY) == [Missing("GPU-0", 0, 0, (NOBODY,))], "however little it is"
    assert missing(seen(3, (NOBODY, 3))) == [], "another's"


def test_what_no_process_has_is_missing_beyond_what_was_so_before() -> None:
    before = Hold(gpus=("GPU-0",), bytes=(GIB,), idle_bytes=(2 * GIB,))
    assert missing(seen(2), hold=before) == []
    assert missing(seen(5), hold=before) == [Missing("GPU-0", 0, 3 * GIB, ())]
    assert missing(seen(5, (1, 3)), hold=before) == []
    assert missing(seen(7, (1, 3)), hold=before) == [Missing("GPU-0", 0, 2 * GIB, ())]
    within = replace(seen(2), used_bytes=2 * GIB + 2)
    assert missing(within, hold=before) == []
    assert missing(replace(within, used_bytes=2 * GIB + 3), hold=before) == [Missing("GPU-0", 0, 3, ())]
    adopted = Hold(gpus=("GPU-0",), bytes=(0,))
    assert missing(seen(9), hold=adopted) == [], "nobody knows what was there before"


def test_what_may_be_anothers_is_not_held_against_a_run() -> None:
    before = Hold(gpus=("GPU-0",), bytes=(GIB,), idle_bytes=(0,))
    assert missing(seen(5, (1, None)), hold=before) == []
    assert missing(seen(5, told=False), hold=before) == [Missing("GPU-0", 0, 5 * GIB, ())]
    beside = run("GPU-0", name="n/0")
    assert missing(seen(5, told=False), hold=before, others=(beside,)) == []


def test_a_gpu_that_is_gone_is_not_asked_for_memory() -> None:
    assert missing(replace(seen(9), lost=True)) == []
    elsewhere = Hold(gpus=("GPU-7",), bytes=(GIB,), idle_bytes=(0,))
    assert missing(seen(9), hold=elsewhere) == []


def test_who_a_process_belongs_to(engine: int) -> None:
    assert ledger.owner(engine, {os.getpid(): "m/0"}) == ("m/0", True)
    assert ledger.owner(engine, {}) == (None, True)
    assert ledger.owner(NOBODY, {}) == (None, False)
    assert ledger.owner(os.getpid(), {os.getpid(): "m/0"}) == ("m/0", True)
