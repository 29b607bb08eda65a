"""What the llama.cpp adapter says about llama-server, asked of the real one: its flags, and its last words."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tiny_gguf
from engine_process import Running, real_binary, running
from modelsupd.core.events import FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, ModelSpec
from modelsupd.engines import llama_flags as flags

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def helped() -> set[str]:
    """Return every flag that `llama-server --help` names, with its dashes."""
    told = subprocess.run([real_binary(), "--help"], capture_output=True, text=True, check=True).stdout
    heads = "\n".join(re.findall(r"^-.*?(?=  |$)", re.sub(r", +", ", ", told), re.MULTILINE))
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w.-]*", heads))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    tiny_gguf.write(tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def spec(weights: Path, **args: Argument) -> ModelSpec:
    return ModelSpec(engine=Engine.LLAMA_CPP, weights=str(weights), args={"ctx_size": 512, **args})


@pytest.mark.parametrize(
    "names",
    [
        flags.OWNED,
        flags.SHORT.values(),
        flags.SWITCHES,
        flags.ON_OFF,
        flags.JOINED,
        flags.PAIRS,
        flags.GPU_LAYERS,
        flags.EMBEDDING,
    ],
)
def test_every_flag_in_the_tables_exists(names: object, helped: set[str]) -> None:
    long = {"--" + name.replace("_", "-") for name in names}  # type: ignore[attr-defined]  # all of them hold names
    assert long - helped == set()


def test_every_short_flag_exists(helped: set[str]) -> None:
    assert {"-" + name for name in flags.SHORT} - helped == set()


def test_switches_have_no_negation_and_no_value(helped: set[str]) -> None:
    assert {name for name in flags.SWITCHES if "--no-" + name.replace("_", "-") in helped} == set()


def test_every_shape_of_argument_is_taken(weights: Path, tmp_path: Path) -> None:
    args: dict[str, Argument] = {
        "threads": 1,
        "parallel": 2,
        "warmup": False,
        "no_slots": True,
        "flash_attn": False,
        "fit": True,
        "swa_full": False,
        "check_tensors": True,
        "temp": 0.5,
        "cache-type-k": "f16",
        "samplers": ("top_k", "temperature"),
        "reverse_prompt": ("one", "two"),
        "override_kv": ("a.b=int:1", "c.d=bool:true"),
        "gpu_layers": 0,
    }
    with running("org/m", spec(weights, **args), tmp_path, binary=real_binary()) as engine:
        engine.wait_ready()
        assert engine.probe(ProbeKind.GENERATION)[0] is Outcome.TOKENS


FAILURES = {
    "truncated": (FailureClass.BAD_WEIGHTS, "data is not within the file bounds, model is corrupted or incomplete"),
    "truncated-header": (FailureClass.BAD_WEIGHTS, "gguf_init_from_reader: failed to read key-value pairs"),
    "not-a-gguf": (FailureClass.BAD_WEIGHTS, "invalid magic characters: 'this', expected 'GGUF'"),
    "empty": (FailureClass.BAD_WEIGHTS, "failed to read magic"),
    "missing": (FailureClass.BAD_WEIGHTS, "No such file or directory"),
    "folder": (FailureClass.BAD_WEIGHTS, "failed to read magic"),
    "noise": (FailureClass.BAD_WEIGHTS, "gguf_init_from_reader: "),
    "version": (FailureClass.UNSUPPORTED_MODEL, "this GGUF file is version 99 but this software only supports"),
    "architecture": (FailureClass.UNSUPPORTED_MODEL, "unknown model architecture: 'llxma'"),
}


def spoil(weights: Path, how: str) -> None:
    data = weights.read_bytes()
    spoilt = {
        "truncated": data[: len(data) // 2],
        "truncated-header": data[:3000],
        "not-a-gguf": b"this is no model\n",
        "empty": b"",
        "noise": data[:8] + bytes(n * 37 % 251 for n in range(5000)),
        "version": data[:4] + bytes([99]) + data[5:],
        "architecture": data.replace(b"llama", b"llxma"),
    }
    weights.unlink()
    if how == "folder":
        weights.mkdir()
    elif how != "missing":
        weights.write_bytes(spoilt[how])


@pytest.mark.parametrize("how", FAILURES)
def test_bad_weights_are_told_by_the_engines_own_line(how: str, weights: Path, tmp_path: Path) -> None:
    spoil(weights, how)
    with running("m", spec(weights), tmp_path, binary=real_binary()) as engine:
        failure = engine.classify()
    kind, words = FAILURES[how]
    assert failure.kind is kind, engine.log()
    assert words in failure.detail
    assert not re.match(r"\d", failure.detail), "the stamp is cut off"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"ctx_size": "many"}, 'error while handling argument "--ctx-size"'),
        ({"cache_type_k": "zz"}, "Unsupported cache type: zz"),
        ({"flash_attn": "maybe"}, "unknown value for --flash-attn"),
        ({"chat_template_file": "/nonexistent"}, 'error while handling argument "--chat-template-file"'),
        ({"mlock": True}, "error: invalid argument: --mlock"),
    ],
)
def test_a_value_that_it_cannot_take_is_a_bad_flag(
    args: dict[str, Argument], words: str, weights: Path, tmp_path: Path
) -> None:
    with running("m", spec(weights, **args), tmp_path, binary=real_binary()) as engine:
        failure = engine.classify()
    assert failure.kind is FailureClass.BAD_FLAG, engine.log()
    assert words in failure.detail


def test_a_lora_that_is_not_there_is_bad_weights(weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights, lora="/nonexistent"), tmp_path, binary=real_binary()) as engine:
        failure = engine.classify()
    assert failure.kind is FailureClass.BAD_WEIGHTS
    assert "failed to open '/nonexistent'" in failure.detail


@pytest.mark.parametrize("ctx_size", [20_000_000, 2_000_000_000])
def test_a_context_too_large_for_memory_is_out_of_memory(ctx_size: int, weights: Path, tmp_path: Path) -> None:
    with running(
        "m", spec(weights, ctx_size=ctx_size), tmp_path, binary=real_binary(), address_space_kib=3_000_000
    ) as engine:
        failure = engine.classify()
    assert failure.kind is FailureClass.OUT_OF_MEMORY, engine.log()
    assert "insufficient memory" in failure.detail or "bad_alloc" in failure.detail


def test_without_memory_at_all_it_aborts_and_that_is_out_of_memory(weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights), tmp_path, binary=real_binary(), address_space_kib=200_000) as engine:
        failure = engine.classify()
    assert engine.process.returncode < 0
    assert failure.kind is FailureClass.OUT_OF_MEMORY, engine.log()


def test_a_missing_library_is_told_by_the_linkers_line(weights: Path, tmp_path: Path) -> None:
    alone = tmp_path / "llama-server"
    shutil.copy(real_binary(), alone)  # its libraries are found beside it, and are not there now
    with running("m", spec(weights), tmp_path, binary=str(alone)) as engine:
        failure = engine.classify()
    if engine.process.returncode != 127:
        pytest.skip("this llama-server needs no shared libraries of its own")
    assert failure.kind is FailureClass.MISSING_LIBRARY
    assert "error while loading shared libraries" in failure.detail


def test_kill_and_abort_when_ready_are_crashes(weights: Path, tmp_path: Path) -> None:
    with running("m", spec(weights), tmp_path, binary=real_binary()) as engine:
        engine.wait_ready()
        engine.process.kill()
        assert crash(engine) == "killed by signal 9"
    (tmp_path / "e.sock").unlink()
    with running("m", spec(weights), tmp_path, binary=real_binary()) as engine:
        engine.wait_ready()
        engine.process.send_signal(6)
        assert crash(engine).startswith("killed by signal 6 (SIGABRT); last words: ")


def crash(engine: Running) -> str:
    failure = engine.classify()
    assert failure.kind is FailureClass.CRASH
    return failure.detail
