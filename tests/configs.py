"""Configuration files for tests, read on a made-up host."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from modelsupd.config import Config, Host, load
from modelsupd.errors import ConfigError

MODEL = 'engine = "llama.cpp"\nweights = "m.gguf"\n'


def host(tmp_path: Path, *, uid: int = 1000, environ: dict[str, str] | None = None) -> Host:
    (tmp_path / "linger").mkdir(exist_ok=True)
    return Host(
        environ=environ or {},
        uid=uid,
        user="root" if uid == 0 else "ada",
        home=Path("/home/ada"),
        cwd=tmp_path,
        linger_dir=tmp_path / "linger",
        system_file=tmp_path / "etc-models.toml",
    )


def read(tmp_path: Path, text: str, **environ: str) -> Config:
    file = tmp_path / "models.toml"
    file.write_text(textwrap.dedent(text))
    return load(file, host=host(tmp_path, environ={"MODELSUPD_RUNTIME_DIR": "/run/m", **environ}))


def problems(tmp_path: Path, text: str) -> list[str]:
    """Return what is wrong with that file, one line per problem."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    lines = str(caught.value).splitlines()
    file = tmp_path / "models.toml"
    if len(caught.value.problems) == 1:
        assert lines[0].startswith(f"cannot use {file}: ")
        return ["\n".join(lines).removeprefix(f"cannot use {file}: ")]
    assert lines[0] == f"cannot use {file}: {len(caught.value.problems)} problems"
    return [line.removeprefix("  ") for line in lines[1:]]
