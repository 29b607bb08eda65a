"""Moments of the driver that a seed meets too seldom: each was a bug, and is walked into on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from modelsupd.core.events import Halted
from modelsupd.core.fleet import Declared
from modelsupd.core.phases import Want, phase_name
from modelsupd.core.spec import Engine, ModelSpec
from modelsupd.runtime import driver as driver_module
from sim import rates
from sim.checks import Checks
from sim.clients import Clients
from sim.clock import VirtualLoop
from sim.daemon import Life
from sim.disk import Disk
from sim.gpus import Cards
from sim.world import World

SPEC = ModelSpec(
    engine=Engine.COMMAND, command=("v1", "{socket}"), health=rates.HEALTH, stop=rates.STOP, restart=rates.RESTART
)
DECLARED = {"m": Declared(SPEC, "v1")}


@pytest.fixture(autouse=True)
def _driver_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back the two seams that `Life` opens."""
    for name in ("step", "log"):
        monkeypatch.setattr(driver_module, name, getattr(driver_module, name))


def live(scene: Callable[[Life], Awaitable[None]], declared: dict[str, Declared]) -> None:
    """Play a scene in a kind world."""
    world = World(random.Random(1), lambda _words: None)  # noqa: S311 - the seed is the point
    world.rates = rates.kind()
    disk, loop = Disk(world.rng, world.tell), VirtualLoop(10.0)

    async def play() -> None:
        cards, clients = Cards(world.rng, world.tell, world), Clients(world.rng, world.tell, world)
        life = Life(world, cards, clients, disk, Checks(world, world.tell), declared, ("boot", 0.0))
        await life.start()
        await scene(life)
        await life.die()

    loop.run_until_complete(play())
    loop.close()
    assert world.broken == []


def phase(life: Life) -> str:
    replica = life.driver.replicas.get("m/0")
    return phase_name(replica.phase) if replica else "unknown"


async def until(condition: Callable[[], bool], step_s: float = 0.0005) -> None:
    """Return when the condition holds; a virtual hour is long enough."""
    give_up_at = asyncio.get_running_loop().time() + 3600
    while not condition():
        assert asyncio.get_running_loop().time() < give_up_at
        await asyncio.sleep(step_s)


def test_a_reload_while_a_removed_replica_is_being_forgotten_is_heard() -> None:
    async def scene(life: Life) -> None:
        await until(lambda: phase(life) == "ready")
        life.apply({})
        await until(lambda: phase(life) == "stopping")
        life.disk.slow = 1.0
        # The record by which it is forgotten is on its way to the disk.
        await until(lambda: not life.world.remaining("m/0"))
        await asyncio.sleep(0.1)
        assert life.driver.unsettled() == {"m/0"}
        life.apply(DECLARED)
        life.disk.slow = 0.0
        await until(lambda: phase(life) == "ready")

    live(scene, DECLARED)


def test_a_replica_that_is_being_taken_in_hears_that_the_daemon_goes() -> None:
    async def scene(life: Life) -> None:
        life.disk.slow = 1.0
        life.apply(DECLARED)
        await asyncio.sleep(0.1)
        assert phase(life) == "unknown"
        assert life.driver.known() == ["m/0"]
        life.driver.put("m/0", Halted())
        await until(lambda: phase(life) == "stopped")
        assert life.driver.replicas["m/0"].want is Want.UP

    live(scene, {})


def test_a_replica_that_is_being_taken_in_can_be_removed_again_and_told_twice() -> None:
    async def scene(life: Life) -> None:
        life.disk.slow = 1.0
        for declared in (DECLARED, DECLARED, {}, DECLARED, {}):
            life.apply(declared)
        await until(lambda: not life.driver.unsettled(), 1.0)
        assert life.driver.replicas == {}

    live(scene, {})


def test_a_report_for_a_forgotten_replica_does_not_reach_its_successor() -> None:
    async def scene(life: Life) -> None:
        for _ in range(20):
            # Its weights are still being looked for when it goes and comes back.
            life.apply({})
            await until(lambda: not life.driver.replicas)
            life.apply(DECLARED)
            await until(lambda: phase(life) == "resolving")
        await until(lambda: phase(life) == "ready")

    live(scene, DECLARED)


def test_a_start_whose_record_waits_for_a_slow_disk_is_not_stalled() -> None:
    async def scene(life: Life) -> None:
        await until(lambda: phase(life) == "spawning")
        # Longer than `start_stall_s`: nobody can look at the engine before its record is on disk.
        life.disk.slow, life.disk.slow_s = 1.0, (25.0, 25.0)
        await until(lambda: phase(life) == "starting")
        life.disk.slow = 0.0
        await until(lambda: phase(life) != "starting")
        assert phase(life) == "ready"

    live(scene, DECLARED)
