"""What is looked for and fetched before a run, when the world changes meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from modelsupd.core.actions import Resolve
from modelsupd.core.events import Failure, FailureClass, Resolved, Unresolved
from modelsupd.core.phases import Replica, Resolving, Want
from modelsupd.core.spec import Engine, ModelSpec
from modelsupd.engines.base import Files
from modelsupd.runtime.effects import RuntimeEffects
from modelsupd.runtime.inputs import Inputs
from modelsupd.weights.base import Settings
from modelsupd.weights.wire import Job

OLD = Job((), (), Settings(Path("/old"), Path("/state")), "command")
NEW = replace(OLD, settings=Settings(Path("/new"), Path("/state")))
SPEC = ModelSpec(engine=Engine.COMMAND, command=("/bin/true", "{weights}"))
WHOLE = Inputs("/bin/true", "print", None, Files("/weights"))


def needing(job: Job) -> Inputs:
    return replace(WHOLE, job=job, todo="it is missing")


class Fetching:
    """Does jobs at once, and notes them."""

    def __init__(self, failure: Failure | None = None) -> None:
        self.did: list[Job] = []
        self._failure = failure

    async def make_whole(self, _name: str, job: Job) -> Failure | None:
        self.did.append(job)
        return self._failure


def effects(fetches: Fetching) -> RuntimeEffects:
    return RuntimeEffects(mock.Mock(), fetches, dict, mock.Mock(), mock.Mock(), mock.Mock())  # type: ignore[arg-type]  # as much of it as is asked


def resolving(run: int = 1) -> Replica:
    return Replica(
        name="m/0", model="m", spec=SPEC, digest="d1d1", want=Want.UP, phase=Resolving(0.0, run), last_run=run
    )


def looks(monkeypatch: pytest.MonkeyPatch, under_test: RuntimeEffects, *seen: Inputs) -> None:
    monkeypatch.setattr(under_test, "_look", mock.AsyncMock(side_effect=seen))


@pytest.mark.parametrize("failure", [None, Failure(FailureClass.WEIGHTS_UNAVAILABLE, "cannot fetch it")])
def test_a_lock_that_changes_during_a_fetch_is_followed(
    monkeypatch: pytest.MonkeyPatch, failure: Failure | None
) -> None:
    fetches = Fetching(failure)
    under_test = effects(fetches)
    looks(monkeypatch, under_test, needing(OLD), needing(NEW), WHOLE)
    event = asyncio.run(under_test.perform(resolving(), Resolve(1)))
    assert isinstance(event, Resolved)
    assert fetches.did == [OLD, NEW]


def test_weights_that_change_all_the_time_are_no_fault_of_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = Fetching()
    under_test = effects(fetches)
    looks(monkeypatch, under_test, needing(OLD), needing(OLD))
    event = asyncio.run(under_test.perform(resolving(), Resolve(1)))
    assert isinstance(event, Unresolved)
    assert event.failure.kind is FailureClass.UNREACHABLE
    assert "it is missing; something else changes the files" in event.failure.detail
    assert fetches.did == [OLD]


def test_an_older_look_that_ends_late_does_not_tell_a_newer_run_what_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    under_test = effects(Fetching())

    async def both() -> list[object]:
        late = asyncio.Event()

        async def look(replica: Replica) -> Inputs:
            if replica.last_run == 1:
                await late.wait()
                return replace(WHOLE, files=Files("/older"))
            return WHOLE

        monkeypatch.setattr(under_test, "_look", look)
        older = asyncio.create_task(under_test.perform(resolving(1), Resolve(1)))
        await asyncio.sleep(0)
        newer = await under_test.perform(resolving(2), Resolve(2))
        late.set()
        return [await older, newer]

    older, newer = asyncio.run(both())
    assert isinstance(older, Unresolved)
    assert isinstance(newer, Resolved)
    assert under_test.launch(resolving(2), 2).argv[-1] == "/weights"
