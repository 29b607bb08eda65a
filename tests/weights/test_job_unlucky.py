"""Jobs where others are at work at the same time, links and locks are odd, and disks are full."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from hosts import settled
from hub_world import alone  # noqa: F401 - an automatic fixture
from job_world import FILES, LARGE, NAME, WANTED, World, by_hub, world
from modelsupd.core.events import FailureClass
from modelsupd.weights import transfer
from modelsupd.weights.base import (
    LocalSource,
    Part,
    Role,
    WeightsError,
)
from modelsupd.weights.cache import Repo as Cached
from modelsupd.weights.checking import Checker
from modelsupd.weights.quarantine import listing

__all__ = ["world"]  # a fixture


def moved_aside(world: World) -> list[str]:
    return [kept.origin.name for kept in listing(world.settings.state_dir)]


def test_two_files_of_one_content_are_healed_together(world: World) -> None:
    world.repo.push({**FILES, "a/one.json": b'{"x":1}', "b/two.json": b'{"x":1}'}, lfs=LARGE)
    world.work()
    settled(world.blob("a/one.json"), b'{"x":2}')
    world.work()
    assert world.look().todo == ""
    assert len(moved_aside(world)) == 1


@pytest.mark.parametrize("where", ["snapshot", "blob", "both"])
def test_links_that_lead_in_circles_are_fetched_and_mended(world: World, where: str) -> None:
    commit = world.work().commit or ""
    repo = Cached(world.settings.cache_dir, NAME)
    link = repo.file(commit, "model-00001-of-00002.safetensors")
    blob = link.resolve()
    circle, to = {"snapshot": (link, link), "blob": (blob, blob), "both": (blob, link)}[where]
    circle.unlink()
    circle.symlink_to(to)

    assert "is missing" in world.look().todo
    world.work()
    assert world.look().todo == ""
    assert link.read_bytes() == FILES[link.name]


def test_a_link_to_another_file_is_mended_and_that_file_left_alone(world: World) -> None:
    world.work()
    first, second = sorted(name for name in LARGE if name.startswith("model-"))
    link = Cached(world.settings.cache_dir, NAME).snapshot(world.repo.commit) / first
    link.unlink()
    link.symlink_to(f"../../blobs/{world.blob(second).name}")
    requests = len(world.hub.requests)
    assert world.look().todo
    world.work()
    assert world.look().todo == ""
    assert not moved_aside(world)
    assert len(world.hub.requests) == requests


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64, "blob": "0" * 64}, {"sha256": "0" * 64}, {"size_bytes": 17}])
def test_a_lock_that_contradicts_the_hubs_listing_moves_nothing_aside(world: World, wrong: dict[str, Any]) -> None:
    pinned = world.work()
    locked = replace(pinned, files=tuple(replace(pin, **wrong) if pin.path in LARGE else pin for pin in pinned.files))
    requests = len(world.hub.requests)
    with pytest.raises(WeightsError, match="as the hub lists it") as caught:
        world.work(locked=locked)
    assert caught.value.kind is FailureClass.BAD_WEIGHTS
    assert not moved_aside(world)
    assert len(world.hub.requests) == requests
    world.work()
    assert world.look().todo == ""


@pytest.mark.parametrize("then", ["right again", "gone"])
def test_what_another_process_has_seen_to_meanwhile_is_not_moved_aside(
    world: World, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    world.work()
    path = world.blob("config.json")
    settled(path, FILES["config.json"].replace(b"M", b"N"))
    check = Checker.check

    def and_then(self: Checker, candidates: Any) -> list[Any]:  # noqa: ANN401 - handed on
        found = check(self, candidates)
        monkeypatch.undo()
        path.unlink()
        if then == "right again":
            settled(path, FILES["config.json"])
            os.utime(path, (2_000_000, 2_000_000))
        return found

    monkeypatch.setattr(Checker, "check", and_then)
    world.work()
    assert world.look().todo == ""
    assert not moved_aside(world)


def test_a_file_that_another_process_moves_aside_meanwhile_is_no_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.work()
    path = world.blob("config.json")
    settled(path, FILES["config.json"].replace(b"M", b"N"))
    check = Checker.check

    def vanished(self: Checker, candidates: Any) -> list[Any]:  # noqa: ANN401 - handed on
        monkeypatch.undo()
        path.unlink()
        return check(self, candidates)

    monkeypatch.setattr(Checker, "check", vanished)
    world.work()
    assert world.look().todo == ""


def test_a_file_that_others_brought_and_change_is_not_verified(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = transfer.fetch

    def brought(*args: Any, **how: Any) -> transfer.Fetched:  # noqa: ANN401 - handed on
        done = fetch(*args, **how)
        if how["pin"].path in LARGE:
            settled(how["final"], how["final"].read_bytes()[:-1] + b"!")
        return replace(done, found=True)

    monkeypatch.setattr(transfer, "fetch", brought)
    world.refused(FailureClass.UNREACHABLE)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_as_one(world: World, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr("modelsupd.weights.records.Records.put", mock.Mock(side_effect=OSError(code, "full", "/r")))
    assert "cannot write /r: full" in world.refused(FailureClass.NO_SPACE)


def test_what_cannot_be_moved_aside_is_told_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.work()
    settled(world.blob("config.json"), FILES["config.json"].replace(b"M", b"N"))
    closed = mock.Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS), "/q"))
    monkeypatch.setattr("modelsupd.weights.quarantine.move_aside", closed)
    assert "aside, which is not what it should be: Read-only" in world.refused(FailureClass.WEIGHTS_UNAVAILABLE)


def test_what_another_tool_knows_of_a_branch_is_not_set_back(world: World) -> None:
    locked = world.work()
    newer = world.repo.push({**FILES, "config.json": b'{"changed": 1}'}, lfs=LARGE)
    by_hub(world)
    shutil.rmtree(world.settings.state_dir)
    world.work(locked=locked)
    assert Cached(world.settings.cache_dir, NAME).commit_of("main") == newer


def test_a_name_that_is_no_text_is_refused_in_words(world: World) -> None:
    folder = world.place / "local"
    folder.mkdir()
    for name in WANTED:
        settled(folder / name, FILES[name])
    settled(folder / os.fsdecode(b"\xff.json"), b"{}")
    seen = world.look(Part(Role.WEIGHTS, LocalSource(folder)))
    assert seen.failure is not None
    assert "is not UTF-8; rename the file" in seen.failure.detail
    seen.failure.detail.encode()
