"""Processes and run directories, as they are without any daemon: they start, load, serve, hang, die, and go on."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from modelsupd.core.events import Exit, Failure, FailureClass, Process
from modelsupd.core.placement import Hold
from sim.rates import BACKSTOP_S, Rates

SIGTERM, SIGKILL = 15, 9
CRASH = Failure(FailureClass.CRASH, "exit code 1")
PERMANENT = Failure(FailureClass.BAD_WEIGHTS, "tensor data is not within the file bounds")


class Violation(BaseException):
    """A rule that knows no exception was broken. No `except Exception` of the driver's may swallow it."""


@dataclass
class Run:
    """One run directory and what became of its process. `asked_to_end` when a stop was asked for on purpose."""

    name: str
    run: int
    digest: str
    voided: bool = False
    process: Process | None = None
    alive: bool = False
    loads_until: float = 0.0
    stalls: bool = False
    zero_tokens: bool = False
    bad_weights: bool = False
    ignores_term: bool = False
    kill_takes_s: float = 0.0
    descendants_s: float = 0.0
    descendants_until: float = 0.0
    frozen: bool = False
    polite: bool = False
    flaked: bool = False
    sick_since: float | None = None
    worked_until: float = 0.0
    prefill_until: float = 0.0
    idle_at: float | None = None
    asked_to_end: bool = False
    killed: bool = False
    hold: Hold | None = None
    asleep: bool = False
    memory_late_s: float = 0.0
    memory_until: float = 0.0
    exit: Exit | None = None
    failure: Failure = CRASH
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def cleared(self) -> bool:
        """Tell whether the shim saw everything gone when the leader ended."""
        return not self.alive and self.descendants_until == 0.0


class World:
    """Everything that outlives a daemon. `tell` gets the story, in words."""

    def __init__(self, rng: random.Random, tell: Callable[[str], None]) -> None:
        """Start empty."""
        self.rng = rng
        self.tell = tell
        self.rates: Rates
        self.runs: dict[tuple[str, int], Run] = {}
        self.highest: dict[str, int] = {}
        self.inputs: dict[str, int] = {}
        self.bad_inputs: set[str] = set()
        self.broken: list[str] = []
        self.spawned = asyncio.Event()
        self._pid = 100

    @property
    def now(self) -> float:
        """Return the instant on the machine's clock."""
        return asyncio.get_running_loop().time()

    def happens(self, share: float) -> bool:
        """Draw whether something with this share happens."""
        return self.rng.random() < share

    def violated(self, words: str) -> Violation:
        """Take note of a broken rule, wherever it will be caught, and return what to raise."""
        self.tell(f"VIOLATION: {words}")
        self.broken.append(words)
        return Violation(words)

    def _later(self, delay_s: float, call: Callable[[Run], None], run: Run) -> None:
        asyncio.get_running_loop().call_later(delay_s, call, run)

    # Of the shim

    def make_directory(self, name: str, number: int, digest: str) -> Run:
        """Create the directory of a run, before anything is started; a number is used once."""
        if number <= self.highest.get(name, 0):
            raise self.violated(f"run number used twice: {name}#{number}, the highest was {self.highest[name]}")
        self.highest[name] = number
        run = self.runs[name, number] = Run(name, number, digest)
        return run

    def start(self, run: Run) -> Process | None:
        """Start shim and engine; None where the directory was voided meanwhile."""
        if run.voided:
            self.tell(f"{run.name}#{run.run}: the shim came late, found its directory void and left")
            return None
        for other in self.runs.values():
            if other is not run and other.name == run.name and self.remains(other):
                raise self.violated(f"two engines of {run.name}: run {other.run} is not gone and run {run.run} starts")
        rates, rng = self.rates, self.rng
        self._pid += 1
        gpus = run.hold.gpus if run.hold else ()
        endpoint = f"unix:/{run.name}/{run.run}"
        run.process = Process(run.run, self._pid, self._pid + 10_000, endpoint, run.digest, gpus)
        run.alive = True
        self.spawned.set()
        run.loads_until = self.now + rng.uniform(0, 10)
        run.stalls = self.happens(rates.stalls)
        run.zero_tokens = self.happens(rates.zero_tokens)
        run.bad_weights = run.name in self.bad_inputs
        run.ignores_term = self.happens(rates.ignores_term)
        run.kill_takes_s = rng.uniform(1, 30) if self.happens(rates.withstands_kill) else 0.01
        run.descendants_s = rng.uniform(0.1, 20) if self.happens(rates.leaves_descendants) else 0.0
        if run.stalls or run.zero_tokens:
            run.sick_since = self.now
        self._plan_the_end(run)
        self.tell(f"{run.name}#{run.run}: process {self._pid} of {run.digest} exists")
        return run.process

    def _plan_the_end(self, run: Run) -> None:
        rates, rng, load_s = self.rates, self.rng, run.loads_until - self.now
        if run.bad_weights:
            run.failure = PERMANENT
            self._later(rng.uniform(0, load_s), self._crash, run)
        elif self.happens(rates.crash_in_load):
            run.failure = self._draw_failure()
            self._later(rng.choice([0.0, rng.uniform(0, load_s)]), self._crash, run)
        elif rates.crash_after_s is not None:
            run.failure = self._draw_failure()
            self._later(load_s + rng.expovariate(1 / rates.crash_after_s), self._crash, run)
        if rates.hang_after_s is not None:
            run.polite = self.happens(rates.polite_hang)
            self._later(rng.expovariate(1 / rates.hang_after_s), self._freeze, run)
        if rates.prefill_every_s is not None:
            self._later(load_s + rng.expovariate(1 / rates.prefill_every_s), self._prefill, run)

    def _draw_failure(self) -> Failure:
        if self.happens(self.rates.address_taken):
            return Failure(FailureClass.ADDRESS_IN_USE, "bind: address already in use")
        if self.happens(self.rates.out_of_memory):
            return Failure(FailureClass.OUT_OF_MEMORY, "cannot allocate memory")
        if self.happens(self.rates.exits_badly):
            return Failure(FailureClass.BAD_FLAG, "error: unknown argument")
        return CRASH

    # What engines do of themselves

    def _crash(self, run: Run) -> None:
        if run.alive and not run.killed:
            self.tell(f"{run.name}#{run.run}: dies of itself ({run.failure.kind})")
            self._end(run, Exit(code=1))

    def _freeze(self, run: Run) -> None:
        if run.alive and not run.frozen:
            run.frozen, run.worked_until = True, self.now
            run.sick_since = self.now if run.sick_since is None else run.sick_since
            self.tell(f"{run.name}#{run.run}: hangs{', politely' if run.polite else ''}")

    def _prefill(self, run: Run) -> None:
        """Work hard for a while on one request, so that nothing else is answered."""
        if run.alive:
            run.prefill_until = self.now + self.rng.uniform(1, 20)
            self.tell(f"{run.name}#{run.run}: busy with one long request")

    def _end(self, run: Run, how: Exit) -> None:
        if not run.alive:
            return
        run.alive, run.exit = False, how
        if run.descendants_s:
            run.descendants_until = self.now + run.descendants_s
        run.memory_until = self.now + run.descendants_s + run.memory_late_s
        self.tell(f"{run.name}#{run.run}: {how}{', descendants left' if run.descendants_s else ''}")
        run.ended.set()

    # Signals

    def terminate(self, run: Run) -> None:
        """SIGTERM, through the shim, which follows up by itself when nobody else does."""
        run.asked_to_end = True
        self._later(BACKSTOP_S, self._backstop, run)
        if run.alive and not run.ignores_term and not (run.frozen and not run.polite):
            self._later(self.rng.uniform(0, 1), self._obey, run)

    def _obey(self, run: Run) -> None:
        if not run.frozen or run.polite:
            self._end(run, Exit(code=0))

    def _backstop(self, run: Run) -> None:
        if run.alive:
            self.tell(f"{run.name}#{run.run}: the shim's backstop kills")
            self.kill(run)

    def kill(self, run: Run) -> None:
        """SIGKILL to everything of the run; what sits in the kernel goes when it comes back from there."""
        if run.alive and not run.killed:
            run.killed = True
            self._later(run.kill_takes_s, self._killed, run)

    def _killed(self, run: Run) -> None:
        self._end(run, Exit(signal=SIGKILL))

    # What is seen from outside

    def remains(self, run: Run) -> bool:
        """Tell whether anything of the run is left."""
        return run.alive or run.descendants_until > self.now

    def remaining(self, name: str) -> list[Run]:
        """Return the runs of a replica of which anything is left."""
        return [run for run in self.runs.values() if run.name == name and self.remains(run)]

    def void(self) -> None:
        """Take every free lock: what has not started by now never will."""
        for run in self.runs.values():
            if run.process is None:
                run.voided = True

    def reboot(self) -> None:
        """Lose every process and the runtime directory."""
        self.runs.clear()

    def heal(self, rates: Rates) -> None:
        """From now on nothing new goes wrong."""
        self.rates = rates
        for run in self.runs.values():
            run.kill_takes_s = min(run.kill_takes_s, 0.01)
            run.memory_until = min(run.memory_until, self.now + 1)
