"""Who of those that wait goes next where some start on demand: in order, and who gives way for it.

Three rules:

1. In order: the higher priority first; of the same, those that always run before those on demand; then whoever has
   waited longest. Whoever goes, or has room made for it, keeps that room: nobody behind takes it away. So does one
   whose turn has come, and who waits only until those in its way have been ready for long enough.
2. Nobody gives way before it is sure that room comes of it, for all that is needed.
3. Who is in use gives way, to its own priority, by taking nothing new (`closed`), and so do those that are to go with
   it; they are ended when all are idle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from modelsupd.core.demand import Usage, Yielding, exclude, waits_since, yields
from modelsupd.core.events import Evicted
from modelsupd.core.eviction import Candidate, Floor, apart
from modelsupd.core.phases import Clearing, Draining, Killing, Ready, Reason, Replica, Stopping
from modelsupd.core.placement import Claim, Held
from modelsupd.core.sleeping import kept_asleep, rests
from modelsupd.core.spec import Start

#: Of those that do not give way, so many are told of.
TOLD = 3


@dataclass(slots=True)
class Turns:
    """Who goes now and on which GPUs, why the others wait, who gives way, and when to look again for lack of events."""

    chosen: dict[str, tuple[str, ...]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    evicted: dict[str, Evicted] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    again_at: float | None = None

    def look_again(self, at: float | None) -> None:
        """Note an instant from which the answer may be another."""
        if at is not None:
            self.again_at = at if self.again_at is None else min(self.again_at, at)


def in_turn(waiting: Mapping[str, Replica], usage: Usage) -> dict[str, float]:
    """Return those that wait in the order in which they go, and since when somebody waits for each."""
    since = {name: waits_since(replica, usage) for name, replica in waiting.items()}

    def order(name: str) -> tuple[object, ...]:
        spec = waiting[name].spec
        return -spec.demand.priority, spec.start is Start.ON_DEMAND, since[name], name

    return {name: since[name] for name in sorted(waiting, key=order)}


class TurnTaking:
    """One decision about all that wait.

    `present` are the replicas of whose runs anything is there, `leaving` those of them that are being ended already;
    `floors` are the GPUs as they are, and as they will be without those; `without` is why each that waits does not fit
    as things are, by `placement`.
    """

    def __init__(
        self,
        present: Mapping[str, Replica],
        leaving: Collection[str],
        floors: tuple[Floor, Floor],
        without: Mapping[str, str],
        usage: Usage,
        now: float,
    ) -> None:
        """Begin with what is there."""
        self._present, self._leaving = present, set(leaving)
        self._now_floor, self._later = floors
        self._without, self._usage, self._now = without, usage, now
        self._taken: dict[str, Replica] = {}
        self.turns = Turns()

    def decide(self, waiting: Mapping[str, Replica], claims: Mapping[str, Claim]) -> Turns:
        """Decide about each, in order; a claim of no GPUs is not in `claims`."""
        for name, since in in_turn(waiting, self._usage).items():
            why = self._give(waiting[name], claims.get(name), since)
            if why:
                self.turns.why[name] = why
        return self.turns

    def _give(self, replica: Replica, claim: Claim | None, since: float) -> str:
        """Give a replica its turn, or make room for it; return why it waits, "" where it does not."""
        own = self._own_seats(replica.name)
        why = self._decide_on(replica, claim, since)
        # Whoever does not go lies there still; for whoever does, its place is kept by now, and this adds nothing.
        for floor, seat in own:
            floor.take(seat)
        return why

    def _own_seats(self, name: str) -> list[tuple[Floor, Held]]:
        """Take what a sleeper keeps off the floors: what it wants it wants instead."""
        seats = [(floor, seat) for floor in (self._now_floor, self._later) if (seat := floor.seat(name)) is not None]
        for floor, _seat in seats:
            floor.leave({name})
        return seats

    def _decide_on(self, replica: Replica, claim: Claim | None, since: float) -> str:
        ahead = next(self._against(replica, self._taken), None)
        if ahead is not None:
            return f"{ahead.name} goes first, and they never run beside one another"
        answers = {
            name: yields(other, replica, since, self._usage, self._now)
            for name, other in self._present.items()
            if name not in self._leaving and name not in self._taken and other.model != replica.model
        }
        # Who sleeps does not run, before it is woken.
        against = {other.name for other in self._against(replica, self._present) if not rests(other)}
        must = {name for name in against if name in answers}
        stays = [answers[name] for name in sorted(against) if name in answers and not _gives_way(answers[name])]
        if stays:
            self._note(stays)
            self._reserve(replica, claim, answers, must)
            return f"never beside {', '.join(sorted(against))}: {_told(stays)}"
        if not against and self._goes_now(replica, claim):
            return ""
        victims, there = must, set[str]()
        if claim is not None:
            willing = {name: answer for name, answer in answers.items() if _gives_way(answer)}
            room = self._later.room_for(claim, self._candidates(willing), must)
            if room is None and self._starts_elsewhere(replica, claim):
                return "it lies where it cannot wake, and starts anew elsewhere"
            if room is None:
                self._reserve(replica, claim, answers, must)
                stays = [
                    answer
                    for name, answer in answers.items()
                    if not _gives_way(answer) and self._present[name].spec.start is Start.ON_DEMAND
                ]
                self._note(stays)
                # What `placement` has room for goes to those ahead, who are not in its order.
                without = self._without.get(replica.name, "those that go first leave no room")
                return "; ".join(text for text in (without, _told(stays)) if text)
            victims, there = set(room.victims), self._now_floor.names(room.gpus)
            self._later.leave(victims)
            self._keep(replica, claim, room.gpus)
        self._taken[replica.name] = replica
        return self._make_way(replica, claim, victims, answers, against | there)

    def _starts_elsewhere(self, replica: Replica, claim: Claim) -> bool:
        """Have a sleeper that cannot wake where it lies end, if it could start somewhere else."""
        uuids = replica.spec.gpus if isinstance(replica.spec.gpus, tuple) else ()
        if not rests(replica) or self._now_floor.room_for(dataclasses.replace(claim, uuids=uuids), {}) is None:
            return False
        self.turns.evicted[replica.name] = Evicted(replica.last_run, "cannot wake where it lies, and starts elsewhere")
        return True

    def _against(self, replica: Replica, others: Mapping[str, Replica]) -> Iterator[Replica]:
        for other in others.values():
            if exclude(replica.spec, replica.model, other.spec, other.model):
                yield other

    def _goes_now(self, replica: Replica, claim: Claim | None) -> bool:
        gpus: tuple[str, ...] = ()
        if claim is not None:
            room = self._now_floor.room_for(claim, {})
            if room is None:
                return False
            gpus = room.gpus
            self._keep(replica, claim, gpus)
        self.turns.chosen[replica.name] = gpus
        self._taken[replica.name] = replica
        return True

    def _candidates(self, answers: Mapping[str, Yielding]) -> dict[str, Candidate]:
        return {
            name: Candidate(self._present[name].spec.demand.priority, answer.busy, answer.cost)
            for name, answer in answers.items()
        }

    def _reserve(
        self, replica: Replica, claim: Claim | None, answers: Mapping[str, Yielding], must: Collection[str]
    ) -> None:
        """Keep from everybody behind what gives way before long: whose turn has come would never find all of it."""
        willing = {name: answer for name, answer in answers.items() if _gives_way(answer) or answer.soon}
        if not any(answer.soon for answer in willing.values()) or not willing.keys() >= set(must):
            return
        victims = set(must)
        if claim is not None:
            room = self._later.room_for(claim, self._candidates(willing), must)
            if room is None:
                return
            victims = set(room.victims)
            self._later.leave(victims)
            self._keep(replica, claim, room.gpus)
        self._taken[replica.name] = replica
        self._leaving |= victims

    def _keep(self, replica: Replica, claim: Claim, gpus: tuple[str, ...]) -> None:
        """Keep room for a replica, from everybody behind it."""
        for floor in (self._now_floor, self._later):
            floor.take(
                Held(
                    name=replica.name,
                    model=replica.model,
                    gpus=gpus,
                    bytes=floor.sizes(claim, gpus),
                    exclusive=claim.exclusive,
                    apart=claim.apart,
                )
            )

    def _make_way(
        self,
        replica: Replica,
        claim: Claim | None,
        victims: Collection[str],
        answers: Mapping[str, Yielding],
        there: Collection[str],
    ) -> str:
        """Have those give way that stand in the way, all of them once none has anything in flight.

        `there` are all who have to be gone first, or may have to, those included that are being ended already.
        """
        closed = sorted(name for name in victims if answers[name].closed)
        self._leaving |= set(victims)
        if closed:
            # The idle ones as well: else two would be in use by turns, and never idle at the same moment.
            self.turns.closed |= {name for name in victims if self._is_equal(name, replica)}
            takes = (
                "takes nothing new, and gives way when it is"
                if len(closed) == 1
                else "take nothing new, and give way when"
            )
            return f"{' and '.join(closed)} {takes} idle"
        for name in sorted(victims):
            sleeps = self._can_sleep(self._present[name], claim)
            self.turns.evicted[name] = Evicted(self._present[name].last_run, f"gives way to {replica.name}", sleeps)
        # Of those there, some have only been given room, in this very decision.
        ends = set(victims) | (set(there) & self._leaving & self._present.keys())
        going = {name: self._present[name] for name in sorted(ends)}
        evicted = [name for name, other in going.items() if _is_evicted(other)]
        others = [name for name in going if name not in evicted]
        ways = ((evicted, "gives way", "give way"), (others, "ends", "end"))
        words = [f"{' and '.join(names)} {one if len(names) == 1 else many}" for names, one, many in ways if names]
        return ", ".join(words)

    def _is_equal(self, name: str, to: Replica) -> bool:
        """Tell whether one that gives way serves, and does so for the turn of another of its own priority."""
        victim = self._present[name]
        return isinstance(victim.phase, Ready) and victim.spec.demand.priority == to.spec.demand.priority

    def _can_sleep(self, replica: Replica, claim: Claim | None) -> bool:
        """Tell whether one that gives way need not be ended: there is room for what it keeps while it sleeps."""
        hold = kept_asleep(replica.hold, replica)
        if replica.spec.demand.sleep == 0 or not isinstance(replica.phase, Ready):
            return False
        if hold is None:
            return True
        off = frozenset(replica.spec.placement.apart_from)
        seat = Held(name=replica.name, model=replica.model, gpus=hold.gpus, bytes=hold.bytes, apart=off)
        if not self._later.holds(seat) or (claim is not None and apart(claim, seat)):
            return False
        self._later.take(seat)
        return True

    def _note(self, answers: Collection[Yielding]) -> None:
        for answer in answers:
            self.turns.look_again(answer.again_at)


def _is_evicted(replica: Replica) -> bool:
    """Tell whether one that goes does so for another, as far as it is being ended already."""
    phase = replica.phase
    return phase.cause is Reason.EVICTED if isinstance(phase, Draining | Stopping | Killing | Clearing) else True


def _gives_way(answer: Yielding) -> bool:
    return answer.now or answer.closed


def _told(stays: Sequence[Yielding]) -> str:
    words = [answer.why for answer in stays]
    more = f", and {len(words) - TOLD} more stay" if len(words) > TOLD else ""
    return ", ".join(words[:TOLD]) + more
