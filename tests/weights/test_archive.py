"""Export and import: what goes out comes in, verified; what is hostile or cut leaves nothing behind."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from filled_cache import COMMIT, OTHER, fill, listed, pin, tiny_safetensors
from modelsupd.core.events import FailureClass
from modelsupd.weights.archive import MANIFEST, digest_of, export
from modelsupd.weights.arrival import import_
from modelsupd.weights.base import (
    HubSource,
    LocalSource,
    Part,
    Pinned,
    Role,
    Settings,
    Stopped,
    WeightsError,
    identity_of,
)
from modelsupd.weights.cache import Repo
from modelsupd.weights.lock import Lock
from modelsupd.weights.quarantine import listing
from modelsupd.weights.records import Records
from modelsupd.weights.verdicts import Verdicts

WEIGHTS = tiny_safetensors()
CONTENTS = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "sub/same.safetensors": WEIGHTS, "empty.txt": b""}
HUB_PART = Part(Role.WEIGHTS, HubSource("org/name"))


def settings(place: Path) -> Settings:
    return Settings(place / "cache", place / "state", min_free_bytes=0)


def files(pinned: Pinned, where: Settings) -> dict[str, Path]:
    repo = Repo(where.cache_dir, "org/name")
    return {pin.path: repo.file(pinned.commit or "", pin.path) for pin in pinned.files}


def packed(tmp_path: Path) -> tuple[Path, Pinned]:
    """Return an archive of a source of the hub."""
    here = settings(tmp_path / "here")
    pinned = fill(here, "hf:org/name", CONTENTS, small={"config.json", "empty.txt"})
    target = tmp_path / "m.tar"
    moved: list[int] = []
    size = export([(pinned, files(pinned, here))], target, moved.append, threading.Event())
    assert size == target.stat().st_size
    assert sum(moved) == len(WEIGHTS) + len(CONTENTS["config.json"])  # what is there twice is stored once
    return target, pinned


def taken(
    tmp_path: Path,
    archive: Path,
    *,
    parts: Sequence[Part] = (),
    lock: Lock | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[int], None] = lambda _: None,
    **other: int,
) -> tuple[Pinned, ...]:
    where = dataclasses.replace(settings(tmp_path / "there"), **other)  # type: ignore[arg-type]  # sizes alone
    return import_(archive, where, parts=parts, lock=lock or Lock(), progress=progress, stop=stop or threading.Event())


def refused(tmp_path: Path, archive: Path, words: str, **how: object) -> WeightsError:
    """Take an archive in that is refused; nothing is left of it."""
    with pytest.raises(WeightsError) as caught:
        taken(tmp_path, archive, **how)  # type: ignore[arg-type]  # handed on
    assert words in str(caught.value)
    assert str(caught.value).startswith("cannot ")
    there = tmp_path / "there" / "cache"
    assert [name for name in listed(there) if "state" not in name] == []
    return caught.value


def test_what_goes_out_comes_in(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path)
    moved: list[int] = []
    assert taken(tmp_path, archive, progress=moved.append) == (pinned,)
    there = settings(tmp_path / "there")
    assert listed(there.cache_dir) == listed(tmp_path / "here" / "cache")
    for path, file in files(pinned, there).items():
        assert file.read_bytes() == CONTENTS[path]
    assert Repo(there.cache_dir, "org/name").commit_of("main") == COMMIT
    assert list(Records(there.state_dir).owned()) == [pinned]
    assert sum(moved) == len(WEIGHTS) + len(CONTENTS["config.json"])
    # It need not be read again: what was found out on the way is known.
    for one in pinned.files:
        verdict = Verdicts(there.state_dir).get(identity_of(Repo(there.cache_dir, "org/name").blob(one).stat()))
        assert verdict is not None
        assert (verdict.sha256, verdict.structure == "bad") == (one.sha256, False)


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        manifest = json.load(tar.extractfile(MANIFEST))  # type: ignore[arg-type]  # a regular file
    assert names == [MANIFEST, *dict.fromkeys(pin.sha256 for pin in pinned.files)]
    assert manifest["sources"][0]["source"] == "hf:org/name"


def test_what_is_there_and_right_stays_as_it_is(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path)
    taken(tmp_path, archive)
    before = {path: file.stat().st_ino for path, file in files(pinned, settings(tmp_path / "there")).items()}
    taken(tmp_path, archive)
    assert {path: file.stat().st_ino for path, file in files(pinned, settings(tmp_path / "there")).items()} == before


def test_what_is_there_and_wrong_is_moved_aside(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path)
    there = settings(tmp_path / "there")
    wrong = Repo(there.cache_dir, "org/name").blob(pinned.files[2])
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(bytes(len(WEIGHTS)))
    taken(tmp_path, archive)
    assert wrong.read_bytes() == WEIGHTS
    [aside] = listing(there.state_dir)
    assert aside.path.read_bytes() == bytes(len(WEIGHTS))
    assert aside.expected == pinned.files[2].sha256


def test_the_same_commit_and_files_as_the_lock_or_nothing(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path)
    assert taken(tmp_path, archive, parts=[HUB_PART], lock=Lock((pinned,))) == (pinned,)
    other = tmp_path / "other"
    refused(other, archive, f"and the lock wants {OTHER}", lock=Lock((dataclasses.replace(pinned, commit=OTHER),)))
    fewer = dataclasses.replace(pinned, files=pinned.files[1:])
    refused(other, archive, "it holds other files of 'hf:org/name'", lock=Lock((fewer,)))
    declared = dataclasses.replace(HUB_PART, sha256="0" * 64)
    refused(other, archive, "that models.toml declares", parts=[declared])


@pytest.mark.parametrize("folder", [True, False])
def test_local_sources_go_where_they_are_declared(tmp_path: Path, folder: bool) -> None:
    place = tmp_path / "w" / "model"
    names = ["config.json", "d/x.safetensors"] if folder else ["m-00001-of-00002.txt"]
    source = LocalSource(place if folder else place / names[0])
    part = Part(Role.WEIGHTS, source)
    contents = {name: WEIGHTS if name.endswith("tensors") else b"{}" for name in names}
    pinned = Pinned(str(source), None, tuple(pin(name, contents[name]) for name in names))
    pinned = dataclasses.replace(pinned, files=tuple(dataclasses.replace(one, blob=None) for one in pinned.files))
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(contents[name])
    unknown = dataclasses.replace(pinned, files=tuple(dataclasses.replace(one, sha256=None) for one in pinned.files))
    archive = tmp_path / "m.tar"
    export([(unknown, {name: place / name for name in names})], archive, lambda _: None, threading.Event())
    (tmp_path / "w").rename(tmp_path / "moved")
    refused(tmp_path, archive, f"it holds the local '{source}', which no model here has; declare it in models.toml")
    assert not place.exists()
    assert taken(tmp_path, archive, parts=[part]) == (pinned,)
    assert {name: (place / name).read_bytes() for name in names} == contents
    assert taken(tmp_path, archive, parts=[part]) == (pinned,)
    (place / names[0]).write_bytes(b"[]")
    refused(tmp_path, archive, f"another file is at '{place / names[0]}'; move it away first", parts=[part])
    assert (place / names[0]).read_bytes() == b"[]"


# What goes wrong on the way out


def test_what_is_not_as_pinned_is_not_exported(tmp_path: Path) -> None:
    here = settings(tmp_path / "here")
    pinned = fill(here, "hf:org/name", CONTENTS)
    target = tmp_path / "m.tar"
    target.write_text("an older one")
    blob = Repo(here.cache_dir, "org/name").blob(pinned.files[2])
    content = bytearray(WEIGHTS)
    content[-1] ^= 1
    for wrong, words in [
        (bytes(content), "its sha256 is "),
        (WEIGHTS[:-1], "bytes long"),
        (WEIGHTS + b"x", "bytes long"),
    ]:
        blob.write_bytes(wrong)
        with pytest.raises(WeightsError, match=words) as caught:
            export([(pinned, files(pinned, here))], target, lambda _: None, threading.Event())
        assert caught.value.kind is FailureClass.BAD_WEIGHTS
    blob.unlink()
    with pytest.raises(WeightsError, match="cannot read"):
        export([(pinned, files(pinned, here))], target, lambda _: None, threading.Event())
    assert target.read_text() == "an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "m.tar"]


def test_it_stops_when_told_to(tmp_path: Path) -> None:
    archive, pinned = packed(tmp_path)
    stop = threading.Event()
    with pytest.raises(Stopped):
        taken(tmp_path, archive, stop=stop, progress=lambda _: stop.set())
    assert listed(tmp_path / "there" / "cache") == []
    with pytest.raises(Stopped):
        export([(pinned, files(pinned, settings(tmp_path / "here")))], tmp_path / "n.tar", lambda _: None, stop)
    assert not (tmp_path / "n.tar").exists()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path: Path) -> None:
    archive, _ = packed(tmp_path)
    error = refused(tmp_path, archive, "bytes of space are missing in", min_free_bytes=2**60)
    assert error.kind is FailureClass.NO_SPACE


# Hostile archives


def entry(name: str, data: bytes = b"", **other: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in other.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


def manifest(*sources: dict[str, object], **other: object) -> bytes:
    plain = {"v": 1, "sources": list(sources), "sha256": digest_of(list(sources)), **other}
    return entry(MANIFEST, json.dumps(plain).encode())


def one_file(path: str = "x.txt", content: bytes = b"x", **other: object) -> dict[str, object]:
    return {"path": path, "size": len(content), "sha256": pin(path, content).sha256, **other}


def hub_source(*files_of: dict[str, object], **other: object) -> dict[str, object]:
    return {"source": "hf:org/name", "commit": COMMIT, "files": list(files_of or [one_file()]), **other}


X = str(one_file()["sha256"])
END = b"\0" * 1024


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it ends before it should"),
        (b"no tar" * 200, "it is no tar"),
        (END, "it is no tar, or ends before it should"),
        (entry("a.txt", b"x") + END, "it holds 'a.txt' where a file 'modelsupd-export.json' was to come"),
        (entry(MANIFEST, b"{") + END, "its list is not JSON"),
        (entry(MANIFEST, b"[" * 99999) + END, "its list is not JSON"),
        (entry(MANIFEST, b"[]") + END, "not of version 1"),
        (manifest(hub_source(), v=2), "not of version 1"),
        (manifest(), "it holds no source"),
        (manifest(hub_source(), sha256="0" * 64), "its list is damaged"),
        (entry(MANIFEST, size=2**40), "its list is too long"),
        (entry(MANIFEST, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "modelsupd did not write it"),
        (manifest(hub_source(one_file("../x"))), "files[0].path = '../x': cannot be a file's path"),
        (manifest(hub_source(one_file("/x"))), "cannot be a file's path: it is absolute"),
        (manifest(hub_source(one_file(), one_file())), "files[1].path = 'x.txt': is there twice"),
        (manifest(hub_source(one_file("a"), one_file("a/b"))), "is a file and a folder"),
        (manifest(hub_source(one_file(size=-1))), "size = -1"),
        (manifest(hub_source(one_file(blob="../../x"))), "blob = '../../x': must be 40 hex digits"),
        (manifest(hub_source(commit="../x")), "commit = '../x': must be 40 hex digits"),
        (manifest(hub_source(source="hf:../../x/y")), "source = 'hf:../../x/y'"),
        (manifest({"source": "/etc/x", "files": [one_file()]}), "it holds the local '/etc/x', which no model here has"),
        (manifest(hub_source(one_file(), one_file("y", size=2))), "'y' has a size that its digest has not elsewhere"),
        (manifest(hub_source()) + END, "it is no tar, or ends before it should"),
        (manifest(hub_source()) + entry("other", b"x"), f"it holds 'other' where a file '{X}' was to come"),
        (manifest(hub_source()) + entry(X, b"xx"), "modelsupd did not write it"),
        (manifest(hub_source()) + entry(X, type=tarfile.LNKTYPE, linkname="x"), "modelsupd did not write it"),
        (manifest(hub_source()) + entry(X, type=tarfile.GNUTYPE_LONGNAME, size=2**40), "modelsupd did not write it"),
        (manifest(hub_source()) + entry(X, type=tarfile.XHDTYPE, size=2**40), "modelsupd did not write it"),
        (manifest(hub_source()) + entry(X, type=tarfile.DIRTYPE), "modelsupd did not write it"),
        (manifest(hub_source()) + entry(X, b"y"), "the sha256 of one of its files is "),
        (manifest(hub_source(one_file(blob="0" * 40))) + entry(X, b"x"), "git's sha1 of 'x.txt' is "),
        (manifest(hub_source()) + entry(X, b"x")[:512], "it ends before it should"),
        (manifest(hub_source()) + entry(X, b"x")[:-1], "it ends before it should"),
        (
            manifest(hub_source(one_file("m.gguf", b"no gguf"))) + entry(str(pin("", b"no gguf").sha256), b"no gguf"),
            "'m.gguf' ",
        ),
    ],
)
def test_an_archive_that_is_not_ours_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    archive = tmp_path / "m.tar"
    archive.write_bytes(data)
    error = refused(tmp_path, archive, words)
    assert error.kind is FailureClass.BAD_WEIGHTS


def test_a_name_in_an_archive_does_not_reach_the_terminal(tmp_path: Path) -> None:
    archive = tmp_path / "m.tar"
    archive.write_bytes(entry("a\x1b[2J", b"x"))
    assert "\x1b" not in str(refused(tmp_path, archive, "a\\x1b[2J"))


def test_a_small_archive_of_a_large_file_takes_no_space(tmp_path: Path) -> None:
    huge = one_file(size=2**50)
    archive = tmp_path / "m.tar"
    archive.write_bytes(manifest(hub_source(huge)) + entry(X, size=2**50))
    assert refused(tmp_path, archive, "bytes of space are missing").kind is FailureClass.NO_SPACE


def test_an_archive_cut_anywhere_is_refused(tmp_path: Path) -> None:
    archive, _ = packed(tmp_path)
    whole = archive.read_bytes()
    last_content = len(whole) - 1024
    cut = tmp_path / "cut.tar"
    for at in [*range(0, last_content, 101), last_content - 1]:
        cut.write_bytes(whole[:at])
        refused(tmp_path, cut, "cannot import")


@hypothesis_settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_an_archive_with_any_bit_flipped_is_refused_or_brings_the_same(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("flipped")
    archive, pinned = packed(place)
    flipped = bytearray(archive.read_bytes())
    flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    archive.write_bytes(flipped)
    try:
        found = taken(place, archive)
    except WeightsError:
        assert listed(place / "there" / "cache") == []
        return
    assert found == (pinned,)
    for path, file in files(pinned, settings(place / "there")).items():
        assert file.read_bytes() == CONTENTS[path]


@hypothesis_settings(deadline=None)
@given(data=st.binary(max_size=600) | st.binary(max_size=200).map(lambda body: entry(MANIFEST, body)))
def test_no_bytes_lead_to_anything_but_our_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    from modelsupd.weights.archive import Archive  # noqa: PLC0415 - only here the inside is looked at

    with pytest.raises(WeightsError):
        Archive(tmp_path_factory.getbasetemp(), io.BytesIO(data))
