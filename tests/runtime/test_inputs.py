"""What is looked for before a run: an interpreter, and the packages that an engine in Python needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fake_engine
from modelsupd.core.events import FailureClass
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec
from modelsupd.engines.base import adapter
from modelsupd.runtime.inputs import Inputs, Stock, look
from modelsupd.weights.base import Settings
from modelsupd.weights.lock import Lock


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "t.gguf"
    path.write_bytes(b"GGUF")
    return path


def found(weights: Path, site: Path, python: str = sys.executable, *, own: str | None = None) -> Inputs:
    spec = ModelSpec(
        engine=Engine.LLAMA_CPP_PYTHON, weights=str(weights), python=own, env={"PYTHONPATH": str(site), "A": "{tmp}"}
    )
    return look(spec, EngineSpec(python=python), stock(weights.parent))


def stock(folder: Path) -> Stock:
    return Stock(Settings(folder / "cache", folder / "state"), Lock())


def provide(site: Path) -> None:
    """Make packages that raise when imported: looking for them must not do that."""
    for name in adapter(Engine.LLAMA_CPP_PYTHON).modules:
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("raise SystemExit\n")


def test_missing_packages_are_named_and_a_change_is_noticed(weights: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    before = found(weights, site)
    assert before.failure is not None
    assert before.failure.kind is FailureClass.MISSING_LIBRARY
    assert f"'{sys.executable}' has no llama_cpp, " in before.failure.detail
    assert "pip install 'modelsupd[llama-cpp]'" in before.failure.detail
    assert found(weights, site).fingerprint == before.fingerprint
    provide(site)
    after = found(weights, site)
    assert after.failure is None
    assert after.binary == sys.executable
    assert after.fingerprint != before.fingerprint


def test_without_a_declaration_it_is_our_own_interpreter(weights: Path) -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP_PYTHON, weights=str(weights))
    assert look(spec, None, stock(weights.parent)).binary == sys.executable


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("/nonexistent/python", "there is no file '/nonexistent/python'; it is named by python in [engines."),
        ("no-such-python", "there is no 'no-such-python' on PATH; set python in [engines."),
        ("/bin/false", "'/bin/false' cannot be used as a Python interpreter: it exited with 1, without a word"),
    ],
)
def test_an_interpreter_that_is_none(python: str, words: str, weights: Path, tmp_path: Path) -> None:
    for inputs in (found(weights, tmp_path, python), found(weights, tmp_path, own=python)):
        assert inputs.failure is not None
        assert inputs.failure.kind is FailureClass.MISSING_BINARY
        assert words in inputs.failure.detail


def test_weights_must_be_a_file(tmp_path: Path) -> None:
    provide(tmp_path / "site")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    inputs = found(tmp_path / "model", tmp_path / "site")
    assert inputs.failure is not None
    assert inputs.failure.kind is FailureClass.BAD_WEIGHTS
    assert "it is a folder, and llama-cpp-python loads one GGUF file" in inputs.failure.detail


def test_weights_of_vllm_must_be_a_folder(weights: Path, tmp_path: Path) -> None:
    inputs = look(
        ModelSpec(engine=Engine.VLLM, weights=str(weights)), EngineSpec(python=sys.executable), stock(tmp_path)
    )
    assert inputs.failure is not None
    assert inputs.failure.kind is FailureClass.MISSING_LIBRARY
    assert "install vllm in an environment of its own, and set python in [engines." in inputs.failure.detail
    python = fake_engine.install_vllm(tmp_path / "v")
    inputs = look(ModelSpec(engine=Engine.VLLM, weights=str(weights)), EngineSpec(python=str(python)), stock(tmp_path))
    assert inputs.failure is not None
    assert inputs.failure.kind is FailureClass.BAD_WEIGHTS
    assert "it is a file, and vllm loads a whole folder" in inputs.failure.detail
