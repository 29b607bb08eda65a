"""What the driver's actions do in the world. Decides nothing: each action is carried out and ends by its event."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Awaitable, Callable, Mapping

import structlog

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
from modelsupd.core.phases import Asleep, Replica, Spawning
from modelsupd.core.placement import Size
from modelsupd.core.sleep_events import Slept, Woke
from modelsupd.core.spec import EngineSpec, ModelSpec, StopLimits, gpu_count
from modelsupd.engines.base import Adapter, Files, Sleeper, adapter
from modelsupd.runtime.deliveries import LOG_TAIL_BYTES, Deliveries, acknowledged
from modelsupd.runtime.fetching import Fetches
from modelsupd.runtime.gpus.keeper import Gpus
from modelsupd.runtime.gpus.sizing import size_of
from modelsupd.runtime.inputs import Inputs, Stock, files_of
from modelsupd.runtime.looker import Looker
from modelsupd.runtime.probe import probe
from modelsupd.runtime.process import (
    Launch,
    Processes,
    SpawnError,
    TreeVitals,
    connections,
)
from modelsupd.runtime.sleep import Keeps, Sleepers, sleeps
from modelsupd.runtime.vitals import flushed, less_idle, oom_kills
from modelsupd.weights.wire import Job

log = structlog.get_logger("effects")

#: Time beyond the declared limits that a shim gives the daemon to follow up a stop before it acts by itself.
BACKSTOP_MARGIN_S = 5.0

#: How much of the log's end is searched for the words that tell how far loading has come.
LOADING_TAIL_BYTES = 4096

#: A probe that takes longer than this has its engine's process tree looked at for work.
SLOW_AFTER_S = 1.0

#: How long a gateway is given to take note that a run gets no more requests, in seconds; a hung one never does.
SEEN_WITHIN_S = 2.0

#: The level of sleep at which an engine keeps its weights in the host's memory.
KEEPS_WEIGHTS = 1

#: How long after a start what older runs have left is removed, in seconds.
PRUNE_AFTER_S = 1.0

_SIGKILL = 9


class RuntimeEffects:
    """Spawns, probes, signals and clears, for real."""

    def __init__(
        self,
        processes: Processes,
        fetches: Fetches,
        engines: Callable[[], Mapping[str, EngineSpec]],
        stock: Callable[[], Stock],
        gpus: Gpus,
        seen: Callable[[float], Awaitable[bool]],
    ) -> None:
        """Use `processes`, `fetches` and `gpus`; `engines` returns `[engines]`, `stock` what is said of weights.

        `seen` waits, so many seconds at most, until gateways work by what is published, and tells whether they do.
        """
        self._processes = processes
        self._fetches = fetches
        self._engines = engines
        self._stock = stock
        self._gpus, self._seen = gpus, seen
        self._resolving: dict[str, object] = {}
        self._files: dict[str, Files] = {}
        self._oom_kills: dict[tuple[str, int], int] = {}
        self._binaries: dict[str, str] = {}
        self._deliveries = Deliveries()
        self._looker = Looker()
        self._sleepers = Sleepers()

    async def perform(self, replica: Replica, action: Action) -> Event | None:  # noqa: C901, PLR0911 - one case an action
        """Carry out one action."""
        name = replica.name
        match action:
            case Resolve():
                return await self._resolve(replica, action)
            case Abandon():
                self._resolving.pop(name, None)
                self._fetches.abandon(name)
                return None
            case Recheck(run=run):
                return await self._recheck(replica, run)
            case Spawn():
                return await self._spawn(replica, action)
            case Watch(run=run):
                return await self._watch(replica, run)
            case Probe():
                return await self._probe(replica, action)
            case Terminate(run=run):
                self._processes.terminate(name, run, backstop_s(replica.spec.stop))
                return None
            case Kill(run=run):
                self._processes.kill(name, run)
                return None
            case Clear():
                return await self._clear(replica, action)
            case Sleep() | Wake():
                return await self._sleep(replica, action)

    async def _clear(self, replica: Replica, action: Clear) -> Event:
        """End what is left of a run; then nothing of its memory may be left on its GPUs either."""
        run = action.run
        left = await self._processes.clear(replica.name, run, action.timeout_s)
        if left:
            await self._gpus.stuck(replica, run, left)
            return Stuck(run, left)
        missing = await self._gpus.memory_back(replica, run)
        return Cleared(run) if missing is None else Stuck(run, (), *missing)

    async def _sleep(self, replica: Replica, action: Sleep | Wake) -> Event:
        process, phase = replica.process, replica.phase
        assert process is not None  # noqa: S101 - the core has running processes sleep and wake
        keeps = None
        reads_again = isinstance(action, Wake) and action.level > KEEPS_WEIGHTS
        if reads_again and (why := await self.changed(replica)):
            return Woke(action.run, why)  # what it would read now, nobody has looked at
        if isinstance(action, Sleep) and not await self._seen(SEEN_WITHIN_S):
            # A request that comes to it in its sleep would wait there for ever; that of one that ends is begun anew.
            return Slept(action.run, "a gateway has not taken note that it gets no more requests")
        if isinstance(action, Sleep) and action.level == KEEPS_WEIGHTS and isinstance(phase, Asleep) and phase.before:
            files = self._files.get(replica.name)
            weights = files.weights if files else None
            keeps = Keeps(weights, sum(phase.before.bytes), self._gpus.host_reserve_bytes)
        return await self._sleepers.carry_out(adapter(replica.spec.engine), process.endpoint, action, keeps)

    def _engine(self, replica: Replica) -> EngineSpec | None:
        return self._engines().get(replica.spec.engine)

    async def _look(self, replica: Replica) -> Inputs:
        spec = replica.spec
        limit_s = spec.health.look_timeout_s
        return await self._looker.look(replica.name, spec, self._engine(replica), self._stock(), limit_s)

    async def _recheck(self, replica: Replica, run: int) -> Event:
        try:
            inputs = await self._look(replica)
        except TimeoutError:
            return Rechecked(run, replica.inputs)  # what cannot be seen has not been seen to change
        return Rechecked(run, inputs.fingerprint)

    async def _resolve(self, replica: Replica, action: Resolve) -> Event:
        """Find binary and weights; what is not whole yet is made so by a worker, and looked at again."""
        name, run = replica.name, action.run
        mine = self._resolving[name] = object()
        done: Job | None = None
        failure: Failure | None = None
        try:
            inputs = await self._look(replica)
            # Lock and settings may be others by the time that a fetch ends, and want another one.
            while inputs.job is not None and inputs.job != done and self._resolving.get(name) is mine:
                log.info("weights are not ready", replica=name, why=inputs.todo)
                done = inputs.job
                failure = await self._fetches.make_whole(name, done)
                inputs = await self._look(replica)
        except TimeoutError:
            limit_s, weights = replica.spec.health.look_timeout_s, replica.spec.weights
            words = f"no answer within {limit_s:g} s from the file system of '{weights}', or of the binary"
            return Unresolved(run, Failure(FailureClass.UNREACHABLE, words), replica.inputs)
        finally:
            # An older look that ends late must not tell a newer run what it is started from.
            wanted = self._resolving.get(name) is mine
            if wanted:
                del self._resolving[name]
        if not wanted:
            failure = failure or Failure(FailureClass.UNREACHABLE, "given up: nobody waits for it any more")
            return Unresolved(run, inputs.failure or failure, inputs.fingerprint)
        if inputs.failure is not None or inputs.job is not None:
            words = f"the weights are still not whole: {inputs.todo}; something else changes the files"
            undone = Failure(FailureClass.UNREACHABLE, words)
            return Unresolved(run, inputs.failure or failure or undone, inputs.fingerprint)
        self._binaries[name], self._files[name] = inputs.binary, inputs.files
        size = await self._size(replica.spec, inputs.files)
        return Resolved(run, replica.digest, inputs.fingerprint, inputs.evidence, size)

    @staticmethod
    async def _size(spec: ModelSpec, files: Files) -> Size | None:
        """Return what the run takes of GPUs, None where it takes none, or nobody can tell in time."""
        if gpu_count(spec) == 0:
            return None
        try:
            return await asyncio.wait_for(asyncio.to_thread(size_of, spec, files), spec.health.look_timeout_s)
        except TimeoutError:
            return None

    async def size(self, replica: Replica) -> Size | None:
        """Return what a run would take of GPUs; None where it takes none, its weights are not there, or in no time."""
        if gpu_count(replica.spec) == 0:
            return None
        try:
            inputs = await self._look(replica)
        except TimeoutError:
            return None
        whole = inputs.job is None and inputs.failure is None
        return await self._size(replica.spec, inputs.files) if whole else None

    async def changed(self, replica: Replica) -> str:
        """Return what has changed on disk since the replica's engine was started, in words; "" for nothing."""
        try:
            inputs = await self._look(replica)
        except TimeoutError:
            return ""  # what cannot be seen has not been seen to change
        if inputs.fingerprint == replica.inputs:
            return ""
        why = inputs.todo or (inputs.failure.detail if inputs.failure else "")
        return f"what it was started from has changed since{f': {why}' if why else ''}; a restart takes it over"

    async def _spawn(self, replica: Replica, action: Spawn) -> Event:
        assert isinstance(replica.phase, Spawning)  # noqa: S101 - the core asks for a spawn in this phase only
        self._oom_kills[replica.name, action.run] = oom_kills()
        try:
            process = await self._processes.spawn(self.launch(replica, action.run))
        except SpawnError as error:
            del self._oom_kills[replica.name, action.run]
            return SpawnFailed(action.run, error.failure, error.cleared)
        # Only later, because a start must not wait for a clean-up; its own directory is one more than those kept.
        keep_runs = replica.spec.log.keep_runs + 1
        loop = asyncio.get_running_loop()
        loop.call_later(PRUNE_AFTER_S, loop.run_in_executor, None, self._processes.prune, replica.name, keep_runs)
        return Spawned(action.run, process)

    def launch(self, replica: Replica, run: int) -> Launch:
        """Return how a run of the replica is started; the program is the one found when it was last resolved."""
        spec, gpus = replica.spec, replica.hold.gpus if replica.hold is not None else ()
        if gpus:
            spec = dataclasses.replace(spec, gpus=gpus)
        engine = adapter(spec.engine)
        binary = self._binaries.get(replica.name) or engine.binary(spec, self._engine(replica)) or sys.executable
        command = engine.command(
            replica.model, spec, binary=binary, files=self._files.get(replica.name) or files_of(spec, self._stock())
        )
        return Launch(
            replica=replica.name,
            run=run,
            digest=replica.digest,
            argv=command.argv,
            env=command.env,
            listen=command.listen,
            log_max_bytes=spec.log.max_bytes,
            log_files=spec.log.files,
            backstop_s=backstop_s(spec.stop),
            gpus=gpus,
        )

    async def _watch(self, replica: Replica, run: int) -> Event:
        ended = await self._processes.wait(replica.name, run)
        self._deliveries.forget(replica.name, run)
        tail = self._processes.log_tail(replica.name, run)
        failure = adapter(replica.spec.engine).classify(ended.exit, tail)
        ooms_before = self._oom_kills.pop((replica.name, run), None)
        if failure.kind is FailureClass.CRASH:
            failure = self._without_memory(ended.exit, ooms_before) or failure
            if ended.note:
                failure = Failure(failure.kind, f"{failure.detail} ({ended.note})")
        if failure.kind is FailureClass.GPU_LOST:
            await self._gpus.blame(replica, failure.detail)
        cleared = ended.cleared
        if cleared:
            try:
                await self._processes.clear(replica.name, run, replica.spec.stop.kill_timeout_s)
            except OSError:
                cleared = False  # how it ended is known; that its directory goes is asked for again
        return Exited(run, ended.exit, failure, cleared, ended.asked)

    @staticmethod
    def _without_memory(exit: Exit, ooms_before: int | None) -> Failure | None:  # noqa: A002 - the word for it
        """Say "likely" of a SIGKILL that was not ours while the kernel's count of such kills rose."""
        if exit.signal != _SIGKILL or ooms_before is None or oom_kills() <= ooms_before:
            return None
        import psutil  # noqa: PLC0415 - it takes long to import, and hardly ever is it needed

        memory = psutil.virtual_memory()
        words = (
            "killed by signal 9, not by modelsupd, and the kernel's oom_kill count rose: likely out of host memory "
            f"({memory.available // 2**20} of {memory.total // 2**20} MiB are available now)"
        )
        return Failure(FailureClass.OUT_OF_MEMORY, words)

    async def _probe(self, replica: Replica, action: Probe) -> Event:
        process, spec, kind, run = replica.process, replica.spec, action.kind, action.run
        assert process is not None  # noqa: S101 - the core probes running processes only
        engine = adapter(spec.engine)
        if kind is ProbeKind.DRAIN:
            await self._seen(min(SEEN_WITHIN_S, action.timeout_s / 2))  # else one more request may be on its way
        if kind is ProbeKind.DRAIN and engine.request(kind, replica.model, spec) is None:
            vitals = Vitals(in_flight=connections(process.endpoint))
            return Probed(run, kind, Outcome.ANSWERED, f"{vitals.in_flight} connections open", vitals, vitals)
        if await self._sleeps(replica, action):
            return Probed(run, kind, Outcome.ASLEEP, "it says that it sleeps", Vitals(), Vitals())
        # Reading a process tree costs more than the probe of a healthy engine, so only what is slow to answer is
        # looked at, first while it keeps us waiting and again at the end. A start is always looked at.
        first: list[TreeVitals] = []
        sampler = asyncio.get_running_loop().call_later(
            min(SLOW_AFTER_S, action.timeout_s / 4),
            lambda: first.append(self._processes.vitals(replica.name, run)),
        )
        try:
            outcome, evidence, delivered, in_flight, took_s = await probe(
                engine, kind, replica.model, spec, process.endpoint, action.timeout_s
            )
        finally:
            sampler.cancel()
        if kind is ProbeKind.DRAIN and in_flight == 0:
            await flushed(process.endpoint)
        if kind is ProbeKind.START and outcome is Outcome.TOKENS and not self._processes.listener_is_ours(process):
            outcome, evidence = Outcome.FAILED, f"{process.endpoint} is answered by a process that is not ours"
        if kind is ProbeKind.START and outcome in (Outcome.REFUSED, Outcome.LOADING):
            loading = engine.progress(self._processes.log_tail(replica.name, run, LOADING_TAIL_BYTES))
            evidence = f"{evidence}; its log: {loading}" if loading else evidence
        if delivered is None and (kind is not ProbeKind.START or outcome is Outcome.TOKENS):
            delivered = self._delivered(engine, replica, action, outcome)
        last = self._processes.vitals(replica.name, run) if first or kind is ProbeKind.START else TreeVitals()
        if first and kind is not ProbeKind.START:
            last = less_idle(first[0], last, engine.idle_cpus(spec) * took_s)
        before = _vitals(first[0] if first else last)
        return Probed(run, kind, outcome, evidence, before, _vitals(last, delivered, in_flight), took_s)

    @staticmethod
    async def _sleeps(replica: Replica, action: Probe) -> bool:
        """Tell whether an engine that can sleep does so, though nobody knows: then it must not be asked for tokens."""
        engine, process, kind = adapter(replica.spec.engine), replica.process, action.kind
        may = bool(replica.spec.demand.sleep) and kind is not ProbeKind.DRAIN
        if not (may and process is not None and isinstance(engine, Sleeper)):
            return False
        limit_s = action.timeout_s if kind is not ProbeKind.ALIVE else min(SLOW_AFTER_S, action.timeout_s / 4)
        return await sleeps(engine, process.endpoint, limit_s)

    def _delivered(self, engine: Adapter, replica: Replica, action: Probe, outcome: Outcome) -> int | None:
        """Return a counter made of what is seen from outside, for an engine that is known to show it there."""
        if engine.served is None or replica.process is None:
            return None
        tail = self._processes.log_tail(replica.name, action.run, LOG_TAIL_BYTES)
        return self._deliveries.count(
            (replica.name, action.run),
            [line for line in tail.splitlines() if engine.served.search(line)],
            acknowledged(replica.process.endpoint),
            probed=action.kind is not ProbeKind.ALIVE and outcome in (Outcome.TOKENS, Outcome.NO_TOKENS),
        )


def _vitals(tree: TreeVitals, delivered: int | None = None, in_flight: int | None = None) -> Vitals:
    return Vitals(tree.cpu_s, tree.read_bytes, tree.log_bytes, delivered, in_flight)


def backstop_s(limits: StopLimits) -> float:
    """Return how long after SIGTERM a shim acts by itself: when any daemon would have followed up long ago."""
    return max(limits.term_timeout_s, limits.load_term_timeout_s) + limits.kill_timeout_s + BACKSTOP_MARGIN_S
