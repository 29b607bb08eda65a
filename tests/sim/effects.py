"""What the driver's actions do in the simulated world; each ends by its event, as `runtime.effects` does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelsupd.core.actions import (
    Abandon,
    Action,
    Clear,
    Kill,
    Probe,
    Recheck,
    Resolve,
    Sleep,
    Spawn,
    Terminate,
    Wake,
    Watch,
)
from modelsupd.core.events import (
    Cleared,
    Event,
    Exit,
    Exited,
    Failure,
    FailureClass,
    Outcome,
    Probed,
    ProbeKind,
    Rechecked,
    Resolved,
    Spawned,
    SpawnFailed,
    Stuck,
    Unresolved,
    Vitals,
)
from modelsupd.core.phases import Fault, Halt, Killing, Reason, Replica, Spawning, Stopping
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.core.sleeping import kept_asleep
from sim.gpus import MEMORY_TIMEOUT_S, Cards
from sim.world import CRASH, PERMANENT, Run, World

UNREACHABLE = Failure(FailureClass.UNREACHABLE, "the file system does not answer")
UNAVAILABLE = Failure(FailureClass.WEIGHTS_UNAVAILABLE, "the hub has no such weights")
ABANDONED = Failure(FailureClass.UNREACHABLE, "given up")

_VERDICTS = frozenset({FailureClass.HUNG, FailureClass.START_STALLED})


class SimEffects:
    """Carries out actions for one daemon; `intended` is told each before it reaches the world."""

    def __init__(
        self,
        world: World,
        cards: Cards,
        intended: Callable[[Replica, Action], None],
        started: Callable[[Run], None],
    ) -> None:
        """Act on `world` and its `cards`; `started` sees each process as it begins."""
        self._started = started
        self._world = world
        self._cards = cards
        self._intended = intended
        self._fetches: dict[str, tuple[int, asyncio.Event]] = {}

    async def perform(self, replica: Replica, action: Action) -> Event | None:  # noqa: C901, PLR0911 - one case an action
        """Carry out one action."""
        world, name = self._world, replica.name
        self._intended(replica, action)
        if not isinstance(action, Abandon | Terminate | Kill | Spawn) and world.happens(world.rates.effect_raises):
            world.tell(f"{name}: the effect {action} raises")
            self._excuse(name, action.run)
            raise RuntimeError("an effect that breaks")
        match action:
            case Resolve(run=number):
                return await self._resolve(replica, number)
            case Abandon(run=number):
                self._abandon(name, number)
            case Recheck(run=number):
                await asyncio.sleep(world.rng.uniform(0.001, 0.1))
                return Rechecked(number, self._inputs(name))
            case Spawn(run=number):
                return await self._spawn(replica, number)
            case Watch(run=number):
                return await self._watch(name, number)
            case Probe():
                return await self._probe(name, action)
            case Terminate(run=number):
                self._check_peace(replica, number)
                self._signal(name, number, world.terminate)
            case Kill(run=number):
                if isinstance(replica.phase, Killing) and isinstance(replica.phase.cause, Fault):
                    self._check_verdict(replica, replica.phase.cause.failure)
                self._signal(name, number, world.kill)
            case Clear():
                return await self._clear(name, action)
            case Sleep() | Wake():
                return await self._sleep(replica, action)
        return None

    async def _sleep(self, replica: Replica, action: Sleep | Wake) -> Event:
        world, run = self._world, self._find(replica.name, action.run)
        to_sleep = isinstance(action, Sleep)
        await asyncio.sleep(self._cards.rng.choice([0.01, 0.5, 3.0]))
        failed = "it is gone" if run is None or not run.alive else "it hangs" if run.frozen or run.stalls else ""
        if run is not None and not failed and self._cards.rng.random() < world.rates.spawn_fails:
            failed = "it cannot"
            run.sick_since = world.now if run.sick_since is None else run.sick_since
        if run is not None and not failed:
            run.asleep = to_sleep
            if to_sleep:
                run.hold = kept_asleep(replica.hold, replica)
            else:
                self._cards.started(run, replica.hold)
            world.tell(f"{replica.name}#{action.run}: {'sleeps' if to_sleep else 'is awake'}")
        return Slept(action.run, failed) if to_sleep else Woke(action.run, failed)

    def _excuse(self, name: str, number: int) -> None:
        """Let a verdict pass that rests on probes which broke on our side."""
        run = self._find(name, number)
        if run is not None and run.sick_since is None:
            run.sick_since = self._world.now

    def _inputs(self, name: str) -> str:
        return f"inputs-{self._world.inputs.get(name, 0)}"

    async def _resolve(self, replica: Replica, number: int) -> Event:
        world, name, inputs = self._world, replica.name, self._inputs(replica.name)
        if name in self._fetches:
            raise world.violated(f"{name} looks for the weights of run {number} beside those of another run")
        # Weights may lie on a disk that is far away and asleep, or have to be fetched first.
        takes_s = world.rng.choice([0.001, world.rng.uniform(0, 1), world.rng.uniform(0, 5)])
        if world.happens(world.rates.fetches):
            takes_s = world.rng.uniform(1, 60)
        given_up = asyncio.Event()
        self._fetches[name] = number, given_up
        try:
            async with asyncio.timeout(takes_s):
                await given_up.wait()
        except TimeoutError:
            pass
        finally:
            if self._fetches.get(name, (0, None))[1] is given_up:
                del self._fetches[name]
        if given_up.is_set():
            return Unresolved(number, ABANDONED, inputs)
        if world.happens(world.rates.fetches / 4):
            return Unresolved(number, UNAVAILABLE, inputs)
        if replica.name in world.bad_inputs and world.happens(0.3):
            return Unresolved(number, PERMANENT, inputs)
        if world.happens(world.rates.spawn_fails / 2):
            return Unresolved(number, UNREACHABLE, "")
        return Resolved(number, replica.digest, inputs, size=self._cards.sizes.get(replica.digest))

    def _abandon(self, name: str, number: int) -> None:
        found = self._fetches.pop(name, None)
        if found is not None:
            if found[0] != number:
                raise self._world.violated(f"{name} gives up run {number}, but it is run {found[0]} that is looked for")
            found[1].set()

    async def _spawn(self, replica: Replica, number: int) -> Event:
        world, name = self._world, replica.name
        assert isinstance(replica.phase, Spawning)
        run = world.make_directory(name, number, replica.digest)
        run.hold = replica.hold
        # The shim is on its way whatever becomes of the daemon that asked for it.
        shim = asyncio.get_running_loop().create_task(self._shim(run))
        return await asyncio.shield(shim)

    async def _shim(self, run: Run) -> Event:
        world = self._world
        await asyncio.sleep(world.rng.choice([0.001, 0.001, world.rng.uniform(0, 2)]))
        if world.happens(world.rates.spawn_fails):
            run.voided = True
            world.tell(f"{run.name}#{run.run}: the spawn fails")
            kind = world.rng.choice([FailureClass.SPAWN, FailureClass.SPAWN, FailureClass.NO_SPACE])
            return SpawnFailed(run.run, Failure(kind, "cannot fork or cannot write"), cleared=world.happens(0.8))
        process = world.start(run)
        if process is not None:
            self._cards.started(run, run.hold)
            self._started(run)
        if process is None:
            return SpawnFailed(run.run, Failure(FailureClass.SPAWN, "voided"))
        await asyncio.sleep(world.rng.uniform(0, 0.05))
        return Spawned(run.run, process)

    def _find(self, name: str, number: int) -> Run | None:
        return self._world.runs.get((name, number))

    def _signal(self, name: str, number: int, signal: Callable[[Run], None]) -> None:
        run = self._find(name, number)
        if run is None or run.process is None:
            raise self._world.violated(f"a signal to what never was a process of ours: {name}#{number}")
        signal(run)

    def _check_verdict(self, replica: Replica, failure: Failure) -> None:
        run = self._find(replica.name, replica.last_run)
        if failure.kind in _VERDICTS and run is not None and run.alive and run.sick_since is None:
            raise self._world.violated(
                f"a healthy engine is condemned: {replica.name}#{replica.last_run}: {failure.detail}"
            )

    def _check_peace(self, replica: Replica, number: int) -> None:
        """See that no run is ended on purpose beside a load, but for what does not wait for that."""
        run, phase = self._find(replica.name, number), replica.phase
        hurried = replica.halt is not Halt.NO or "it still does after" in replica.reason
        # Of one that died while no record was taken, nobody knows that there is nothing left to end.
        if run is None or not run.alive or hurried:
            return
        if not isinstance(phase, Stopping) or phase.cause in (Reason.STRAY, Reason.SHUTDOWN):
            return
        loading = self._cards.ends_beside_a_load(run)
        if loading and self._world.now >= run.loads_until and not run.asked_to_end:
            raise self._world.violated(f"{replica.name}#{number} is ended while {loading} loads beside it")

    async def _watch(self, name: str, number: int) -> Event:
        run = self._find(name, number)
        if run is None or run.process is None:
            return Exited(number, Exit(), CRASH, cleared=True)
        await run.ended.wait()
        await asyncio.sleep(self._world.rng.uniform(0.001, 0.01))
        if run.descendants_until and self._world.happens(0.5):
            await asyncio.sleep(min(2.0, max(0.0, run.descendants_until - self._world.now)))
            if run.descendants_until <= self._world.now:
                run.descendants_until = 0.0
        assert run.exit is not None
        return Exited(number, run.exit, run.failure if run.exit.code else CRASH, run.cleared)

    async def _clear(self, name: str, action: Clear) -> Event:
        run, world = self._find(name, action.run), self._world
        give_up_at = world.now + action.timeout_s
        while run is not None and world.remains(run):
            world.kill(run)
            if world.now >= give_up_at:
                return Stuck(action.run, (run.process.pid if run.process else 0,))
            await asyncio.sleep(min(0.2, action.timeout_s))
        if run is not None:
            run.descendants_until = 0.0
        until = world.now + MEMORY_TIMEOUT_S
        while not self._cards.memory_is_back(run):
            if world.now >= until:
                assert run is not None
                assert run.hold is not None
                why = f"memory of {name}#{action.run} is not back"
                self._cards.quarantined |= dict.fromkeys(run.hold.gpus, why)
                return Stuck(action.run, (), why, run.hold.gpus)
            await asyncio.sleep(0.2)
        return Cleared(action.run)

    # Probes

    async def _probe(self, name: str, action: Probe) -> Event:
        world = self._world
        run = self._find(name, action.run)
        before, began_at = self._vitals(run), world.now
        outcome, takes_s = self._answer(run, action.kind)
        if outcome is Outcome.TIMED_OUT or takes_s >= action.timeout_s:
            outcome, takes_s = Outcome.TIMED_OUT, action.timeout_s
        await asyncio.sleep(takes_s)
        late_s = world.now - began_at - takes_s
        if run is not None and not run.alive:
            outcome = Outcome.REFUSED
        if outcome is Outcome.TIMED_OUT and late_s > max(1.0, action.timeout_s / 2):
            outcome = Outcome.VOID
        evidence = f"{action.kind} probe: {outcome}"
        vitals = self._vitals(run)
        in_flight = self._in_flight(run) if outcome is Outcome.ANSWERED else None
        vitals = Vitals(vitals.cpu_s, vitals.read_bytes, vitals.log_bytes, None, in_flight)
        return Probed(action.run, action.kind, outcome, evidence, before, vitals, world.now - began_at)

    def _answer(self, run: Run | None, kind: ProbeKind) -> tuple[Outcome, float]:  # noqa: PLR0911 - one case a condition
        world = self._world
        quick_s = world.rng.uniform(0.001, 0.3)
        if run is None or not run.alive:
            return Outcome.REFUSED, 0.001
        if run.asleep and not run.frozen and kind is not ProbeKind.DRAIN:
            return Outcome.ASLEEP, quick_s  # it is asked first whether it sleeps, where nobody knows
        if run.frozen:
            polite = run.polite and kind in (ProbeKind.ALIVE, ProbeKind.DRAIN)
            return (Outcome.ANSWERED, quick_s) if polite else (Outcome.TIMED_OUT, 0.0)
        if world.now < run.loads_until or run.stalls:
            return world.rng.choice([Outcome.REFUSED, Outcome.LOADING]), quick_s
        if kind in (ProbeKind.START, ProbeKind.GENERATION):
            if run.zero_tokens:
                return Outcome.NO_TOKENS, quick_s
            if world.now < run.prefill_until:
                return Outcome.TOKENS, run.prefill_until - world.now
            return (Outcome.BUSY if world.happens(world.rates.busy) else Outcome.TOKENS), quick_s
        # A single probe that got lost, never two in a row, is no sign of anything.
        run.flaked = kind is ProbeKind.ALIVE and not run.flaked and world.happens(world.rates.flaky)
        return (Outcome.TIMED_OUT if run.flaked else Outcome.ANSWERED), quick_s

    def _in_flight(self, run: Run | None) -> int:
        if run is None or run.frozen:
            return 1
        if run.idle_at is None:
            run.idle_at = self._world.now + self._world.rng.choice([0.0, self._world.rng.uniform(0, 10)])
        return int(self._world.now < run.idle_at)

    def _vitals(self, run: Run | None) -> Vitals:
        """Return what the run has used so far: all of a core and the disk while it loads or works, else nothing."""
        if run is None or run.process is None:
            return Vitals()
        now = self._world.now
        still_at = min(now, run.worked_until) if run.frozen else now
        read = 0 if run.stalls else int(1000 * min(still_at, run.loads_until))
        worked_s = max(0.0, min(still_at, run.prefill_until))
        return Vitals(cpu_s=worked_s, read_bytes=read)
