"""The folder of links that an engine is given: what was verified, nothing else, whatever was there before."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import HubSource, LocalSource, WeightsError
from modelsupd.weights.folders import Links, lay_out, path_of, prune

NAMES = ("config.json", "model.safetensors", "1_Pooling/config.json")


@pytest.fixture
def links(tmp_path: Path) -> Links:
    for name in NAMES:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tuple((name, tmp_path / "files" / name) for name in NAMES)


def held(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def spoil(folder: Path, how: str, other: Path) -> None:
    config = folder / "config.json"
    if how == "more":
        (folder / "more").mkdir()
        (folder / "more" / "extra.safetensors").write_text("x")
        (folder / "1_Pooling" / "extra.json").symlink_to(other)
        (folder / "stranger.py").write_text("x")
    elif how == "a folder in place of a link":
        config.unlink()
        config.mkdir()
        (config / "x").write_text("x")
    elif how == "a link in place of a folder":
        (folder / "1_Pooling" / "config.json").unlink()
        (folder / "1_Pooling").rmdir()
        (folder / "1_Pooling").symlink_to(other.parent)
    else:
        config.unlink()
        if how == "another link":
            config.symlink_to(other)
        elif how == "a file in place of a link":
            config.write_text("x")
        elif how == "a loop":
            config.symlink_to("config.json")


@pytest.mark.parametrize(
    "how",
    [
        "nothing",
        "more",
        "a folder in place of a link",
        "a link in place of a folder",
        "another link",
        "a file in place of a link",
        "a loop",
        "a missing link",
    ],
)
def test_it_holds_the_links_and_nothing_else(tmp_path: Path, links: Links, how: str) -> None:
    other = tmp_path / "other" / "config.json"
    other.parent.mkdir()
    other.write_text("other")
    folder = path_of(HubSource("org/name"), links, tmp_path)
    lay_out(folder, links)
    if how != "nothing":
        spoil(folder, how, other)
    lay_out(folder, links)

    assert held(folder) == {name: name for name in NAMES}
    assert all((folder / name).is_symlink() for name in NAMES)
    assert other.read_text() == "other"


def test_its_path_tells_what_is_in_it(tmp_path: Path, links: Links) -> None:
    source = HubSource("org/name")
    moved = tuple((name, Path(f"{path}2")) for name, path in links)

    assert path_of(source, links, tmp_path) == path_of(source, links, tmp_path)
    assert len({path_of(source, one, tmp_path) for one in (links, links[1:], moved)}) == 3
    assert path_of(source, links, tmp_path).name.startswith("name-")
    assert path_of(LocalSource(tmp_path / "own"), links, tmp_path).name.startswith("own-")


def test_its_name_is_no_longer_than_one_may_be(tmp_path: Path, links: Links) -> None:
    for name in ("\U0001f999" * 63, "x" * 255):
        own = LocalSource(tmp_path / name)
        own.path.mkdir()
        lay_out(path_of(own, links, tmp_path), links)


def test_one_whose_files_are_gone_is_removed_by_a_collector(tmp_path: Path, links: Links) -> None:
    assert prune(tmp_path) == 0
    folders = [path_of(HubSource("org/name"), some, tmp_path) for some in (links, links[:1])]
    for folder, some in zip(folders, (links, links[:1]), strict=True):
        lay_out(folder, some)
    links[1][1].unlink()

    assert prune(tmp_path) == 1
    assert [folder.exists() for folder in folders] == [False, True]
    assert links[0][1].exists()


def test_where_it_cannot_be_made_is_said(tmp_path: Path, links: Links) -> None:
    (tmp_path / "weights").write_text("a file")
    folder = path_of(HubSource("org/name"), links, tmp_path)
    with pytest.raises(WeightsError) as caught:
        lay_out(folder, links)
    assert caught.value.kind is FailureClass.WEIGHTS_UNAVAILABLE
    assert str(caught.value).startswith(f"cannot write {folder}: Not a directory")
