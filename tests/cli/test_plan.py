"""`modelsupd plan`, against the admin API over a small world."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop
from click.testing import CliRunner, Result

from control_world import SPEC, MemoryPort, Tape
from modelsupd.cli.place import exit_status
from modelsupd.cli.plan import lines
from modelsupd.cli.root import cli
from modelsupd.control.server import serve
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.events import Demanded, Outcome, Placed, Process, Spawned
from modelsupd.core.spec import Start

ALONE = DemandSpec(group="g", excludes=("g",))


def tape(name: str, **demand: object) -> Tape:
    """Return one of a group of which one runs at a time."""
    return Tape(name, replace(SPEC, aliases=(), start=Start.ON_DEMAND, demand=replace(ALONE, **demand)))  # type: ignore[arg-type]  # settings by name


def up(found: Tape) -> Tape:
    """Bring one that is asked for to ready, at 5 s."""
    found.now(Demanded("clients"), 1)
    found.resolved_first(2)
    found.now(Placed(1, None), 3)
    found.now(Spawned(1, Process(1, 100, 99, "unix:/x.sock", "d1")), 4)
    found.probed(Outcome.TOKENS, "4 tokens", 5)
    return found


def planned(place: Path, tapes: tuple[Tape, ...], *words: str) -> Result:
    """Ask a daemon with these replicas, at 60 s of its clock."""

    async def main() -> Result:
        port = MemoryPort(place, *tapes)
        close = await serve(port, port.runtime_dir)
        try:
            return await asyncio.to_thread(invoked, place, *words)
        finally:
            await close()

    return uvloop.run(main())


def invoked(place: Path, *words: str) -> Result:
    where = ["--state-dir", str(place / "state"), "--runtime-dir", str(place / "run")]
    return CliRunner().invoke(cli, [*where, "plan", *words], prog_name="modelsupd")


def test_one_that_runs_and_one_that_starts_are_told_in_words(place: Path) -> None:
    done = planned(place, (up(tape("a/0")),), "--want", "a")
    assert (done.exit_code, done.output) == (0, "a/0 is ready: generates: 4 tokens\n")
    done = planned(place, (tape("a/0"),), "--want", "a/0")
    assert (done.exit_code, done.output) == (0, "a/0 starts at once\n")


def test_who_would_give_way_is_told(place: Path) -> None:
    done = planned(place, (up(tape("a/0")), tape("b/0")), "--want", "b")
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "b/0 starts when these have given way:",
        "  a/0: idle for 55 s, its last start took 1.0 s",
    ]


def test_one_that_would_wait_says_why_and_ends_with_1(place: Path) -> None:
    done = planned(place, (up(tape("a/0", pinned=True)), tape("b/0")), "--want", "b")
    assert (done.exit_code, done.output) == (1, "b/0 waits: never beside a/0: a/0 is pinned\n")


def test_the_daemons_answer_for_scripts(place: Path) -> None:
    done = planned(place, (up(tape("a/0")), tape("b/0")), "--want", "b", "--json")
    assert done.exit_code == 0
    assert json.loads(done.output) == [
        {
            "name": "b/0",
            "verdict": "evicts",
            "gpus": [],
            "evicts": [{"name": "a/0", "idle_s": 55.0, "start_s": 1.0}],
            "closes": [],
            "why": "a/0 gives way",
        }
    ]
    done = planned(place, (up(tape("a/0", pinned=True)), tape("b/0")), "--want", "b", "--json")
    assert (done.exit_code, json.loads(done.output)[0]["verdict"]) == (1, "waits")


def test_of_several_replicas_one_that_waits_decides_the_status(place: Path) -> None:
    several = up(tape("a/0")), tape("a/1", excludes=("b",)), up(tape("b/0", pinned=True, group=None, excludes=()))
    done = planned(place, several, "--want", "a")
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "a/0 is ready: generates: 4 tokens",
        "a/1 waits: never beside b/0: b/0 is pinned",
    ]


def test_an_unknown_model_is_wrong_use_and_no_daemon_is_3(place: Path) -> None:
    unknown = planned(place, (tape("a/0"),), "--want", "aa")
    assert unknown.exception is not None
    assert exit_status(unknown.exception) == 2  # type: ignore[arg-type]  # an Exception, as `cli` raises them
    assert "did you mean 'a'?" in str(unknown.exception)
    nobody = invoked(place, "--want", "a")
    assert nobody.exception is not None
    assert exit_status(nobody.exception) == 3  # type: ignore[arg-type]  # the same
    assert invoked(place).exit_code == 2, "--want is required"


def test_names_are_completed(place: Path) -> None:
    async def main() -> Result:
        port = MemoryPort(place, tape("alpha/0"), tape("beta/0"))
        close = await serve(port, port.runtime_dir)
        words = f"modelsupd --runtime-dir {place / 'run'} --state-dir {place / 'state'} plan --want al"
        environ = {**os.environ, "_MODELSUPD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "7"}
        call: Callable[..., Result] = CliRunner().invoke
        try:
            return await asyncio.to_thread(call, cli, [], prog_name="modelsupd", env=environ)
        finally:
            await close()

    assert uvloop.run(main()).output.split() == ["plain,alpha", "plain,alpha/0"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"verdict": "starts", "gpus": ["GPU-1", "GPU-2"]}, ["m/0 starts at once on GPU-1 and GPU-2"]),
        (
            {"verdict": "evicts", "evicts": [{"name": "a/0", "idle_s": None, "start_s": None}]},
            ["m/0 starts when these have given way:", "  a/0: in use"],
        ),
        ({"verdict": "waits", "why": "no\x1b[31m room"}, ["m/0 waits: no [31m room"]),
    ],
)
def test_a_row_in_words(row: dict[str, object], words: list[str]) -> None:
    assert list(lines({"name": "m/0", "why": "", "gpus": [], "evicts": [], "closes": [], **row})) == words
