"""What must hold at every step, and what was reached. Kept apart from the world, so that neither excuses the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from core import invariants
from modelsupd.core import events, phases
from modelsupd.core.actions import Action, Kill, Spawn, Terminate
from modelsupd.core.events import Event, Exited, Failure, RestartAsked, StartAsked, StopAsked
from modelsupd.core.phases import (
    Cause,
    Clearing,
    Failed,
    Fault,
    Live,
    Ready,
    Replica,
    Starting,
    Want,
    phase_name,
)
from modelsupd.core.replica import InvalidTransition, Step, step
from modelsupd.core.restart import PERMANENT, History
from sim.world import World

#: Failures that differ in nothing but their words from those that happen here.
_NOT_OF_THIS_WORLD = {"out-of-gpu-memory", "unsupported-model", "missing-library", "missing-binary"}


@dataclass
class Asked:
    """One command of an operator: what it wants, and what became of it: asked, acked, refused."""

    want: Want
    state: str = "asked"


@dataclass
class Coverage:
    """What the seeds reached."""

    phases: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)
    steps: int = 0

    def add(self, other: Coverage) -> None:
        """Take another run's coverage in."""
        self.phases += other.phases
        self.events += other.events
        self.outcomes += other.outcomes
        self.causes += other.causes
        self.steps += other.steps

    def __str__(self) -> str:
        """Say what was reached, most often first."""
        lines = [f"{self.steps} steps"]
        for what, counted in (
            ("phases", self.phases),
            ("events", self.events),
            ("probes", self.outcomes),
            ("causes", self.causes),
        ):
            lines.append(f"{what}: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))
        return "\n".join(lines)


class Checks:
    """Sees every step of the core and every command of an operator."""

    def __init__(self, world: World, tell: Callable[[str], None]) -> None:
        """Watch `world`."""
        self._world = world
        self._tell = tell
        self.coverage = Coverage()
        self.commands: dict[str, list[Asked]] = {}
        self._on_the_way: dict[str, Asked] = {}
        self.excused: set[str] = set()
        self._crashes: dict[str, list[float]] = {}

    # Every step

    def step(self, before: Replica, event: Event, now: float) -> Step:
        """Do what the core's `step` does, and look at it from all sides."""
        coverage = self.coverage
        coverage.steps += 1
        if isinstance(event, StartAsked | StopAsked | RestartAsked):
            self.commands.setdefault(before.name, []).append(self._on_the_way.pop(event.by))
        kind = type(event).__name__
        try:
            after, actions = step(before, event, now)
        except InvalidTransition as error:
            raise self._world.violated(f"an impossible event: {error}") from error
        if type(after.phase) is not type(before.phase) or after.last_run != before.last_run or actions:
            words = " ".join(type(action).__name__ for action in actions)
            told = f" +{words}" if words else ""
            self._tell(f"{before.name}: {kind}: {_brief(before)} -> {_brief(after)}{told}  {after.reason}")
        self._check_invariants(before, event, after, actions, now)
        coverage.events[kind] += 1
        coverage.phases[phase_name(after.phase)] += 1
        outcome = getattr(event, "outcome", None)
        if outcome is not None:
            coverage.outcomes[outcome.value] += 1
        if type(after.phase) is not type(before.phase):
            self.reached(after)
        self._check_counting(before, event, after)
        self._check_loop(before, event, after, now)
        return after, actions

    def reached(self, replica: Replica) -> None:
        """Count the cause or the failure that a phase just entered names."""
        cause = getattr(replica.phase, "cause", None) or getattr(replica.phase, "failure", None)
        if cause is not None:
            self.coverage.causes[_name_of(cause)] += 1

    def _check_invariants(
        self, before: Replica, event: Event, after: Replica, actions: tuple[Action, ...], now: float
    ) -> None:
        try:
            if type(after.phase) is not type(before.phase) or after.want is not before.want:
                invariants.check_step(before, event, after, actions, now)
            elif after is not before:
                invariants.check_deadline(after, now)
        except AssertionError as error:
            raise self._world.violated(f"{before.name} after {event}: {error}") from error
        if invariants.wanted_idle(after):
            raise self._world.violated(f"{before.name} should run and does nothing after {event}")

    def _check_counting(self, before: Replica, event: Event, after: Replica) -> None:
        """See that a deliberate stop is no failure, and a crash no stop.

        Excused is a run whose stop the disk did not take before its daemon died: nobody can know of it.
        """
        if before.name in self.excused:
            if after.last_run > before.last_run:
                self.excused.discard(before.name)
            return
        run = self._world.runs.get((before.name, before.last_run))
        counted = len(after.history.failed_at) > len(before.history.failed_at) or isinstance(after.phase, Failed)
        if isinstance(before.phase, Live) and counted and run is None:
            raise self._world.violated(f"a run of an earlier boot counts as a failure: {before.name}#{before.last_run}")
        if isinstance(before.phase, Live | Clearing) and counted and run is not None and run.asked_to_end:
            raise self._world.violated(
                f"a deliberate stop counts as a failure: {before.name}#{before.last_run} after {event}"
            )
        if isinstance(event, Exited) and event.run == before.last_run and isinstance(before.phase, Starting | Ready):
            pending = isinstance(after.phase, Clearing) and isinstance(after.phase.cause, Fault)
            known = (
                after.history != before.history or event.failure.kind in PERMANENT or isinstance(after.phase, Failed)
            )
            if not (pending or known):
                raise self._world.violated(
                    f"a crash is taken for a stop: {before.name}#{before.last_run} is {after.phase}"
                )

    def _check_loop(self, before: Replica, event: Event, after: Replica, now: float) -> None:
        """See that a crash loop ends in `Failed`, by a count of our own that is one crash more patient."""
        if isinstance(after.phase, Failed) or after.history == History():
            self._crashes.pop(before.name, None)
        elif isinstance(event, Exited) and isinstance(before.phase, Starting | Ready) and event.failure.kind == "crash":
            policy = after.spec.restart
            crashes = [at for at in self._crashes.get(before.name, []) if now - at < policy.window_s]
            self._crashes[before.name] = [*crashes, now]
            if len(crashes) > policy.max_crashes + 1:
                raise self._world.violated(f"{before.name} crashed {len(crashes) + 1} times and goes on")

    def excuse(self, names: Collection[str]) -> None:
        """Take note of replicas whose last records were lost with a daemon: what was decided then cannot be known."""
        self.excused |= set(names)
        for name in names:
            self._crashes.pop(name, None)

    def rebooted(self) -> None:
        """Start counting anew on another clock."""
        self._crashes.clear()

    # What goes out, and what is shown

    def intended(self, replica: Replica, action: Action, recorded: dict[str, Any] | None) -> None:
        """See that what is done to a process was on disk before."""
        if not isinstance(action, Spawn | Terminate | Kill):
            return
        phase = recorded and recorded["phase"]["name"]
        allowed = {"spawning"} if isinstance(action, Spawn) else {"stopping", "killing"}
        if recorded is None or recorded["last_run"] != action.run or phase not in allowed:
            raise self._world.violated(f"{action} of {replica.name} goes out, and on disk is {recorded}")

    def published(self, after: Replica, recorded: dict[str, Any] | None) -> None:
        """See that what is shown is what is on disk."""
        shown = (after.want.value, after.last_run, phase_name(after.phase), after.reason, after.removed)
        on_disk = recorded and (
            recorded["want"], recorded["last_run"], recorded["phase"]["name"], recorded["reason"], recorded["removed"]
        )  # fmt: skip
        if shown != on_disk:
            raise self._world.violated(f"{after.name} is shown as {shown}, on disk it is {on_disk}")

    # Operators

    def asks(self, event: StartAsked | StopAsked | RestartAsked) -> Asked:
        """Take note of a command before it is given; of several at once the core says which came first."""
        asked = Asked(Want.DOWN if isinstance(event, StopAsked) else Want.UP)
        self._on_the_way[event.by] = asked
        return asked

    def forgotten(self, name: str) -> None:
        """Forget what was asked of a replica that left the configuration."""
        self.commands.pop(name, None)

    def recovered(self, replica: Replica) -> None:
        """See that what was acknowledged holds after a daemon's death; what was not may hold or not."""
        commands = self.commands.get(replica.name, [])
        acked = max((at for at, asked in enumerate(commands) if asked.state == "acked"), default=None)
        if acked is not None and not replica.removed:
            allowed = {asked.want for asked in commands[acked:]}
            if replica.want not in allowed:
                raise self._world.violated(f"an acknowledged command is lost: {replica.name} is wanted {replica.want}")
        self.commands[replica.name] = [Asked(replica.want, "acked")] if acked is not None else []

    def wanted(self, name: str) -> Want | None:
        """Return what was last asked for and acknowledged, None if nothing was."""
        return next((asked.want for asked in reversed(self.commands.get(name, [])) if asked.state == "acked"), None)


def _brief(replica: Replica) -> str:
    return f"{phase_name(replica.phase)}#{replica.last_run}"


def _name_of(cause: Cause | Failure) -> str:
    failure = cause.failure if isinstance(cause, Fault) else cause
    return failure.kind.value if isinstance(failure, Failure) else failure.value


def unreached(coverage: Coverage) -> list[str]:
    """Return the phases, events and outcomes of probes that no seed reached."""
    wanted = {kind.__name__.lower() for kind in phases.Phase.__args__}
    wanted |= {kind.__name__ for kind in events.Event.__args__}
    wanted |= {outcome.value for outcome in events.Outcome}
    wanted |= {reason.value for reason in phases.Reason} | {
        kind.value for kind in events.FailureClass
    } - _NOT_OF_THIS_WORLD
    return sorted(wanted - {*coverage.phases, *coverage.events, *coverage.outcomes, *coverage.causes})
