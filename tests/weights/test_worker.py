"""What a worker does beside its job, and what it is given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hosts import settled, small_gguf
from hub_faults import Pause
from mock_hub import MockHub
from modelsupd.core.events import Failure, FailureClass
from modelsupd.runtime.fetching import worker_env
from modelsupd.weights.base import HubSource, LocalSource, Part, Progress, Role, Settings
from modelsupd.weights.verdicts import Verdicts
from modelsupd.weights.wire import Finished, Job, job_line, read_report, report_line


def test_a_worker_throws_away_what_nobody_asked_for_in_months(place: Path) -> None:
    settings = Settings(place / "hub", place / "state")
    forgotten = Verdicts(settings.state_dir).folder / "1-2-3-4"
    forgotten.parent.mkdir(parents=True)
    settled(forgotten, b"{}")
    path = settled(place / "w.gguf", small_gguf())
    job = Job((Part(Role.WEIGHTS, LocalSource(path)),), (None,), settings, "llama.cpp")
    command = [sys.executable, "-I", "-m", "modelsupd.weights.worker"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=worker_env(os.environ)) as worker:
        assert worker.stdin
        assert worker.stdout
        # It is held open: its end is the daemon's, and would stop the worker.
        worker.stdin.write(job_line(job))
        worker.stdin.flush()
        said = worker.stdout.read()
    assert read_report(said.splitlines()[-1]) == Finished()
    assert [kept.name for kept in forgotten.parent.iterdir()] != []
    assert not forgotten.exists()


def test_a_worker_tells_how_far_it_has_come_before_a_hub_falls_silent(place: Path) -> None:
    held = Pause(only_from=3 << 16)
    with MockHub() as hub:
        repo = hub.add("org/m", {"m.gguf": small_gguf(size_bytes=1 << 20)}, lfs={"m.gguf"})
        hub.faults["org/m/m.gguf"] = held
        limits: dict[str, Any] = {"part_bytes": 1 << 16, "min_free_bytes": 0, "stall_timeout_s": 20, "attempts": 1}
        settings = Settings(place / "hub", place / "state", endpoint=hub.url, **limits)
        job = Job((Part(Role.WEIGHTS, HubSource("org/m", file="m.gguf")),), (None,), settings, "llama.cpp")
        command, pipe = [sys.executable, "-I", "-m", "modelsupd.weights.worker"], subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=worker_env(os.environ)) as worker:
            assert worker.stdin
            assert worker.stdout
            worker.stdin.write(job_line(job))
            worker.stdin.flush()
            reports = (read_report(line) for line in worker.stdout)
            told = next(each for each in reports if isinstance(each, Progress) and each.done_bytes >= 3 << 16)
            assert told.total_bytes == repo.file("m.gguf").size
            held.go.set()
            assert [*reports][-1] == Finished()


def test_a_worker_uses_the_tokens_that_the_command_line_would_use_and_no_other() -> None:
    given = {"HUGGING_FACE_HUB_TOKEN": "hf_x", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "PYTHONPATH": "/elsewhere"}
    passed = worker_env(given)
    assert "PYTHONPATH" not in passed
    assert given.items() - passed.items() == {("PYTHONPATH", "/elsewhere")}


def test_a_worker_of_another_release_is_understood_whether_it_tells_of_waiting_or_not() -> None:
    """An upgrade, or a way back, replaces the worker's code under a daemon that runs on."""
    failed = Finished(Failure(FailureClass.UNREACHABLE, "cannot fetch it: hub answers 429", 7.0))
    assert read_report(report_line(failed)) == failed
    told = json.loads(report_line(failed))
    del told["failure"]["retry_after_s"]
    told["failure"]["of a later release"] = 1
    kind, detail = FailureClass.UNREACHABLE, "cannot fetch it: hub answers 429"
    assert read_report(json.dumps(told).encode()) == Finished(Failure(kind, detail, None))
    assert read_report(json.dumps(told | {"v": 2}).encode()) is None
    assert read_report(b"a library's own words") is None
