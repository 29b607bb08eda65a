"""models.lock: what is written is read back, and what is wrong with one is said, all of it at once."""

from __future__ import annotations

import dataclasses
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelsupd.core.spec import Problem
from modelsupd.errors import ConfigError
from modelsupd.weights import lock as locks
from modelsupd.weights.base import HubSource, Part, Pin, Pinned, Role
from modelsupd.weights.lock import Lock
from modelsupd.weights.lockdiff import diff
from modelsupd.weights.sources import path_problem

COMMIT, OTHER = "a" * 40, "b" * 40
BIG = Pin("model.safetensors", 5_000_000_000, "1" * 64, "1" * 64)
SMALL = Pin("config.json", 659, "2" * 64, "3" * 40)
HUB = Pinned("hf:org/name", COMMIT, (SMALL, BIG))
LOCAL = Pinned("/models/tiny.gguf", None, (Pin("tiny.gguf", 7, "4" * 64),))

TEXT = f"""\
version = 1

[[source]]
source = "/models/tiny.gguf"
files = [
  {{ path = "tiny.gguf", size = 7, sha256 = "{"4" * 64}" }},
]

[[source]]
source = "hf:org/name"
allow = ["*.json", "*.safetensors"]
commit = "{COMMIT}"
files = [
  {{ path = "config.json", size = 659, sha256 = "{"2" * 64}", blob = "{"3" * 40}" }},
  {{ path = "model.safetensors", size = 5000000000, sha256 = "{"1" * 64}" }},
]
"""


def test_how_it_reads(tmp_path: Path) -> None:
    allowed = dataclasses.replace(HUB, allow=("*.json", "*.safetensors"), files=(BIG, SMALL))
    lock = Lock().holding([allowed, LOCAL])
    text = locks.written(lock)
    assert text.startswith("# Which content each source")
    assert text[text.index("version =") :] == TEXT
    path = tmp_path / "models.lock"
    locks.write(path, lock)
    assert locks.read(path) == lock
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["models.lock"]


def test_a_link_is_followed_and_no_file_is_an_empty_lock(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "models.lock"
    link.symlink_to("elsewhere/models.lock")
    assert locks.read(link) == Lock()
    locks.write(link, Lock((HUB,)))
    assert link.is_symlink()
    assert locks.read(tmp_path / "elsewhere" / "models.lock") == Lock((HUB,))


def test_entries_are_found_by_source_and_patterns() -> None:
    part = Part(Role.WEIGHTS, HubSource("org/name"))
    other = dataclasses.replace(part, allow=("*.json",))
    lock = Lock().holding([HUB])
    assert lock.of(part) == HUB
    assert lock.of(other) is None
    newer = dataclasses.replace(HUB, commit=OTHER)
    assert lock.holding([newer]).entries == (newer,)
    assert lock.holding([LOCAL]).only([part]) == lock


def test_what_was_not_fetched_cannot_be_locked() -> None:
    for pin in (Pin("config.json", 1, None, "3" * 40), Pin("../config.json", 1, "1" * 64)):
        with pytest.raises(ValueError, match=r"config\.json"):
            locks.written(Lock((Pinned("hf:a/b", COMMIT, (pin,)),)))


def problems(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "models.lock"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        locks.read(path)
    lines = str(caught.value).replace(f"cannot use {path}: ", "").splitlines()
    return [line.strip() for line in lines[1:]] if len(caught.value.problems) > 1 else lines


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version = 1", "version = 2", ["version = 2: must be 1; another one is written by another modelsupd"]),
        ("version = 1", "", ["version: must be 1; another one"]),
        ("version = 1", "version = 1\nx = 1", ["x: unknown key; there are version, source"]),
        ('commit = "aa', 'commit = "xa', ["source[1].commit = 'xaaa"]),
        ('source = "hf:org/name"', 'source = "hf:org"', ["source[1].source = 'hf:org': must be hf:ORG/REPO"]),
        ('source = "hf:org/name"', 'source = "hf:org/name@main"', ["source[1].source = 'hf:org/name@main': must be a"]),
        ('source = "hf:org/name"', 'source = "rel/ative"', ["source[1].source = 'rel/ative': must be an absolute"]),
        ('"config.json"', '"../config.json"', ["source[1].files[0].path = '../config.json': cannot be a file's path"]),
        ('"config.json"', '"model.safetensors"', ["source[1].files[1].path = 'model.safetensors': is there twice"]),
        ('"config.json"', '"model.safetensors/x"', ["source[1].files = 'model.safetensors': is a file and a folder"]),
        ("659", "-1", ["source[1].files[0].size = -1: must be an integer of bytes"]),
        ("659", "true", ["source[1].files[0].size = true: must be an integer of bytes"]),
        ("2" * 64, "2" * 63, ["source[1].files[0].sha256 = '222"]),
        ("3" * 40, "3" * 39, ["source[1].files[0].blob = '333"]),
        (f', blob = "{"3" * 40}"', ", bolb = 1", ["source[1].files[0].bolb: unknown key; there are path, size"]),
        (
            f'{{ path = "config.json", size = 659, sha256 = "{"2" * 64}", blob = "{"3" * 40}" }}',
            "{ path = 3 }",
            ["source[1].files[0].path = 3: must be a ", "source[1].files[0].size: ", "source[1].files[0].sha256: "],
        ),
        ('allow = ["*.json"', "allow = [3", ["source[1].allow: must be a list of strings"]),
        ("[[source]]\nsource", "[[source]]\n[[source]]\nsource", ["source[0].source: must be a source"]),
        ("files = [\n", "files = []\nx = [\n", ["source[0].x: unknown", "source[0].files: must be"]),
        ("= 1", "= 1\n<<<<<<< HEAD", ["line 2, column 1: invalid statement: <<<<<<< HEAD; it is written by"]),
        ("version = 1", "version = 1\n\udcff", ["'utf-8' codec can't decode"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    assert old in TEXT
    found = problems(tmp_path, TEXT.replace(old, new, 1))
    assert len(found) == len(expected), found
    for line, words in zip(found, expected, strict=True):
        assert line.startswith(words)


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    text = TEXT.replace("659", "-1").replace("1" * 64, "x").replace('"/models/tiny.gguf"', '"s3://x"')
    assert [line.split(" ")[0].rstrip(":") for line in problems(tmp_path, text)] == [
        "source[0].source",
        "source[1].files[0].size",
        "source[1].files[1].sha256",
    ]


@pytest.mark.parametrize("text", ["source = 3\nversion = 1", "version = 1\nsource = [1]", "version = 1\nsource = [[]]"])
def test_other_shapes(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text)


def test_twice_the_same_source(tmp_path: Path) -> None:
    text = TEXT + TEXT[TEXT.rindex("[[source]]") :]
    assert problems(tmp_path, text) == ["source[2].source = 'hf:org/name': is there twice, with the same patterns"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        locks.read(tmp_path)
    assert problems(tmp_path, "a = " + "[" * 5000)[0].startswith("it is nested too deeply")


# What changes


def test_what_an_upgrade_would_change() -> None:
    old = Lock().holding([HUB, LOCAL])
    grown = dataclasses.replace(BIG, size_bytes=6_000_000_000, sha256="5" * 64, blob="5" * 64)
    new_file = Pin("chat_template.jinja", 10, None, "6" * 40)
    newer = dataclasses.replace(HUB, commit=OTHER, files=(grown, new_file))
    third = Pinned("hf:org/third/m.gguf", COMMIT, (dataclasses.replace(BIG, path="m.gguf"),))
    changes = diff(old, Lock().holding([newer, third]))
    assert [line for change in changes for line in str(change).splitlines()] == [
        "- /models/tiny.gguf: 1 file, 7 B",
        "~ hf:org/name: commit aaaaaaaaaaaa -> bbbbbbbbbbbb",
        "    + chat_template.jinja: 10 B",
        "    - config.json: 659 B",
        "    ~ model.safetensors: 4.7 GiB -> 5.6 GiB",
        "+ hf:org/third/m.gguf: 1 file, 4.7 GiB at aaaaaaaaaaaa",
    ]
    assert changes[1].fetched_bytes == 6_000_000_010
    assert diff(old, old) == ()


def test_a_small_file_without_sha256_is_compared_by_its_blob() -> None:
    listed = dataclasses.replace(HUB, files=(dataclasses.replace(SMALL, sha256=None), BIG))
    assert diff(Lock((HUB,)), Lock((listed,))) == ()
    changed = dataclasses.replace(HUB, files=(dataclasses.replace(SMALL, sha256=None, blob="7" * 40), BIG))
    assert str(diff(Lock((HUB,)), Lock((changed,)))[0]).splitlines()[1:] == ["    ~ config.json: 659 B, other content"]


# Anything that can be locked

_HEX = st.text(alphabet="0123456789abcdef", min_size=40, max_size=40)
_SHA256 = _HEX.map(lambda text: (text * 2)[:64])
_PATHS = st.text(min_size=1, max_size=12).filter(lambda path: not path_problem(path))


@st.composite
def _pinned(draw: st.DrawFn) -> Pinned:
    paths = draw(st.lists(_PATHS, min_size=1, max_size=4, unique=True))
    folders = {str(folder) for path in paths for folder in Path(path).parents}
    paths = [path for path in paths if path not in folders]
    size = st.integers(min_value=0, max_value=2**63 - 1)
    if draw(st.booleans()):
        name = draw(st.text(alphabet=string.ascii_letters + string.digits, min_size=1, max_size=8))
        pins = []
        for path in paths:
            sha256 = draw(_SHA256)
            pins.append(Pin(path, draw(size), sha256, draw(_HEX | st.just(sha256))))
        patterns = st.lists(st.text(max_size=6), max_size=2).map(tuple)
        return Pinned(f"hf:org/{name}", draw(_HEX), tuple(pins), draw(patterns), draw(patterns))
    source = "/" + draw(_PATHS)
    return Pinned(str(Path(source)), None, tuple(Pin(path, draw(size), draw(_SHA256)) for path in paths))


@settings(deadline=None)
@given(pinned=st.lists(_pinned(), max_size=4))
def test_what_is_written_is_read_back(pinned: list[Pinned], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round.lock"
    lock = Lock().holding(pinned)
    locks.write(path, lock)
    assert locks.read(path) == lock
    assert locks.written(locks.read(path)) == locks.written(lock)
    for entry in lock.entries:
        found: list[Problem] = []
        assert locks.pinned_of(locks.entry_of(entry), (), found) == entry
        assert not found


@settings(deadline=None)
@given(text=st.text(max_size=80) | st.lists(st.sampled_from(TEXT.splitlines()), max_size=12).map("\n".join))
def test_no_text_leads_to_anything_but_words(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.lock"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        lock = locks.read(path)
    except ConfigError:
        return
    assert locks.written(lock)
