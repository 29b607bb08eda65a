"""Names and digests that outlive a version: the journal holds them, clients and configurations use them.

A newer version reads what an older one wrote. Renaming a member here makes every record that holds it unreadable, and
another digest of the same declaration restarts every engine on the day of the upgrade.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Any

import pytest

from modelsupd.core.events import FailureClass, Outcome, ProbeKind
from modelsupd.core.gpu_spec import PlacementSpec, Strategy
from modelsupd.core.phases import Reason, Want
from modelsupd.core.spec import Capability, Engine, LogLimits, ModelSpec, ProbeRequest, Start, launch_digest


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            FailureClass,
            """
            crash hung start-stalled out-of-memory out-of-gpu-memory address-in-use bad-flag bad-weights
            unsupported-model missing-library missing-binary spawn no-space unreachable gpu-lost
            weights-unavailable internal
            """,
        ),
        (ProbeKind, "start alive generation drain"),
        (Outcome, "tokens answered busy loading refused no-tokens failed timed-out asleep void"),
        (Want, "up down"),
        (Reason, "operator restart replaced removed shutdown evicted sleep stray"),
        (Engine, "llama.cpp llama-cpp-python vllm command gateway"),
        (Start, "always on-demand manual"),
        (Strategy, "spread pack"),
        (Capability, "chat images audio tools embedding rerank"),
        (ProbeRequest, "completion chat embedding"),
    ],
)
def test_names_stay_what_they_are(kind: type[StrEnum], names: str) -> None:
    assert [member.value for member in kind] == names.split()


SMALL = ModelSpec(engine=Engine.LLAMA_CPP, weights="/w.gguf")


def test_the_digest_of_a_declaration_stays_what_it_is() -> None:
    assert launch_digest(SMALL) == "04cb97ba964de197"
    assert (
        launch_digest(replace(SMALL, args={"b": 1, "a": (2,)}, env={"Z": "1", "Y": "2"}), "/bin/x")
        == "839e733450e645a3"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"engine": Engine.COMMAND},
        {"weights": "/other.gguf"},
        {"command": ("x",)},
        {"binary": "/b"},
        {"gpus": 1},
        {"gpus": ("GPU-1",)},
        {"args": {"a": 1}},
        {"env": {"A": "1"}},
        {"log": LogLimits(files=1)},
        {"mmproj": "/m.gguf"},
        {"draft": "/d.gguf"},
        {"lora": ("/l.gguf",)},
        {"lora_scales": (0.5,)},
        {"allow": ("*.gguf",)},
        {"ignore": ("*.bin",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_an_engine_is_started_with_is_in_its_digest(change: dict[str, Any]) -> None:
    changed = launch_digest(replace(SMALL, **change))
    assert changed != launch_digest(SMALL)
    assert len(changed) == 16


def test_what_is_given_from_outside_is_in_the_digest_too() -> None:
    plain = launch_digest(SMALL)
    assert launch_digest(SMALL, "/b") == launch_digest(replace(SMALL, binary="/b")) != plain
    assert launch_digest(replace(SMALL, binary="/b"), "/other") == launch_digest(SMALL, "/b")


def test_what_is_the_supervisors_own_is_not_in_the_digest() -> None:
    assert launch_digest(replace(SMALL, aliases=("x",), replicas=3, start=Start.MANUAL)) == launch_digest(SMALL)
    assert launch_digest(replace(SMALL, sha256="0" * 64)) == launch_digest(SMALL)
    assert launch_digest(replace(SMALL, placement=PlacementSpec(vram_bytes=1))) == launch_digest(SMALL)
