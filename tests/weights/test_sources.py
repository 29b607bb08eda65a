"""Sources as they are declared, and the files that are meant by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupd.core.events import FailureClass
from modelsupd.core.spec import Engine, ModelSpec
from modelsupd.weights.base import HubSource, LocalSource, Part, Pin, Role, WeightsError
from modelsupd.weights.sources import (
    SourceError,
    chosen,
    files_of,
    inside,
    local_files,
    parse,
    parts,
    path_problem,
    refuse,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:Qwen/Qwen2-0.5B", HubSource("Qwen/Qwen2-0.5B")),
        ("hf:Qwen/Qwen2-0.5B@main", HubSource("Qwen/Qwen2-0.5B")),
        (f"hf:a/b@{COMMIT}", HubSource("a/b", COMMIT)),
        ("hf:a/b@v1.0+x", HubSource("a/b", "v1.0+x")),
        ("hf:a/b@refs/pr/12", HubSource("a/b", "refs/pr/12")),
        ("hf:a/b@refs/pr/12/m.gguf", HubSource("a/b", "refs/pr/12", "m.gguf")),
        ("hf:a/b@refs/convert/parquet/d/m.gguf", HubSource("a/b", "refs/convert/parquet", "d/m.gguf")),
        ("hf:a/b/Q4/m@x.gguf", HubSource("a/b", "main", "Q4/m@x.gguf")),
        ("hf:a/b@dev/Q4/m.gguf", HubSource("a/b", "dev", "Q4/m.gguf")),
        ("hf:_a/b_/ü.gguf", HubSource("_a/b_", "main", "ü.gguf")),
        ("m.gguf", LocalSource(Path("/base/m.gguf"))),
        ("/w/m.gguf", LocalSource(Path("/w/m.gguf"))),
        ("a/b", LocalSource(Path("/base/a/b"))),
    ],
)
def test_what_a_source_is(text: str, source: HubSource | LocalSource) -> None:
    assert parse(text, Path("/base")) == source
    assert parse(str(source)) == source


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("hf:", "must be hf:ORG/REPO[@REVISION][/FILE], such as 'hf:Qwen/Qwen2-0.5B-Instruct'"),
        ("hf:gpt2", "a repository has an owner"),
        ("hf:a/b/", "did you mean 'hf:a/b'?"),
        ("hf:a/b@", "must be hf:ORG"),
        ("hf:a/b@-x", "must be hf:ORG"),
        ("hf:a/b@refs", "is no revision"),
        ("hf:a/b@x..y", "is no revision"),
        ("hf:a--b/c", "holds '--' or '..'"),
        ("hf:a/b.git", "ends with '.git'"),
        ("hf:-a/b", "must be hf:ORG"),
        ("hf:a /b", "must be hf:ORG"),
        ("hf:ä/b", "must be hf:ORG"),
        ("hf:a/b/../c", "it holds '.', '..' or nothing between two slashes"),
        ("hf:a/b//c", "it is absolute"),
        ("hf:a/b/c//d", "nothing between two slashes"),
        ("hf:a/b/c\\d", "a backslash"),
        ("hf:a/b/c\nd", "cannot be printed"),
        ("hf:a/b/" + "x" * 256, "longer than"),
        ("", "must be a path"),
        ("a\0b", "must be a path"),
        ("hf://a/b", "not an address; did you mean 'hf:a/b'?"),
        ("https://huggingface.co/a/b", "did you mean 'hf:a/b'?"),
        ("https://huggingface.co/a/b/resolve/main/m.gguf?download=true", "did you mean 'hf:a/b/m.gguf'?"),
        ("https://hf.co/a/b/blob/v1/d/m.gguf", "did you mean 'hf:a/b@v1/d/m.gguf'?"),
        ("https://hub.example/a/b", "not an address"),
        ("s3://a/b", "not an address"),
    ],
)
def test_what_is_no_source(text: str, why: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse(text)
    assert why in str(caught.value)


@given(text=st.text(max_size=40) | st.text(alphabet="hf:ab/@.-_0\0\\\n", max_size=30).map("hf:".__add__))
def test_any_text_is_a_source_that_reads_back_or_is_refused(text: str) -> None:
    try:
        source = parse(text, Path("/base"))
    except SourceError:
        return
    assert parse(str(source)) == source
    if isinstance(source, HubSource):
        assert source.file is None or not path_problem(source.file)


def test_parts_of_a_model() -> None:
    spec = ModelSpec(
        engine=Engine.LLAMA_CPP,
        weights="hf:a/b/m.gguf",
        sha256="0" * 64,
        mmproj="/w/mmproj.gguf",
        draft="hf:a/d/d.gguf",
        lora=("/w/1.gguf", "/w/2.gguf"),
    )
    assert parts(spec) == (
        Part(Role.WEIGHTS, HubSource("a/b", "main", "m.gguf"), sha256="0" * 64),
        Part(Role.MMPROJ, LocalSource(Path("/w/mmproj.gguf"))),
        Part(Role.DRAFT, HubSource("a/d", "main", "d.gguf")),
        Part(Role.LORA, LocalSource(Path("/w/1.gguf"))),
        Part(Role.LORA, LocalSource(Path("/w/2.gguf"))),
    )
    whole = ModelSpec(engine=Engine.COMMAND, weights="hf:a/b", allow=("*.json",), ignore=("x",))
    assert parts(whole) == (Part(Role.WEIGHTS, HubSource("a/b"), ("*.json",), ("x",)),)
    assert parts(ModelSpec(engine=Engine.COMMAND)) == ()


def test_any_shard_means_all_of_them() -> None:
    three = tuple(f"d/m-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    assert files_of("d/m-00002-of-00003.gguf") == three
    assert files_of("m-00004-of-00003.gguf") == ("m-00004-of-00003.gguf",)
    assert files_of("m-00000-of-00003.gguf") == ("m-00000-of-00003.gguf",)
    assert files_of("m-2-of-3.gguf") == ("m-2-of-3.gguf",)
    assert files_of("m.gguf") == ("m.gguf",)


def test_what_of_a_repository_a_part_means() -> None:
    files = [Pin(name, 1) for name in ("README.md", "m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "Q8/x.gguf")]

    def of(source: str) -> list[str]:
        return [pin.path for pin in chosen(Part(Role.WEIGHTS, parse(source)), files)]

    assert of("hf:a/b/m-00002-of-00002.gguf") == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    for source, words in [
        ("hf:a/b/m-00001-of-00003.gguf", "has no file 'm-00001-of-00003.gguf'; did you mean 'm-00001-of-00002.gguf'?"),
        ("hf:a/b/Q8", "but a folder of that name; name the repository, with allow = ['Q8/*']"),
        ("hf:a/b/zzz", "it has Q8/x.gguf, m-00001-of-00002.gguf, m-00002-of-00002.gguf"),
    ]:
        with pytest.raises(WeightsError) as caught:
            of(source)
        assert caught.value.kind is FailureClass.WEIGHTS_UNAVAILABLE
        assert str(caught.value).startswith(f"cannot use '{source}': the repository has no file ")
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "paths",
    [
        ["../x.json"],
        ["/etc/x.json"],
        ["a/./x.json"],
        ["a//x.json"],
        ["a\\..\\x.json"],
        ["x\0.json"],
        ["x\x1b[2J.json"],
        ["x.json", "x.json"],
        ["a", "a/b.json"],
        ["a/b", "a/b/c/d.json"],
    ],
)
def test_a_hub_s_paths_are_not_trusted(paths: list[str]) -> None:
    with pytest.raises(WeightsError) as caught:
        refuse(Pin(path, 1) for path in ["config.json", *paths])
    assert caught.value.kind is FailureClass.BAD_WEIGHTS
    assert str(caught.value).startswith("cannot use the repository's list of files: '")
    assert str(caught.value).isprintable()


def test_links_may_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    (root / "d").mkdir(parents=True)
    (root / "blob").write_text("x")
    (tmp_path / "out").write_text("x")
    (root / "d" / "good").symlink_to("../blob")
    (root / "d" / "bad").symlink_to("../../out")
    (root / "loop").symlink_to("loop")
    (tmp_path / "another name").symlink_to(root)
    assert inside(root / "d" / "good", root) == (root / "blob").resolve()
    assert inside(tmp_path / "another name" / "d" / "good", tmp_path / "another name").name == "blob"
    for path, words in [("d/bad", "out of"), ("loop", "cannot follow"), ("gone", "cannot follow")]:
        with pytest.raises(WeightsError, match=words):
            inside(root / path, root)


def test_files_of_a_local_source(tmp_path: Path) -> None:
    shard = tmp_path / "m-00001-of-00002.gguf"
    assert [name for name, _ in local_files(LocalSource(shard))] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    folder = tmp_path / "model"
    (folder / ".git").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        ".git/x",
        "1_Pooling/config.json",
        "README.md",
    ):
        (folder / name).write_text("x")
    (folder / "linked.json").symlink_to(folder / "config.json")
    (folder / "dangling.json").symlink_to("gone")
    expected = ["1_Pooling/config.json", "config.json", "linked.json", "model.safetensors"]
    assert local_files(LocalSource(folder)) == tuple((name, folder / name) for name in expected)


def test_a_folder_of_several_models_is_all_of_them(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_text("x")
    assert [name for name, _ in local_files(LocalSource(tmp_path))] == ["a.gguf", "b.gguf"]
    (tmp_path / "a.gguf").rename(tmp_path / "a.png")
    (tmp_path / "b.gguf").rename(tmp_path / "b.png")
    assert [name for name, _ in local_files(LocalSource(tmp_path))] == ["a.png", "b.png"]
