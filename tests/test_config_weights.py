"""What models.toml and models.lock say of weights, and what is said about ones that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs import MODEL, host, problems, read
from filled_cache import COMMIT, pin
from modelsupd.config import check, load
from modelsupd.core.spec import Engine, ModelSpec, WeightsSpec, launch_digest
from modelsupd.weights import lock as locks
from modelsupd.weights.base import Pinned, Settings
from modelsupd.weights.lock import Lock

GGUF = "engine = 'llama.cpp'\nweights = 'hf:org/name/m.gguf'\n"
WHOLE = "engine = 'command'\ncommand = ['x', '{socket}', '{weights}']\nweights = 'hf:org/name'\n"
SHA = "0123456789abcdef" * 4


def test_sources_and_settings(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"""
        [daemon]
        state_dir = "/s"
        [weights]
        cache_dir = "cache"
        endpoint = "https://hub.example/mirror/"
        token_file = "~/token"
        offline = true
        downloads = 3
        parts = 1
        part_bytes = 65536
        stall_timeout_s = 2
        min_free_bytes = 0
        [models.a]
        engine = "llama.cpp"
        weights = "hf:org/name@v1/d/m.gguf"
        sha256 = "{SHA}"
        mmproj = "mmproj.gguf"
        draft = "~/draft.gguf"
        lora = ["hf:org/lora/l.gguf", "../l.gguf"]
        """,
    )
    assert config.weights == Settings(
        cache_dir=tmp_path / "cache",
        state_dir=Path("/s"),
        endpoint="https://hub.example/mirror",
        token_file=Path("/home/ada/token"),
        offline=True,
        parts=1,
        part_bytes=65536,
        stall_timeout_s=2.0,
        min_free_bytes=0,
        lock_file=tmp_path / "models.lock",
    )
    assert config.declaration.weights.downloads == 3
    model = config.declaration.models["a"]
    assert model.weights == "hf:org/name@v1/d/m.gguf"
    assert (model.mmproj, model.draft) == (f"{tmp_path}/mmproj.gguf", "/home/ada/draft.gguf")
    assert model.lora == ("hf:org/lora/l.gguf", f"{tmp_path}/../l.gguf")


def test_defaults_of_both_classes_are_the_same(tmp_path: Path) -> None:
    expected = Settings(tmp_path / "x", tmp_path / "x")
    declared = WeightsSpec()
    for name in ("endpoint", "token_file", "offline", "parts", "part_bytes", "stall_timeout_s", "attempts"):
        assert getattr(declared, name) == getattr(expected, name), name
    for name in ("backoff_initial_s", "backoff_max_s", "min_free_bytes"):
        assert getattr(declared, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights = 'hf:org/name'", "weights = 'hf:org/name': must name the GGUF file that is loaded: 'hf:org"),
        ("weights = 'hf:org/name/m.bin'", "weights = 'hf:org/name/m.bin': must name a GGUF file: llama.cpp loads"),
        ("weights = 'hf:org'", "weights = 'hf:org': must be hf:ORG/REPO[@REVISION][/FILE]"),
        ("weights = 'https://hf.co/o/r'", "weights = 'https://hf.co/o/r': must be hf:ORG/REPO[@REVISION][/FILE]"),
        ("weights = ''", "weights = '': must "),
        ("draft = 'hf:org/name'", "draft = 'hf:org/name': must name the GGUF file"),
        ("mmproj = '~bob/x'", "mmproj = '~bob/x': only '~/' is understood"),
        ("lora = ['a', 'hf:x']", "lora[1] = 'hf:x': must be hf:ORG/REPO"),
        ("lora = ['a', 'a']", "lora[1] = 'a': is there twice"),
        ("lora = ['']", "lora[0] = '': must be a path"),
        ("allow = ['*']", "allow = ['*']: chooses among the files of a whole repository"),
        ("ignore = ['*']", "ignore = ['*']: chooses among the files of a whole repository"),
        ("sha256 = 'ABC'", "sha256 = 'ABC': must be 64 hex digits in lower case"),
        (f"weights = 'm-00001-of-00003.gguf'\nsha256 = '{SHA}'", "sha256 = '0123456789abcdef0123456789abcdef01234567"),
        ("args.mmproj = 'x'", "args.mmproj = 'x': cannot be set here: it is said by 'mmproj' of the model"),
        ("args.lora = 'x'", "args.lora = 'x': cannot be set here"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_source(tmp_path: Path, text: str, expected: str) -> None:
    given = MODEL.splitlines()[0] + "\n" + ("" if text.startswith("weights") else "weights = 'm.gguf'\n")
    [found] = problems(tmp_path, f"[models.m]\n{given}{text}")
    assert found.startswith(f"models.m.{expected}")


def test_what_is_wrong_with_a_whole_repository(tmp_path: Path) -> None:
    found = problems(tmp_path, f"[models.m]\n{WHOLE}sha256 = '{SHA}'\nallow = ['']")
    assert [line.split(" = ")[0] for line in found] == ["models.m.allow", "models.m.sha256"]
    assert found[1].endswith("and 'weights' are a whole repository: lock them with 'modelsupd pull'")
    assert read(tmp_path, f"[models.m]\n{WHOLE}allow = ['*.json']").declaration.models["m"].allow == ("*.json",)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("parts = 0", "parts = 0: must be at least 1"),
        ("part_bytes = 1", "part_bytes = 1: must be at least 65536"),
        ("stall_timeout_s = 0", "stall_timeout_s = 0: must be greater than 0"),
        ("backoff_max_s = 0.5", "backoff_max_s = 0.5: must be at least backoff_initial_s, which is 1"),
        ("cache_dir = ''", "cache_dir = '': must be a path"),
        ("endpoint = 'hub.example'", "endpoint = 'hub.example': must be an address such as 'https://hub.example'"),
        ("endpoint = 'ftp://hub.example'", "endpoint = 'ftp://hub.example': must be an address"),
        ("endpoint = 'https://hub.example:port'", "endpoint = 'https://hub.example:port': must be an address"),
        ("endpoint = 'https://hub.example/?a'", "endpoint = 'https://hub.example/?a': must end with its path"),
        ("endpoint = 'https://bob:s3cret@hub.example'", "endpoint: must not hold a password"),
        ("token = 's3cret'", "token: unknown key; did you mean 'token_file'?"),
        ("downlods = 3", "downlods = 3: unknown key; did you mean 'downloads'?"),
    ],
)
def test_what_is_wrong_with_the_settings(tmp_path: Path, setting: str, expected: str) -> None:
    [found] = problems(tmp_path, f"[weights]\n{setting}")
    assert found.startswith(f"weights.{expected}")
    assert "s3cret" not in found


def test_where_the_cache_is(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("[daemon]\nstate_dir = '/s'\nruntime_dir = '/r'\n")

    def cache(*, uid: int = 1000, **environ: str) -> str:
        return str(load(file, host=host(tmp_path, uid=uid, environ=environ)).weights.cache_dir)

    assert cache() == "/home/ada/.cache/huggingface/hub"
    assert cache(XDG_CACHE_HOME="/c") == "/c/huggingface/hub"
    assert cache(uid=0) == "/s/hub"
    assert cache(STATE_DIRECTORY="/var/lib/x") == "/s/hub"
    for uid in (0, 1000):
        assert cache(uid=uid, HF_HOME="~/hf") == "/home/ada/hf/hub"
        assert cache(uid=uid, HF_HOME="/hf", HF_HUB_CACHE="/hub") == "/hub"
    assert cache(HF_HUB_CACHE="", HF_HOME="") == "/home/ada/.cache/huggingface/hub"
    file.write_text(file.read_text() + "[weights]\ncache_dir = '/own'\n")
    assert cache(uid=0, HF_HOME="/hf") == "/own"


def test_the_environment_s_hub(tmp_path: Path) -> None:
    def settings(text: str = "", **environ: str) -> Settings:
        return read(tmp_path, text, **environ).weights

    assert settings().offline is False
    assert [settings(HF_HUB_OFFLINE=value).offline for value in ("1", "true", "0", "")] == [True, True, False, False]
    assert settings(TRANSFORMERS_OFFLINE="yes").offline
    assert not settings(TRANSFORMERS_OFFLINE="1", HF_HUB_OFFLINE="0").offline
    assert settings(HF_ENDPOINT="https://a.example/").endpoint == "https://a.example"
    assert settings(HF_ENDPOINT="").endpoint is None
    declared = settings("[weights]\nendpoint = 'http://b.example'", HF_ENDPOINT="nonsense")
    assert declared.endpoint == "http://b.example"
    with pytest.raises(Exception, match=r"weights\.endpoint: is HF_ENDPOINT of the environment, which must be an addr"):
        settings(HF_ENDPOINT="nonsense")


def test_check_says_what_is_not_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(
        f"[weights]\ntoken_file = 't'\n[models.m]\n{GGUF}mmproj = 'p.gguf'\nlora = ['hf:o/r/l.gguf', 'l.gguf']"
    )
    warnings = check(file, host=host(tmp_path, environ={"MODELSUPD_RUNTIME_DIR": "/r"})).warnings
    assert [warning for warning in warnings if "no such file" in warning] == [
        f"weights.token_file = '{tmp_path}/t': there is no such file now",
        f"models.m.mmproj = '{tmp_path}/p.gguf': there is no such file now",
        f"models.m.lora[1] = '{tmp_path}/l.gguf': there is no such file now",
    ]


# The lock file


def test_the_lock_beside_it_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "").lock == Lock()
    pinned = Pinned("hf:org/name/m.gguf", COMMIT, (pin("m.gguf", b"x"),))
    locks.write(tmp_path / "models.lock", Lock((pinned,)))
    assert read(tmp_path, f"[models.m]\n{GGUF}").lock == Lock((pinned,))
    other = tmp_path / "other"
    other.write_text("")
    assert load(other, runtime_dir=Path("/r"), host=host(tmp_path)).weights.lock_file == tmp_path / "other.lock"
    own = tmp_path / "own.lock"
    own.write_text("")
    assert load(own, runtime_dir=Path("/r"), host=host(tmp_path)).weights.lock_file == tmp_path / "own.lock.lock"


def test_what_is_wrong_with_it_is_told_with_the_rest(tmp_path: Path) -> None:
    (tmp_path / "models.lock").write_text("version = 1\nx = 2\n[[source]]\n")
    found = problems(tmp_path, f"[models.m]\n{MODEL}replicas = 0")
    assert found == [
        "models.m.replicas = 0: must be at least 1",
        "models.lock: x: unknown key; there are version, source",
        "models.lock: source[0].source: must be a source as models.toml declares it",
    ]


def test_the_lock_and_models_toml_may_not_disagree(tmp_path: Path) -> None:
    pinned = Pinned("hf:org/name/m.gguf", COMMIT, (pin("m.gguf", b"x"),))
    locks.write(tmp_path / "models.lock", Lock((pinned,)))
    right = f"[models.m]\n{GGUF}sha256 = '{pinned.files[0].sha256}'"
    assert read(tmp_path, right).declaration.models["m"].sha256 == pinned.files[0].sha256
    [found] = problems(tmp_path, f"[models.m]\n{GGUF}sha256 = '{SHA}'")
    assert f"but models.lock says '{pinned.files[0].sha256}'; take the wrong one of the two out" in found


# What a change of them restarts


def test_the_digest_of_what_was_declared_before_is_what_it_was() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="/m.gguf", args={"ctx_size": 4})
    assert launch_digest(spec, "llama-server") == "78c05c37f57a1e3b"


@pytest.mark.parametrize(
    "change",
    [
        {"mmproj": "/p"},
        {"draft": "/d"},
        {"lora": ("/l",)},
        {"lora": ("/l", "/k")},
        {"allow": ("*",)},
        {"ignore": ("*",)},
    ],
)
def test_other_files_are_another_digest(change: dict[str, object]) -> None:
    def digest(**fields: object) -> str:
        return launch_digest(ModelSpec(engine=Engine.LLAMA_CPP, weights="/m.gguf", **fields))  # type: ignore[arg-type]  # of the table

    assert digest() == digest(mmproj=None, lora=())
    assert len({digest(), digest(mmproj="/other"), digest(lora=("/k", "/l")), digest(**change)}) == 4


def test_what_weights_have_to_be_restarts_nothing() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="/m.gguf")
    assert launch_digest(spec) == launch_digest(replace(spec, sha256=SHA))
