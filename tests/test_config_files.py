"""Files that cannot be read or parsed, where files and directories are looked for, and garbage."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import MODEL, host, problems, read
from modelsupd.config import Host, check, directories, load, locate
from modelsupd.core.spec import ModelSpec
from modelsupd.errors import ConfigError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"[models.m\n", "line 1, column 10: expected ']' at the end of a table declaration\n      [models.m\n"),
        (b"a = 1\r\nb = = 2\r\n", "line 2, column 5: invalid value\n      b = = 2\n          ^"),
        (b"a = 1\na = 2\n", "line 2"),
        (b"a = '\xff'\n", "line 1: byte 5 (0xff) is not UTF-8"),
        (b"\x1b[2J = 1", "line 1, column 1: invalid statement\n      �[2J = 1\n      ^"),
        (b"a." * 3000 + b"b = 1", "it is nested too deeply"),
        (b"[models.m]\nx = " + b"[" * 3000 + b"]" * 3000, "it is nested too deeply"),
        (b"#" * (4 * 1024 * 1024 + 1), "it is larger than 4194304 bytes"),
    ],
)
def test_a_file_that_cannot_be_parsed(tmp_path: Path, raw: bytes, expected: str) -> None:
    file = tmp_path / "models.toml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError) as caught:
        load(file, host=host(tmp_path))
    assert str(caught.value).startswith(f"cannot use {file}: {expected}")


@pytest.mark.parametrize(
    "text",
    [
        '[models.m.env]\nTOKEN = "s3cret\n',
        '[models.m]\nenv = {A = "s3cret"\n',
        '[models.m]\nenv.A = "s3cret\n',
        '[models.m.args]\napi_key = "s3cret\n',
        '[models.m.env]\nA = """\ns3cret',
    ],
)
def test_a_syntax_error_does_not_repeat_what_may_be_a_secret(tmp_path: Path, text: str) -> None:
    [found] = problems(tmp_path, text)
    assert "line " in found
    assert "s3cret" not in found


def test_a_file_that_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: no such file or directory$"):
        load(tmp_path / "gone.toml", host=host(tmp_path))
    with pytest.raises(ConfigError, match=r"is a directory$"):
        load(tmp_path, host=host(tmp_path))


def test_search_order(tmp_path: Path) -> None:
    named = host(tmp_path, environ={"MODELSUPD_CONFIG": "env.toml"})
    plain = host(tmp_path, environ={"MODELSUPD_CONFIG": ""})
    assert locate(Path("flag.toml"), named) == tmp_path / "flag.toml"
    assert locate(None, named) == tmp_path / "env.toml"
    with pytest.raises(ConfigError, match=r"^cannot find a configuration: there is neither .*/models\.toml nor .*"):
        locate(None, plain)
    (tmp_path / "etc-models.toml").touch()
    assert locate(None, plain) == tmp_path / "etc-models.toml"
    (tmp_path / "models.toml").touch()
    assert locate(None, plain) == tmp_path / "models.toml"


def test_defaults_of_root_of_systemd_and_of_a_plain_user(tmp_path: Path) -> None:
    def places(**given: Any) -> tuple[str, str]:  # noqa: ANN401 - handed on to `host`
        found = directories(host=host(tmp_path, **given))
        return str(found.state_dir), str(found.runtime_dir)

    systemd = {"STATE_DIRECTORY": "/var/lib/x:/var/lib/y", "RUNTIME_DIRECTORY": "/run/x"}
    xdg = {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/1000"}
    assert places(uid=0) == ("/var/lib/modelsupd", "/run/modelsupd")
    assert places(environ=systemd) == ("/var/lib/x", "/run/x")
    assert places() == ("/home/ada/.local/state/modelsupd", "/home/ada/.local/state/modelsupd/run")
    assert places(environ=xdg) == ("/s/modelsupd", "/s/modelsupd/run")
    assert places(environ={"XDG_STATE_HOME": "relative"})[0] == "/home/ada/.local/state/modelsupd"
    (tmp_path / "linger").mkdir(exist_ok=True)
    (tmp_path / "linger" / "ada").touch()
    assert places(environ=xdg) == ("/s/modelsupd", "/run/user/1000/modelsupd")


def test_the_command_line_wins_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[daemon]\nstate_dir = "/file"\nruntime_dir = "/file/run"\n')
    environ = {"MODELSUPD_STATE_DIR": "env", "MODELSUPD_RUNTIME_DIR": ""}
    config = load(file, host=host(tmp_path))
    assert (config.state_dir, config.runtime_dir) == (Path("/file"), Path("/file/run"))
    config = load(file, host=host(tmp_path, environ=environ))
    assert (config.state_dir, config.runtime_dir) == (tmp_path / "env", Path("/file/run"))
    config = load(file, state_dir=Path("flag"), host=host(tmp_path, environ=environ))
    assert config.state_dir == tmp_path / "flag"


def test_a_socket_path_that_the_kernel_would_refuse(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text("")
    longest = 107 - len("/runs/0123456789ab-1234567890/engine.sock")
    fits = Path("/" + "r" * (longest - 1))
    assert load(file, runtime_dir=fits, host=host(tmp_path)).runtime_dir == fits
    with pytest.raises(ConfigError, match=rf"daemon\.runtime_dir.* {longest + 1} bytes, at most {longest}; set"):
        load(file, runtime_dir=Path("/" + "r" * longest), host=host(tmp_path))


def test_where_vllm_runs_a_runtime_directory_has_room_for_its_own_sockets(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[models.m]\nengine = "vllm"\nweights = "w"\n')
    longest = 107 - len("/runs/0123456789ab-123456/") - len("00000000-0000-0000-0000-000000000000")
    fits = Path("/" + "r" * (longest - 1))
    assert load(file, runtime_dir=fits, host=host(tmp_path)).runtime_dir == fits
    with pytest.raises(ConfigError, match=rf"too long for unix sockets .* {longest + 1} bytes, at most {longest}; set"):
        load(file, runtime_dir=Path("/" + "r" * longest), host=host(tmp_path))


def test_directories_are_found_although_the_models_are_broken(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[daemon]\nstate_dir = "s"\nlog_level = "loud"\n[models.x]\nengine = "nonsense"\n')
    assert directories(host=host(tmp_path)).state_dir == tmp_path / "s"
    file.write_text('[models.x\n[daemon] # ours\nstate_dir = "s"\n[daemon.journal]\nkeep_days = 1\n[a]\nb = "\n')
    assert directories(host=host(tmp_path)).state_dir == tmp_path / "s"
    file.write_text('[models.x\n[daemon]\nstate_dir = "s\n')
    with pytest.raises(ConfigError, match="illegal character"):
        directories(host=host(tmp_path))
    file.write_text("[daemon]\nstate_dir = 3\n")
    with pytest.raises(ConfigError, match=r"daemon\.state_dir = 3: must be a string"):
        directories(host=host(tmp_path))
    assert directories(state_dir=Path("/s"), runtime_dir=Path("/r"), host=host(tmp_path)).runtime_dir == Path("/r")
    with pytest.raises(ConfigError, match="no such file"):
        directories(tmp_path / "gone.toml", host=host(tmp_path))


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("", None),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:9310", ("127.0.0.1", 9310)),
        ("[::1]:80", ("::1", 80)),
        ("127.1.2.3:65535", ("127.1.2.3", 65535)),
    ],
)
def test_where_metrics_are_served(tmp_path: Path, listen: str, expected: tuple[str, int] | None) -> None:
    assert read(tmp_path, f'[daemon]\nmetrics_listen = "{listen}"').metrics_listen == expected


def test_warnings(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    assert read(tmp_path, "").warnings == (f"{file} declares no model: there is nothing to run",)
    file.chmod(0o666)
    assert "can be written by every user" in load(file, host=host(tmp_path)).warnings[1]
    file.write_text(f"[models.m]\n{MODEL}binary = './gone'\nenv.A = 'x'\n")
    file.chmod(0o600)
    environ = {"MODELSUPD_RUNTIME_DIR": "/run/m"}
    assert load(file, host=host(tmp_path, environ=environ)).warnings == ()
    assert check(file, host=host(tmp_path, environ=environ)).warnings == (
        f"models.m.weights = '{tmp_path}/m.gguf': there is no such file now",
        f"models.m.binary = '{tmp_path}/gone': there is no such file now",
    )


def test_this_process_s_own_host() -> None:
    mine = Host.current()
    assert (mine.uid, mine.cwd) == (os.getuid(), Path.cwd())
    assert mine.environ == dict(os.environ)


# Garbage

_VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.times(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from(["daemon", "engines", "models", "m", "llama.cpp", *ModelSpec.__dataclass_fields__, "health"])
_TABLES = st.recursive(
    st.dictionaries(_KEYS, _VALUES, max_size=4),
    lambda inner: st.dictionaries(_KEYS, inner | _VALUES, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(raw=_TABLES)
def test_no_file_whatever_is_in_it_leads_to_anything_but_words(raw: dict[str, Any]) -> None:
    from modelsupd.config.validate import validate  # noqa: PLC0415 - only here the inside is looked at

    found: list[Any] = []
    validate({"models": {"m": {"engine": "llama.cpp", **raw}}, **raw}, found)
    for problem in found:
        assert problem.why
    assert str(ConfigError(Path("f"), found))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_no_text_leads_to_anything_but_words(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.toml"
    file.write_text(text, encoding="utf-8", newline="")
    with contextlib.suppress(ConfigError):
        load(file, runtime_dir=Path("/r"))
