"""One life of a daemon: the real driver, recovery and plan, put together as `modelsupd.daemon` puts them together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from modelsupd.core.actions import Action
from modelsupd.core.allotment import alike
from modelsupd.core.events import (
    Event,
    Evicted,
    GpuLost,
    Halted,
    Hurried,
    Measured,
    Placed,
    Process,
    RestartAsked,
    StartAsked,
    StopAsked,
)
from modelsupd.core.fleet import Declared, all_still, fresh, is_gone, plan
from modelsupd.core.phases import Clearing, Killing, Ready, Replica, Starting
from modelsupd.core.recovery import Boot, recover
from modelsupd.errors import Refused
from modelsupd.runtime import driver as driver_module
from modelsupd.runtime.driver import Driver
from modelsupd.runtime.journal import Unwritable
from modelsupd.runtime.placer import Placer
from sim.checks import Checks
from sim.clients import Clients
from sim.disk import Disk, SimJournal
from sim.effects import SimEffects
from sim.gpus import Cards
from sim.world import Run, World

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Log:
    """Stands in for the driver's log: what it says belongs to the story, an impossible event is a violation."""

    def __init__(self, world: World) -> None:
        """Tell the story of `world`."""
        self._world = world

    def warning(self, words: str, **context: object) -> None:
        """Take note."""
        self._world.tell(f"log: {words} {context}")

    def exception(self, words: str, **context: object) -> None:
        """Take note, and fail where the driver found itself wrong."""
        if words != "effect failed":
            raise self._world.violated(f"{words}: {context}")


class Life:
    """A daemon from its start to its death."""

    def __init__(  # noqa: PLR0913, PLR0917 - each one part of the world that a daemon meets
        self,
        world: World,
        cards: Cards,
        clients: Clients,
        disk: Disk,
        checks: Checks,
        declared: Mapping[str, Declared],
        boot: tuple[str, float],
    ) -> None:
        """Prepare; `boot` is its id and the wall time at instant 0 of its clock."""
        self.world, self.cards, self.clients, self.disk, self.checks = world, cards, clients, disk, checks
        self.declared = declared
        self.leaving = False
        self._asking: set[asyncio.Task[None]] = set()
        self.journal = SimJournal(disk)
        # The only two seams: what the driver does goes through the checks, and what it says into the story.
        driver: Any = driver_module
        driver.step, driver.log = checks.step, Log(world)
        effects = SimEffects(world, cards, self._intended, self._started)
        self._boot = Boot(world.now, *boot)
        self.driver = Driver(self.journal, effects, self, wall=self._wall, boot=self._boot.mark)
        self._rounds: list[asyncio.Task[None]] = []
        self.placer = Placer(
            lambda: self.driver.replicas,
            lambda: cards.seen(self.driver.replicas),
            self._put,
            usage=lambda: clients.told,
        )

    def _wall(self) -> datetime:
        return _EPOCH + timedelta(seconds=self._boot.zero_s + self.world.now)

    async def start(self) -> None:
        """Recover, and bring the fleet to what is declared."""
        world = self.world
        world.void()
        states = self.disk.states()
        found: dict[str, list[Process]] = {}
        for (name, _number), run in world.runs.items():
            if run.alive and run.process:
                found.setdefault(name, []).append(run.process)
        leftovers = {
            key: run.hold.gpus if run.hold else ()
            for key, run in world.runs.items()
            if not run.alive and world.remains(run)
        }
        recovered = recover(states, found, world.highest, self.declared, self._boot, leftovers)
        for name in set(self.checks.commands) - set(recovered.replicas):
            self.checks.forgotten(name)
        world.tell(f"daemon starts; {len(states)} replicas recorded, {sum(map(len, found.values()))} processes found")
        await self._append({"kind": "start", "at": world.now, "boot_id": self._boot.id})
        strays = {(name, process.run) for name, process in recovered.strays}
        for name, number in sorted({*strays, *leftovers}):
            if number != recovered.replicas[name].last_run:
                world.tell(f"{name}#{number}: a stray is ended")
                await self._end(name, number)
        for name, replica in recovered.replicas.items():
            self.checks.recovered(replica)
            self.driver.introduce(replica, recovered.actions[name], "Recovered", existed=True)
        self.apply(self.declared)
        self.placer.look_soon()
        self._rounds = [asyncio.get_running_loop().create_task(self._go_round())]
        if self.clients.active:
            self._rounds.append(asyncio.get_running_loop().create_task(self._hear_of_clients()))

    async def _append(self, body: dict[str, Any]) -> None:
        try:
            await self.journal.append(body)
        except Unwritable:
            self.world.tell("the record of the daemon's start is lost")

    async def _end(self, name: str, number: int) -> None:
        run = self.world.runs[name, number]
        while self.world.remains(run):
            self.world.kill(run)
            await asyncio.sleep(0.5)

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._look_at_gpus()
            if self.journal.read_only is not None:
                await self.journal.probe_writable()
            if self.journal.read_only is None:
                await self.driver.catch_up()

    async def _hear_of_clients(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.clients.turn(self.driver.replicas, self.placer.closed)
            self.placer.look_soon()

    def _started(self, run: Run) -> None:
        self.clients.starts(run, self.driver.replicas)

    def apply(self, declared: Mapping[str, Declared]) -> None:
        """Bring the fleet to what is declared."""
        self.declared = declared
        planned = plan(self.driver.replicas, declared, self.driver.unsettled())
        for name, (model, entry) in planned.added.items():
            replica, actions = fresh(name, model, entry, self.world.now, self.world.highest.get(name, 0))
            self.driver.introduce(replica, actions, "Declared", existed=False)
        for name, event in planned.events.items():
            self.driver.put(name, event)

    # GPUs

    def _put(self, name: str, event: Event) -> None:
        if isinstance(event, Placed) and event.hold is not None:
            self.cards.placed(name, event.hold)
        elif isinstance(event, Evicted):
            self.clients.evicts(self.driver.replicas[name], event, self.driver.replicas)
        self.driver.put(name, event)

    def _look_at_gpus(self) -> None:
        """Do what a fresh look at the GPUs leads to."""
        if not self.cards.gpus:
            return
        for name, replica in list(self.driver.replicas.items()):
            hold = replica.hold
            if hold is None or not isinstance(replica.phase, Starting | Ready):
                continue
            run = self.world.runs.get((name, replica.last_run))
            if set(hold.gpus) & self.cards.lost:
                if run is not None and run.sick_since is None:
                    run.sick_since = self.world.now
                self.driver.put(name, GpuLost(replica.last_run, "fell off the bus"))
            elif isinstance(replica.phase, Ready) and replica.learned and replica.learned.bytes != max(hold.bytes):
                self.driver.put(name, Measured(replica.last_run, hold.bytes))
        self.placer.look_soon()

    # Operators

    def ask(self, name: str, event: StartAsked | StopAsked | RestartAsked) -> None:
        """Give an operator's command, by a name used once; what becomes of it is noted."""
        task = asyncio.get_running_loop().create_task(self._ask(name, event))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, name: str, event: StartAsked | StopAsked | RestartAsked) -> None:
        if self.leaving or name not in self.driver.replicas:
            return
        asked = self.checks.asks(event)
        kind = type(event).__name__
        try:
            await self.driver.ask(name, event)
        except Refused as error:
            # After a sync that failed the record may be on disk all the same; a daemon that dies now may find it.
            asked.state = "asked" if self.disk.doubtful else "refused"
            self.world.tell(f"operator: {kind} {name}: refused: {error}")
        else:
            asked.state = "acked"
            self.world.tell(f"operator: {kind} {name}: done")

    # What the driver tells

    def changed(self, before: Replica | None, after: Replica, event: Event | str) -> None:
        """See that what is published was recorded."""
        del event
        if before is None:
            self.checks.reached(after)
        if before is None or not alike(before, after):
            self.placer.look_soon()
        if is_gone(after):
            if after.name not in self.driver.replicas:
                self.checks.forgotten(after.name)
        elif after.name not in self.driver._behind:
            self.checks.published(after, self.disk.latest.get(after.name))

    def recorded(self, seq: int, body: Mapping[str, Any]) -> None:
        """Nobody follows this journal."""

    def _intended(self, replica: Replica, action: Action) -> None:
        if replica.name not in self.driver._behind:
            self.checks.intended(replica, action, self.disk.latest.get(replica.name))

    # Ends

    async def die(self) -> None:
        """End at once, as by SIGKILL: nothing more is written, decided or done."""
        self.journal.die()
        self.placer.close()
        for task in (*self._asking, *self._rounds):
            task.cancel()
        self.checks.excuse(self.driver._behind)
        await self.driver.close()

    async def go(self, hurries: list[tuple[float, bool]]) -> None:
        """Go as SIGTERM asks; each further signal comes after a pause and may say `kill`."""
        self.leaving = True
        self._put_all(Halted())
        still = asyncio.get_running_loop().create_task(self.driver.until(_over))
        try:
            for pause_s, kill in hurries:
                await asyncio.wait({still}, timeout=pause_s)
                if not still.done():
                    self._put_all(Hurried(kill=kill))
            await still
        finally:
            still.cancel()

    def _put_all(self, event: Event) -> None:
        for name in self.driver.known():
            self.driver.put(name, event)


def _over(replicas: Mapping[str, Replica]) -> bool:
    return all(
        all_still([replica]) or (isinstance(replica.phase, Killing | Clearing) and bool(replica.phase.stuck))
        for replica in replicas.values()
    )
