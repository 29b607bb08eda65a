"""How the server of llama-cpp-python is described: its command line, its traps, and how its last words read."""

from __future__ import annotations

import pytest

from modelsupd.core.events import Exit, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, EngineSpec, HealthLimits, ModelSpec, ProbeRequest
from modelsupd.engines.base import Files, adapter, read_generation
from modelsupd.engines.llama_cpp_python_flags import KNOWN

BINDING = adapter(Engine.LLAMA_CPP_PYTHON)
K = FailureClass


def spec(
    args: dict[str, Argument] | None = None, health: HealthLimits | None = None, env: dict[str, str] | None = None
) -> ModelSpec:
    return ModelSpec(
        engine=Engine.LLAMA_CPP_PYTHON,
        weights="/m/t.gguf",
        args=args or {},
        health=health or HealthLimits(),
        env=env or {},
    )


def refused(declared: ModelSpec) -> dict[str, str]:
    return {".".join(found.path): found.why for found in BINDING.problems("m", declared)}


def path(kind: ProbeKind, declared: ModelSpec) -> str | None:
    return getattr(BINDING.request(kind, "m", declared), "path", None)


def test_command() -> None:
    made = BINDING.command("qwen3:8b", spec(), binary="/v/bin/python", files=Files("/abs/t.gguf"))
    assert made.listen == "tcp"
    assert " ".join(made.argv) == (
        "/v/bin/python -m llama_cpp.server --host {host} --port {port} --model /abs/t.gguf --model_alias qwen3:8b "
        "--interrupt_requests false --disable_ping_events true --verbose true --n_gpu_layers 0"
    )
    assert made.env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "{tmp}",
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GGML_NO_BACKTRACE": "1",
        "PYTHONUNBUFFERED": "1",
    }


def test_nothing_of_the_built_environment_is_read_as_a_setting() -> None:
    made = BINDING.command("m", spec(), binary="python", files=Files("w"))
    ours = {*made.env, "TMPDIR", "SPT_NOENV", "MODELSUPD_RUN"}
    assert {name.lower() for name in ours} & KNOWN == set()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"n_ctx": 512}, "--n_gpu_layers 0 --n_ctx 512"),
        ({"n-ctx": 512}, "--n_gpu_layers 0 --n_ctx 512"),
        ({"n_gpu_layers": 0}, "--n_gpu_layers 0"),
        ({"embedding": True, "use_mmap": False}, "--n_gpu_layers 0 --embedding true --use_mmap false"),
        ({"kv_overrides": ("a=int:1", "b=int:2")}, "--n_gpu_layers 0 --kv_overrides a=int:1 b=int:2"),
        ({"seed": -1, "rope_freq_base": 1e6}, "--n_gpu_layers 0 --seed -1 --rope_freq_base 1000000.0"),
    ],
)
def test_arguments(args: dict[str, Argument], words: str) -> None:
    assert refused(spec(args)) == {}
    argv = BINDING.command("m", spec(args), binary="p", files=Files("w")).argv
    assert " ".join(argv[argv.index("--verbose") + 2 :]) == words


@pytest.mark.parametrize(
    ("args", "setting", "why"),
    [
        ({"host": "10.0.0.1"}, "args.host", "every run an endpoint of its own"),
        ({"interrupt_requests": True}, "args.interrupt_requests", "would cut the stream that is being sent"),
        ({"interrupt-requests": False}, "args.interrupt-requests", "it is always off"),
        ({"verbose": False}, "args.verbose", "reads the engine's log"),
        ({"config_file": "c.json"}, "args.config_file", "replaces every other flag"),
        ({"api_key": "k"}, "args.api_key", "can be read by every user"),
        ({"n_ctxx": 5}, "args.n_ctxx", "is no flag of llama-cpp-python; did you mean 'n_ctx'?"),
        ({"ctx_size": 5}, "args.ctx_size", "did you mean 'n_ctx'?"),
        ({"ngl": 5}, "args.ngl", "did you mean 'n_gpu_layers'?"),
        ({"hos": "10.0.0.1"}, "args.hos", "is no flag of llama-cpp-python"),  # argparse would take it for host
        ({"--n_ctx": 5}, "args.--n_ctx", "is no flag of llama-cpp-python; did you mean 'n_ctx'?"),
        ({"n_gpu_layers": -1}, "args.n_gpu_layers", "must be 0 with gpus = 0"),
        ({"n_ctx": 5, "n-ctx": 6}, "args.n-ctx", "is given twice"),
        ({"n_ctx": True}, "args.n_ctx", "takes a value, not true or false"),
        ({"embedding": "yes"}, "args.embedding", "must be true or false"),
        ({"n_ctx": (1, 2)}, "args.n_ctx", "takes one value, not a list"),
        ({"tensor_split": ()}, "args.tensor_split", "is an empty list"),
        ({"chat_format": "a\0"}, "args.chat_format", "holds a NUL byte"),
        ({"rope_freq_base": float("inf")}, "args.rope_freq_base", "must be a finite number"),
    ],
)
def test_what_is_refused_in_args(args: dict[str, Argument], setting: str, why: str) -> None:
    found = refused(spec(args))
    assert list(found) == [setting]
    assert why in found[setting]


@pytest.mark.parametrize("name", ["HOST", "PORT", "port", "CONFIG_FILE", "N_CTX", "Model", "CACHE", "API_KEY"])
def test_a_variable_that_the_engine_reads_as_a_setting_is_refused(name: str) -> None:
    found = BINDING.problems("m", spec(env={name: "hush"}))
    assert [problem.path for problem in found] == [("env", name)]
    assert "reads its settings from such variables" in found[0].why
    assert "hush" not in str(found)


def test_other_variables_are_the_users() -> None:
    assert refused(spec(env={"OMP_NUM_THREADS": "2", "PYTHONPATH": "/x", "LLAMA_CPP_LIB_PATH": "/l"})) == {}
    assert list(refused(spec(env={"WEB_CONCURRENCY": "2"}))) == ["env.WEB_CONCURRENCY"]


def test_what_else_is_refused() -> None:
    wrong = ModelSpec(engine=Engine.LLAMA_CPP_PYTHON, command=("x",), binary="/b")
    assert refused(wrong) == {
        "weights": "must name the GGUF file that llama-cpp-python loads",
        "command": "is for engine = 'command'; flags go into [args]",
        "binary": "is not for this engine, a Python package: set 'python'",
    }
    for engine in (Engine.LLAMA_CPP, Engine.COMMAND):
        other = ModelSpec(engine=engine, weights="w", command=("s", "{port}"), python="/p")
        assert "python" in {".".join(found.path) for found in adapter(engine).problems("m", other)}


def test_interpreters() -> None:
    own = ModelSpec(engine=Engine.LLAMA_CPP_PYTHON, weights="w", python="/own/python")
    assert BINDING.binary(own, EngineSpec(python="/e")) == "/own/python"
    assert BINDING.binary(spec(), EngineSpec(python="/e")) == "/e"
    assert BINDING.binary(spec(), None) == ""


def test_alive_is_asked_on_a_path_without_the_lock() -> None:
    assert path(ProbeKind.ALIVE, spec()) == "/docs"
    assert path(ProbeKind.ALIVE, spec(None, HealthLimits(alive_path="/openapi.json"))) == "/openapi.json"
    for locked in ("/v1/models", "/extras/tokenize"):
        found = refused(spec(None, HealthLimits(alive_path=locked)))
        assert "would wait behind every request" in found["health.alive_path"]


def test_probes_follow_what_the_model_is_for() -> None:
    assert path(ProbeKind.GENERATION, spec()) == "/v1/completions"
    assert path(ProbeKind.START, spec({"embedding": True})) == "/v1/embeddings"
    assert path(ProbeKind.START, spec({"chat_format": "chatml"})) == "/v1/chat/completions"
    assert path(ProbeKind.DRAIN, spec()) is None
    wanted = HealthLimits(probe_request=ProbeRequest.EMBEDDING)
    assert list(refused(spec({}, wanted))) == ["health.probe_request"]
    assert refused(spec({"embedding": True}, wanted)) == {}


def test_answers() -> None:
    assert BINDING.read(ProbeKind.ALIVE, 200, b"<html>").outcome is Outcome.ANSWERED
    assert BINDING.read(ProbeKind.ALIVE, 500, b"").outcome is Outcome.FAILED
    body = b'{"error":{"message":"Failed to create llama_context","type":"internal_server_error"}}'
    found = BINDING.read(ProbeKind.GENERATION, 500, body)
    assert (found.outcome, found.evidence) == (Outcome.FAILED, "answered 500: Failed to create llama_context")


def test_an_embedding_per_token_is_one() -> None:
    assert read_generation(200, b'{"data":[{"embedding":[[0.5,1],[1,2]]}]}').evidence == "1 embedding of 2 numbers"
    assert read_generation(200, b'{"data":[{"embedding":[[]]}]}').outcome is Outcome.NO_TOKENS
    assert read_generation(200, b'{"data":[{"embedding":[["x"]]}]}').outcome is Outcome.NO_TOKENS


def test_served_requests_are_lines_of_the_engine_itself() -> None:
    assert BINDING.served is not None
    for line, serves in {
        "2026-11-21T09:10:40.123Z llama_perf_context_print:       total time =      12.95 ms /    10 tokens": True,
        "2026-11-21T09:10:40.123Z llama_perf_context_print:       total time =       0.00 ms /     0 tokens": False,
        "2026-11-21T09:10:40.123Z llama_perf_context_print:        eval time =       0.35 ms /     3 runs": False,
        '2026-11-21T09:10:40.123Z INFO: 127.0.0.1:1 - "GET /llama_perf_context_print:%20total%20time": 404': False,
    }.items():
        assert bool(BINDING.served.search(line)) is serves, line


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (K.BAD_FLAG, "__main__.py: error: unrecognized arguments: --nope 1"),
        (K.BAD_FLAG, "__main__.py: error: argument --n_ctx: invalid int value: 'x'"),
        (K.BAD_FLAG, "Input should be greater than or equal to 0 [type=greater_than_equal, input_value=-5]"),
        (K.MISSING_LIBRARY, "/usr/bin/python3: No module named llama_cpp"),
        (K.MISSING_LIBRARY, "ModuleNotFoundError: No module named 'uvicorn'"),
        (K.MISSING_LIBRARY, "RuntimeError: Failed to load shared library '/l/libllama.so': libggml.so.0: cannot open"),
        (K.MISSING_LIBRARY, "FileNotFoundError: Shared library with base name 'llama' not found"),
        (K.ADDRESS_IN_USE, "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000)"),
        (K.BAD_WEIGHTS, "llama_model_load: error loading model: tensor 'x' data is not within the file bounds"),
        (K.BAD_WEIGHTS, "ValueError: Model path does not exist: /m/t.gguf"),
        (K.OUT_OF_MEMORY, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1.00 TiB"),
        (K.CRASH, "ValueError: Failed to load model from file: /m/t.gguf"),
        (K.CRASH, "ValueError: Failed to create llama_context"),
    ],
)
def test_last_words(kind: FailureClass, line: str) -> None:
    failure = BINDING.classify(Exit(code=1), f"Traceback (most recent call last):\n  File x\n{line}\n")
    assert failure.kind is kind
    assert line in failure.detail


def test_what_a_client_made_it_say_is_no_permanent_verdict() -> None:
    log = "INFO:     Uvicorn running on http://127.0.0.1:1 (Press CTRL+C to quit)\nImportError: of a request\n"
    assert BINDING.classify(Exit(code=1), log).kind is K.CRASH


def test_progress() -> None:
    assert BINDING.progress("x\n") is None
    assert BINDING.progress("load_tensors: loading model tensors\nother\n") == "load_tensors: loading model tensors"
