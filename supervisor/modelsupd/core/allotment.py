"""Many replicas and the host's GPUs: who gets which, who waits, who gives way, and who must keep still meanwhile.

Three rules:

1. One load at a time on a GPU, and none beside a run that is being ended: an engine that measures what is free while
   another takes or gives back memory reckons with what is not there.
2. Before a run is given a GPU, every other run there has been told of it (`Beside`), and so does not end meanwhile.
3. What is decided rests on what is published, and on what was given and is not published yet. What is published may be
   late: a GPU is then thought to be fuller than it is, never emptier.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modelsupd.core.demand import Usage, asked_for, needless
from modelsupd.core.events import Beside, Evicted, Placed
from modelsupd.core.eviction import Floor
from modelsupd.core.gpu_spec import Strategy
from modelsupd.core.phases import (
    Asleep,
    Clearing,
    Draining,
    Killing,
    Live,
    Phase,
    Ready,
    Reason,
    Replica,
    Resting,
    Spawning,
    Starting,
    Stopping,
    Waiting,
)
from modelsupd.core.placement import Claim, Gpu, Held, Hold, place
from modelsupd.core.sleeping import kept_asleep, rests
from modelsupd.core.spec import Start, gpu_count
from modelsupd.core.timing import known_start
from modelsupd.core.turns import Turns, TurnTaking, in_turn

#: What is known while no gateway has told anything.
NOTHING_TOLD = Usage()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU, and what was in use of it at `read_at`: `used` by replica, `idle_bytes` by nobody that can be named."""

    gpu: Gpu
    used: Mapping[str, int] = field(default_factory=dict)
    idle_bytes: int = 0
    read_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Allotment:
    """What to tell whom: `beside` first, and `placed` only those beside whom nobody has to be told any more.

    `waiting` is why each of the others waits. `demanded` are those to start because requests wait for them, `evicted`
    those that give way or are needed by nobody, `closed` those that take nothing new for as long as this holds. At
    `again_at` the answer may be another, though nothing has happened; None: not before something does.
    """

    beside: Mapping[str, Beside]
    placed: Mapping[str, Placed]
    waiting: Mapping[str, str]
    demanded: tuple[str, ...] = ()
    evicted: Mapping[str, Evicted] = field(default_factory=dict)
    closed: frozenset[str] = frozenset()
    again_at: float | None = None


def allot(
    replicas: Mapping[str, Replica],
    granted: Mapping[str, Hold | None],
    cards: Sequence[Card],
    usage: Usage = NOTHING_TOLD,
    now: float = 0.0,
    leaving: Collection[str] = (),
) -> Allotment:
    """Decide about all that wait, and about who gives way.

    `granted` is what was given already to those that are still published as waiting, `leaving` are those that were
    told to give way, or to wait no more, and are still published as before.
    """
    replicas = dict(sorted(replicas.items()))
    turns = Turns(closed=set(leaving))
    _retire(replicas, usage, now, turns)
    waiting = {
        name: replica
        for name, replica in replicas.items()
        if awaits(replica) and not {name} & (granted.keys() | turns.evicted.keys() | turns.closed)
    }
    holds = {name: replica.hold for name, replica in replicas.items() if replica.hold is not None}
    holds |= {name: hold for name, hold in granted.items() if hold is not None}
    loading = {
        uuid: name
        for name, hold in sorted(holds.items())
        if name in granted or _loads(replicas[name])
        for uuid in hold.gpus
    }
    by_uuid = {card.gpu.uuid: card for card in cards}
    going = {*leaving, *turns.evicted, *(name for name in replicas if name not in granted and _ends(replicas[name]))}
    going |= set(_settling(replicas, by_uuid))
    ending = {uuid: name for name, hold in holds.items() if name in going for uuid in hold.gpus}
    claims = {name: claim_of(replica) for name, replica in waiting.items() if gpu_count(replica.spec) > 0}
    present = {
        name: _on_its_way(replica) if name in granted else replica
        for name, replica in replicas.items()
        if name in granted or isinstance(replica.phase, Spawning | Live | Clearing)
    }
    held = _held(replicas, holds, by_uuid)
    later = [run for run in held if run.name not in going] + list(_kept(replicas, holds, held, going, leaving, turns))
    _choose(waiting, claims, (present, going), ([card.gpu for card in cards], held, later), (usage, now), turns)
    placed: dict[str, Placed] = {}
    why = turns.why
    index = {card.gpu.uuid: card.gpu.index for card in cards}
    for name, chosen in turns.chosen.items():
        busy = [
            (uuid, state[uuid], how)
            for uuid in chosen
            for state, how in ((loading, "loads"), (ending, "ends"))
            if uuid in state
        ]
        if busy:
            told = ", ".join(f"{other} {how} on GPU {index[uuid]}" for uuid, other, how in busy)
            why[name] = f"there is room, and {told}: nothing loads beside that"
        else:
            loading |= dict.fromkeys(chosen, name)
            hold = _hold(claims[name], chosen, by_uuid) if chosen else None
            placed[name] = Placed(waiting[name].last_run, hold)
    beside = dict(_beside(replicas, holds, loading))
    unaware = {event.loading for event in beside.values()}
    return Allotment(
        beside,
        {name: event for name, event in placed.items() if name not in unaware},
        why,
        tuple(asked_for(replicas, usage)),
        turns.evicted,
        frozenset(turns.closed),
        turns.again_at,
    )


def _retire(replicas: Mapping[str, Replica], usage: Usage, now: float, turns: Turns) -> None:
    """Find those on demand that nobody needs any more."""
    for name, replica in replicas.items():
        words, again_at = needless(replica, usage, now)
        turns.look_again(again_at)
        if words and name not in turns.closed:
            # Who is not asked for any more goes on sleeping; who was not, and has slept for too long, is ended.
            sleeps = replica.spec.demand.sleep > 0 and bool(replica.demanded_by)
            turns.evicted[name] = Evicted(replica.last_run, words, sleeps)


def _choose(
    waiting: Mapping[str, Replica],
    claims: Mapping[str, Claim],
    there: tuple[Mapping[str, Replica], Collection[str]],
    on: tuple[Sequence[Gpu], Sequence[Held], Sequence[Held]],
    told: tuple[Usage, float],
    turns: Turns,
) -> None:
    """Choose who goes: all together where all fit, or where nobody could give way; else in turn."""
    (gpus, held, later), (present, going) = on, there
    answer = place(gpus, held, list(claims.values()))
    some = any(replica.spec.start is Start.ON_DEMAND for replica in (*waiting.values(), *present.values()))
    apart = any(replica.spec.demand.excludes for replica in (*waiting.values(), *present.values()))
    sleepers = any(isinstance(replica.phase, Asleep) for replica in waiting.values())
    # What a sleeper keeps is its own, and `place` does not know that.
    if not sleepers and (not some or (not apart and len(answer.placed) == len(claims))):
        turns.chosen |= dict.fromkeys(waiting.keys() - claims.keys(), ())
        # Where several go to one GPU, the first of them loads first.
        turns.chosen |= {name: answer.placed[name] for name in in_turn(waiting, told[0]) if name in answer.placed}
        turns.why |= answer.waiting
        return
    floors = Floor(gpus, held), Floor(gpus, later)
    taken = TurnTaking(present, going, floors, answer.waiting, *told).decide(waiting, claims)
    turns.chosen |= taken.chosen
    turns.why |= taken.why
    turns.evicted |= taken.evicted
    turns.closed |= taken.closed
    turns.look_again(taken.again_at)


def claim_of(replica: Replica) -> Claim:
    """Return what a replica that waits wants."""
    phase, spec = replica.phase, replica.spec
    if isinstance(phase, Asleep) and phase.before is not None:
        return _claim_to_wake(replica, phase.before)
    size = phase.size if isinstance(phase, Waiting) else None
    # One that is declared to run without GPUs by now may still hold some.
    declared, count, learned = spec.placement, max(1, gpu_count(spec)), known_start(replica)
    taken, share = 0, 0.0
    if declared.vram_bytes is not None:
        taken = declared.vram_bytes
    elif size is not None and size.estimated:
        seen = learned.bytes if learned else None
        taken = math.ceil(size.bytes / count) + declared.margin_bytes if seen is None else seen
    elif size is not None:
        taken, share = math.ceil(size.bytes / count), size.share
    unknown = declared.vram_bytes is None and size is None
    return Claim(
        name=replica.name,
        model=replica.model,
        count=count,
        uuids=spec.gpus if isinstance(spec.gpus, tuple) else (),
        bytes=taken,
        share=share,
        exclusive=unknown if declared.exclusive is None else declared.exclusive,
        pack=declared.strategy is Strategy.PACK,
        apart=_apart_from(replica),
    )


def _on_its_way(replica: Replica) -> Replica:
    """Return a replica that was given its turn as one that has taken it: a sleeper as one that wakes up."""
    phase = replica.phase
    if not isinstance(phase, Asleep):
        return replica
    return dataclasses.replace(replica, phase=dataclasses.replace(phase, state=Resting.WAKING))


def _kept(
    replicas: Mapping[str, Replica],
    holds: Mapping[str, Hold],
    held: Sequence[Held],
    going: Collection[str],
    leaving: Collection[str],
    turns: Turns,
) -> Iterator[Held]:
    """Yield what is kept by those on their way out who only fall asleep."""
    for run in held:
        replica, event = replicas[run.name], turns.evicted.get(run.name)
        phase = replica.phase
        sleeps = isinstance(phase, Asleep) or (isinstance(phase, Draining) and phase.cause is Reason.SLEEP)
        sleeps = event.sleep and isinstance(phase, Ready | Asleep) if event is not None else sleeps
        kept = kept_asleep(holds[run.name], replica)
        if run.name in going and run.name not in leaving and sleeps and kept is not None:
            yield dataclasses.replace(run, bytes=kept.bytes, exclusive=False)


def _settling(replicas: Mapping[str, Replica], cards: Mapping[str, Card]) -> Iterator[str]:
    """Yield those that have fallen asleep since their GPUs were read: what they keep is not known yet."""
    for name, replica in replicas.items():
        gpus = replica.hold.gpus if replica.hold is not None and rests(replica) else ()
        if any(cards[uuid].read_at < replica.phase.since for uuid in gpus if uuid in cards):
            yield name


def _claim_to_wake(replica: Replica, before: Hold) -> Claim:
    """Return what one that sleeps wants again: the GPUs where it lies, and no others."""
    return Claim(
        name=replica.name,
        model=replica.model,
        count=len(before.gpus),
        uuids=before.gpus,
        bytes=max(before.bytes, default=0),
        exclusive=before.exclusive,
        apart=_apart_from(replica),
    )


def _apart_from(replica: Replica) -> frozenset[str]:
    declared = replica.spec.placement.apart_from
    if replica.spec.replicas == "per-gpu":
        return frozenset((*declared, replica.model))
    return frozenset(declared)


def alike(before: Replica, after: Replica) -> bool:
    """Tell whether the answer is the same with either, so that nobody has to ask again.

    Most of what happens to a replica is that it answers a probe, or is told in other words why it waits.
    """
    one, other = before.phase, after.phase
    if one is not other and (type(one) is not type(other) or _decisive(one) != _decisive(other)):
        return False
    return all(getattr(before, name) == getattr(after, name) for name in _DECISIVE)


#: What of a replica decides, its phase apart.
_DECISIVE = (
    "last_run",
    "hold",
    "beside",
    "demanded_by",
    "want",
    "halt",
    "removed",
    "digest",
    "inputs",
    "learned",
    "spec",
)


def _decisive(phase: Phase) -> tuple[object, ...]:
    """Return what of a phase decides, of two of one kind."""
    if isinstance(phase, Waiting):
        return phase.since, phase.size
    if isinstance(phase, Asleep):
        return phase.since, phase.state
    if isinstance(phase, Draining):
        return phase.since, phase.cause, phase.held
    if isinstance(phase, Stopping | Killing | Clearing):
        return phase.since, phase.cause
    return (phase.since,)


def awaits(replica: Replica) -> bool:
    """Tell whether a replica waits to be given its turn: to start, or to wake up."""
    return isinstance(replica.phase, Waiting) or (rests(replica) and replica.runs_wanted)


def _loads(replica: Replica) -> bool:
    phase = replica.phase
    return isinstance(phase, Spawning | Starting) or (isinstance(phase, Asleep) and phase.state is Resting.WAKING)


def _ends(replica: Replica) -> bool:
    phase = replica.phase
    if isinstance(phase, Asleep):
        return phase.state is Resting.FALLING
    return isinstance(phase, Stopping | Killing | Clearing) or (isinstance(phase, Draining) and not phase.held)


def _held(replicas: Mapping[str, Replica], holds: Mapping[str, Hold], cards: Mapping[str, Card]) -> list[Held]:
    """Return what each run is reckoned with: what it claimed or, where it uses more, that."""
    held = []
    for name, hold in holds.items():
        replica = replicas[name]
        taken = tuple(
            max(size, cards[uuid].used.get(name, 0)) if uuid in cards else size
            for uuid, size in zip(hold.gpus, hold.bytes, strict=True)
        )
        held.append(
            Held(
                name=name,
                model=replica.model,
                gpus=hold.gpus,
                bytes=taken,
                exclusive=hold.exclusive,
                apart=_apart_from(replica),
            )
        )
    return held


def _hold(claim: Claim, chosen: Sequence[str], cards: Mapping[str, Card]) -> Hold:
    return Hold(
        gpus=tuple(chosen),
        bytes=tuple(claim.on(cards[uuid].gpu) for uuid in chosen),
        exclusive=claim.exclusive,
        idle_bytes=tuple(cards[uuid].idle_bytes for uuid in chosen),
    )


def _beside(
    replicas: Mapping[str, Replica], holds: Mapping[str, Hold], loading: Mapping[str, str]
) -> Iterator[tuple[str, Beside]]:
    """Yield what runs have yet to be told of who loads beside them."""
    for name, hold in sorted(holds.items()):
        replica = replicas[name]
        if isinstance(replica.phase, Live):
            others = [loading[uuid] for uuid in hold.gpus if loading.get(uuid, name) != name]
            told = others[0] if others else ""
            if told != replica.beside:
                yield name, Beside(told)
