"""The simulator in the normal test run: the kept seeds, fifty more, coverage, and that it is deterministic."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from modelsupd.core.events import Event
from modelsupd.core.phases import Phase
from sim.checks import unreached
from sim.clock import Asleep, VirtualLoop
from sim.play import Outcome, play, play_many
from sim.seeds import kept_seeds

SEEDS = range(50)


def test_kept_seeds_pass() -> None:
    _, failed = play_many([seed for seed in kept_seeds() if seed not in SEEDS], lambda _outcome: None)
    assert not failed, "\n".join(map(str, failed))


def test_fifty_seeds_pass_and_reach_everything() -> None:
    coverage, failed = play_many(list(SEEDS), lambda _outcome: None)
    assert not failed, "\n".join(map(str, failed))
    assert unreached(coverage) == []
    assert len(coverage.phases) == len(Phase.__args__)
    assert len(coverage.events) == len(Event.__args__)


@pytest.mark.parametrize("seed", [3, 17])
def test_same_seed_is_the_same_story(seed: int) -> None:
    first, again = play(seed), play(seed)
    assert list(first.story) == list(again.story)
    assert first.coverage == again.coverage
    assert play(seed + 1).story != first.story


def test_another_process_tells_the_same_story() -> None:
    """No set or hash may decide anything: Python seeds them anew in every process."""
    told = []
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "sim", "--seeds", "1", "--first", "5", "--story"],
            cwd=Path(__file__).parent.parent,
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        told.append([line for line in done.stdout.splitlines() if " a second" not in line])
    assert told[0] == told[1]
    assert len(told[0]) > 50


def test_failed_seed_tells_its_story() -> None:
    outcome = Outcome(7)
    outcome.story.extend(["  what happened", "  and then"])
    outcome.broken.append("two engines")
    assert str(outcome) == "seed 7:\n  what happened\n  and then\n  BROKEN: two engines"


def test_virtual_time_jumps_and_keeps_the_order_of_timers() -> None:
    loop, seen = VirtualLoop(100.0), []

    async def sleeper(pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        seen.append((pause_s, loop.time()))

    async def both() -> None:
        await asyncio.gather(sleeper(7200.0), sleeper(0.25), sleeper(1 / 3))

    loop.run_until_complete(both())
    assert seen == [(0.25, 100.25), (1 / 3, 100 + 1 / 3), (7200.0, 7300.0)]
    with pytest.raises(Asleep):
        loop.run_until_complete(loop.create_future())
    loop.close()
