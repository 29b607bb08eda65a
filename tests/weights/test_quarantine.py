"""What turned out to be wrong is moved, noted, and never deleted."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelsupd.weights import quarantine


def aside(path: Path, state: Path, actual: str | None = None) -> Path:
    return quarantine.move_aside(path, state, "flipped", "e" * 64 if actual else None, actual)


def wrong(path: Path, data: bytes = b"wrong") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_file_is_moved_with_a_note(place: Path) -> None:
    path = wrong(place / "model.gguf")
    moved = aside(path, place / "state", "a" * 64)

    assert not path.exists()
    assert moved.read_bytes() == b"wrong"
    assert moved.parent == place / "state" / "weights" / "quarantine"
    note = json.loads(moved.with_name(moved.name + ".json").read_text())
    assert (note["origin"], note["why"], note["expected"], note["actual"]) == (
        str(path),
        "flipped",
        "e" * 64,
        "a" * 64,
    )
    [listed] = quarantine.listing(place / "state")
    assert (listed.path, listed.origin, listed.size_bytes) == (moved, path, 5)


def test_the_same_content_is_kept_once_and_other_content_beside_it(place: Path) -> None:
    path = place / "model.gguf"
    for actual in ("a" * 64, "a" * 64, "b" * 64):
        aside(wrong(path, actual.encode()), place / "state", actual)
    assert sorted(one.path.read_bytes()[:1] for one in quarantine.listing(place / "state")) == [b"a", b"b"]


def test_without_a_digest_each_is_kept(place: Path) -> None:
    for data in (b"1", b"2", b"2"):
        aside(wrong(place / "model.gguf", data), place / "state")
    assert sorted(one.path.read_bytes() for one in quarantine.listing(place / "state")) == [b"1", b"2", b"2"]


def test_of_a_link_its_file_is_moved(place: Path) -> None:
    """So that no other link leads to it, such as another repository's to a blob that they share."""
    shared = wrong(place / "cache" / "blobs" / "ab" / "abcd")
    link = place / "cache" / "models--o--n" / "blobs" / "digest"
    link.parent.mkdir(parents=True)
    link.symlink_to(shared)
    moved = aside(link, place / "state")
    assert moved.read_bytes() == b"wrong"
    assert not shared.exists()
    assert link.is_symlink()
    assert not link.exists()


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Return a folder on another file system than the tests'."""
    for folder in ("/tmp", "/dev/shm"):
        if Path(folder).is_dir() and Path(folder).stat().st_dev != Path(tempfile.gettempdir()).stat().st_dev:
            path = Path(tempfile.mkdtemp(dir=folder))
            yield path
            shutil.rmtree(path)
            return
    pytest.skip("needs a second file system")


@pytest.mark.parametrize(("name", "folder"), [("models/m.gguf", "models"), ("models--o--n/blobs/ab12", "models--o--n")])
def test_on_another_file_system_it_stays_there(place: Path, elsewhere: Path, name: str, folder: str) -> None:
    moved = aside(wrong(elsewhere / name), place / "state", "a" * 64)
    assert moved.parent == elsewhere / folder / quarantine.HIDDEN
    assert moved.with_name(moved.name + ".json").exists()
    [listed] = quarantine.listing(place / "state")
    assert listed.path == moved
    moved.unlink()
    assert quarantine.listing(place / "state") == []


def test_what_is_not_there_cannot_be_moved(place: Path) -> None:
    with pytest.raises(FileNotFoundError):
        aside(place / "none", place / "state")


def test_notes_of_others_are_left_alone(place: Path) -> None:
    folder = quarantine.folder(place / "state")
    aside(wrong(place / "model.gguf"), place / "state")
    for number, text in enumerate(["", "[]", "{}", '{"v": 2}', '{"v": 1, "path": "/"}']):
        (folder / f"{number}.json").write_text(text)
    assert len(quarantine.listing(place / "state")) == 1


def test_nothing_is_listed_where_nothing_is(place: Path) -> None:
    assert quarantine.listing(place / "state") == []
