"""Tests of the core as scripts: what goes in, what must come out.

    play(
        replica(want=Want.DOWN),
        at(0, StartAsked(), "resolving", Resolve(1)),
        at(1, resolved(), "spawning", Spawn(1)),
    )

Every scene is also checked against `invariants`. A mismatch shows the script up to it, and then both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from core import invariants
from core.samples import probed, replica, resolved, spawned
from modelsupd.core.actions import Action, Probe, Resolve, Spawn, Watch
from modelsupd.core.events import Event, Outcome, ProbeKind, StartAsked, Ticked, Vitals
from modelsupd.core.phases import Replica, Want, phase_name
from modelsupd.core.replica import InvalidTransition, step

DOWN = replica(want=Want.DOWN)


@dataclass(frozen=True)
class Scene:
    """One event and what must follow: the phase, the actions, and part of the reason where it matters."""

    at_s: float
    event: Event
    phase: str
    actions: tuple[Action, ...]
    reason: str


def at(at_s: float, event: Event, phase: str, *actions: Action, reason: str = "") -> Scene:
    """Return a scene of a script."""
    return Scene(at_s, event, phase, actions, reason)


def play(current: Replica, *scenes: Scene) -> Replica:
    """Give each event to the replica, compare what comes out, and return the replica after the last one."""
    story = [f"  {phase_name(current.phase)}, wanted {current.want}"]
    for scene in scenes:
        story.append(f"  {scene.at_s:>8.2f} s  {scene.event}")
        try:
            after, actions = step(current, scene.event, scene.at_s)
        except InvalidTransition as impossible:
            pytest.fail("\n".join([*story, f"        impossible: {impossible}"]), pytrace=False)
        wanted = _words(scene.phase, scene.actions, scene.reason)
        got = _words(phase_name(after.phase), actions, after.reason if scene.reason else "")
        if (phase_name(after.phase), actions) != (scene.phase, scene.actions) or scene.reason not in after.reason:
            lines = [*story, f"      - {wanted}", f"      + {got}", f"        now: {after.phase}, {after.reason!r}"]
            pytest.fail("\n".join(["the script and the core differ:", *lines]), pytrace=False)
        invariants.check_step(current, scene.event, after, actions, scene.at_s)
        story.append(f"              {got}")
        current = after
    return current


def _words(phase: str, actions: tuple[Action, ...], reason: str) -> str:
    return "  ".join([phase, *map(str, actions), repr(reason) if reason else ""]).rstrip()


def impossible(current: Replica, event: Event, now: float) -> str:
    """Give an event that cannot happen; return the story that it tells."""
    with pytest.raises(InvalidTransition) as caught:
        step(current, event, now)
    return str(caught.value)


def probe(kind: ProbeKind, run: int = 1) -> Probe:
    """Return the action for one probe."""
    return Probe(run, kind, 10)


def tokens(run: int = 1) -> Event:
    """Return the report that a start has generated."""
    return probed(Outcome.TOKENS, ProbeKind.START, run=run)


def drained(in_flight: int) -> Event:
    """Return what a look while draining found in flight."""
    return probed(Outcome.ANSWERED, ProbeKind.DRAIN, vitals=Vitals(in_flight=in_flight))


def ready_at(second: float = 2, run: int = 1, before: Replica | None = None) -> Replica:
    """Return a replica whose run became ready at `second`."""
    before = before or DOWN
    return play(
        replace(before, last_run=run - 1),
        at(0, StartAsked(), "resolving", Resolve(run)),
        at(0.1, resolved(run), "spawning", Spawn(run)),
        at(0.2, spawned(run), "starting", Watch(run)),
        at(0.2, Ticked(), "starting", probe(ProbeKind.START, run)),
        at(second, tokens(run), "ready", reason="generates: it was tokens"),
    )
