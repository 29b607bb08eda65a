"""A hub with a repository of several files, and a host whose weights jobs make whole."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from hub_world import alone  # noqa: F401 - an automatic fixture
from mock_hub import MockHub, Repo
from modelsupd.core.events import FailureClass
from modelsupd.weights.base import (
    FileDone,
    HubSource,
    Part,
    Pinned,
    Progress,
    Role,
    Settings,
    WeightsError,
)
from modelsupd.weights.cache import Repo as Cached
from modelsupd.weights.job import carry_out
from modelsupd.weights.look import Look, look
from modelsupd.weights.wire import Job, job_line, read_job

NAME = "org/name"


def safetensors(seed: int = 0, name: str = "t") -> bytes:
    """Return a file of one tensor with 1024 bytes."""
    header = json.dumps({name: {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([seed]) * 1024


FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": safetensors(1, "a"),
    "model-00002-of-00002.safetensors": safetensors(2, "b"),
    "model.safetensors.index.json": json.dumps(
        {
            "metadata": {"total_size": 2048},
            "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
        }
    ).encode(),
    "pytorch_model.bin": b"the same in another format",
    "README.md": b"hello",
}
LARGE = {name for name in FILES if name.endswith((".safetensors", ".bin"))}
WANTED = FILES.keys() - {"pytorch_model.bin", "README.md"}
WHOLE = Part(Role.WEIGHTS, HubSource(NAME))


class World:
    """A hub, and a host whose weights are made whole."""

    def __init__(self, hub: MockHub, place: Path) -> None:
        self.hub, self.place = hub, place
        self.repo: Repo = hub.add(NAME, FILES, lfs=LARGE)
        self.settings = Settings(
            place / "hub",
            place / "state",
            hub.url,
            attempts=2,
            backoff_initial_s=0.01,
            backoff_max_s=0.02,
            stall_timeout_s=10,
            min_free_bytes=0,
        )
        self.told: list[Progress | FileDone] = []

    def look(self, part: Part = WHOLE, locked: Pinned | None = None, engine: str = "vllm") -> Look:
        return look((part,), (locked,), self.settings, engine)

    def work(self, part: Part = WHOLE, locked: Pinned | None = None, engine: str = "vllm", **changed: Any) -> Pinned:  # noqa: ANN401 - settings of any type
        job = Job((part,), (locked,), replace(self.settings, **changed), engine)
        assert read_job(job_line(job)) == job, "what the worker reads is what the daemon meant"
        return carry_out(job, self.told.append, threading.Event())[0]

    def refused(self, kind: FailureClass, part: Part = WHOLE, **how: Any) -> str:  # noqa: ANN401 - as `work` takes it
        with pytest.raises(WeightsError) as caught:
            self.work(part, **how)
        assert caught.value.kind is kind, caught.value
        assert not self.look(part, how.get("locked"), how.get("engine", "vllm")).evidence
        return str(caught.value)

    def blob(self, name: str) -> Path:
        return Cached(self.settings.cache_dir, NAME).folder / "blobs" / self.repo.file(name).etag


@pytest.fixture
def world(place: Path) -> Iterator[World]:
    with MockHub() as hub:
        yield World(hub, place)


def by_hub(world: World, **how: object) -> Path:
    """Have huggingface_hub fill the cache, a while ago: what was just written is not verified before it has settled."""
    given: dict[str, object] = {"cache_dir": world.settings.cache_dir, "endpoint": world.hub.url, "token": False, **how}
    snapshot = Path(huggingface_hub.snapshot_download(NAME, **given))  # type: ignore[call-overload]  # any of its many
    for blob in (snapshot.parent.parent / "blobs").iterdir():
        os.utime(blob, (1.7e9, 1.7e9))
    return snapshot
