"""What drivers tell, through NVIDIA's own binding on a fake library, and through AMD's files."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fake_gpus import GIB, Cards
from hosts import alive
from modelsupd.core.gpu_spec import GpusSpec
from modelsupd.runtime.gpus import amd
from modelsupd.runtime.gpus.inventory import Inventory, Look, with_missing
from modelsupd.runtime.gpus.reading import AMD, EXCLUSIVE, PROHIBITED, Reading, Seen, read, written
from waiting import auntil, until

Test = Callable[[Inventory], Coroutine[Any, Any, None]]


def looking(
    cards: Cards, test: Test, answer_timeout_s: Callable[[], float] = lambda: 10, drm: str = "/nonexistent"
) -> None:
    async def main() -> None:
        inventory = Inventory(lambda: GpusSpec(nvml=str(cards.nvml), answer_timeout_s=answer_timeout_s()), drm)
        try:
            await test(inventory)
        finally:
            pids = inventory.pids()
            await inventory.close()
        assert not any(alive(pid) for pid in pids)

    asyncio.run(main())


def test_a_gpu_is_told_with_its_memory_its_processes_and_its_states(place: Path) -> None:
    cards = Cards(place / "g", 8, 16)
    cards.change(0, base=GIB, celsius=71, clocks=0x40, pending=1, ecc=3)
    cards.change(1, ecc=-1, failure=1, name="Other card 2")
    cards.take(os.getpid(), 0, 2 * GIB)

    async def test(inventory: Inventory) -> None:
        look = await inventory.read()
        assert look.trouble == ""
        assert look.gpus[0] == Seen(
            uuid="GPU-0",
            index=0,
            name="Fake RTX",
            total_bytes=8 * GIB,
            used_bytes=3 * GIB,
            processes=((os.getpid(), 2 * GIB),),
            ecc_errors=3,
            temperature_c=71,
            notes=("slowed down because it is hot", "a memory row is to be remapped at the next reset"),
        )
        other = look.gpus[1]
        assert (other.name, other.ecc_errors, other.processes) == ("Other card 2", None, ())
        assert other.notes == ("remapping a memory row has failed",)

    looking(cards, test)


def test_what_a_driver_does_not_tell_is_left_out(place: Path) -> None:
    cards = Cards(place / "g", 8)
    cards.take(os.getpid(), 0, GIB)

    async def test(inventory: Inventory) -> None:
        cards.set("sizeless")
        assert (await inventory.read()).gpus[0].processes == ((os.getpid(), None),)
        cards.set("silent")
        assert (await inventory.read()).gpus[0].processes is None

    looking(cards, test)


def test_mig_devices_stand_for_their_gpu(place: Path) -> None:
    cards = Cards(place / "g", 8)
    cards.change(0, mig=2)
    cards.take(os.getpid(), 0, GIB)  # of the whole, which is no device any more

    async def test(inventory: Inventory) -> None:
        parts = (await inventory.read()).gpus
        assert [(part.uuid, part.parent, part.total_bytes) for part in parts] == [
            ("MIG-0-0", "GPU-0", 4 * GIB),
            ("MIG-0-1", "GPU-0", 4 * GIB),
        ]
        cards.change(0, mig=1)
        assert [part.uuid for part in (await inventory.read()).gpus] == ["MIG-0-0"], "taken away, not lost"

    looking(cards, test)


@pytest.mark.parametrize("new_reader", [False, True])
def test_mig_devices_of_a_lost_gpu_are_lost(place: Path, *, new_reader: bool) -> None:
    cards = Cards(place / "g", 8)
    cards.change(0, mig=2)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        cards.change(0, lost=True)
        if new_reader:  # which has never seen them
            [pid] = inventory.pids()
            os.kill(pid, 9)
            until(lambda: not alive(pid))
            await inventory.read()
        look = await inventory.read()
        assert [(part.uuid, part.lost, part.total_bytes) for part in look.gpus] == [
            ("MIG-0-0", True, 4 * GIB),
            ("MIG-0-1", True, 4 * GIB),
        ]

    looking(cards, test)


def test_a_gpu_in_mig_mode_without_a_device_is_not_lost() -> None:
    told = {gpu: Seen(uuid=gpu, index=0, name="x", parent=None if gpu == "G" else "G") for gpu in ("G", "M")}
    for before in told.values():
        assert with_missing([before], Reading(divided=("G",))) == ()
        [gone] = with_missing([before], Reading())
        assert gone.lost


def test_a_driver_that_tells_of_nothing_any_more_has_lost_nothing(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)

    async def test(inventory: Inventory) -> None:
        first = await inventory.read()
        pids = inventory.pids()
        cards.set("broken")
        for _ in range(2):
            look = await inventory.read()
            assert (look.gpus, look.at) == (first.gpus, first.at)
            assert look.trouble.startswith("nvidia: ")
        cards.set("broken", None)
        assert (await inventory.read()).trouble == ""
        assert not pids & inventory.pids(), "another process has loaded the library anew"

    looking(cards, test)


def test_compute_modes_and_what_cannot_be_read_are_told(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)
    cards.change(1, lost=True)

    async def test(inventory: Inventory) -> None:
        for mode, told in (("3", EXCLUSIVE), ("2", PROHIBITED), ("0", "")):
            cards.set("mode", mode)
            look = await inventory.read()
            assert [gpu.mode for gpu in look.gpus] == [told]
            assert look.notes == ("nvidia: GPU 1: GPU is lost",)

    looking(cards, test)


def test_a_lost_gpu_is_told_with_what_it_was_and_comes_back(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        cards.change(0, lost=True)
        lost = (await inventory.read()).gpus[0]
        assert (lost.uuid, lost.lost, lost.total_bytes, lost.used_bytes) == ("GPU-0", True, 8 * GIB, 0)
        cards.change(0, lost=False)
        assert not (await inventory.read()).gpus[0].lost

    looking(cards, test)


def test_a_gpu_that_is_no_longer_told_of_is_lost(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        del cards.cards[1]
        cards.write()
        gone = (await inventory.read()).gpus[1]
        assert (gone.uuid, gone.lost) == ("GPU-1", True)

    looking(cards, test)


def test_errors_are_told_once(place: Path) -> None:
    cards = Cards(place / "g", 8, 8)
    cards.xid(1, 13)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        cards.xid(1, 79)
        cards.xid(0, 31)
        look = await inventory.read()
        told = [gpu.xids for gpu in look.gpus]
        assert told in ([(31,), (79,)], [(31,), (13, 79)])
        assert [gpu.xids for gpu in (await inventory.read()).gpus] == [(), ()]

    looking(cards, test)


def test_a_driver_that_hangs_is_given_up_and_asked_again(place: Path) -> None:
    cards = Cards(place / "g", 8)
    hang = cards.folder / "hang"

    async def test(inventory: Inventory) -> None:
        first = await inventory.read()
        assert len(first.gpus) == 1
        cards.set("hang")
        look = await asyncio.wait_for(inventory.read(), 10)
        assert look == Look(first.gpus, first.at, "the driver did not answer within 0.2 s")
        cards.set("hang", None)
        assert (await inventory.read()).trouble == ""

    # No reader is started so soon on a busy machine.
    looking(cards, test, answer_timeout_s=lambda: 0.2 if hang.exists() else 45)


def test_a_late_answer_is_not_taken_for_that_to_the_next_question(place: Path) -> None:
    cards = Cards(place / "g", 8)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        [pid] = inventory.pids()
        cards.set("hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inventory.read(), 0.05)
        await auntil(lambda: not alive(pid), what="whoever would answer late is ended")
        cards.set("hang", None)
        cards.take(os.getpid(), 0, GIB)
        assert (await inventory.read()).gpus[0].used_bytes == GIB

    looking(cards, test)


def test_what_was_read_is_as_old_as_the_question(place: Path) -> None:
    """Whoever falls asleep meanwhile has perhaps not given back yet what is told of it."""
    cards = Cards(place / "g", 8)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        cards.set("hang")
        reading = asyncio.create_task(inventory.read())
        await asyncio.sleep(0)
        meanwhile_at = time.monotonic()
        cards.set("hang", None)
        look = await reading
        assert look.trouble == ""
        assert look.at is not None
        assert look.at <= meanwhile_at

    looking(cards, test)


def test_a_killed_reader_takes_a_moment_and_is_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine longer than on others; that is no driver that hangs."""
    cards = Cards(place / "g", 8)
    waitpid = os.waitpid

    def late(pid: int, options: int) -> tuple[int, int]:
        found = waitpid(pid, options)
        time.sleep(0.4)
        return found

    monkeypatch.setattr(os, "waitpid", late)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        cards.set("hang")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(inventory.read(), 0.05)
        cards.set("hang", None)
        assert (await inventory.read()).trouble == ""

    looking(cards, test)


def test_a_reader_that_dies_is_replaced(place: Path) -> None:
    cards = Cards(place / "g", 8)

    async def test(inventory: Inventory) -> None:
        await inventory.read()
        [pid] = inventory.pids()
        os.kill(pid, 9)
        until(lambda: not alive(pid))
        looks = [await inventory.read() for _ in range(2)]
        assert looks[-1].trouble == ""

    looking(cards, test)


def test_without_a_driver_there_are_no_gpus_and_a_note(place: Path) -> None:
    cards = Cards(place / "g")
    cards.nvml.unlink()

    async def test(inventory: Inventory) -> None:
        look = await inventory.read()
        assert (look.gpus, look.trouble) == ((), "")
        assert look.notes[0].startswith("nvidia: ")

    looking(cards, test)


def test_what_is_written_is_what_is_read() -> None:
    seen = Seen(uuid="GPU-0", index=0, name="x", processes=((1, 2), (3, None)), xids=(79,), notes=("hot",))
    told = Reading((seen, Seen(uuid="GPU-1", index=1, name="y", lost=True)), ("nvidia: none",), ("nvidia",), ("GPU-2",))
    assert read(written(told)) == told
    for line in (b"", b"{}", b'{"gpus": [{}], "notes": []}', b'{"gpus": [{"xids": [], "notes": [], "x": 1}]}'):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says, it is one error
            read(line)


# AMD


def card(drm: Path, number: int, **files: str) -> None:
    device = drm / f"card{number}" / "device"
    device.mkdir(parents=True, exist_ok=True)
    told = {"vendor": "0x1002", "mem_info_vram_total": str(16 * GIB), "mem_info_vram_used": "1024"}
    for name, text in (told | {"unique_id": f"{number:016x}"} | files).items():
        (device / name).write_text(text + "\n")


def test_amd_is_read_from_its_files(place: Path) -> None:
    card(place, 1, product_name="Radeon Pro")
    card(place, 0)
    card(place, 2, vendor="0x10de")
    card(place, 3, unique_id="")
    (place / "card1-DP-1").mkdir()
    known: dict[str, Seen] = {}
    found = amd.read(place, known)
    assert [(gpu.uuid, gpu.index, gpu.name) for gpu in found] == [
        ("GPU-0000000000000000", 0, "AMD GPU"),
        ("GPU-0000000000000001", 1, "Radeon Pro"),
    ]
    assert {(gpu.vendor, gpu.total_bytes, gpu.used_bytes, gpu.processes, gpu.lost) for gpu in found} == {
        (AMD, 16 * GIB, 1024, None, False)
    }
    card(place, 0, mem_info_vram_used=str(2**64 - 1))
    (place / "card1" / "device" / "unique_id").unlink()
    assert [(gpu.uuid[-1], gpu.lost) for gpu in amd.read(place, known)] == [("0", True), ("1", True)]
    assert amd.read(place / "nothing", {}) == []


def test_amd_and_nvidia_stand_beside_one_another(place: Path) -> None:
    cards = Cards(place / "g", 8)
    card(place / "drm", 0)

    async def test(inventory: Inventory) -> None:
        assert [gpu.vendor for gpu in (await inventory.read()).gpus] == ["nvidia", "amd"]

    looking(cards, test, drm=str(place / "drm"))
