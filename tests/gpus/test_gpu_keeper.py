"""What is kept of GPUs across daemons, and what is told of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.samples import ON_GPU, process, replica
from fake_gpus import GIB, Cards
from modelsupd.core.events import Event, GpuLost, Measured
from modelsupd.core.gpu_spec import GpusSpec
from modelsupd.core.health import begin
from modelsupd.core.phases import Ready, Replica, Spawning
from modelsupd.core.placement import Hold
from modelsupd.errors import Refused
from modelsupd.runtime.gpus.keeper import Gpus
from modelsupd.runtime.gpus.quarantine import Entry, Kind, Quarantine
from modelsupd.runtime.identity import boot_id
from modelsupd.runtime.placer import Placer

WHY = Entry(kind=Kind.MEMORY, why="3 GiB", since="2026-01-01T00:00:00+00:00", pids=(5,), bytes=7)


def saved(quarantine: Quarantine) -> None:
    asyncio.run(quarantine.save())


def test_quarantine_outlives_its_keeper(place: Path) -> None:
    first = Quarantine(place)
    first.put("GPU-0", WHY)
    first.put("GPU-1", replace(WHY, kind=Kind.LOST))
    saved(first)
    assert json.loads((place / "gpus.json").read_text())["v"] == 1
    again = Quarantine(place)
    boot = boot_id()
    assert again.entries == {"GPU-0": replace(WHY, boot=boot), "GPU-1": replace(WHY, kind=Kind.LOST, boot=boot)}
    assert again.release("GPU-0", "back")
    assert not again.release("GPU-0", "back")
    saved(again)
    assert set(Quarantine(place).entries) == {"GPU-1"}
    assert not again.unsaved


def test_what_a_person_said_stays_and_the_same_is_not_said_twice(place: Path) -> None:
    quarantine = Quarantine(place)
    quarantine.put("GPU-0", WHY)
    quarantine.put("GPU-0", replace(WHY, since="later"))
    assert quarantine.entries["GPU-0"].since == WHY.since
    quarantine.put("GPU-0", replace(WHY, kind=Kind.OPERATOR, why="mine"))
    quarantine.put("GPU-0", replace(WHY, kind=Kind.STUCK))
    assert quarantine.entries["GPU-0"].why == "mine"
    for _ in range(2):
        quarantine.put("GPU-0", replace(WHY, kind=Kind.LOST, why="lost"))
    assert (quarantine.entries["GPU-0"].kind, quarantine.entries["GPU-0"].why) == (Kind.OPERATOR, "mine; lost")


@pytest.mark.parametrize("stronger", [Kind.LOST, Kind.HARDWARE])
@pytest.mark.parametrize("weaker", [Kind.MEMORY, Kind.STUCK])
def test_a_gpu_that_is_broken_stays_so_when_memory_is_late_there(place: Path, stronger: Kind, weaker: Kind) -> None:
    quarantine = Quarantine(place)
    quarantine.put("GPU-0", replace(WHY, kind=weaker))
    quarantine.put("GPU-0", replace(WHY, kind=stronger, why="Xid 79"))
    quarantine.put("GPU-0", replace(WHY, kind=weaker))
    assert (quarantine.entries["GPU-0"].kind, quarantine.entries["GPU-0"].why) == (stronger, "Xid 79")


def test_what_is_known_by_processes_ends_with_their_boot(place: Path) -> None:
    first = Quarantine(place)
    for number, kind in enumerate(Kind):
        # Of another boot, a pid that somebody has by now.
        first.put(f"GPU-{number}", replace(WHY, kind=kind, pids=(os.getpid(),)))
    saved(first)
    file = place / "gpus.json"
    file.write_text(file.read_text().replace(boot_id(), "another"))
    again = Quarantine(place)
    assert {entry.kind for entry in again.entries.values()} == {Kind.LOST, Kind.HARDWARE, Kind.OPERATOR}
    assert list(again.changes) == [
        f"GPU GPU-{number} out of quarantine: the machine was restarted" for number in (0, 1)
    ]


@pytest.mark.parametrize("text", ["", "{}", '{"quarantined": {"GPU-0": {"kind": "x", "pids": []}}}', "[1]"])
def test_a_list_that_cannot_be_read_is_begun_anew(place: Path, text: str) -> None:
    (place / "gpus.json").write_text(text)
    assert Quarantine(place).entries == {}


def test_what_a_disk_refuses_is_written_later(place: Path) -> None:
    quarantine = Quarantine(place / "state")
    quarantine.put("GPU-0", WHY)
    saved(quarantine)
    assert quarantine.unsaved
    (place / "state").mkdir()
    saved(quarantine)
    assert not quarantine.unsaved
    assert set(Quarantine(place / "state").entries) == {"GPU-0"}


# The keeper


class World:
    """Replicas and what they were told."""

    def __init__(self, place: Path, cards: Cards) -> None:
        self.replicas: dict[str, Replica] = {}
        self.told: list[tuple[str, Event]] = []
        self.counted = 0
        self.notes: list[str] = []
        self.spec = GpusSpec(nvml=str(cards.nvml), memory_timeout_s=0.2, reserve_bytes=0)
        self.gpus = Gpus(
            place,
            spec=lambda: self.spec,
            wanted=lambda: True,
            replicas=self.published,
            put=lambda name, event: self.told.append((name, event)),
            placing=lambda seen, unread: Placer(
                self.published, seen, lambda name, event: self.told.append((name, event)), unread=unread
            ),
            counted=self.count,
            note=self.note,
        )

    def published(self) -> Mapping[str, Replica]:
        return self.replicas

    def count(self) -> None:
        self.counted += 1

    async def note(self, words: str) -> None:
        self.notes.append(words)

    def run(self, *gpus: str) -> Replica:
        ready = replica(
            Ready(0.0, replace(process(1), shim_pid=os.getpid(), pid=os.getpid()), begin(0.0)), last_run=1, spec=ON_GPU
        )
        hold = Hold(gpus=gpus, bytes=(2 * GIB,) * len(gpus), idle_bytes=(0,) * len(gpus))
        self.replicas["m/0"] = replace(ready, hold=hold)
        return self.replicas["m/0"]


def keeping(place: Path, cards: Cards, test: Any) -> None:  # noqa: ANN401 - a coroutine function
    async def main() -> None:
        (place / "state").mkdir()
        world = World(place / "state", cards)
        await world.gpus.open()
        try:
            await test(world)
        finally:
            await world.gpus.close()

    asyncio.run(main())


def test_what_a_ready_run_uses_is_told_and_told_again_when_it_is_more(place: Path) -> None:
    cards = Cards(place / "g", 8)

    async def test(world: World) -> None:
        world.run("GPU-0")
        for used, told in ((2, 1), (1, 1), (3, 2)):
            cards.take(os.getpid(), 0, used * GIB)
            await world.gpus.look()
            assert len(world.told) == told
        assert world.told == [("m/0", Measured(1, (2 * GIB,))), ("m/0", Measured(1, (3 * GIB,)))]
        [row] = world.gpus.rows()
        assert (row["claimed_bytes"], row["used_bytes"], row["replicas"]) == (3 * GIB, 3 * GIB, ["m/0"])

    keeping(place, cards, test)


def test_a_loss_is_told_to_whoever_is_there_and_to_no_one_else(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)

    async def test(world: World) -> None:
        world.run("GPU-1")
        cards.change(0, lost=True)
        await world.gpus.look()
        assert world.told == []
        cards.change(1, lost=True)
        await world.gpus.look()
        assert world.told == [("m/0", GpuLost(1, "GPU 1 (GPU-1) is lost"))]
        assert {row["state"] for row in world.gpus.rows()} == {"lost"}
        assert (world.gpus.count(), world.counted) == (2, 0)
        cards.cards.append(replace(cards.cards[0], uuid="GPU-2", lost=False))
        cards.write()
        await world.gpus.look()
        assert (world.gpus.count(), world.counted) == (3, 1)

    keeping(place, cards, test)


def test_a_lost_gpu_is_given_to_nobody_and_not_released(place: Path) -> None:
    cards = Cards(place / "g", 8)

    async def test(world: World) -> None:
        cards.change(0, lost=True)
        await world.gpus.inventory.read()
        [card] = world.gpus.cards()
        assert card.gpu.trouble == "it is lost", "as soon as it is read"
        with pytest.raises(Refused, match="cannot release '0': it is still lost"):
            await world.gpus.command("release", "0", "ada")
        assert set(world.gpus.quarantine.entries) == {"GPU-0"}

    keeping(place, cards, test)


def test_a_run_that_is_only_being_spawned_is_told_of_the_loss_when_it_is_there(place: Path) -> None:
    cards = Cards(place / "g", 8)

    async def test(world: World) -> None:
        run = world.run("GPU-0")
        world.replicas["m/0"] = replace(run, phase=Spawning(0.0, 1, "d"))
        cards.xid(0, 79)
        await world.gpus.look()
        assert world.told == []
        world.replicas["m/0"] = run
        await world.gpus.look()
        assert world.told == [("m/0", GpuLost(1, "GPU 0: Xid 79"))]
        await world.gpus.command("release", "0", "ada")
        world.told.clear()
        await world.gpus.look()
        assert world.told == [], "what runs there by now came after it"

    keeping(place, cards, test)


def test_a_gpu_that_no_process_may_use_is_given_to_nobody(place: Path) -> None:
    cards = Cards(place / "g", 8)
    cards.set("mode", "2")

    async def test(world: World) -> None:
        [card] = world.gpus.cards()
        assert card.gpu.trouble == "its compute mode lets no process use it"
        cards.set("mode", "3")
        await world.gpus.look()
        [card] = world.gpus.cards()
        assert (card.gpu.exclusive, card.gpu.part, card.gpu.trouble) == (True, False, "")
        cards.set("mode", "0")
        cards.change(0, mig=1)
        await world.gpus.look()
        assert [(card.gpu.exclusive, card.gpu.part) for card in world.gpus.cards()] == [(False, True)]

    keeping(place, cards, test)


def test_of_several_gpus_the_one_that_is_lost_is_blamed(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)

    async def test(world: World) -> None:
        run = world.run("GPU-0", "GPU-1")
        cards.change(1, lost=True)
        await world.gpus.blame(run, "CUDA error")
        assert set(world.gpus.quarantine.entries) == {"GPU-1"}
        cards.change(1, lost=False)
        await world.gpus.command("release", "1", "ada")
        await world.gpus.blame(run, "CUDA error")
        assert set(world.gpus.quarantine.entries) == {"GPU-0", "GPU-1"}, "nothing tells which"

    keeping(place, cards, test)


def test_whose_memory_is_back_cannot_be_told_by_a_driver_that_hangs(place: Path) -> None:
    cards = Cards(place / "g", 8)

    async def test(world: World) -> None:
        run = world.run("GPU-0")
        assert await world.gpus.memory_back(run, 1) is None
        world.spec = replace(world.spec, answer_timeout_s=0.1)
        cards.set("hang")
        found = await world.gpus.memory_back(run, 1)
        assert found is not None
        assert found[1] == ("GPU-0",)
        assert "cannot be told: the driver did not answer within 0.1 s" in found[0]
        cards.set("hang", None)
        world.spec = replace(world.spec, answer_timeout_s=10)
        await world.gpus.look()
        assert world.gpus.quarantine.entries == {}
        assert await world.gpus.memory_back(replace(run, hold=None), 1) is None

    keeping(place, cards, test)


def test_what_cannot_be_killed_keeps_its_gpus_until_it_is_gone(place: Path) -> None:
    cards = Cards(place / "g", 8)
    child = subprocess.Popen([sys.executable, "-c", ""])
    zombie = child.pid
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)  # nobody reaps it yet, and it holds nothing any more

    async def test(world: World) -> None:
        await world.gpus.stuck(world.run("GPU-0"), 1, (os.getpid(), 2**22 + 1))
        await world.gpus.look()
        assert len(world.notes) == 1
        assert "GPU GPU-0 in quarantine: processes" in world.notes[0]
        assert "cannot be killed" in world.gpus.quarantine.entries["GPU-0"].why
        await world.gpus.command("release", "GPU-0", "ada")
        assert world.notes[1:] == ["GPU GPU-0 out of quarantine: released by ada"]
        await world.gpus.stuck(world.run("GPU-0"), 1, (2**22 + 1, zombie))
        await world.gpus.look()
        assert world.gpus.quarantine.entries == {}

    keeping(place, cards, test)
    child.wait()


def test_a_gpu_is_named_by_index_uuid_or_its_beginning(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)
    cards.change(1, uuid="GPU-abcd")

    async def test(world: World) -> None:
        for target, uuid in (("0", "GPU-0"), ("GPU-0", "GPU-0"), ("GPU-ab", "GPU-abcd"), ("1", "GPU-abcd")):
            assert await world.gpus.command("quarantine", target, "ada") == uuid
        for target in ("GPU-", "7", "GPU-x", ""):
            with pytest.raises(Refused, match="cannot quarantine"):
                await world.gpus.command("quarantine", target, "ada")
        rows, notes = await world.gpus.told()
        assert ([row["reason"] for row in rows], notes) == (["put there by ada"] * 2, ())

    keeping(place, cards, test)


def test_replicas_per_gpu_are_counted_and_kept_where_that_cannot_be(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)
    per_gpu = replace(ON_GPU, replicas="per-gpu")

    async def test(world: World) -> None:
        assert world.gpus.count_for("m", per_gpu, ["m", "m", "m"]) == 2
        unread = Gpus(
            place / "state",
            spec=lambda: world.spec,
            wanted=lambda: True,
            replicas=dict,
            put=lambda _name, _event: None,
            placing=lambda seen, unread: Placer(dict, seen, lambda _name, _event: None, unread=unread),
            counted=lambda: None,
            note=world.note,
        )
        assert unread.count_for("m", per_gpu, ["m", "m", "m", "n"]) == 3
        assert unread.count_for("m", replace(per_gpu, gpus=2), ["m"]) == 2

    keeping(place, cards, test)


def test_nothing_is_placed_after_the_end() -> None:
    async def main() -> None:
        placer = Placer(dict, list, lambda _name, _event: pytest.fail("told"))
        placer.look_soon()
        placer.close()
        placer.look_soon()
        placer.look()
        await asyncio.sleep(0)

    asyncio.run(main())
