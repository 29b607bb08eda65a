"""What the vLLM adapter says, without a vLLM: command lines, refusals, answers, and last words as it writes them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import fake_engine
from modelsupd.core.events import Exit, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, EngineSpec, HealthLimits, ModelSpec, ProbeRequest
from modelsupd.engines import vllm_help
from modelsupd.engines.base import Drifting, Files, adapter
from modelsupd.engines.vllm_help import Flag

VLLM = adapter(Engine.VLLM)
K = FailureClass


def spec(
    args: dict[str, Argument] | None = None, health: HealthLimits | None = None, env: dict[str, str] | None = None
) -> ModelSpec:
    return ModelSpec(
        engine=Engine.VLLM, weights="/m/tiny", args=args or {}, health=health or HealthLimits(), env=env or {}
    )


def refused(declared: ModelSpec) -> dict[str, str]:
    return {".".join(found.path): found.why for found in VLLM.problems("m", declared)}


def argv(declared: ModelSpec) -> str:
    words = VLLM.command("m", declared, binary="p", files=Files("w")).argv
    return " ".join(words[words.index("--disable-uvicorn-access-log") + 1 :])


def test_the_command_line_and_the_whole_environment() -> None:
    made = VLLM.command("qwen3:8b", spec(), binary="/v/bin/python", files=Files("/abs/tiny"))
    assert " ".join(made.argv) == (
        "/v/bin/python -m vllm.entrypoints.cli.main serve /abs/tiny --uds {socket} --served-model-name qwen3:8b "
        "--disable-uvicorn-access-log"
    )
    assert made.listen == "unix"
    assert made.env == {
        "PATH": "/v/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "{tmp}",
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "",
        "DO_NOT_TRACK": "1",
        "FLASHINFER_WORKSPACE_BASE": "{cache_dir}",
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": "{cache_dir}/inductor",
        "TRANSFORMERS_OFFLINE": "1",
        "TRITON_CACHE_DIR": "{cache_dir}/triton",
        "VLLM_CACHE_ROOT": "{cache_dir}/vllm",
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
        "VLLM_LOGGING_COLOR": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_RPC_BASE_PATH": "{run_dir}",
    }


def test_what_the_operator_sets_comes_last() -> None:
    mine = {"PATH": "/opt/bin", "VLLM_CPU_KVCACHE_SPACE": "9", "VLLM_CACHE_ROOT": "/shared"}
    assert refused(spec(env=mine)) == {}
    made = VLLM.command("m", spec(env=mine), binary="/v/bin/python", files=Files("w"))
    assert mine.items() <= made.env.items()


@pytest.mark.parametrize("flag", ["kv_cache_memory_bytes", "kv-cache-memory-bytes", "gpu_memory_utilization"])
def test_a_cache_whose_size_is_said_gets_no_other(flag: str) -> None:
    made = VLLM.command("m", spec({flag: 1}), binary="p", files=Files("w"))
    assert "VLLM_CPU_KVCACHE_SPACE" not in made.env


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"max_model_len": 512}, "--max-model-len 512"),
        ({"max-model-len": "4k"}, "--max-model-len 4k"),
        ({"enforce_eager": True, "enable_prefix_caching": False}, "--enforce-eager --no-enable-prefix-caching"),
        ({"compilation_config.mode": 3}, "--compilation-config.mode 3"),
        ({"speculative_config.method": "ngram"}, "--speculative-config.method ngram"),
        ({"kernel_config.enable_x": False}, "--kernel-config.enable_x false"),
        ({"lora_modules": ("a=/a", "b=/b")}, "--lora-modules a=/a b=/b"),
        ({"seed": -1, "gpu_memory_utilization": 0.5}, "--seed=-1 --gpu-memory-utilization 0.5"),
        ({"rope_theta": -0.5, "x.y": -0.5}, "--rope-theta=-0.5 --x.y=-0.5"),
        ({"compilation_config.cudagraph_capture_sizes": (1, 2)}, "--compilation-config.cudagraph_capture_sizes [1, 2]"),
        ({"compilation_config.custom_ops": ("-a", "b")}, '--compilation-config.custom_ops ["-a", "b"]'),
        ({"compilation_config.custom_ops+": ("-a", "b")}, "--compilation-config.custom_ops+=-a,b"),
        ({"chat_template": "-x"}, "--chat-template=-x"),
        ({"data_parallel_size": 2}, "--api-server-count 1 --data-parallel-size 2"),
    ],
)
def test_arguments(args: dict[str, Argument], words: str) -> None:
    assert refused(spec(args)) == {}
    assert argv(spec(args)) == words


def test_several_gpus_are_one_engine_unless_it_is_said_how() -> None:
    assert argv(ModelSpec(engine=Engine.VLLM, weights="w", gpus=2)) == "--tensor-parallel-size 2"
    said = ModelSpec(engine=Engine.VLLM, weights="w", gpus=2, args={"pipeline_parallel_size": 2})
    assert argv(said) == "--pipeline-parallel-size 2"
    given = ModelSpec(engine=Engine.VLLM, weights="w", gpus=("GPU-a", "GPU-b"))
    assert argv(given) == "--tensor-parallel-size 2"
    assert VLLM.command("m", given, binary="p", files=Files("w")).env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


@pytest.mark.parametrize(
    ("args", "setting", "why"),
    [
        ({"host": "0.0.0.0"}, "args.host", "every run an endpoint of its own"),  # noqa: S104 - it is refused
        ({"uds": "/x"}, "args.uds", "every run an endpoint of its own"),
        ({"hos": "x"}, "args.hos", "would be taken for 'host', which cannot be set here"),
        ({"model": "x"}, "args.model", "what is loaded is said by 'weights'"),
        ({"served-model-name": "x"}, "args.served-model-name", "further ones are 'aliases'"),
        ({"api_key": "k"}, "args.api_key", "can be read by every user"),
        ({"disable_log_stats": True}, "args.disable_log_stats", "its counters are what shows that the engine moves"),
        ({"shutdown_timeout": 5}, "args.shutdown_timeout", "set 'stop.drain_timeout_s'"),
        ({"api_server_count": 2}, "args.api_server_count", "one server per replica"),
        ({"device_ids": "0"}, "args.device_ids", "said by 'gpus'"),
        ({"no_disable_uvicorn_access_log": True}, "args.no_disable_uvicorn_access_log", "the record of requests"),
        ({"tp": 2}, "args.tp", "must be written by its long name: 'tensor_parallel_size'"),
        ({"asc": 2}, "args.asc", "one server per replica"),
        ({"ctx_size": 5}, "args.ctx_size", "did you mean 'max_model_len'?"),
        ({"--seed": 5}, "args.--seed", "is no flag: write the long flag without its dashes"),
        ({"config.x": 5}, "args.config.x", "models.toml says what there is to say"),
        ({"max_model_len": 5, "max-model-len": 6}, "args.max-model-len", "is given twice"),
        ({"lora_modules": ()}, "args.lora_modules", "is an empty list"),
        ({"lora_modules": ("a=b", "-x")}, "args.lora_modules", "in a list is taken for a flag"),
        ({"chat_template": "a\0"}, "args.chat_template", "holds a NUL byte"),
        ({"gpu_memory_utilization": math.nan}, "args.gpu_memory_utilization", "must be a finite number"),
    ],
)
def test_what_is_refused_in_args(args: dict[str, Argument], setting: str, why: str) -> None:
    found = refused(spec(args))
    assert list(found) == [setting]
    assert why in found[setting]


@pytest.mark.parametrize(
    ("gpus", "args", "needed"),
    [
        (2, {"tensor_parallel_size": 4}, "must be 4, by args.tensor_parallel_size = 4"),
        (
            ("GPU-a", "GPU-b"),
            {"tensor_parallel_size": 2, "data-parallel-size": "2"},
            "must be 4, by args.tensor_parallel_size = 2 times args.data_parallel_size = 2",
        ),
        (4, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, ""),
        (2, {"tensor_parallel_size": "two"}, ""),  # vLLM will say so
        (0, {"tensor_parallel_size": 2}, ""),  # on CPU
        (2, {}, ""),
    ],
)
def test_gpus_are_as_many_as_the_flags_say(gpus: int | tuple[str, ...], args: dict[str, Argument], needed: str) -> None:
    assert refused(replace(spec(args), gpus=gpus)) == ({"gpus": needed} if needed else {})


def test_flags_that_an_owned_one_begins_with_are_ones_own() -> None:
    assert refused(spec({"tokenizer": "/t", "data_parallel_size": 1})) == {}


@pytest.mark.parametrize(
    "name", ["VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "VLLM_RPC_BASE_PATH", "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "TMPDIR"]
)
def test_variables_that_are_ours(name: str) -> None:
    assert list(refused(spec(env={name: "hush"}))) == [f"env.{name}"]
    assert "hush" not in str(VLLM.problems("m", spec(env={name: "hush"})))


def test_what_else_is_refused() -> None:
    wrong = ModelSpec(
        engine=Engine.VLLM, command=("x",), binary="/b", mmproj="/p", draft="/d", lora=("/l",), lora_scales=(1.0,)
    )
    assert sorted(refused(wrong)) == ["binary", "command", "draft", "lora", "lora_scales", "mmproj", "weights"]
    for weights, why in {
        "hf:o/r/f.safetensors": "must be a whole repository",
        "/m/model.safetensors": "must be a folder",
        "/m/model.gguf": "must be a folder",
    }.items():
        assert why in refused(ModelSpec(engine=Engine.VLLM, weights=weights))["weights"]
    assert refused(ModelSpec(engine=Engine.VLLM, weights="hf:o/r@main")) == {}


def test_interpreters() -> None:
    own = ModelSpec(engine=Engine.VLLM, weights="w", python="/own/python")
    assert VLLM.binary(own, EngineSpec(python="/e")) == "/own/python"
    assert VLLM.binary(spec(), EngineSpec(python="/e")) == "/e"
    assert VLLM.binary(spec(), None) == ""


# Probes


def path(kind: ProbeKind, declared: ModelSpec) -> str | None:
    request = VLLM.request(kind, "m", declared)
    return request.path if request else None


def test_probes() -> None:
    assert path(ProbeKind.ALIVE, spec()) == "/metrics"
    assert path(ProbeKind.DRAIN, spec()) is None, "gauges are stale while the engine hangs: connections are counted"
    assert path(ProbeKind.START, spec()) == "/v1/completions"
    assert path(ProbeKind.START, spec({"runner": "pooling"})) == "/v1/embeddings"
    request = VLLM.request(ProbeKind.GENERATION, "qwen3:8b", spec())
    assert request is not None
    assert b'"model":"qwen3:8b"' in request.body, "it knows no other name"
    wanted = HealthLimits(probe_request=ProbeRequest.EMBEDDING)
    assert list(refused(spec({}, wanted))) == ["health.probe_request"]
    assert refused(spec({"convert": "embed"}, wanted)) == {}


#: Lines of a real one, of two engines, with others between them that are none of ours.
METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 0.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 5.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.795625709445302e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 8.0
vllm:generation_tokens_total{engine="1",model_name="m"} 1e+03
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 9.0
"""


def test_counters() -> None:
    found = VLLM.read(ProbeKind.ALIVE, 200, METRICS)
    assert (found.outcome, found.delivered, found.in_flight) == (Outcome.ANSWERED, 5 + 1008 + 9, 3)
    assert found.evidence == "1008 tokens generated, 5 read, 3 requests in flight"
    other = VLLM.read(ProbeKind.ALIVE, 200, b"{}")
    assert (other.outcome, other.delivered, other.in_flight) == (Outcome.ANSWERED, None, None)
    assert VLLM.read(ProbeKind.ALIVE, 500, b"").outcome is Outcome.FAILED
    broken = METRICS.replace(b" 1e+03", b" 1e+999")
    assert VLLM.read(ProbeKind.ALIVE, 200, broken).delivered == 5 + 8 + 9


def test_cpu_is_no_sign_of_work_where_it_spins() -> None:
    assert 0 < VLLM.idle_cpus(spec()) < 1
    assert VLLM.idle_cpus(ModelSpec(engine=Engine.VLLM, weights="w", gpus=1)) == math.inf
    assert adapter(Engine.LLAMA_CPP).idle_cpus(spec()) == 0


# Last words

_IN_CORE = "2026-11-25T17:00:00.123Z (EngineCore pid=27652) ERROR 11-25 17:00:32 [core.py:1512] "
KV = (
    "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (10.25 GiB). Based on the available memory, the estimated "
    "maximum model length is 83968. Try increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU "
    "backend) or decreasing `max_model_len` when initializing the engine. See https://docs.example/ for more details."
)


#: As a real one wrote them (on CPU), or as its sources print them (of GPUs).
LAST_WORDS = [
    (K.BAD_FLAG, "main.py serve: error: argument --max-model-len: invalid human_readable_int_or_auto value: 'many'"),
    (K.BAD_FLAG, "main.py serve: error: unrecognized arguments: --nope 1"),
    (K.BAD_FLAG, "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len"),
    (
        K.UNSUPPORTED_MODEL,
        (
            "  Value error, The checkpoint you are trying to load has model type `llxma` but Transformers does "
            "not recognize this architecture."
        ),
    ),
    (K.UNSUPPORTED_MODEL, "  Value error, Model architectures ['X'] are not supported for now. Supported: x"),
    (
        K.BAD_WEIGHTS,
        (
            "(Worker pid=30021) ERROR 11-25 17:02:13 [multiproc_executor.py:953] safetensors._safetensors_rust."
            "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered"
        ),
    ),
    (K.BAD_WEIGHTS, "(APIServer pid=1) ValueError: Couldn't instantiate the backend tokenizer from one of: "),
    (K.BAD_WEIGHTS, "RuntimeError: Cannot find any model weights with `/m/tiny`"),
    (K.MISSING_LIBRARY, "ImportError: libcudart.so.13: cannot open shared object file: No such file or directory"),
    (K.ADDRESS_IN_USE, "(APIServer pid=1) OSError: [Errno 98] Address already in use"),
    (K.OUT_OF_GPU_MEMORY, f"{_IN_CORE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    (
        K.OUT_OF_GPU_MEMORY,
        (
            f"{_IN_CORE}ValueError: Free memory on device cuda:0 (3/24 GiB) on startup is less than desired GPU memory "
            "utilization (0.92, 22 GiB)"
        ),
    ),
    (
        K.OUT_OF_MEMORY,
        (
            f"{_IN_CORE}ValueError: Available memory on node 0 (3.0/12.71 GiB) on startup is less than desired CPU "
            "memory utilization (0.92, 11 GiB)"
        ),
    ),
    (K.CRASH, "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"),
    (K.CRASH, "WARNING 11-25 17:01:51 [system_utils.py:255] errors like `OSError: [Errno 24] Too many open files`"),
]


@pytest.mark.parametrize(("kind", "line"), LAST_WORDS)
def test_last_words(kind: FailureClass, line: str) -> None:
    log = f"Traceback (most recent call last):\n  File x\n{line}\nRuntimeError: Engine core initialization failed.\n"
    failure = VLLM.classify(Exit(code=1), log)
    assert failure.kind is kind, failure
    if kind is not K.CRASH:
        words = line.rpartition("] ")[2] if "pid=" in line else line
        assert words.split("pid=1) ")[-1].strip()[:200] in failure.detail


def test_a_cache_too_small_is_told_with_vllms_own_advice() -> None:
    failure = VLLM.classify(Exit(code=1), f"{_IN_CORE}{KV}\n")
    assert failure.kind is K.BAD_FLAG, "it is as small at the next start"
    assert failure.detail.startswith("ValueError: To serve at least one request")
    assert "the estimated maximum model length is 83968." in failure.detail


def test_what_was_said_before_it_was_ready_explains_no_later_death() -> None:
    log = f"{_IN_CORE}{KV}\nINFO:     Application startup complete.\n{_IN_CORE}RuntimeError: Executor failed.\n"
    failure = VLLM.classify(Exit(code=0), log)
    assert (failure.kind, failure.detail) == (K.CRASH, "exit code 0; last words: RuntimeError: Executor failed.")


def test_progress() -> None:
    assert VLLM.progress("x\n") is None
    log = (
        "(Worker pid=7) INFO 11-25 16:55:07 [cpu_model_runner.py:68] Starting to load model /m/tiny...\n"
        "Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]\r"
        "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]\r"
        "(Worker pid=7) WARNING 11-25 16:55:07 [utils.py:333] Attempted to load weight\n"
    )
    assert VLLM.progress(log) == "Loading safetensors checkpoint shards: 50% Completed | 1/2 [00:00<?, ?it/s]"
    log += "(EngineCore pid=6) INFO 11-25 16:55:09 [core.py:402] init engine (profile, create kv cache) took 0.61 s\n"
    assert VLLM.progress(log) == "init engine (profile, create kv cache) took 0.61 s"


# What is installed


def test_a_help_text_is_read() -> None:
    assert vllm_help.read(fake_engine.VLLM_HELP) == {
        "config": Flag(value=True, bare=False),
        "disable_uvicorn_access_log": Flag(value=False, bare=True),
        "no_disable_uvicorn_access_log": Flag(value=False, bare=True),
        "dtype": Flag(value=True, bare=False),
        **dict.fromkeys(("enable_sleep_mode", "no_enable_sleep_mode"), Flag(value=False, bare=True)),
        "enforce_eager": Flag(value=False, bare=True),
        "no_enforce_eager": Flag(value=False, bare=True),
        "headless": Flag(value=False, bare=True),
        "gpu_memory_utilization": Flag(value=True, bare=False),
        "device_memory_utilization": Flag(value=True, bare=False),
        "kv_cache_memory_bytes": Flag(value=True, bare=False),
        "max_model_len": Flag(value=True, bare=False),
        "served_model_name": Flag(value=True, bare=False),
        "tensor_parallel_size": Flag(value=True, bare=False),
        "uds": Flag(value=True, bare=False),
    }
    assert vllm_help.read("Traceback\n  File x\n") == {}


@pytest.mark.parametrize("metavars", ["each", "last"])
def test_a_value_is_told_after_each_name_or_since_python_3_13_after_the_last(metavars: str) -> None:
    heads = {
        "each": "  --tensor-parallel-size N, -tp N\n  --a-share F, --b-share F\n  --opt [{a,b}], -o [{a,b}]\n",
        "last": "  --tensor-parallel-size, -tp N\n  --a-share, --b-share F\n  --opt, -o [{a,b}]\n",
    }
    switches = "  --enforce-eager, --no-enforce-eager\n  --headless, -hl     run headless\n"
    valued, switch = Flag(value=True, bare=False), Flag(value=False, bare=True)
    assert vllm_help.read(heads[metavars] + switches) == {
        "tensor_parallel_size": valued,
        "a_share": valued,
        "b_share": valued,
        "opt": Flag(value=True, bare=True),
        "enforce_eager": switch,
        "no_enforce_eager": switch,
        "headless": switch,
    }


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"max_model_len": 5, "dtype": "half", "enforce_eager": False}, None),
        ({"max_model_lenn": 5}, "is no flag of the installed vLLM; did you mean 'max_model_len'?"),
        ({"max_model": 5}, "is no flag of the installed vLLM"),  # argparse would take it for max_model_len
        ({"speculative_config.method": "x"}, "is no flag of the installed vLLM"),
        ({"enforce_eager": "yes"}, "must be true or false: to the installed vLLM it is a switch"),
        ({"max_model_len": True}, "takes a value, not true or false"),
        ({"headless": False}, "cannot be false: the installed vLLM has no '--no-headless'; leave it out"),
    ],
)
def test_drift(args: dict[str, Argument], why: str | None) -> None:
    assert isinstance(VLLM, Drifting)
    found = VLLM.drift(spec(args), fake_engine.VLLM_HELP)
    assert [why in problem.why for problem in found] == [True] if why else found == []
    assert VLLM.drift(spec(args), "no help") == [], "what cannot be read refuses nothing"
