"""One seed: a world, what is done to it, and whether all is as it should be in the end."""

from __future__ import annotations

import asyncio
import random
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from core import invariants
from modelsupd.core import events
from modelsupd.core.allotment import allot, awaits
from modelsupd.core.events import RestartAsked, StartAsked, StopAsked
from modelsupd.core.fleet import Declared, replica_names
from modelsupd.core.phases import Failed, Replica, Stopped, Want, phase_name
from modelsupd.core.restart import PERMANENT
from modelsupd.core.spec import Engine, ModelSpec, Start
from modelsupd.runtime import driver as driver_module
from sim import rates
from sim.checks import Checks, Coverage, unreached
from sim.clients import Clients
from sim.clock import VirtualLoop
from sim.daemon import Life
from sim.disk import Disk
from sim.gpus import Cards
from sim.seeds import kept_seeds
from sim.world import Violation, World

__all__ = ["Outcome", "play", "play_many", "unreached"]

#: Share of worlds with GPUs.
GPU_WORLDS = 0.5

#: Share of worlds in which models start on demand.
DEMAND_WORLDS = 0.5

#: How long the faults go on, and how long everything may then take to come to rest, in virtual seconds.
FAULTS_S = (60.0, 400.0)
REST_S = 900.0

#: How long clients go on coming then.
CLIENTS_S = 150.0

#: How much of a failed seed's story is shown.
STORY_LINES = 60

_COMMANDS = (StartAsked, StopAsked, RestartAsked)


@dataclass
class Outcome:
    """What became of a seed: nothing wrong, or what, and the story that led there."""

    seed: int
    broken: list[str] = field(default_factory=list)
    story: deque[str] = field(default_factory=lambda: deque(maxlen=5000))
    coverage: Coverage = field(default_factory=Coverage)

    def __str__(self) -> str:
        """Tell the last of the story and what was wrong."""
        lines = [
            f"seed {self.seed}:",
            *list(self.story)[-STORY_LINES:],
            *(f"  BROKEN: {words}" for words in self.broken),
        ]
        return "\n".join(lines)


def play(seed: int) -> Outcome:
    """Play one seed to its end."""
    game = _Game(seed)
    with _driver_restored():
        game.play()
    return game.outcome


@contextmanager
def _driver_restored() -> Iterator[None]:
    driver: Any = driver_module
    step, log = driver.step, driver.log
    try:
        yield
    finally:
        driver.step, driver.log = step, log


class _Game:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 - the seed is the point
        self.outcome = Outcome(seed)
        self.world = World(self.rng, self._tell)
        self.world.broken = self.outcome.broken
        self.disk = Disk(self.rng, self._tell)
        self.checks = Checks(self.world, self._tell)
        self.rates = self.world.rates = rates.draw(self.rng)
        gpu_rng = random.Random(f"{seed} gpus")  # noqa: S311 - the same
        self.cards = Cards(gpu_rng, self._tell, self.world)
        if kept_seeds().get(seed, {}).get("gpus", gpu_rng.random() < GPU_WORLDS):
            self.cards.draw()
        demand_rng = random.Random(f"{seed} demand")  # noqa: S311 - the same
        self.clients = Clients(demand_rng, self._tell, self.world)
        self.clients.active = kept_seeds().get(seed, {}).get("demand", demand_rng.random() < DEMAND_WORLDS)
        self.declared = {f"m{index}": self._declared(0) for index in range(self.rates.models)}
        self.known = dict(self.declared)
        self.boot_id = 0
        self.asked = 0
        self.wall_s = 0.0
        self.zero_s = 0.0
        self.faults_left_s = self.rng.uniform(*FAULTS_S)
        self.life: Life | None = None
        self.loop: VirtualLoop

    def _tell(self, words: str) -> None:
        self.outcome.story.append(f"  {self.loop.time():10.3f}  {words}")

    def _declared(self, version: int) -> Declared:
        spec = ModelSpec(
            engine=Engine.COMMAND,
            command=(f"v{version}", "{socket}"),
            replicas=self.rng.choice([1, 1, 2]),
            start=self.rng.choice([Start.ALWAYS, Start.ALWAYS, Start.MANUAL]),
            health=rates.HEALTH,
            stop=replace(rates.STOP, drain_timeout_s=self.rng.choice([0, 6])),
            restart=rates.RESTART,
        )
        return Declared(self.clients.onto(self.cards.onto(spec, version)), f"v{version}")

    def play(self) -> None:
        """Boot, and boot again, until the faults are over and all has come to rest."""
        while not self.outcome.broken:
            self.boot_id += 1
            self.loop = VirtualLoop(self.rng.uniform(1, 1000))
            self.loop.set_exception_handler(self._unhandled)
            self.zero_s = self.wall_s - self.loop.time()
            try:
                over = self.loop.run_until_complete(self._boot())
            except (Exception, Violation) as error:  # noqa: BLE001 - whatever breaks is told with its story
                if not self.outcome.broken:
                    self.outcome.broken.append("".join(traceback.format_exception(error)))
                over = True
            finally:
                self._leave_loop()
            if over:
                break
            self.wall_s = self.zero_s + self.loop.time() + self.rng.uniform(5, 100)
            self.life = None
            self.world.reboot()
            self.checks.rebooted()
            self.clients.rebooted()
            self.disk.survive(power_cut=True)
        self.outcome.coverage = self.checks.coverage

    def _unhandled(self, _loop: object, context: dict[str, Any]) -> None:
        error = context.get("exception")
        words = f"{context['message']}: {type(error).__name__}: {error}"
        if not self.outcome.broken:
            self.outcome.broken.append(words)

    def _leave_loop(self) -> None:
        """Give up every task of a machine that is off."""
        self.loop.set_exception_handler(lambda _loop, _context: None)
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()

    # One boot

    async def _boot(self) -> bool:
        """Return True when all has come to rest, False after a power cut."""
        while self.faults_left_s > 0:
            at_once = self.world.happens(0.2)
            if self.cards.rng.random() < self.cards.late:
                self.cards.chaos()
            pause_s = 0.0 if at_once else min(self.rng.expovariate(1 / self.rates.chaos_pause_s), self.faults_left_s)
            self.faults_left_s -= pause_s
            await asyncio.sleep(pause_s)
            if self.outcome.broken:
                return True
            if self.life is None:
                await self._start()
            elif not await self._chaos(self.life):
                self._tell("power cut")
                return False
        await self._rest()
        return True

    async def _start(self) -> None:
        boot = f"boot {self.boot_id}", self.zero_s
        self.life = Life(self.world, self.cards, self.clients, self.disk, self.checks, self.declared, boot)
        await self.life.start()

    async def _chaos(self, life: Life) -> bool:
        """Do one thing to the daemon; return False when it is the machine that goes."""
        names = ("operator", "reload", "inputs", "disk", "kill", "term", "lag", "power", "clients")
        what = self.rng.choices(names, [getattr(self.rates, name) for name in names])[0]
        if what == "power":
            return False
        if what in ("kill", "term"):
            kill = self._kill_at_a_spawn if self.world.happens(0.5) else self._kill
            await (kill(life) if what == "kill" else self._term(life))
        else:
            {
                "operator": self._operate,
                "reload": self._reload,
                "inputs": self._inputs,
                "disk": self._disk,
                "lag": self._lag,
                "clients": self._clients,
            }[what](life)
        return True

    def _operate(self, life: Life) -> None:
        names = sorted(life.driver.replicas)
        if not names:
            return
        name = self.rng.choice(names)
        for _ in range(2 if self.world.happens(self.rates.twice) else 1):
            self.asked += 1
            event = self.rng.choice(_COMMANDS)(f"operator {self.asked}")
            self._tell(f"operator: {type(event).__name__} {name}")
            life.ask(name, event)

    def _reload(self, life: Life) -> None:
        for _ in range(2 if self.world.happens(self.rates.twice) else 1):
            model = self.rng.choice(sorted(self.known))
            declared = dict(self.declared)
            how = self.rng.choice(["remove", "change", "limits", "as it was", "back"])
            if how == "remove":
                declared.pop(model, None)
            elif how == "change":
                self.known[model] = declared[model] = self._declared(self.rng.randint(0, 3))
            elif how == "limits":
                entry = self.known[model]
                other = replace(entry.spec, replicas=self.rng.choice([1, 2]), aliases=(f"a{self.rng.randint(0, 9)}",))
                self.known[model] = declared[model] = Declared(other, entry.digest)
            elif how == "back":
                declared[model] = self.known[model]
            self.declared = declared
            self._tell(
                f"reload: {model}: {how}: {', '.join(f'{name} {entry.digest}' for name, entry in declared.items())}"
            )
            self.clients.excused_until = self.loop.time() + 15.0
            life.apply(declared)

    def _inputs(self, _life: Life) -> None:
        name = f"{self.rng.choice(sorted(self.known))}/0"
        self.world.inputs[name] = self.world.inputs.get(name, 0) + 1
        if name in self.world.bad_inputs:
            self.world.bad_inputs.discard(name)
        elif self.world.happens(0.7):
            self.world.bad_inputs.add(name)
        self._tell(f"{name}: the weights change to {'bad' if name in self.world.bad_inputs else 'good'} ones")

    def _clients(self, life: Life) -> None:
        """Have clients ask every run that the daemon knows, and the gateway tell, perhaps late, what came of it."""
        for (name, number), run in sorted(self.world.runs.items()):
            if name not in life.driver.replicas or number > life.driver.replicas[name].last_run:
                continue
            serves = run.alive and not run.frozen and not run.zero_tokens and self.world.now >= run.loads_until
            if serves and self.world.happens(0.7):
                life.driver.put(name, events.Delivered(number))
            elif run.process is not None:
                life.driver.put(name, events.FailedClient(number, "stalled"))

    def _disk(self, _life: Life) -> None:
        disk = self.disk
        disk.slow = self.rates.slow_sync if self.world.happens(0.5) else 0.0
        disk.full, disk.broken = self.rng.choice([(False, False), (False, False), (True, False), (False, True)])
        self._tell(f"disk: full={disk.full} broken={disk.broken} slow={disk.slow:.2f}")

    async def _kill_at_a_spawn(self, life: Life) -> None:
        """Kill the daemon just when a process comes to be, of which it may or may not have heard."""
        self.world.spawned = asyncio.Event()
        with suppress(TimeoutError):
            await asyncio.wait_for(self.world.spawned.wait(), timeout=10)
        await asyncio.sleep(self.rng.uniform(0, 0.1))
        await self._kill(life)

    async def _kill(self, life: Life) -> None:
        self._tell("the daemon is killed")
        await life.die()
        self.disk.survive(power_cut=False)
        self.life = None

    async def _term(self, life: Life) -> None:
        self._tell("the daemon is told to go")
        going = asyncio.get_running_loop().create_task(
            life.go([(self.rng.uniform(0, 5), self.rng.random() < 0.5) for _ in range(self.rng.randint(0, 2))])
        )
        patience_s = self.rng.choice([self.rng.uniform(0, 10), 200.0])
        await asyncio.wait({going}, timeout=patience_s)
        if self.outcome.broken:
            return
        if going.done():
            going.result()
            self._check_left_nothing(life)
        elif patience_s == 200.0:
            raise self.world.violated("the daemon did not go within 200 s")
        going.cancel()
        await self._kill(life)

    def _check_left_nothing(self, life: Life) -> None:
        for run in self.world.runs.values():
            replica = life.driver.replicas.get(run.name)
            stuck = replica is not None and not isinstance(replica.phase, Stopped)
            if self.world.remains(run) and not stuck:
                raise self.world.violated(f"the daemon is gone and {run.name}#{run.run} is not")

    def _lag(self, _life: Life) -> None:
        gap_s = self.rng.uniform(0.5, 60)
        self._tell(f"the daemon gets no CPU for {gap_s:.1f} s")
        self.loop.stall(gap_s)

    # When the faults are over

    async def _rest(self) -> None:
        self._tell("no more faults")
        self.world.heal(rates.kind())
        self.cards.heal()
        self.disk.full = self.disk.broken = False
        self.disk.slow = 0.0
        if self.life is None:
            await self._start()
        assert self.life is not None
        if self.clients.active:
            # Whatever clients do to a machine that is well has to be borne too.
            await asyncio.sleep(CLIENTS_S)
            self.clients.coming = False
        until = self.loop.time() + REST_S
        wrong = ["not looked at"]
        while wrong and self.loop.time() < until and not self.outcome.broken:
            await asyncio.sleep(5.0)
            wrong = list(self._unrest(self.life))
        self.outcome.broken += [
            f"not at rest after {REST_S:g} s: {words}" for words in wrong if not self.outcome.broken
        ]
        await self.life.die()

    def _unrest(self, life: Life) -> Iterator[str]:
        """Yield what is not as it is wanted."""
        wanted = {name for model, entry in self.declared.items() for name in replica_names(model, entry)}
        for name in sorted(wanted - set(life.driver.replicas)):
            yield f"{name} is declared and does not exist"
        for name, replica in sorted(life.driver.replicas.items()):
            asked = self.checks.wanted(name)
            if name not in wanted:
                yield f"{name} is not declared and still there: {phase_name(replica.phase)}"
            elif asked is not None and asked is not replica.want:
                yield f"{name} was asked to be {asked} and is wanted {replica.want}"
            elif replica.want is Want.UP and isinstance(replica.phase, Failed):
                if replica.phase.retry_at is not None or replica.phase.failure.kind not in PERMANENT:
                    yield f"{name} is failed for {replica.phase.failure}"
                elif name not in self.world.bad_inputs and replica.phase.failure.kind != "bad-flag":
                    yield f"{name} is failed for {replica.phase.failure}, which is mended"
            elif not invariants.at_rest(replica) and not self._has_no_place(replica, life):
                yield f"{name}, wanted {replica.want}, is {replica.phase}: {replica.reason}"
            yield from self._engine_unrest(name, life)
        for model in self.clients.left(life.driver.replicas):
            yield f"{model} is ready, and requests wait for it"

    def _has_no_place(self, replica: Replica, life: Life) -> bool:
        """Tell whether a replica waits for GPUs, and there are none for it."""
        replicas = life.driver.replicas
        if not (awaits(replica) and replica.runs_wanted):
            return False
        answer = allot(replicas, {}, self.cards.seen(replicas), self.clients.told, self.world.now)
        return not answer.evicted and not answer.closed and replica.name not in answer.placed

    def _engine_unrest(self, name: str, life: Life) -> Iterator[str]:
        replica, remaining = life.driver.replicas[name], self.world.remaining(name)
        expected = [replica.last_run] if phase_name(replica.phase) in {"ready", "asleep"} else []
        if [run.run for run in remaining] != expected:
            yield f"{name} is {phase_name(replica.phase)} and there are {[run.run for run in remaining]}"
        for run in remaining:
            entry = self.declared.get(replica.model)
            # Whether one that sleeps would generate shows when it is woken.
            if not run.asleep and (run.frozen or run.zero_tokens or run.stalls):
                yield f"{name}#{run.run} is ready and does not generate"
            if entry is not None and run.digest != entry.digest:
                yield f"{name}#{run.run} is of {run.digest}, declared is {entry.digest}"


def play_many(seeds: list[int], progress: Callable[[Outcome], None]) -> tuple[Coverage, list[Outcome]]:
    """Play each seed; return what they reached, and those that failed."""
    coverage, failed = Coverage(), []
    for seed in seeds:
        outcome = play(seed)
        coverage.add(outcome.coverage)
        if outcome.broken:
            failed.append(outcome)
        progress(outcome)
    return coverage, failed
