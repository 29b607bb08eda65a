"""The journal and what is found running → the fleet to start from.

Two rules:

1. The journal decides what is wanted; proven processes decide what is.
2. Nothing that runs and is wanted is touched: it is adopted under the declaration by which it was started. Only then
   is the configuration applied, as after a reload (`fleet.plan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from modelsupd.core import health, restart
from modelsupd.core.actions import Action, Kill, Resolve, Sleep, Terminate, Wake, Watch
from modelsupd.core.demand import CONFIGURATION
from modelsupd.core.events import Process
from modelsupd.core.fleet import Declared, replica_names
from modelsupd.core.moves import NOTHING, Step, begin, clear, terminate
from modelsupd.core.on_gpus import let_go
from modelsupd.core.phases import (
    Asleep,
    Backoff,
    Clearing,
    Draining,
    Failed,
    Killing,
    Live,
    Ready,
    Reason,
    Replica,
    Resolving,
    Resting,
    Spawning,
    Starting,
    Stopped,
    Stopping,
    Waiting,
    Want,
)
from modelsupd.core.placement import Hold
from modelsupd.core.record import restore
from modelsupd.core.spec import Engine, ModelSpec, Start

_NONE_LEFT: Mapping[tuple[str, int], tuple[str, ...]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Boot:
    """The present boot: the instant now, its id, and the wall time in seconds at instant 0 of its clock.

    Every recorded state carries the mark of the boot on whose clock its instants are: a daemon that dies early leaves
    states of two boots side by side.
    """

    now: float
    id: str
    zero_s: float

    @property
    def mark(self) -> dict[str, Any]:
        """Return what the driver adds to each recorded state."""
        return {"id": self.id, "zero_s": self.zero_s}


@dataclass(frozen=True, slots=True)
class Recovered:
    """The fleet to start from, what was left undone, and processes to end before anything else is done."""

    replicas: Mapping[str, Replica]
    actions: Mapping[str, tuple[Action, ...]]
    strays: tuple[tuple[str, Process], ...]


def recover(
    states: Mapping[str, Mapping[str, Any]],
    found: Mapping[str, Sequence[Process]],
    highest: Mapping[str, int],
    declared: Mapping[str, Declared],
    boot: Boot,
    leftovers: Mapping[tuple[str, int], tuple[str, ...]] = _NONE_LEFT,
) -> Recovered:
    """Return the fleet as it is, from the last recorded state of each replica and its live processes.

    `highest` is the highest run number that a run directory names: a journal that could not be written for a while
    must not lead to a number being used twice. `leftovers` are the runs without an engine of which something else may
    be left, with the GPUs that they had; where it is the last one, that is cleared before there is another.
    """
    replicas: dict[str, Replica] = {}
    actions: dict[str, tuple[Action, ...]] = {}
    strays: list[tuple[str, Process]] = []
    entries = {name: entry for model, entry in declared.items() for name in replica_names(model, entry)}
    for name in sorted({*states, *found, *(name for name, _run in leftovers)}):
        live = sorted(found.get(name, ()), key=lambda process: process.run)
        replica = _known(name, states.get(name), entries.get(name), boot)
        spawned = max([highest.get(name, 0), *(process.run for process in live)])
        last_run = max(replica.last_run, spawned)
        process = live.pop() if live and live[-1].run == last_run else None
        # A process of an earlier run must not be: its reports would be stale, so it is ended outside the fleet.
        strays += [(name, stray) for stray in live]
        replica = _caught_up(replica, last_run, spawned, boot.now)
        if not process and (name, last_run) in leftovers:
            resumed, actions[name] = _clear_first(replica, leftovers[name, last_run], boot.now)
        else:
            resumed, actions[name] = _resume(replica, process, boot.now)
        replicas[name] = let_go(_goes_on(resumed))
    return Recovered(replicas, actions, tuple(strays))


def _goes_on(replica: Replica) -> Replica:
    """Return the replica as one that is asked for if it runs and starts on demand only since: it goes on until idle."""
    ran = isinstance(replica.phase, Starting | Ready) and replica.idle
    return replace(replica, demanded_by=CONFIGURATION) if ran else replica


def _caught_up(replica: Replica, last_run: int, spawned: int, now: float) -> Replica:
    """Return the replica knowing of the last run, of which the journal may not tell after a full disk.

    `spawned` is the last run for which a process was made, or was about to be: it is past looking for its weights.
    """
    phase = replica.phase
    behind = last_run > replica.last_run and isinstance(phase, Live | Clearing | Spawning)
    if behind or (isinstance(phase, Resolving | Waiting) and spawned >= phase.run):
        replica = replace(replica, phase=Stopped(now), reason=f"run {last_run} came after what the journal tells")
    if last_run > replica.last_run:
        replica = replace(replica, hold=None)
    return replace(replica, last_run=last_run)


def _known(name: str, state: Mapping[str, Any] | None, entry: Declared | None, boot: Boot) -> Replica:
    # A replica that no configuration describes any more is still ended properly; the default limits serve for that.
    spec = entry.spec if entry else ModelSpec(engine=Engine.COMMAND)
    if state is None:
        want = Want.UP if entry and entry.spec.start is not Start.MANUAL else Want.DOWN
        digest = entry.digest if entry else ""
        model = name.rpartition("/")[0]
        return Replica(
            name=name, model=model, spec=spec, digest=digest, want=want, phase=Stopped(boot.now), removed=entry is None
        )
    try:
        replica = restore(name, state, spec, boot.now)
        mark = state["boot"]
        shift_s = mark["zero_s"] - boot.zero_s
    except (KeyError, TypeError, ValueError) as error:
        # Of a newer version, perhaps. The others must not suffer, and what runs is still found.
        words = f"what was recorded of it cannot be read: {error!r}"
        return replace(_known(name, None, entry, boot), reason=words)
    if mark["id"] == boot.id:
        return replica
    return replace(
        replica,
        phase=Stopped(boot.now),
        hold=None,
        demanded_by="",  # whoever waited has gone
        history=restart.shifted(replica.history, shift_s, boot.now),
        reason="the machine was restarted",
    )


def _clear_first(replica: Replica, gpus: tuple[str, ...], now: float) -> Step:
    """Make sure that nothing is left of a run that the journal does not know, or knows to be over."""
    if isinstance(replica.phase, Live | Clearing):
        return _resume(replica, None, now)
    if replica.hold is None:
        replica = replace(replica, hold=_unknown_hold(gpus))
    phase = Clearing(now, replica.last_run, Reason.STRAY)
    words = f"something of run {replica.last_run} was found and is ended"
    return replace(replica, phase=phase, reason=words), (clear(replica),)


def _resume(replica: Replica, process: Process | None, now: float) -> Step:  # noqa: C901, PLR0911 - one case a phase
    phase, run = replica.phase, replica.last_run
    if process is not None and not isinstance(phase, Live | Clearing):
        return _adopt(replica, process, now)
    match phase:
        case Draining(cause=Reason.SHUTDOWN) if process and replica.runs_wanted and process.digest == replica.digest:
            # Whoever drained it is gone and has sent no signal yet; it is what is wanted, so it goes on.
            ready = Ready(phase.since, process, health.begin(now))
            return replace(replica, phase=ready, reason="adopted; the daemon that drained it is gone"), (Watch(run),)
        case Starting() | Ready() | Draining():
            words = f"run {run} adopted with pid {process.pid}" if process else replica.reason
            return replace(replica, reason=words), (Watch(run),)
        case Asleep():
            return replica, (Watch(run), *_still_to_do(phase, replica))
        case Stopping():
            return replica, (Watch(run), Terminate(run))
        case Killing():
            return replica, (Watch(run), Kill(run))
        case Clearing():
            return replica, (clear(replica),)
        case Resolving() if replica.runs_wanted:
            return replica, (Resolve(run),)
        case Waiting() if replica.runs_wanted:
            # What it was to be started from may have changed meanwhile, and is known to no one any more.
            return replace(replica, phase=Resolving(now, run)), (Resolve(run),)
        case Spawning() | Stopped() if replica.runs_wanted:
            return begin(replica, f"{replica.reason}; taken up again" if replica.reason else "taken up again", now)
        case Resolving() | Waiting() | Spawning() | Backoff() | Failed() if not replica.runs_wanted:
            # It may start on demand since, or what was wanted of it last was lost to a full disk: there is no next try.
            return replace(replica, phase=Stopped(now)), NOTHING
        case _:
            return replica, NOTHING


def _still_to_do(phase: Asleep, replica: Replica) -> tuple[Action, ...]:
    """Return what whoever is gone may not have brought to its end; what is done already is not done twice."""
    limit_s = replica.spec.demand.sleep_timeout_s
    if phase.state is Resting.FALLING:
        return (Sleep(replica.last_run, phase.level, limit_s),)
    return (Wake(replica.last_run, phase.level, limit_s),) if phase.state is Resting.WAKING else NOTHING


def _unknown_hold(gpus: tuple[str, ...]) -> Hold | None:
    """Return what a run holds of which the journal does not tell how much it takes: its GPUs, shared with nobody."""
    return Hold(gpus=gpus, bytes=(0,) * len(gpus), exclusive=True) if gpus else None


def _adopt(replica: Replica, process: Process, now: float) -> Step:
    """Take over a process of which the journal does not tell, if it is what is wanted."""
    words = f"run {process.run} adopted with pid {process.pid}"
    hold = _unknown_hold(process.gpus)
    starting = Starting(now, process, health.taken_over(now))
    adopted = replace(replica, phase=starting, reason=words, hold=hold)
    watch = (Watch(process.run),)
    if replica.runs_wanted and process.digest == replica.digest:
        return adopted, watch
    after, actions = terminate(adopted, Reason.STRAY, f"run {process.run} was found running and is not wanted", now)
    return after, watch + actions
