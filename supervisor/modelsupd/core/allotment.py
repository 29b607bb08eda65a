"""Many replicas and the host's GPUs: who gets which, who has to wait, and who must keep still meanwhile.

Three rules:

1. One load at a time on a GPU, and none beside a run that is being ended: an engine that measures what is free while
   another takes or gives back memory reckons with what is not there.
2. Before a run is given a GPU, every other run there has been told of it (`Beside`), and so does not end meanwhile.
3. What is decided rests on what is published, and on what was given and is not published yet. What is published may be
   late: a GPU is then thought to be fuller than it is, never emptier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modelsupd.core.events import Beside, Placed
from modelsupd.core.gpu_spec import Strategy
from modelsupd.core.phases import (
    Clearing,
    Draining,
    Killing,
    Live,
    Replica,
    Spawning,
    Starting,
    Stopping,
    Waiting,
)
from modelsupd.core.placement import Claim, Gpu, Held, Hold, place
from modelsupd.core.spec import gpu_count
from modelsupd.core.timing import known_start


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU and what was last seen on it: `used` bytes by replica, `idle_bytes` by no process that can be named."""

    gpu: Gpu
    used: Mapping[str, int] = field(default_factory=dict)
    idle_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Allotment:
    """What to tell whom: `beside` first, and `placed` only those beside whom nobody has to be told any more.

    `waiting` is why each of the others waits.
    """

    beside: Mapping[str, Beside]
    placed: Mapping[str, Placed]
    waiting: Mapping[str, str]


def allot(replicas: Mapping[str, Replica], granted: Mapping[str, Hold], cards: Sequence[Card]) -> Allotment:
    """Decide about all that wait. `granted` is what was given already to those that are still published as waiting."""
    waiting = {
        name: replica
        for name, replica in sorted(replicas.items())
        if isinstance(replica.phase, Waiting) and name not in granted
    }
    holds = {name: replica.hold for name, replica in replicas.items() if replica.hold is not None} | dict(granted)
    loading = {
        uuid: name
        for name, hold in sorted(holds.items())
        if name in granted or isinstance(replicas[name].phase, Spawning | Starting)
        for uuid in hold.gpus
    }
    ending = {
        uuid: name
        for name, hold in holds.items()
        if name not in granted and _ends(replicas[name])
        for uuid in hold.gpus
    }
    by_uuid = {card.gpu.uuid: card for card in cards}
    claims = [claim_of(replica) for replica in waiting.values()]
    answer = place([card.gpu for card in cards], _held(replicas, holds, by_uuid), claims)
    placed: dict[str, Placed] = {}
    why = dict(answer.waiting)
    index = {card.gpu.uuid: card.gpu.index for card in cards}
    for claim in claims:
        chosen = answer.placed.get(claim.name, ())
        busy = [
            (uuid, state[uuid], how)
            for uuid in chosen
            for state, how in ((loading, "loads"), (ending, "ends"))
            if uuid in state
        ]
        if busy:
            told = ", ".join(f"{name} {how} on GPU {index[uuid]}" for uuid, name, how in busy)
            why[claim.name] = f"there is room, and {told}: nothing loads beside that"
        elif chosen:
            loading |= dict.fromkeys(chosen, claim.name)
            placed[claim.name] = Placed(waiting[claim.name].last_run, _hold(claim, chosen, by_uuid))
    beside = dict(_beside(replicas, holds, loading))
    unaware = {event.loading for event in beside.values()}
    return Allotment(beside, {name: event for name, event in placed.items() if name not in unaware}, why)


def claim_of(replica: Replica) -> Claim:
    """Return what a replica that waits wants."""
    phase, spec = replica.phase, replica.spec
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
    own = {replica.model} if spec.replicas == "per-gpu" else set()
    return Claim(
        name=replica.name,
        model=replica.model,
        count=count,
        uuids=spec.gpus if isinstance(spec.gpus, tuple) else (),
        bytes=taken,
        share=share,
        exclusive=unknown if declared.exclusive is None else declared.exclusive,
        pack=declared.strategy is Strategy.PACK,
        apart=frozenset(declared.apart_from) | own,
    )


def _ends(replica: Replica) -> bool:
    phase = replica.phase
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
                apart=claim_of(replica).apart,
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
