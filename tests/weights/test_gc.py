"""What of a cache is removed: what nobody names, of ours alone unless more is asked for, and nothing that is in use."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import huggingface_hub
import pytest

from filled_cache import COMMIT, OTHER, fill, git_sha1, listed, sha256
from modelsupd.weights import gc
from modelsupd.weights.base import Pin, Pinned, Settings
from modelsupd.weights.cache import Repo
from modelsupd.weights.quarantine import move_aside
from modelsupd.weights.records import Records

OLD = {"config.json": b"{}", "model.safetensors": b"old weights"}
NEW = {"config.json": b"{}", "model.safetensors": b"new weights!"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "cache", tmp_path / "state")


def ours(settings: Settings, pinned: Pinned) -> Pinned:
    """Keep that we fetched it, as whoever fetches does."""
    Records(settings.state_dir).own(pinned)
    return pinned


def age(path: Path, days: float = 3) -> None:
    at = time.time() - days * 86400
    os.utime(path, (at, at), follow_symlinks=False)


def sizes_agree(settings: Settings, plan: gc.Plan) -> None:
    """Carry a plan out and compare what was told with what the disk got back."""
    before = sum(path.lstat().st_blocks for path in settings.cache_dir.rglob("*") if path.is_file())
    given_back = gc.carry_out(plan, settings)
    after = sum(path.lstat().st_blocks for path in settings.cache_dir.rglob("*") if path.is_file())
    assert given_back == plan.size_bytes
    assert given_back <= (before - after) * 512


def test_an_older_commit_goes_and_what_it_shares_with_the_newer_stays(settings: Settings) -> None:
    ours(settings, fill(settings, "hf:org/name", OLD))
    new = ours(settings, fill(settings, "hf:org/name", NEW, commit=OTHER))
    tree = Repo(settings.cache_dir, "org/name").folder / "trees" / f"{COMMIT}.json"
    tree.parent.mkdir()
    tree.write_text("{}")
    plan = gc.plan(settings, [new])
    [garbage] = plan.garbage
    assert garbage.repo == "org/name"
    assert garbage.files == ((COMMIT, "config.json"), (COMMIT, "model.safetensors"))
    assert garbage.blobs == (sha256(OLD["model.safetensors"]),)
    assert plan.size_bytes == 4096
    sizes_agree(settings, plan)
    folder = "models--org--name"
    assert listed(settings.cache_dir) == [
        *sorted(f"{folder}/blobs/{sha256(content)}" for content in NEW.values()),
        f"{folder}/refs/main",
        *(f"{folder}/snapshots/{OTHER}/{path}" for path in NEW),
    ]
    assert gc.plan(settings, [new]).garbage == ()
    assert list(Records(settings.state_dir).owned()) == [new]
    [repo] = huggingface_hub.scan_cache_dir(settings.cache_dir).repos
    assert [revision.commit_hash for revision in repo.revisions] == [OTHER]
    assert not huggingface_hub.scan_cache_dir(settings.cache_dir).warnings


def test_one_file_of_a_commit_goes_when_another_is_declared_now(settings: Settings) -> None:
    both = {"q4.gguf": b"four", "q8.gguf": b"eight"}
    pinned = ours(settings, fill(settings, "hf:org/name/q4.gguf", both))
    kept = Pinned("hf:org/name/q8.gguf", COMMIT, pinned.files[1:])
    [garbage] = gc.plan(settings, [kept]).garbage
    assert garbage.files == ((COMMIT, "q4.gguf"),)
    sizes_agree(settings, gc.plan(settings, [kept]))
    assert Repo(settings.cache_dir, "org/name").file(COMMIT, "q8.gguf").read_bytes() == b"eight"
    assert [pin.path for mine in Records(settings.state_dir).owned() for pin in mine.files] == ["q8.gguf"]


def test_the_last_of_a_repository_takes_its_folder_with_it(settings: Settings) -> None:
    ours(settings, fill(settings, "hf:org/name@refs/pr/1", OLD))
    folder = Repo(settings.cache_dir, "org/name").folder
    for name in (f".no_exist/{COMMIT}/sub/adapter.json", f"trees/{COMMIT}.json", "refs/refs/pr/1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(COMMIT)
    sizes_agree(settings, gc.plan(settings, []))
    assert listed(settings.cache_dir) == []
    assert not folder.exists()


def test_what_others_fetched_is_theirs_unless_everything_is_asked_for(settings: Settings) -> None:
    ours(settings, fill(settings, "hf:org/mine", OLD))
    fill(settings, "hf:org/theirs", NEW)
    (settings.cache_dir / "datasets--org--data").mkdir()
    (settings.cache_dir / "models--org--linked").symlink_to("models--org--theirs")
    assert [garbage.repo for garbage in gc.plan(settings, []).garbage] == ["org/mine"]
    everything = gc.plan(settings, [], everything=True)
    assert [garbage.repo for garbage in everything.garbage] == ["org/mine", "org/theirs"]
    assert [garbage.repo for garbage in gc.plan(settings, [], everything=True, spared=["org/theirs"]).garbage] == [
        "org/mine"
    ]
    sizes_agree(settings, everything)
    assert listed(settings.cache_dir) == ["models--org--linked"]
    assert (settings.cache_dir / "datasets--org--data").is_dir()


def test_a_snapshot_of_another_tool_keeps_a_blob_of_ours(settings: Settings) -> None:
    ours(settings, fill(settings, "hf:org/name", OLD))
    theirs = fill(settings, "hf:org/name", OLD, commit=OTHER)
    plan = gc.plan(settings, [])
    [garbage] = plan.garbage
    assert len(garbage.files) == 2
    assert (garbage.blobs, plan.size_bytes) == ((), 0)
    gc.carry_out(plan, settings)
    for pin in theirs.files:
        assert Repo(settings.cache_dir, "org/name").file(OTHER, pin.path).read_bytes() == OLD[pin.path]


def test_a_blob_that_something_leads_to_by_now_stays(settings: Settings) -> None:
    ours(settings, fill(settings, "hf:org/name", OLD))
    plan = gc.plan(settings, [])
    theirs = fill(settings, "hf:org/name", OLD, commit=OTHER)
    assert gc.carry_out(plan, settings) == 0
    for pin in theirs.files:
        assert Repo(settings.cache_dir, "org/name").file(OTHER, pin.path).read_bytes() == OLD[pin.path]


def test_what_is_being_fetched_stays(settings: Settings) -> None:
    pinned = ours(settings, fill(settings, "hf:org/name", OLD))
    repo = Repo(settings.cache_dir, "org/name")
    lock = repo.lock(sha256(OLD["model.safetensors"]))
    lock.parent.mkdir(parents=True)
    plan = gc.plan(settings, [])
    assert len(plan.garbage[0].blobs) == 2
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert gc.plan(settings, []).garbage[0].blobs == (sha256(OLD["config.json"]),)
        gc.carry_out(plan, settings)
        assert repo.blob(pinned.files[1]).exists()
    assert not repo.blob(pinned.files[0]).exists()


def test_what_was_fetched_in_part(settings: Settings) -> None:
    wanted = fill(settings, "hf:org/name", NEW)
    ours(settings, fill(settings, "hf:org/name", OLD, commit=OTHER))
    repo = Repo(settings.cache_dir, "org/name")
    kept, gone = (repo.blobs / sha256(content["model.safetensors"]) for content in (NEW, OLD))
    parts = {
        name: repo.blobs / name
        for name in (
            f"{kept.name}.modelsupd-part",
            f"{kept.name}.modelsupd-part.json",
            f"{gone.name}.modelsupd-part",
            f"{gone.name}.modelsupd-part.json",
            f"{kept.name}.0123456789ab.modelsupd-part",
            f"{gone.name}.0123abcd.incomplete",
            f"{kept.name}.4567abcd.incomplete",
        )
    }
    for path in parts.values():
        path.write_bytes(b"part")
    age(parts[f"{gone.name}.0123abcd.incomplete"])

    def proposed(*, everything: bool = False) -> list[str]:
        garbage = gc.plan(settings, [wanted], everything=everything).garbage
        return [path.name for one in garbage for path in one.partial]

    mine = [
        f"{kept.name}.0123456789ab.modelsupd-part",
        f"{gone.name}.modelsupd-part",
        f"{gone.name}.modelsupd-part.json",
    ]
    assert proposed() == sorted(mine)
    assert proposed(everything=True) == sorted([*mine, f"{gone.name}.0123abcd.incomplete"])
    with parts[mine[0]].open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert proposed() == sorted(mine[1:])
    sizes_agree(settings, gc.plan(settings, [wanted], everything=True))
    assert sorted(name for name, path in parts.items() if path.exists()) == sorted(
        [f"{kept.name}.modelsupd-part", f"{kept.name}.modelsupd-part.json", f"{kept.name}.4567abcd.incomplete"]
    )


def test_a_blob_that_was_never_filed(settings: Settings) -> None:
    pinned = ours(settings, fill(settings, "hf:org/name", OLD))
    repo = Repo(settings.cache_dir, "org/name")
    for pin in pinned.files:
        repo.file(COMMIT, pin.path).unlink()
    stranger = repo.blobs / git_sha1(b"of another tool")
    stranger.write_bytes(b"of another tool")
    digests = sorted(sha256(content) for content in OLD.values())
    assert gc.plan(settings, []).garbage[0].blobs == tuple(digests)
    assert gc.plan(settings, [pinned]).garbage == ()
    assert gc.plan(settings, [pinned], everything=True).garbage == ()
    age(stranger)
    assert gc.plan(settings, [pinned], everything=True).garbage[0].blobs == (stranger.name,)


def test_what_repositories_share_is_left_to_others(settings: Settings) -> None:
    pinned = ours(settings, fill(settings, "hf:org/name", OLD))
    blob = Repo(settings.cache_dir, "org/name").blob(pinned.files[1])
    store = settings.cache_dir / "blobs" / "00" / ("0" * 64)
    store.parent.mkdir(parents=True)
    blob.rename(store)
    blob.symlink_to(os.path.relpath(store, blob.parent))
    plan = gc.plan(settings, [])
    assert plan.shared == 1
    assert plan.garbage[0].files == ((COMMIT, "config.json"),)
    gc.carry_out(plan, settings)
    assert Repo(settings.cache_dir, "org/name").file(COMMIT, "model.safetensors").read_bytes() == b"old weights"


def test_quarantine_is_listed_and_stays(settings: Settings, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"wrong")
    moved = move_aside(wrong, settings.state_dir, "is wrong", expected=None, actual=None)
    plan = gc.plan(settings, [], everything=True)
    assert [one.path for one in plan.quarantined] == [moved]
    assert gc.carry_out(plan, settings) == 0
    assert moved.exists()


def test_no_cache_and_no_state_is_no_garbage(settings: Settings) -> None:
    for everything in (False, True):
        plan = gc.plan(settings, [], everything=everything)
        assert (plan.garbage, plan.size_bytes, gc.carry_out(plan, settings)) == ((), 0, 0)


def test_names_of_a_cache_do_not_lead_out_of_it(settings: Settings, tmp_path: Path) -> None:
    ours(settings, fill(settings, "hf:org/name", OLD))
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("x")
    snapshot = Repo(settings.cache_dir, "org/name").snapshot(COMMIT)
    (snapshot / "sub").symlink_to(out)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(out / "precious")
    (snapshot / "copied.json").write_text("x")  # as where links are not supported
    hostile = Pinned("hf:org/name", COMMIT, gc_pins("../../../../out/precious", "sub/precious"))
    Records(settings.state_dir).own(hostile)
    for everything in (False, True):
        sizes_agree(settings, gc.plan(settings, [], everything=everything))
    assert (out / "precious").read_text() == "x"


def gc_pins(*paths: str) -> tuple[Pin, ...]:
    return tuple(Pin(path, 1, "1" * 64, "../precious") for path in paths)
