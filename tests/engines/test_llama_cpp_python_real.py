"""What its adapter says about the server of llama-cpp-python, asked of the real one: its flags, and its last words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

import llama_cpp_python
import tiny_gguf
from engine_process import running
from modelsupd.core.events import FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, ModelSpec
from modelsupd.engines import llama_cpp_python_flags as flags
from modelsupd.engines.base import adapter
from modelsupd.runtime import modules
from waiting import until

pytestmark = pytest.mark.real

ASK = """
import json
from llama_cpp.server.cli import _contains_list_type, _get_base_type
from llama_cpp.server.settings import Settings
print(json.dumps({
    name: "list" if _contains_list_type(field.annotation) else _get_base_type(field.annotation).__name__
    for name, field in Settings.model_fields.items()
}))
"""


@pytest.fixture(scope="module")
def python() -> str:
    found = llama_cpp_python.find()
    if found is None:
        pytest.fail("there is no llama-cpp-python in the cache: run 'make engines' first")
    return str(found)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def spec(weights: Path, **args: Argument) -> ModelSpec:
    return ModelSpec(engine=Engine.LLAMA_CPP_PYTHON, weights=str(weights), args={"n_ctx": 512, **args})


def test_the_table_holds_every_flag_and_no_other(python: str) -> None:
    kinds = json.loads(subprocess.run([python, "-c", ASK], capture_output=True, check=True).stdout)
    assert kinds.keys() | {"config_file", "help"} == flags.KNOWN
    taken = {name: kind for name, kind in kinds.items() if name in flags.TAKEN}
    assert {name for name, kind in taken.items() if kind == "bool"} == flags.SWITCHES
    assert {name for name, kind in taken.items() if kind == "list"} == flags.LISTS
    assert set(flags.ELSEWHERE.values()) <= flags.TAKEN


def test_the_modules_are_all_that_it_needs(python: str) -> None:
    found = modules.where(python, adapter(Engine.LLAMA_CPP_PYTHON).modules, {})
    assert all(found.values()), found


def test_every_shape_of_argument_is_taken(python: str, weights: Path, tmp_path: Path) -> None:
    args: dict[str, Argument] = {
        "n-threads": 1,
        "use_mmap": False,
        "seed": -1,
        "rope_freq_scale": 1.0,
        "kv_overrides": ("a=int:1", "c=bool:true"),
        "tensor_split": (0.5, 0.5),
        "chat_format": "chatml",
        "chat_template_kwargs": '{"a": 1}',
        "cache": True,
    }
    with running("org/m", spec(weights, **args), tmp_path, binary=python) as engine:
        engine.wait_ready()
        assert engine.probe(ProbeKind.GENERATION)[0] is Outcome.TOKENS
        assert engine.probe(ProbeKind.ALIVE)[0] is Outcome.ANSWERED


def test_an_embedding_model_is_proven_by_an_embedding(python: str, weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights, embedding=True), tmp_path, binary=python) as engine:
        engine.wait_ready()
        assert "embedding of 128 numbers" in engine.probe(ProbeKind.GENERATION)[1]


def test_it_logs_each_served_request_in_the_form_that_is_looked_for(python: str, weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights), tmp_path, binary=python) as engine:
        engine.wait_ready()
        served = engine.adapter.served
        assert served is not None
        before = len(served.findall(engine.log()))
        assert before >= 1
        engine.probe(ProbeKind.ALIVE)
        assert len(served.findall(engine.log())) == before
        engine.probe(ProbeKind.GENERATION)
        assert len(served.findall(engine.log())) == before + 1


def test_a_chat_format_that_there_is_none_of_is_not_ready(python: str, weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights, chat_format="zz"), tmp_path, binary=python) as engine:
        until(lambda: engine.probe(ProbeKind.ALIVE)[0] is Outcome.ANSWERED, what=engine.log)
        outcome, evidence, *_ = engine.probe(ProbeKind.START)
    assert outcome is Outcome.FAILED
    assert "zz" in evidence


FAILURES = {
    "truncated": (FailureClass.BAD_WEIGHTS, "data is not within the file bounds, model is corrupted or incomplete"),
    "not-a-gguf": (FailureClass.BAD_WEIGHTS, "invalid magic characters: 'this', expected 'GGUF'"),
    "missing": (FailureClass.BAD_WEIGHTS, "ValueError: Model path does not exist: "),
    "version": (FailureClass.UNSUPPORTED_MODEL, "this GGUF file is version 99 but this software only supports"),
    "architecture": (FailureClass.UNSUPPORTED_MODEL, "unknown model architecture: 'llxma'"),
}


@pytest.mark.parametrize("how", FAILURES)
def test_bad_weights_are_told_by_the_engines_own_line(how: str, python: str, weights: Path, tmp_path: Path) -> None:
    data = weights.read_bytes()
    spoilt = {
        "truncated": data[: len(data) // 2],
        "not-a-gguf": b"this is no model\n",
        "version": data[:4] + bytes([99]) + data[5:],
        "architecture": data.replace(b"llama", b"llxma"),
    }
    weights.unlink()
    if how != "missing":
        weights.write_bytes(spoilt[how])
    with running("m", spec(weights), tmp_path, binary=python) as engine:
        failure = engine.classify()
    kind, words = FAILURES[how]
    assert failure.kind is kind, engine.log()
    assert words in failure.detail


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"n_ctx": "many"}, "argument --n_ctx: invalid int value: 'many'"),
        ({"n_ctx": -5}, "Input should be greater than or equal to 0 [type=greater_than_equal, input_value=-5"),
        ({"cache_type": "zz"}, "Input should be 'ram' or 'disk' [type=literal_error, input_value='zz'"),
    ],
)
def test_a_value_that_it_cannot_take_is_a_bad_flag(
    args: dict[str, Argument], words: str, python: str, weights: Path, tmp_path: Path
) -> None:
    with running("m", spec(weights, **args), tmp_path, binary=python) as engine:
        failure = engine.classify()
    assert failure.kind is FailureClass.BAD_FLAG, engine.log()
    assert words in failure.detail


def test_a_context_too_large_for_memory_is_out_of_memory(python: str, weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights, n_ctx=20_000_000), tmp_path, binary=python, address_space_kib=3_000_000) as engine:
        failure = engine.classify()
    assert failure.kind is FailureClass.OUT_OF_MEMORY, engine.log()


def test_without_its_libraries_it_is_a_missing_library(python: str, weights: Path, tmp_path: Path) -> None:
    lost = ModelSpec(engine=Engine.LLAMA_CPP_PYTHON, weights=str(weights), env={"LLAMA_CPP_LIB_PATH": str(tmp_path)})
    with running("m", lost, tmp_path, binary=python) as engine:
        failure = engine.classify()
    assert failure.kind is FailureClass.MISSING_LIBRARY, engine.log()
    assert "Shared library with base name 'llama' not found" in failure.detail
