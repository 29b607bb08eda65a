"""A small world to look at from outside: a port of plain data, and replicas moved on by the core itself."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from modelsupd.control.port import LaunchPlan
from modelsupd.control.words import Timeline
from modelsupd.core.demand import Usage
from modelsupd.core.events import (
    Event,
    Exit,
    Exited,
    Failure,
    FailureClass,
    Outcome,
    Probed,
    ProbeKind,
    Process,
    Resolved,
    Spawned,
    Vitals,
)
from modelsupd.core.fleet import Declared, fresh, targets
from modelsupd.core.phases import Replica
from modelsupd.core.preview import preview
from modelsupd.core.record import durable, plain_event
from modelsupd.core.replica import step
from modelsupd.core.spec import Engine, ModelSpec
from modelsupd.errors import Refused
from modelsupd.weights.base import Progress

#: The wall time of instant 0.
EPOCH = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

SPEC = ModelSpec(engine=Engine.COMMAND, command=("serve", "{socket}"), aliases=("gpt",), env={"API_TOKEN": "hidden"})


def wall(at: float) -> datetime:
    return EPOCH + timedelta(seconds=at)


class Tape:
    """A replica and the journal records of all that happened to it, as the driver would write them."""

    def __init__(self, name: str = "tiny/0", spec: ModelSpec = SPEC) -> None:
        self.records: list[dict[str, Any]] = []
        self.replica, _ = fresh(name, name.rpartition("/")[0], Declared(spec, "d1"), 0.0)
        self._record({"type": "Declared"}, 0.0)

    def now(self, event: Event, at: float) -> Replica:
        """Let an event happen at an instant."""
        before = self.replica
        self.replica, actions = step(before, event, at)
        if durable(self.replica) != durable(before) or actions:
            self._record(plain_event(event), at)
        return self.replica

    def up(self, at: float, pid: int = 100) -> None:
        """Bring the run that is being resolved to ready, which takes 2 s."""
        self.spawned_first(at + 0.2, pid)
        self.probed(Outcome.TOKENS, "4 tokens in 20 ms", at + 2)

    def spawned_first(self, at: float, pid: int = 100) -> None:
        """Let the run that is being resolved be resolved and spawned."""
        self.resolved_first(at - 0.1)
        run = self.replica.last_run
        process = Process(run, pid, pid - 1, f"unix:/run/m/runs/x-{run}/engine.sock", self.replica.digest)
        self.now(Spawned(run, process), at)

    def resolved_first(self, at: float) -> None:
        """Let weights and binary be found."""
        self.now(Resolved(self.replica.last_run, self.replica.digest, "inputs"), at)

    def probed(self, outcome: Outcome, evidence: str, at: float, kind: ProbeKind = ProbeKind.START) -> None:
        vitals = Vitals()
        self.now(Probed(self.replica.last_run, kind, outcome, evidence, vitals, vitals, 0.02), at)

    def died(self, at: float, kind: FailureClass = FailureClass.CRASH, detail: str = "exit code 1") -> None:
        end = Exit(code=1, peak_rss_bytes=300 * 1024**2, cpu_s=1.5)
        self.now(Exited(self.replica.last_run, end, Failure(kind, detail), cleared=True), at)

    def timeline(self, at: float) -> Timeline:
        return Timeline(at, wall(at), wall(at))

    def _record(self, event: dict[str, Any], at: float) -> None:
        self.records.append(
            {
                "v": 1,
                "seq": len(self.records) + 1,
                "kind": "replica",
                "at": at,
                "wall": wall(at).isoformat(timespec="milliseconds"),
                "replica": self.replica.name,
                "run": self.replica.last_run,
                "event": event,
                "why": self.replica.reason,
                "state": durable(self.replica),
            }
        )


class MemoryPort:
    """What the admin API and the metrics need of a daemon, from plain data."""

    def __init__(self, place: Path, *tapes: Tape) -> None:
        self.version = "1.2.3"
        self.pid = os.getpid()
        self.started_at = 0.0
        self.state_dir = place / "state"
        self.runtime_dir = place / "run"
        self.tapes = {tape.replica.name: tape for tape in tapes}
        self.read_only: str | None = None
        self.refusal: str | None = None
        self.progress: dict[str, Progress] = {}
        self.cards: list[dict[str, Any]] = []
        self.gpu_commands: list[tuple[str, str, str, str]] = []
        self.changed: dict[str, str] = {}
        self.reloads: list[Exception | tuple[str, ...]] = []
        self.commands: list[tuple[str, str, str]] = []
        self._log = [record for tape in tapes for record in tape.records]
        self._waiting: set[asyncio.Event] = set()

    def now(self) -> float:
        return 60.0

    def wall(self, at: float) -> datetime:
        return wall(at)

    def replicas(self) -> Mapping[str, Replica]:
        return {name: tape.replica for name, tape in self.tapes.items()}

    async def plan(self, target: str) -> Sequence[Mapping[str, Any]]:
        names = targets(self.replicas(), target)
        found = preview(self.replicas(), (), Usage(known=True), self.now(), dict.fromkeys(names))
        return [dataclasses.asdict(each) for each in found]

    def models(self) -> Mapping[str, ModelSpec]:
        return {tape.replica.model: tape.replica.spec for tape in self.tapes.values() if not tape.replica.removed}

    def fetching(self) -> Mapping[str, Progress]:
        return self.progress

    async def gateway_metrics(self) -> bytes:
        return b""

    def gateway(self) -> Mapping[str, Any] | None:
        return None

    def gpus(self) -> Sequence[Mapping[str, Any]]:
        return self.cards

    async def look_at_gpus(self) -> tuple[Sequence[Mapping[str, Any]], Sequence[str]]:
        return self.cards, ("nvidia: no driver",)

    async def gpu_command(self, verb: str, target: str, by: str, why: str) -> str:
        self.gpu_commands.append((verb, target, by, why))
        return f"GPU-{target}"

    def changes(self) -> Mapping[str, str]:
        return self.changed

    def journal(self) -> tuple[int, str | None]:
        return len(self._all()), self.read_only

    async def command(self, verb: str, target: str, by: str) -> tuple[str, ...]:
        names = targets(self.replicas(), target)
        if self.refusal:
            raise Refused(self.refusal)
        self.commands.append((verb, target, by))
        return names

    async def reload(self) -> tuple[str, ...]:
        result = self.reloads.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    def launch_plan(self, replica: str) -> LaunchPlan:
        spec = self.tapes[replica].replica.spec
        env = {"PATH": "/bin", "HOME": "/tmp", "MODELSUPD_RUN": "mark", **spec.env}
        return LaunchPlan(("/bin/serve", "--api-key", "hidden", "it's"), env, frozenset(spec.env))

    async def records(self, after_seq: int) -> AsyncIterator[Mapping[str, Any]]:
        seen = after_seq
        while True:
            for record in self._all()[seen:]:
                yield record
                seen += 1
            more = asyncio.Event()
            self._waiting.add(more)
            try:
                await more.wait()
            finally:
                self._waiting.discard(more)

    def append(self, event: Event, at: float) -> None:
        """Let an event happen to the only replica, seen by those who follow."""
        tape = next(iter(self.tapes.values()))
        told = len(tape.records)
        tape.now(event, at)
        self._log += tape.records[told:]
        for more in self._waiting:
            more.set()

    def _all(self) -> list[dict[str, Any]]:
        return [{**record, "seq": number} for number, record in enumerate(self._log, 1)]
