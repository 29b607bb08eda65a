"""The only caller of `step`: events in, records to disk, actions out.

Two rules:

1. A replica's event is taken, stepped, recorded and synced, published, and only then acted upon; the next event of
   that replica waits for it, those of others do not.
2. Effects never call `step`. Each ends by putting one event, whatever happens to it.

A record that cannot be written refuses an operator's command. It does not hold up supervision: what happened to a
process has happened, and a crashed engine is restarted with a full disk too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import structlog

from modelsupd.core.actions import (
    Action,
    Kill,
    Probe,
    Recheck,
)
from modelsupd.core.events import (
    Event,
    Lagged,
    Respecified,
    Spawned,
    Ticked,
)
from modelsupd.core.fleet import is_gone
from modelsupd.core.phases import Replica, phase_name
from modelsupd.core.record import durable, plain_event, same
from modelsupd.core.replica import InvalidTransition, deadline, fail_internally, step
from modelsupd.errors import Refused
from modelsupd.runtime.failed_effect import failed_effect
from modelsupd.runtime.journal import Unwritable

log = structlog.get_logger("driver")

#: How often the driver shows that it is alive, in seconds.
HEARTBEAT_S = 0.5

#: The daemon got no CPU when it is later than this with what it meant to do, in seconds.
LAG_LIMIT_S = 1.0

NOT_WRITABLE = "the journal cannot be written"

#: Events of a replica that are told when one comes that cannot happen.
STORY_LENGTH = 20


class Effects(Protocol):
    """Acts. An effect ends by returning one event of its run, or None for `Abandon`, `Terminate`, `Kill`."""

    async def perform(self, replica: Replica, action: Action) -> Event | None:
        """Carry out one action on a replica as it was when the action was decided."""
        ...


class JournalPort(Protocol):
    """What the driver needs of the journal."""

    @property
    def read_only(self) -> str | None:
        """Return why operators' commands must be refused, or None."""
        ...

    async def append(self, body: Mapping[str, Any]) -> int:
        """Return the record's number once it is on disk; raises `Unwritable`."""
        ...

    async def probe_writable(self) -> bool:
        """Look at the disk and try to get back to normal; tell whether commands can be taken."""
        ...


class Observer(Protocol):
    """Is told of what was published; for metrics, the log and those who follow events."""

    def changed(self, before: Replica | None, after: Replica, event: Event | str) -> None:
        """Take note that a replica is now `after`; `event` is a word where no event led there."""
        ...

    def recorded(self, seq: int, body: Mapping[str, Any]) -> None:
        """Take note that a record is on disk."""
        ...


@dataclass(slots=True)
class _Lane:
    """The events of one replica, in order."""

    inbox: deque[tuple[Event, asyncio.Future[None] | None]] = field(default_factory=deque)
    busy: bool = False
    busy_since: float = 0.0
    timer: asyncio.TimerHandle | None = None
    story: deque[str] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))


class Driver:
    """Holds the published replicas and moves them on."""

    def __init__(
        self,
        journal: JournalPort,
        effects: Effects,
        observer: Observer,
        *,
        wall: Callable[[], datetime],
        boot: Mapping[str, Any],
    ) -> None:
        """Start with no replicas; must be called with the event loop running. `boot` marks each recorded state."""
        self.replicas: dict[str, Replica] = {}
        self._journal = journal
        self._effects = effects
        self._observer = observer
        self._wall = wall
        self._boot = boot
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[str, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._seen_at = self._began_at = self._loop.time()
        self._changed = asyncio.Event()
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)
        self._behind: set[str] = set()
        self._commits = 0
        self._commits_seen = -1

    # What comes in

    def put(self, name: str, event: Event) -> None:
        """Hand in what happened to a replica; one that is forgotten already hears nothing."""
        self._enqueue(name, event, None)

    async def ask(self, name: str, event: Event) -> None:
        """Hand in an operator's command; return once it is on disk. Raises `Refused`, and then nothing changed."""
        if not await self._journal.probe_writable():
            raise Refused(f"cannot take commands now: {NOT_WRITABLE}: {self._journal.read_only}")
        done: asyncio.Future[None] = self._loop.create_future()
        if not self._enqueue(name, event, done):
            raise Refused(f"cannot take commands for '{name}' any more: it is gone")
        await done

    def introduce(self, replica: Replica, actions: Iterable[Action], word: str, *, existed: bool) -> None:
        """Take in a replica that no event led to: new in the configuration, or one that `existed` and was recovered."""
        lane = self._lanes[replica.name] = _Lane()
        # What was recovered was last looked at when this daemon began; since then it waited for others.
        lane.busy, lane.busy_since = True, self._began_at if existed else self._loop.time()
        if existed:
            self.replicas[replica.name] = replica
        body = {"event": {"type": word}}
        self._run(self._commit(replica.name, None, replica, tuple(actions), (word, None), body))

    async def catch_up(self) -> None:
        """Record the replicas whose last record was lost, once the journal can be written again."""
        for name in sorted(self._behind):
            replica = self.replicas.get(name)
            if replica is None or self._lanes[name].busy:
                continue  # what is being recorded holds the whole state
            with contextlib.suppress(Unwritable):
                await self._record(replica, {"event": {"type": "CaughtUp"}})

    def _enqueue(self, name: str, event: Event, done: asyncio.Future[None] | None) -> bool:
        lane = self._lanes.get(name)
        if lane is None or self._closed:
            return False
        self._note_time()
        lane.inbox.append((event, done))
        self._pump(name, lane)
        return True

    # The one loop

    def _pump(self, name: str, lane: _Lane) -> None:
        while lane.inbox and not lane.busy and not self._closed:
            event, done = lane.inbox.popleft()
            before = self.replicas[name]
            lane.story.append(f"{phase_name(before.phase)} {before.last_run}: {event}")
            after, actions = self._step(before, event, lane)
            # A command that changes nothing is acknowledged at once only if what it asks for is on disk already.
            unsure = done is not None and name in self._behind
            if not unsure and not _must_record(before, after, actions):
                self._publish(name, before, after, event)
                self._act(lane, after, actions)
                if done is not None and not done.done():
                    done.set_result(None)
                continue
            lane.busy, lane.busy_since = True, self._loop.time()
            body = {"event": plain_event(event)}
            self._run(self._commit(name, before, after, actions, (event, done), body))
        self._arm(name, lane)

    def _step(self, before: Replica, event: Event, lane: _Lane) -> tuple[Replica, tuple[Action, ...]]:
        now = self._loop.time()
        try:
            return step(before, event, now)
        except InvalidTransition as error:
            log.exception("impossible event", replica=before.name, story=list(lane.story))
            after, actions = fail_internally(before, str(error), now)
            if isinstance(event, Spawned) and not any(isinstance(action, Kill) for action in actions):
                # A process that nobody waits for any more must not go on unseen.
                actions = (*actions, Kill(event.run))
            return after, actions

    async def _commit(
        self,
        name: str,
        before: Replica | None,
        after: Replica,
        actions: tuple[Action, ...],
        asked: tuple[Event | str, asyncio.Future[None] | None],
        body: dict[str, Any],
    ) -> None:
        event, done = asked
        lane = self._lanes[name]
        try:
            await self._record(after, body)
        except Exception as error:  # noqa: BLE001 - whatever the journal suffers from, what happened has happened
            why = error.why if isinstance(error, Unwritable) else repr(error)
            self._behind.add(name)
            if done is not None:
                if not done.done():
                    done.set_exception(Refused(f"cannot take commands now: {NOT_WRITABLE}: {why}"))
                self._go_on(name, lane)
                return
            log.warning("record lost", replica=name, error=why, why=after.reason)
        self._publish(name, before, after, event)
        self._act(lane, after, actions)
        if done is not None and not done.done():
            done.set_result(None)
        self._go_on(name, lane)

    def _go_on(self, name: str, lane: _Lane) -> None:
        """Take the next event after a record; what was not looked at while a slow disk took it is no evidence."""
        lane.busy = False
        waited_s = self._loop.time() - lane.busy_since
        if waited_s > LAG_LIMIT_S and self._lanes.get(name) is lane:
            lane.inbox.appendleft((Lagged(waited_s), None))
        self._pump(name, lane)

    async def _record(self, replica: Replica, body: dict[str, Any]) -> None:
        body |= {
            "kind": "replica",
            "at": round(self._loop.time(), 6),
            "wall": self._wall().isoformat(timespec="milliseconds"),
            "replica": replica.name,
            "run": replica.last_run,
            "why": replica.reason,
            "state": None if is_gone(replica) else durable(replica) | {"boot": self._boot},
        }
        seq = await self._journal.append(body)
        self._behind.discard(replica.name)
        self._commits += 1
        self._tell(self._observer.recorded, seq, body)

    def _publish(self, name: str, before: Replica | None, after: Replica, event: Event | str) -> None:
        if after is before:
            return
        lane = self._lanes[name]
        if is_gone(after) and not any(isinstance(waiting, Respecified) for waiting, _done in lane.inbox):
            self.replicas.pop(name, None)
            del self._lanes[name]
            if lane.timer is not None:
                lane.timer.cancel()
            for _event, done in lane.inbox:
                if done is not None and not done.done():
                    done.set_exception(Refused(f"cannot take commands for '{name}' any more: it is gone"))
            lane.inbox.clear()
        else:
            self.replicas[name] = after
        self._changed.set()
        self._tell(self._observer.changed, before, after, event)

    @staticmethod
    def _tell(what: Callable[..., None], *about: object) -> None:
        """Tell the observer, who must not be able to keep anything from happening."""
        try:
            what(*about)
        except Exception:
            log.exception("observer failed")

    def _act(self, lane: _Lane, replica: Replica, actions: Iterable[Action]) -> None:
        for action in actions:
            self._run(self._perform(lane, replica, action))

    async def _perform(self, lane: _Lane, replica: Replica, action: Action) -> None:
        try:
            event = await self._effects.perform(replica, action)
        except Exception as error:
            log.exception("effect failed", replica=replica.name, action=str(action))
            event = failed_effect(action, error, replica)
        # A replica that was forgotten and declared again meanwhile is another one.
        if event is not None and self._lanes.get(replica.name) is lane:
            self.put(replica.name, event)

    def _run(self, coroutine: Any) -> None:  # noqa: ANN401 - any coroutine
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Time

    def _arm(self, name: str, lane: _Lane) -> None:
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        replica = self.replicas.get(name)
        due = deadline(replica) if replica is not None and not lane.busy else None
        if due is not None and not self._closed and self._lanes.get(name) is lane:
            lane.timer = self._loop.call_at(due, self.put, name, Ticked())

    def _beat(self) -> None:
        self._note_time()
        self._heart = self._loop.call_later(HEARTBEAT_S, self._beat)

    def _note_time(self) -> None:
        """See whether the daemon itself stood still; then nothing that it missed is evidence."""
        now = self._loop.time()
        gap_s, self._seen_at = now - self._seen_at, now
        if gap_s > HEARTBEAT_S + LAG_LIMIT_S:
            log.warning("got no CPU", gap_s=round(gap_s, 3))
            for name, lane in list(self._lanes.items()):
                lane.inbox.appendleft((Lagged(gap_s), None))
                self._pump(name, lane)

    # Waiting and leaving

    async def until(self, condition: Callable[[Mapping[str, Replica]], bool]) -> None:
        """Return when the published replicas fulfil the condition."""
        while not condition(self.replicas):
            self._changed.clear()
            await self._changed.wait()

    def known(self) -> list[str]:
        """Return the names of all replicas, those included that are still being taken in and not published yet."""
        return list(self._lanes)

    def unsettled(self) -> set[str]:
        """Return the replicas of which what is published is not the last word."""
        return {name for name, lane in self._lanes.items() if lane.busy or lane.inbox}

    def progressing(self) -> bool:
        """Tell whether anything was recorded since this was last asked, or nothing waits to be."""
        seen, self._commits_seen = self._commits_seen, self._commits
        return self._commits != seen or not any(lane.busy for lane in self._lanes.values())

    async def close(self) -> None:
        """Stop driving. Effects are given up; processes are not touched."""
        self._closed = True
        self._heart.cancel()
        for lane in self._lanes.values():
            if lane.timer is not None:
                lane.timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _must_record(before: Replica, after: Replica, actions: tuple[Action, ...]) -> bool:
    if any(not isinstance(action, Probe | Recheck) for action in actions):
        return True
    return after is not before and not same(before, after)
