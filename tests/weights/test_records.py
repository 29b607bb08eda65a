"""Records of what sources were found to be, and of what we fetched."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from modelsupd.weights.base import HubSource, LocalSource, Part, Pin, Pinned, Role
from modelsupd.weights.records import Record, Records

PART = Part(Role.WEIGHTS, HubSource("org/name"))
FILES = (Pin("config.json", 3, "2" * 64, "3" * 40), Pin("m.safetensors", 7, None, "1" * 64))
PINNED = Pinned("hf:org/name", "a" * 40, FILES)


def test_what_is_put_is_there_for_that_source_and_those_patterns(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.get(PART) is None
    assert list(records.all()) == []
    records.put(PINNED, "llama.cpp")
    assert Records(tmp_path).get(PART) == Record(PINNED, ("llama.cpp",))
    assert records.get(dataclasses.replace(PART, ignore=("x",))) is None
    assert records.get(Part(Role.WEIGHTS, HubSource("org/name", "dev"))) is None
    odd = Pinned("/w/odd\\ name", None, (Pin("odd\\ name", 1, "4" * 64),))
    records.put(odd, "command")
    assert records.get(Part(Role.LORA, LocalSource(Path("/w/odd\\ name")))) == Record(odd, ("command",))
    assert {record.pinned.source for record in records.all()} == {"hf:org/name", "/w/odd\\ name"}
    records.forget(PART)
    records.forget(PART)
    assert records.get(PART) is None


def test_engines_add_up_for_the_same_files_only(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.put(PINNED, "llama.cpp")
    records.put(PINNED, "command")
    assert records.get(PART) == Record(PINNED, ("command", "llama.cpp"))
    newer = dataclasses.replace(PINNED, commit="b" * 40)
    records.put(newer, "command")
    assert records.get(PART) == Record(newer, ("command",))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":1', b'"v":2'),
        (b'"size_bytes":3', b'"size_bytes":-3'),
        (b'"size_bytes":3', b'"size_bytes":"3"'),
        (b'"path":"config.json"', b'"path":null'),
        (b'"commit":"' + b"a" * 40 + b'"', b'"commit":7'),
        (b'"hf:org/name"', b'"hf:org/other"'),
        (b"}", b""),
        (b"{", b"[" * 9000),
    ],
)
def test_a_damaged_record_is_none(tmp_path: Path, old: bytes, new: bytes) -> None:
    records = Records(tmp_path)
    records.put(PINNED, "llama.cpp")
    [path] = (tmp_path / "weights" / "records").iterdir()
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    assert records.get(PART) is None
    records.put(PINNED, "command")
    assert records.get(PART) == Record(PINNED, ("command",))


def test_what_we_own_adds_up_by_commit_and_ends(tmp_path: Path) -> None:
    records = Records(tmp_path)
    first, second = (dataclasses.replace(PINNED, files=(pin,)) for pin in FILES)
    newer = dataclasses.replace(PINNED, commit="b" * 40)
    for fetched in (first, second, second, newer):
        records.own(fetched)
    assert sorted(records.owned(), key=lambda one: one.commit or "") == [PINNED, newer]
    records.disown(first)
    assert sorted(records.owned(), key=lambda one: one.commit or "") == [second, newer]
    records.disown(PINNED)
    records.disown(PINNED)
    assert list(records.owned()) == [newer]
    assert list(records.all()) == []
