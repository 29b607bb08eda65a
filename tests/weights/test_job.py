"""A job makes parts whole and `look` alone says so: caches that others filled, locks, and what stands in the way."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
from dataclasses import replace

import pytest

from hosts import settled, small_gguf
from hub_faults import Html
from hub_world import alone  # noqa: F401 - an automatic fixture
from job_world import FILES, LARGE, NAME, WANTED, World, by_hub, world
from modelsupd.core.events import FailureClass
from modelsupd.weights.base import (
    MOVED_ASIDE,
    FileDone,
    HubSource,
    LocalSource,
    Part,
    Pin,
    Progress,
    Role,
)
from modelsupd.weights.checking import Candidate, Checker, differs
from modelsupd.weights.job import carry_out
from modelsupd.weights.look import look
from modelsupd.weights.quarantine import listing
from modelsupd.weights.verdicts import Verdicts
from modelsupd.weights.wire import Job

__all__ = ["world"]  # a fixture


def test_a_repository_is_fetched_in_one_format_and_whole_from_then_on(world: World) -> None:
    assert "was not looked into yet" in world.look().todo
    pinned = world.work()
    assert {pin.path for pin in pinned.files} == WANTED
    assert all(pin.sha256 for pin in pinned.files)
    seen = world.look()
    assert seen.todo == ""
    assert seen.failure is None
    assert seen.whole[0] is not None
    assert seen.whole[0].commit == world.repo.commit
    assert {name for name, _ in seen.whole[0].links} == WANTED
    assert "verified by sha256" in seen.evidence
    progress = [told for told in world.told if isinstance(told, Progress)]
    assert progress[-1].done_bytes == progress[-1].total_bytes
    requests = len(world.hub.requests)
    world.work()
    assert len(world.hub.requests) == requests


def test_a_cache_that_others_filled_is_verified_and_used_where_it_lies(world: World) -> None:
    folder = by_hub(world)
    requests = len(world.hub.requests)
    world.work()
    seen = world.look()
    assert seen.whole[0] is not None
    assert dict(seen.whole[0].links) == {name: folder / name for name in WANTED}
    assert len(world.hub.requests) == requests


def test_a_cache_without_a_listing_is_believed_when_it_is_complete(world: World) -> None:
    folder = by_hub(world)
    shutil.rmtree(folder.parent.parent / "trees")
    requests = len(world.hub.requests)
    assert {pin.path for pin in world.work().files} == WANTED
    assert len(world.hub.requests) == requests


def test_what_a_partial_cache_lacks_is_fetched_and_nothing_else(world: World) -> None:
    folder = by_hub(world, ignore_patterns=["model-00002*"])
    shutil.rmtree(folder.parent.parent / "trees")
    before = len(world.hub.requests)
    world.work()
    fetched = [request.path for request in world.hub.requests[before:] if "/resolve/" in request.path]
    assert [path.rpartition("/")[2] for path in fetched] == ["model-00002-of-00002.safetensors"]
    assert world.look().todo == ""


def test_offline_it_is_said_what_is_missing(world: World) -> None:
    by_hub(world, ignore_patterns=["model-00002*"])
    words = world.refused(FailureClass.WEIGHTS_UNAVAILABLE, offline=True)
    assert f"1 of {len(WANTED)} files of hf:{NAME} are missing (1.1 KiB): model-00002-of-00002.safetensors" in words
    assert "modelsupd import" in words


@pytest.mark.parametrize("how", ["dns", "refused", "dropped"])
def test_without_a_route_it_is_said_what_is_missing(world: World, how: str) -> None:
    by_hub(world, ignore_patterns=["tokenizer*", "model-00001*"])
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:
        port = deaf.getsockname()[1]
        if how == "refused":
            deaf.close()
        endpoint = "http://hub.invalid" if how == "dns" else f"http://127.0.0.1:{port}"
        words = world.refused(FailureClass.UNREACHABLE, endpoint=endpoint, stall_timeout_s=0.5)
    assert "2 of 5 files" in words
    assert "model-00001-of-00002.safetensors, tokenizer.json; without a network" in words


def test_a_lock_holds_to_its_commit_when_the_branch_moves(world: World) -> None:
    locked = world.work()
    newer = world.repo.push({**FILES, "config.json": b'{"changed": 1}'}, lfs=LARGE)
    shutil.rmtree(world.settings.cache_dir)
    world.work(locked=locked)
    seen = world.look(locked=locked)
    assert seen.whole[0] is not None
    assert seen.whole[0].commit == locked.commit != newer
    assert "verified against the lock" in seen.evidence
    other = replace(locked, commit=newer)
    assert f"the lock wants commit {newer}" in world.look(locked=other).todo


def test_a_lock_with_another_digest_lets_nothing_through(world: World) -> None:
    pinned = world.work()
    changed = replace(pinned.files[1], sha256="0" * 64, blob="0" * 64)
    locked = replace(pinned, files=(pinned.files[0], changed, *pinned.files[2:]))
    world.refused(FailureClass.BAD_WEIGHTS, locked=locked)


def test_wrong_bytes_and_wrong_sizes_in_the_cache_are_moved_aside_and_fetched_again(world: World) -> None:
    world.work()
    for name, spoil in (("config.json", b'{"architectures": ["LlamaForCausalLN"]}'), ("tokenizer.json", b"{} ")):
        settled(world.blob(name), spoil)
    assert world.look().todo
    world.work()
    assert world.look().todo == ""
    moved = [told for told in world.told if isinstance(told, FileDone) and told.outcome == MOVED_ASIDE]
    assert {told.path for told in moved} == {"config.json", "tokenizer.json"}
    assert {kept.path.read_bytes() for kept in listing(world.settings.state_dir)} == {
        b'{"architectures": ["LlamaForCausalLN"]}',
        b"{} ",
    }
    assert world.blob("config.json").read_bytes() == FILES["config.json"]


def test_what_an_engine_needs_beside_the_weights_must_be_there(world: World) -> None:
    world.repo.push({name: data for name, data in FILES.items() if name != "tokenizer.json"}, lfs=LARGE)
    assert "tokenizer" in world.refused(FailureClass.BAD_WEIGHTS)
    world.work(engine="command")
    assert world.look(engine="command").todo == ""
    assert "for vllm" in world.look().todo


def test_a_page_in_place_of_a_file_is_no_weights(world: World) -> None:
    world.hub.faults[f"{NAME}/config.json"] = Html()
    assert "a login page" in world.refused(FailureClass.UNREACHABLE)
    assert not world.blob("config.json").exists()


def test_a_local_file_is_checked_for_structure_and_again_when_it_changes(world: World) -> None:
    path = settled(world.place / "w.gguf", small_gguf())
    part = Part(Role.WEIGHTS, LocalSource(path))
    world.work(part, engine="llama.cpp")
    seen = world.look(part, engine="llama.cpp")
    assert seen.todo == ""
    assert "structure only" in seen.evidence
    assert seen.whole[0] is not None
    assert seen.whole[0].path == path
    settled(path, small_gguf()[:-1])
    changed = world.look(part, engine="llama.cpp")
    assert changed.todo
    assert changed.fingerprint != seen.fingerprint
    assert str(path) in world.refused(FailureClass.BAD_WEIGHTS, part, engine="llama.cpp")


def test_a_local_file_with_a_declared_digest_is_held_to_it_and_left_where_it_lies(world: World) -> None:
    path = settled(world.place / "w.gguf", small_gguf())
    part = Part(Role.WEIGHTS, LocalSource(path), sha256="0" * 64)
    words = world.refused(FailureClass.BAD_WEIGHTS, part, engine="llama.cpp")
    assert "0" * 64 in words
    assert path.exists()
    right = replace(part, sha256=words.split("it has sha256 ")[1][:64])
    world.work(right, engine="llama.cpp")
    assert "verified against the lock" in world.look(right, engine="llama.cpp").evidence


def test_all_parts_of_a_model_are_made_whole(world: World) -> None:
    world.hub.add("org/extra", {"mmproj.gguf": small_gguf(1), "l.gguf": small_gguf(2)}, lfs={"mmproj.gguf", "l.gguf"})
    weights = Part(Role.WEIGHTS, LocalSource(settled(world.place / "w.gguf", small_gguf())))
    beside = Part(Role.MMPROJ, HubSource("org/extra", file="mmproj.gguf"))
    lora = Part(Role.LORA, HubSource("org/extra", file="l.gguf"))
    parts, locked = (weights, beside, lora), (None, None, None)
    carry_out(Job(parts, locked, world.settings, "llama.cpp"), world.told.append, threading.Event())
    seen = look(parts, locked, world.settings, "llama.cpp")
    assert [part.path.name for part in seen.whole if part] == ["w.gguf", "mmproj.gguf", "l.gguf"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_says_who_would_need_to(world: World) -> None:
    path = settled(world.place / "w.gguf", small_gguf())
    path.chmod(0)
    seen = world.look(Part(Role.WEIGHTS, LocalSource(path)), engine="llama.cpp")
    assert seen.failure is not None
    assert "may not read" in seen.failure.detail


def test_missing_and_empty_local_weights_need_no_worker_to_be_refused(world: World) -> None:
    for path, words in ((world.place / "none.gguf", "No such file"), (settled(world.place / "e.gguf", b""), "empty")):
        seen = world.look(Part(Role.WEIGHTS, LocalSource(path)), engine="llama.cpp")
        assert seen.failure is not None
        assert seen.failure.kind is FailureClass.BAD_WEIGHTS
        assert words in seen.failure.detail


def test_with_any_bit_flipped_a_file_is_never_verified(world: World) -> None:
    content = small_gguf(size_bytes=32)
    pin = Pin("w.gguf", len(content), hashlib.sha256(content).hexdigest())
    checker = Checker(Verdicts(world.settings.state_dir), lambda _: None, world.told.append, threading.Event())
    path = world.place / "w.gguf"
    for bit in range(8 * len(content)):
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.unlink(missing_ok=True)
        settled(path, bytes(spoiled))
        os.utime(path, ns=(1_000_000_000, 1_000_000_000 + bit))  # another inode may have the number of the last one
        assert differs(pin, checker.check([Candidate(pin, path)])[0]) is not None, bit
