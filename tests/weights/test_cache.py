"""The hub's cache is one for all tools: we read what huggingface_hub and others wrote."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_world import COMMIT, FILES, NAME, alone, downloaded, mock, pulled, put, settings
from mock_hub import MockHub
from modelsupd.core.events import FailureClass
from modelsupd.weights import hub
from modelsupd.weights.base import HubSource, Pin, Settings, WeightsError
from modelsupd.weights.cache import Repo, cache_dir_of, folder_name
from modelsupd.weights.publishing import publish

__all__ = ["alone", "mock"]  # fixtures


def test_what_huggingface_hub_filled_is_read(mock: MockHub, place: Path) -> None:
    snapshot = downloaded(mock, place)
    repo, there = Repo(place / "hub", NAME), mock.repos[NAME]

    assert repo.commit_of("main") == there.commit
    assert repo.commit_of(there.commit) == there.commit
    assert repo.snapshot(there.commit) == snapshot
    assert repo.commits() == (there.commit,)
    listing = hub.listing(HubSource(NAME), settings(place, mock.url))
    assert repo.tree(there.commit) == listing.files
    assert repo.pins_by_names(there.commit) == listing.files
    assert repo.dangling(there.commit) == ()
    for pin in listing.files:
        assert repo.blob(pin).read_bytes() == FILES[pin.path] == repo.file(there.commit, pin.path).read_bytes()
        assert repo.lock(pin.blob or "").exists()


def test_a_cache_without_listings_tells_its_digests_by_names_alone(mock: MockHub, place: Path) -> None:
    downloaded(mock, place)
    repo, commit = Repo(place / "hub", NAME), mock.repos[NAME].commit
    shutil.rmtree(repo.folder / "trees")

    assert repo.tree(commit) is None
    assert [pin.path for pin in repo.pins_by_names(commit) or ()] == sorted(FILES)

    gone = mock.repos[NAME].file("sub/folder/more.safetensors")
    (repo.blobs / gone.sha256).unlink()
    assert repo.dangling(commit) == ("sub/folder/more.safetensors",)
    assert len(repo.pins_by_names(commit) or ()) == len(FILES) - 1


def test_a_partial_snapshot_lists_all_and_has_some(mock: MockHub, place: Path) -> None:
    downloaded(mock, place, allow_patterns=["config.json"])
    repo, commit = Repo(place / "hub", NAME), mock.repos[NAME].commit

    assert len(repo.tree(commit) or ()) == len(FILES)
    assert [pin.path for pin in repo.pins_by_names(commit) or ()] == ["config.json"]


def test_files_that_are_not_whole_yet_are_no_blobs(mock: MockHub, place: Path) -> None:
    repo, listing, _ = pulled(mock, place)
    pin = next(pin for pin in listing.files if pin.path == "model.safetensors")
    repo.blob(pin).rename(repo.blob(pin).with_name(f"{pin.blob}.incomplete"))
    link = repo.file(listing.commit or "", "model.safetensors")
    link.unlink()
    link.symlink_to(f"../../blobs/{pin.blob}.incomplete")

    found = {pin.path: pin for pin in repo.pins_by_names(listing.commit or "") or ()}
    assert found["model.safetensors"] == Pin("model.safetensors", 1000, None, None)
    assert not repo.blob(pin).exists()


def test_links_into_the_store_that_repositories_share_are_followed(mock: MockHub, place: Path) -> None:
    from huggingface_hub.utils import _shared_blobs as shared  # noqa: PLC0415 - private, and for this test alone

    repo, listing, snapshot = pulled(mock, place)
    pin = next(pin for pin in listing.files if pin.path == "model.safetensors")
    assert shared.publish_blob_to_shared_store(
        blob_path=str(repo.blob(pin)), xet_hash="ab" * 32, cache_dir=place / "hub", expected_size=1000
    )

    assert repo.blob(pin).is_symlink()
    assert repo.pins_by_names(listing.commit or "") == listing.files
    assert repo.file(listing.commit or "", pin.path).read_bytes() == FILES[pin.path]
    assert publish(NAME, listing.commit or "", "main", listing.files, settings(place)) == snapshot


def test_a_file_in_a_link_s_place_has_no_known_digest(place: Path) -> None:
    repo = Repo(place, NAME)
    repo.snapshot(COMMIT).mkdir(parents=True)
    (repo.snapshot(COMMIT) / "copied.gguf").write_bytes(b"12345")
    (repo.snapshot(COMMIT) / "out.gguf").symlink_to("/proc/version")
    (repo.snapshot(COMMIT) / "loop").symlink_to("loop")
    (repo.snapshot(COMMIT) / "elsewhere").symlink_to(place)  # a folder, which is not walked

    (place / ("a" * 64)).write_bytes(b"123")  # named like a blob, and none of this repository
    (repo.snapshot(COMMIT) / "strange").symlink_to(place / ("a" * 64))

    assert repo.pins_by_names(COMMIT) == (Pin("copied.gguf", 5), Pin("out.gguf", 0), Pin("strange", 3))
    assert repo.dangling(COMMIT) == ("loop",)


def test_an_empty_cache_has_nothing(place: Path) -> None:
    repo = Repo(place / "none", NAME)
    assert [repo.commit_of("main"), repo.tree(COMMIT), repo.pins_by_names(COMMIT), repo.commits()] == [None] * 3 + [()]


@pytest.mark.parametrize("content", ["", "main", "x" * 40, "../" * 13 + "a", COMMIT + "0", "\udcff"])
def test_a_broken_ref_is_none(place: Path, content: str) -> None:
    repo = Repo(place, NAME)
    (repo.folder / "refs").mkdir(parents=True)
    (repo.folder / "refs" / "main").write_bytes(content.encode(errors="surrogateescape"))
    assert repo.commit_of("main") is None


GOOD = {"size": 1, "blob_id": "0" * 40}
BROKEN: list[object] = [
    None,
    [],
    7,
    {},
    {"format_version": 2, "files": {"a": GOOD}},
    {"format_version": 1},
    {"format_version": 1, "files": ["a"]},
    *(
        {"format_version": 1, "files": {"a": entry}}
        for entry in (
            None,
            {},
            GOOD | {"size": -1},
            GOOD | {"size": "1"},
            GOOD | {"size": None},
            GOOD | {"blob_id": "../../etc/passwd"},
            GOOD | {"blob_id": None},
            GOOD | {"lfs_sha256": "0" * 64},
            GOOD | {"lfs_sha256": "0" * 40, "lfs_size": 1},
            GOOD | {"lfs_sha256": 5, "lfs_size": 1},
        )
    ),
]


@pytest.mark.parametrize("content", [*map(json.dumps, BROKEN), "", "{", "[" * 100_000], ids=lambda text: text[:60])
def test_a_broken_listing_is_none(place: Path, content: str) -> None:
    repo = Repo(place, NAME)
    (repo.folder / "trees").mkdir(parents=True)
    (repo.folder / "trees" / f"{COMMIT}.json").write_text(content)
    assert repo.tree(COMMIT) is None


def test_names_that_lead_out_of_the_cache_are_refused(place: Path) -> None:
    repo = Repo(place / "hub", NAME)
    calls: list[Callable[[], object]] = [
        lambda: repo.file(COMMIT, "../../../../x"),
        lambda: repo.file(COMMIT, "/etc/passwd"),
        lambda: repo.file(COMMIT, "a//b"),
        lambda: repo.file("../" + COMMIT, "x"),
        lambda: repo.snapshot("main"),
        lambda: repo.blob(Pin("x", 1)),
        lambda: repo.blob(Pin("x", 1, None, "../../../x")),
        lambda: repo.blob(Pin("x", 1, None, "A" * 40)),
        lambda: repo.lock("x/../y"),
    ]
    for call in calls:
        with pytest.raises(WeightsError, match=r"^cannot use "):
            call()
    (place / "x").write_text(COMMIT)
    (repo.folder / "refs").mkdir(parents=True)
    assert (repo.folder / "refs" / "../../../x").exists()
    assert repo.commit_of("../../../x") is None
    assert repo.tree("../x") is None


@pytest.mark.parametrize("name", ["", "/", "..", "a/..", "../a", "a/b/c", "a--b/c", "a/b.", "-a/b", "a b/c", "a/b\n"])
def test_what_is_no_name_of_a_repository(name: str) -> None:
    with pytest.raises(WeightsError, match="is no name of a repository"):
        folder_name(name)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen2-0.5B-Instruct", "_a/b_c", "0x/1.5"])
def test_a_repository_s_folder_is_that_of_huggingface_hub(name: str) -> None:
    from huggingface_hub.file_download import repo_folder_name  # noqa: PLC0415 - for this test alone

    assert folder_name(name) == repo_folder_name(repo_id=name, repo_type="model")


def test_what_may_not_be_read_says_who_would_need_to(mock: MockHub, place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    repo, listing, _ = pulled(mock, place)
    place.chmod(0o755)
    closed = repo.folder / "refs"
    closed.chmod(0o700)
    (repo.folder / "snapshots").chmod(0o700)
    os.seteuid(65534)
    try:
        errors_found = []
        for ask in (lambda: repo.commit_of("main"), lambda: repo.pins_by_names(listing.commit or ""), repo.commits):
            with pytest.raises(WeightsError) as caught:
                ask()
            errors_found.append(caught.value)
    finally:
        os.seteuid(0)
    assert {error.kind for error in errors_found} == {FailureClass.WEIGHTS_UNAVAILABLE}
    words = f"user 'nobody' may not read {closed}; give it access, or set weights.cache_dir"
    assert str(errors_found[0]) == f"cannot read {closed}/main: {words}"


def test_fifty_files_are_read_within_milliseconds(place: Path) -> None:
    repo = Repo(place, NAME)
    files = {f"f{number}": {"size": 1, "blob_id": f"{number:040x}"} for number in range(50)}
    (repo.folder / "trees").mkdir(parents=True)
    (repo.folder / "trees" / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": files}))
    pins = repo.tree(COMMIT) or ()
    for pin in pins:
        put(repo, pin, b"x")
    publish(NAME, COMMIT, "main", pins, Settings(place, place))

    best_s = {"tree": 1.0, "names": 1.0}
    for _ in range(5):
        for name, ask in (("tree", repo.tree), ("names", repo.pins_by_names)):
            begun = time.thread_time()  # what others do on the machine does not count
            assert len(ask(COMMIT) or ()) == 50
            best_s[name] = min(best_s[name], time.thread_time() - begun)
    assert best_s["tree"] < 0.005, best_s
    assert best_s["names"] < 0.02, best_s


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HF_HOME": "/x/y"},
        {"HF_HOME": "~/y"},
        {"HF_HOME": "$ROOT/y", "ROOT": "/r"},
        {"HF_HOME": "${ROOT}/y$NONE", "ROOT": "/r"},
        {"HF_HUB_CACHE": "/c"},
        {"HF_HUB_CACHE": "~/c", "HF_HOME": "/x"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/x"},
        {"XDG_CACHE_HOME": "~/xdg"},
        {"HOME": "/h/"},
        {"HF_HOME": "~root/y"},
        {"HF_HOME": "/x/"},
    ],
    ids=str,
)
def test_the_default_cache_is_that_of_huggingface_hub(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    given_to_it = {"HOME": "/home/somebody", **environ}
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "XDG_")):
            monkeypatch.delenv(name)
    for name, value in given_to_it.items():
        monkeypatch.setenv(name, value)
    theirs = runpy.run_path(str(constants.__file__))["HF_HUB_CACHE"]
    assert cache_dir_of(given_to_it) == Path(theirs)
