"""What we publish in the hub's cache is what huggingface_hub would have put there, and it takes it for its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub._tree_cache import TreeCacheEntry
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from hub_world import COMMIT, FILES, LARGE, NAME, alone, downloaded, local, mock, pulled, put, settings
from mock_hub import MockHub
from modelsupd.core.events import FailureClass
from modelsupd.weights import hub
from modelsupd.weights.base import Pin, WeightsError
from modelsupd.weights.cache import Repo
from modelsupd.weights.publishing import publish

__all__ = ["alone", "mock"]  # fixtures


def test_what_we_published_is_used_by_huggingface_hub_without_a_request(mock: MockHub, place: Path) -> None:
    _, listing, snapshot = pulled(mock, place)
    asked = len(mock.requests)

    assert local(place) == snapshot == local(place, revision=listing.commit)
    assert {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if path.is_file()} == set(FILES)
    assert downloaded(mock, place, revision=listing.commit) == snapshot
    assert len(mock.requests) == asked


def test_the_cache_that_we_fill_is_the_one_that_huggingface_hub_fills(mock: MockHub, place: Path) -> None:
    def shape(folder: Path) -> dict[str, str]:
        found = {}
        for path in sorted(folder.rglob("*")):
            if ".locks" not in path.parts and path.name != "CACHEDIR.TAG":
                what = f"→ {path.readlink()}" if path.is_symlink() else "" if path.is_dir() else path.read_text()
                found[str(path.relative_to(folder))] = what
        return found

    (place / "ours").mkdir()
    pulled(mock, place / "ours")
    downloaded(mock, place)
    assert shape(place / "ours" / "hub") == shape(place / "hub")
    tag = (place / "ours" / "hub" / "CACHEDIR.TAG").read_text()
    assert tag.startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_huggingface_hub_s_own_tools_accept_it(mock: MockHub, place: Path) -> None:
    repo, listing, _ = pulled(mock, place)
    scanned = huggingface_hub.scan_cache_dir(place / "hub")

    assert (scanned.warnings, len(scanned.incomplete_files)) == ([], 0)
    (known,) = scanned.repos
    assert (known.repo_id, known.nb_files, known.size_on_disk) == (NAME, 4, 1502)
    assert [sorted(revision.refs) for revision in known.revisions] == [["main"]]
    assert len(huggingface_hub.get_cached_repo_tree(NAME, cache_dir=place / "hub")) == len(FILES)

    api = huggingface_hub.HfApi(endpoint=mock.url, token=False)
    verified = api.verify_repo_checksums(NAME, revision=listing.commit, cache_dir=place / "hub")
    assert (verified.checked_count, verified.mismatches, verified.missing_paths) == (len(FILES), [], [])
    pin = next(pin for pin in listing.files if pin.path == "model.safetensors")
    repo.blob(pin).write_bytes(b"x" + b"w" * 999)
    verified = api.verify_repo_checksums(NAME, revision=listing.commit, cache_dir=place / "hub")
    assert {wrong["path"] for wrong in verified.mismatches} == {"model.safetensors", "same.safetensors"}


def test_the_hf_command_accepts_it(mock: MockHub, place: Path) -> None:
    pulled(mock, place)
    environ = {"PATH": os.environ["PATH"], "HOME": str(place), "HF_HUB_CACHE": str(place / "hub")}
    for words, expected in ((["ls"], NAME), (["verify", NAME], "5 ")):
        done = subprocess.run(
            [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", "cache", *words],
            env={**environ, "HF_ENDPOINT": mock.url},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout + done.stderr


def test_without_all_files_other_tools_know_that_it_is_not_whole(mock: MockHub, place: Path) -> None:
    _, listing, _ = pulled(mock, place / "first")
    some = [pin for pin in listing.files if pin.path == "config.json"]
    put(Repo(place / "hub", NAME), some[0], b"{}")
    snapshot = publish(NAME, listing.commit or "", "main", some, settings(place), listing=listing)

    assert local(place, allow_patterns="*.json") == snapshot
    with pytest.raises(errors.IncompleteSnapshotError):
        local(place)


def test_publishing_again_changes_nothing_and_moves_the_branch(mock: MockHub, place: Path) -> None:
    repo, listing, snapshot = pulled(mock, place)
    before = {path: path.lstat().st_ino for path in place.rglob("*")}
    assert publish(NAME, listing.commit or "", "main", listing.files, settings(place), listing=listing) == snapshot
    assert {path: path.lstat().st_ino for path in place.rglob("*")} == before

    mock.repos[NAME].push({**FILES, "config.json": b'{"new": 1}'}, lfs=LARGE)
    _, newer, second = pulled(mock, place)
    assert (repo.commit_of("main"), second != snapshot) == (newer.commit, True)
    assert (snapshot / "config.json").read_bytes() == b"{}"
    assert (second / "config.json").read_bytes() == b'{"new": 1}'


def test_a_branch_with_a_slash(mock: MockHub, place: Path) -> None:
    mock.repos[NAME].push(FILES, lfs=LARGE, ref="refs/pr/1")
    repo, listing, snapshot = pulled(mock, place, "refs/pr/1")
    assert repo.commit_of("refs/pr/1") == listing.commit
    assert local(place, revision="refs/pr/1") == snapshot


def test_no_link_is_made_while_a_blob_is_missing(place: Path) -> None:
    repo = Repo(place / "hub", NAME)
    pins = [Pin(f"f{number}", 3, None, f"{number:040x}") for number in range(6)]
    put(repo, pins[0], b"abc")
    put(repo, pins[1], b"ab")
    (repo.blobs / f"{pins[2].blob}.incomplete").write_bytes(b"abc")

    with pytest.raises(WeightsError) as caught:
        publish(NAME, COMMIT, "main", pins, settings(place))
    words = f"cannot publish {NAME} at {COMMIT[:12]}: not in the cache, or of another size: f1, f2, f3 and 2 more"
    assert (caught.value.kind, str(caught.value)) == (FailureClass.WEIGHTS_UNAVAILABLE, words)
    assert sorted(path.name for path in repo.folder.iterdir()) == ["blobs"]


def test_a_link_that_leads_elsewhere_is_mended_and_a_file_left_alone(place: Path) -> None:
    repo = Repo(place / "hub", NAME)
    pins = [Pin("a", 3, None, "a" * 40), Pin("b", 3, None, "b" * 40), Pin("c", 3, None, "d" * 40)]
    for pin in pins:
        put(repo, pin, b"abc")
    snapshot = repo.snapshot(COMMIT)
    snapshot.mkdir(parents=True)
    (snapshot / "a").symlink_to("/proc/version")
    (snapshot / "b").write_bytes(b"xyz")
    (snapshot / "c").symlink_to("nowhere")
    publish(NAME, COMMIT, COMMIT, pins, settings(place))

    assert [(snapshot / name).read_bytes() for name in "abc"] == [b"abc", b"xyz", b"abc"]
    assert str((snapshot / "a").readlink()) == "../../blobs/" + "a" * 40
    assert not (repo.folder / "refs").exists()


def test_nothing_is_written_through_a_link(place: Path) -> None:
    repo = Repo(place / "hub", NAME)
    pin = Pin("sub/a", 3, None, "a" * 40)
    put(repo, pin, b"abc")
    repo.snapshot(COMMIT).mkdir(parents=True)
    (place / "outside").mkdir()
    (repo.snapshot(COMMIT) / "sub").symlink_to(place / "outside")

    with pytest.raises(WeightsError, match="it is no folder"):
        publish(NAME, COMMIT, "main", [pin], settings(place))
    assert list((place / "outside").iterdir()) == []


def test_a_complete_cache_is_published_where_we_may_not_write(mock: MockHub, place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    repo, listing, snapshot = pulled(mock, place)
    shutil.rmtree(repo.folder / "refs")
    (place / "hub" / "CACHEDIR.TAG").unlink()
    place.chmod(0o755)
    os.seteuid(65534)
    try:
        assert publish(NAME, listing.commit or "", "main", listing.files, settings(place), listing=listing) == snapshot
        with pytest.raises(WeightsError, match=r"cannot publish .*: Permission denied"):
            publish(NAME, COMMIT, "main", listing.files, settings(place), listing=listing)
    finally:
        os.seteuid(0)


def test_a_snapshot_of_files_in_place_of_links_needs_no_blobs(place: Path) -> None:
    repo = Repo(place / "hub", NAME)
    repo.snapshot(COMMIT).mkdir(parents=True)
    (repo.snapshot(COMMIT) / "a").write_bytes(b"abc")
    publish(NAME, COMMIT, "main", [Pin("a", 3, None, "a" * 40)], settings(place))

    assert repo.commit_of("main") == COMMIT
    with pytest.raises(WeightsError, match="of another size: a"):
        publish(NAME, COMMIT, "main", [Pin("a", 4, None, "a" * 40)], settings(place))


@pytest.mark.parametrize("revision", ["../../x", "/etc/x", "", "a\nb"])
def test_a_revision_that_leads_out_is_refused(place: Path, revision: str) -> None:
    with pytest.raises(WeightsError, match="cannot use revision"):
        publish(NAME, COMMIT, revision, [], settings(place))
    assert not (place / "hub").exists()


def test_a_cache_that_may_not_be_written(place: Path) -> None:
    (place / "hub").write_text("a file")
    with pytest.raises(WeightsError, match=f"cannot publish {NAME} at {COMMIT[:12]}: .*: Not a directory") as caught:
        publish(NAME, COMMIT, "main", [], settings(place))
    assert caught.value.kind is FailureClass.WEIGHTS_UNAVAILABLE


_PATHS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30) | st.text("ab./\\", min_size=1, max_size=12)


@limits(deadline=None)
@given(st.dictionaries(_PATHS, st.binary(max_size=20), max_size=6))
def test_every_file_that_is_published_lies_in_the_snapshot(files: dict[str, bytes]) -> None:
    """Or no branch leads to it, where a path would lead out of it or cannot be a file beside another."""
    place = Path(tempfile.mkdtemp())
    repo = Repo(place / "hub", NAME)
    pins = []
    for path, content in files.items():
        pins.append(Pin(path, len(content), None, hashlib.sha1(content, usedforsecurity=False).hexdigest()))
        put(repo, pins[-1], content)
    try:
        snapshot = publish(NAME, COMMIT, "main", pins, settings(place))
    except WeightsError:
        assert repo.commit_of("main") is None
    else:
        assert {pin.path: repo.file(COMMIT, pin.path).read_bytes() for pin in pins} == files
        assert [pin.path for pin in repo.pins_by_names(COMMIT) or ()] == sorted(files)
        assert all(path.resolve().is_relative_to(place.resolve()) for path in snapshot.rglob("*"))
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize(("xet_hash", "kept"), [("ab" * 32, True), ("AB" * 32, False), ("../x", False), (None, False)])
def test_what_is_kept_of_a_listed_file_is_what_huggingface_hub_keeps(xet_hash: str | None, kept: bool) -> None:
    """But for a hash that is none, for which it would discard the whole listing."""
    lfs = {"oid": "0" * 64, "size": 5, "pointerSize": 100}
    file = huggingface_hub.RepoFile(path="a", size=5, oid="1" * 40, lfs=lfs, xetHash=xet_hash)  # type: ignore[no-untyped-call]  # it has no types
    theirs = TreeCacheEntry(size=5, blob_id="1" * 40, lfs_sha256="0" * 64, lfs_size=5, xet_hash=xet_hash).to_json()

    assert hub._entry(file) == (theirs if kept else {key: theirs[key] for key in theirs if key != "xet_hash"})
