"""How last words are read: the engine's own, in the form it writes them, and no one else's."""

from __future__ import annotations

import pytest

from modelsupd.core.events import Exit, FailureClass
from modelsupd.core.spec import Engine
from modelsupd.engines.base import adapter

LLAMA = adapter(Engine.LLAMA_CPP)
COMMAND = adapter(Engine.COMMAND)
VLLM = adapter(Engine.VLLM)
K = FailureClass

#: Lines of GPU builds and of rarer deaths, as the sources print them; the rest is asked of a real one elsewhere.
LLAMA_LINES = [
    (K.OUT_OF_GPU_MEMORY, "E ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory"),
    (K.OUT_OF_GPU_MEMORY, "E alloc_tensor_range: failed to allocate CUDA0 buffer of size 10240000000"),
    (K.OUT_OF_GPU_MEMORY, "E llama_model_load: error loading model: unable to allocate Vulkan1 buffer"),
    (K.OUT_OF_MEMORY, "E alloc_tensor_range: failed to allocate CPU_Mapped buffer of size 10240000000"),
    (K.OUT_OF_MEMORY, "E llama_model_load: error loading model: unable to allocate CUDA_Host buffer"),
    (K.OUT_OF_MEMORY, "E llama_model_load: error loading model: mmap failed: Cannot allocate memory"),
    (K.UNSUPPORTED_MODEL, "E llama_model_load: error loading model: unknown pre-tokenizer type: 'x'"),
    (K.BAD_WEIGHTS, "E gguf_init_from_file: failed to open GGUF file '/m' (Permission denied)"),
    (K.CRASH, "E gguf_init_from_file: failed to open GGUF file '/m' (Too many open files)"),
    (K.CRASH, "E llama_model_load: error loading model: read error: Input/output error"),
    (K.MISSING_LIBRARY, "E llama_model_load: error loading model: make_cpu_buft_list: no CPU backend found"),
    (K.CRASH, "E srv llama_server: exiting due to model loading error"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "line"), LLAMA_LINES)
def test_llama_lines(kind: FailureClass, line: str) -> None:
    log = f"2026-11-21T08:20:00.123Z 0.00.004.236 I srv    load_model: loading model 'm'\n0.00.004.797 {line}\n"
    failure = LLAMA.classify(Exit(code=1), log)
    assert failure.kind is kind
    assert failure.detail.endswith(line.removeprefix("E "))


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (K.ADDRESS_IN_USE, "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000)"),
        (K.ADDRESS_IN_USE, "OSError: [Errno 98] Address already in use"),
        (K.MISSING_LIBRARY, "ModuleNotFoundError: No module named 'torch'"),
        (K.MISSING_LIBRARY, "ImportError: libcudart.so.13: cannot open shared object file: No such file"),
        (K.MISSING_LIBRARY, "x: error while loading shared libraries: libfoo.so.1: cannot open shared object file"),
        (K.BAD_FLAG, "server.py: error: unrecognized arguments: --sped 3"),
        (K.BAD_FLAG, "Error: No such option: --sped"),
        (K.OUT_OF_GPU_MEMORY, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        (K.OUT_OF_MEMORY, "MemoryError"),
        (K.CRASH, "ValueError: no such thing"),
    ],
)
def test_command_lines(kind: FailureClass, line: str) -> None:
    failure = COMMAND.classify(Exit(code=1), f"Traceback (most recent call last):\r\n  File x\n\x1b[31m{line}\x1b[0m\n")
    assert failure.kind is kind
    assert line in failure.detail


#: A GPU is put out of use for these.
BROKEN = [
    "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered",
    "RuntimeError: CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "RuntimeError: CUDA driver error: CUDA_ERROR_ECC_UNCORRECTABLE",
    "pynvml.NVMLError_GpuIsLost: GPU is lost",
    "Cuda failure 214 'uncorrectable ECC error encountered'",
]


@pytest.mark.parametrize("line", BROKEN)
def test_a_gpu_that_is_broken_is_told_of_by_the_engine_itself(line: str) -> None:
    ready = "INFO:     Application startup complete.\n"
    log = f"{ready}(EngineCore pid=7) ERROR 11-25 17:00:32 [core.py:1512] {line}\n"
    assert VLLM.classify(Exit(code=0), log).kind is K.GPU_LOST
    assert COMMAND.classify(Exit(code=1), f"{line}\n").kind is K.GPU_LOST
    # Whereas what a client sent is quoted by a log of requests, and breaks nothing.
    quoted = f"(APIServer pid=1) INFO 11-25 17:00:32 [logger.py:39] Received request cmpl-1: prompt: '{line}'"
    assert VLLM.classify(Exit(code=0), f"{ready}{quoted}\n").kind is K.CRASH
    assert LLAMA.classify(Exit(signal=6), f"llama_server: model loaded\nprompt of task 3: {line}\n").kind is K.CRASH


@pytest.mark.parametrize("line", ["RuntimeError: No CUDA GPUs are available", "no CUDA-capable device is detected"])
def test_a_gpu_that_is_not_seen_is_not_broken(line: str) -> None:
    assert COMMAND.classify(Exit(code=1), f"{line}\n").kind is K.CRASH


def test_stamps_of_shim_and_engine_are_cut_off() -> None:
    log = "2026-11-21T08:20:00.123Z 0.00.004.797 E cmn  whatever: failed\n"
    assert LLAMA.classify(Exit(code=1), log).detail == "exit code 1; last words: cmn  whatever: failed".replace(
        "  ", " "
    )


def test_a_ready_engine_has_no_bad_flag() -> None:
    log = "0.00.010.905 I srv  llama_server: model loaded\nerror: invalid argument: --said-by-a-client\n"
    assert LLAMA.classify(Exit(code=1), log).kind is K.CRASH


def test_what_was_said_before_it_was_ready_explains_no_later_death() -> None:
    log = "ggml_aligned_malloc: insufficient memory\nllama_server: model loaded\nslot print_timing: id  0\n"
    failure = LLAMA.classify(Exit(signal=11), log)
    assert (failure.kind, failure.detail) == (
        K.CRASH,
        "killed by signal 11 (SIGSEGV); last words: slot print_timing: id 0",
    )


def test_memory_that_runs_out_later_does() -> None:
    log = "llama_server: model loaded\n0.09.010.905 E CUDA error: out of memory\n"
    assert LLAMA.classify(Exit(signal=6), log).kind is K.OUT_OF_GPU_MEMORY


def test_a_kill_is_not_explained_by_the_log() -> None:
    failure = LLAMA.classify(Exit(signal=9), "error: invalid argument: --x\n")
    assert (failure.kind, failure.detail) == (K.CRASH, "killed by signal 9")


def test_exit_zero_that_nobody_asked_for_is_a_crash() -> None:
    assert LLAMA.classify(Exit(code=0), "").kind is K.CRASH
    assert LLAMA.classify(Exit(code=0), "").detail == "exit code 0, without a word"
    assert COMMAND.classify(Exit(), "bye").detail == "exit status unknown; last words: bye"


def test_a_long_line_is_cut() -> None:
    assert len(COMMAND.classify(Exit(code=1), "error " + "x" * 100_000).detail) < 400


def test_progress() -> None:
    assert LLAMA.progress("") is None
    assert LLAMA.progress("0.1 x\n0.00.004.236 I srv    load_model: loading model 'm'\nother\n") == (
        "srv load_model: loading model 'm'"
    )
    assert COMMAND.progress("Loading weights:  50% | 1/2\rLoading weights: 100% | 2/2\nINFO done\n") == (
        "Loading weights: 100% | 2/2"
    )
    assert COMMAND.progress("hello\n") == "hello"
