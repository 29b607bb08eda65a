"""A recovery to test with: one replica, its record, what is found of it, and two boots."""

from __future__ import annotations

import json
from typing import Any

from core import invariants
from core.samples import DIGEST, SPEC
from modelsupd.core.actions import Action
from modelsupd.core.events import Process
from modelsupd.core.fleet import Declared
from modelsupd.core.phases import Replica
from modelsupd.core.record import durable
from modelsupd.core.recovery import Boot, recover

NOW = 2000.0
SAME = Boot(NOW, "this boot", 5000.0)
OTHER = Boot(50.0, "another boot", 6950.0)
DECLARED = {"m": Declared(SPEC, DIGEST)}


def states(before: Replica) -> dict[str, Any]:
    """Return what the journal would hold of it."""
    recorded: dict[str, Any] = json.loads(json.dumps({before.name: durable(before) | {"boot": SAME.mark}}))
    return recorded


def resume(
    before: Replica | None,
    found: tuple[Process, ...] = (),
    boot: Boot = SAME,
    highest: int = 0,
    declared: dict[str, Declared] | None = None,
) -> tuple[Replica, tuple[Action, ...], tuple[tuple[str, Process], ...]]:
    """Recover `m/0` and check what it becomes."""
    recorded = states(before) if before else {}
    runs = {"m/0": list(found)} if found else {}
    recovered = recover(recorded, runs, {"m/0": highest}, DECLARED if declared is None else declared, boot)
    after = recovered.replicas["m/0"]
    invariants.check_state(after, boot.now)
    assert not invariants.wanted_idle(after)
    return after, recovered.actions["m/0"], recovered.strays
