"""Tests of the core as scripts: what goes in, what must come out.

    play(
        replica(want=Want.DOWN),
        at(0, StartAsked(), "resolving", Resolve(1)),
        at(1, resolved(), "spawning", Spawn(1)),
    )

Every scene is also checked against `invariants`. A mismatch shows the script up to it, and then both.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from core import invariants
from modelsupd.core.actions import Action
from modelsupd.core.events import Event
from modelsupd.core.phases import Replica, phase_name
from modelsupd.core.replica import InvalidTransition, step


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


def play(replica: Replica, *scenes: Scene) -> Replica:
    """Give each event to the replica, compare what comes out, and return the replica after the last one."""
    story = [f"  {phase_name(replica.phase)}, wanted {replica.want}"]
    for scene in scenes:
        story.append(f"  {scene.at_s:>8.2f} s  {scene.event}")
        try:
            after, actions = step(replica, scene.event, scene.at_s)
        except InvalidTransition as impossible:
            pytest.fail("\n".join([*story, f"        impossible: {impossible}"]), pytrace=False)
        wanted = _words(scene.phase, scene.actions, scene.reason)
        got = _words(phase_name(after.phase), actions, after.reason if scene.reason else "")
        if (phase_name(after.phase), actions) != (scene.phase, scene.actions) or scene.reason not in after.reason:
            lines = [*story, f"      - {wanted}", f"      + {got}", f"        now: {after.phase}, {after.reason!r}"]
            pytest.fail("\n".join(["the script and the core differ:", *lines]), pytrace=False)
        invariants.check_step(replica, scene.event, after, actions, scene.at_s)
        story.append(f"              {got}")
        replica = after
    return replica


def _words(phase: str, actions: tuple[Action, ...], reason: str) -> str:
    return "  ".join([phase, *map(str, actions), repr(reason) if reason else ""]).rstrip()


def impossible(replica: Replica, event: Event, now: float) -> str:
    """Give an event that cannot happen; return the story that it tells."""
    with pytest.raises(InvalidTransition) as caught:
        step(replica, event, now)
    return str(caught.value)
