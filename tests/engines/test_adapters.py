"""How engines are described: command lines, environments, and what a declaration may not say."""

from __future__ import annotations

import pytest

from modelsupd.core.events import ProbeKind
from modelsupd.core.spec import Argument, Engine, EngineSpec, HealthLimits, ModelSpec, ProbeRequest
from modelsupd.engines.base import Files, adapter

LLAMA = adapter(Engine.LLAMA_CPP)
COMMAND = adapter(Engine.COMMAND)


def llama(args: dict[str, Argument] | None = None, health: HealthLimits | None = None) -> ModelSpec:
    return ModelSpec(engine=Engine.LLAMA_CPP, weights="/m/t.gguf", args=args or {}, health=health or HealthLimits())


def command(*words: str, weights: str | None = None, **env: str) -> ModelSpec:
    return ModelSpec(engine=Engine.COMMAND, command=words, weights=weights, env=env)


def flags(spec: ModelSpec) -> list[str]:
    """Return the words after those that are always there."""
    argv = LLAMA.command("m", spec, binary="/b", files=Files("/w")).argv
    return list(argv[argv.index("off") + 1 :])


def refused(spec: ModelSpec) -> dict[str, str]:
    return {".".join(found.path): found.why for found in adapter(spec.engine).problems("m", spec)}


def test_llama_command() -> None:
    made = LLAMA.command("qwen3:8b", llama(), binary="/opt/llama-server", files=Files("/abs/t.gguf"))
    assert made.listen == "unix"
    assert " ".join(made.argv) == (
        "/opt/llama-server --host {socket} --model /abs/t.gguf --alias qwen3:8b --metrics --no-ui --offline "
        "--log-colors off --ctx-size 4096 --gpu-layers 0 --fit off"
    )
    assert made.env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "{tmp}",
        "LANG": "C.UTF-8",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "GGML_NO_BACKTRACE": "1",
    }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"ctx_size": 512}, "--gpu-layers 0 --fit off --ctx-size 512"),
        ({"ctx-size": 512}, "--gpu-layers 0 --fit off --ctx-size 512"),
        ({"n_gpu_layers": 0}, "--ctx-size 4096 --fit off --n-gpu-layers 0"),
        ({"kv_unified_per_slot": 512}, "--gpu-layers 0 --fit off --kv-unified-per-slot 512"),
        ({"fit": True}, "--ctx-size 4096 --gpu-layers 0 --fit on"),
    ],
)
def test_llama_defaults_give_way(args: dict[str, Argument], words: str) -> None:
    assert " ".join(flags(llama(args))) == words


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("threads", 2, ["--threads", "2"]),
        ("temp", 1e-05, ["--temp", "1e-05"]),
        ("cont_batching", True, ["--cont-batching"]),
        ("cont_batching", False, ["--no-cont-batching"]),
        ("no_warmup", True, ["--no-warmup"]),
        ("no_warmup", False, ["--warmup"]),
        ("swa_full", False, []),
        ("no_host", False, []),
        ("flash_attn", True, ["--flash-attn", "on"]),
        ("flash_attn", "auto", ["--flash-attn", "auto"]),
        ("tensor_split", (3, 1), ["--tensor-split", "3,1"]),
        ("samplers", ("top_k", "min_p"), ["--samplers", "top_k;min_p"]),
        ("control_vector_layer_range", (1, 5), ["--control-vector-layer-range", "1", "5"]),
        ("reverse_prompt", ("a", "b c"), ["--reverse-prompt", "a", "--reverse-prompt", "b c"]),
    ],
)
def test_llama_arguments(name: str, value: Argument, words: list[str]) -> None:
    assert flags(llama({name: value}))[6:] == words


@pytest.mark.parametrize(
    ("args", "path", "why"),
    [
        ({"host": "10.0.0.1"}, "args.host", "every run an endpoint of its own"),
        ({"api-key": "k"}, "args.api-key", "a key on the command line can be read"),
        ({"metrics": False}, "args.metrics", "it is always on"),
        ({"no_ui": True}, "args.no_ui", "it is always off"),
        ({"m": "x"}, "args.m", "what is loaded is said by 'weights'"),
        ({"ngl": 0}, "args.ngl", "must be written by its long name: 'gpu_layers'"),
        ({"gpu_layers": 99}, "args.gpu_layers", "must be 0 with gpus = 0"),
        ({"--ctx-size": 5}, "args.--ctx-size", "without its dashes"),
        ({"ctx_size": 5, "ctx-size": 6}, "args.ctx-size", "is given twice"),
        ({"tensor_split": ()}, "args.tensor_split", "is an empty list"),
        ({"temp": float("inf")}, "args.temp", "must be a finite number"),
        ({"chat_template": "a\0"}, "args.chat_template", "holds a NUL byte"),
        ({"control_vector_layer_range": (1,)}, "args.control_vector_layer_range", "takes a list of two values"),
        ({"sleep_idle_seconds": 60}, "args.sleep_idle_seconds", "would wake the engine"),
    ],
)
def test_llama_refuses(args: dict[str, Argument], path: str, why: str) -> None:
    found = refused(llama(args))
    assert list(found) == [path]
    assert why in found[path]


def test_llama_takes_what_is_right() -> None:
    assert refused(llama({"ctx_size": 512, "gpu_layers": 0, "flash_attn": "on", "no_such_flag": 1})) == {}


def test_llama_wants_weights_and_no_command() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, command=("x",))
    assert refused(spec) == {
        "weights": "must name the GGUF file that llama-server loads",
        "command": "is for engine = 'command'; flags go into [args]",
    }


def test_secrets_are_not_quoted() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="w", env={"LLAMA_API_KEY": "hush", "LLAMA_ARG_HOST": "hush"})
    found = LLAMA.problems("m", spec)
    assert [problem.path for problem in found] == [("env", "LLAMA_API_KEY"), ("env", "LLAMA_ARG_HOST")]
    assert "hush" not in str(found)


@pytest.mark.parametrize("name", ["CUDA_VISIBLE_DEVICES", "TMPDIR", "MODELSUPD_RUN", "NOTIFY_SOCKET"])
def test_owned_variables_are_refused(name: str) -> None:
    assert list(refused(command("s", "{socket}", **{name: "x"}))) == [f"env.{name}"]


def test_llama_embedding_needs_the_flag() -> None:
    wanted = HealthLimits(probe_request=ProbeRequest.EMBEDDING)
    assert list(refused(llama({}, wanted))) == ["health.probe_request"]
    assert refused(llama({"embedding": True}, wanted)) == {}
    request = LLAMA.request(ProbeKind.START, "m", llama({"embeddings": True}))
    assert request is not None
    assert request.path == "/v1/embeddings"


def test_alive_path_is_asked_for_and_checked() -> None:
    request = LLAMA.request(ProbeKind.ALIVE, "m", llama(None, HealthLimits(alive_path="/health")))
    assert request is not None
    assert request.path == "/health"
    assert list(refused(llama(None, HealthLimits(alive_path="health")))) == ["health.alive_path"]
    assert list(refused(llama(None, HealthLimits(alive_path="/a b\r\n")))) == ["health.alive_path"]


def test_weights_that_would_be_filled_in_are_refused() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="/m/{port}.gguf")
    assert list(refused(spec)) == ["weights"]


def test_binaries() -> None:
    assert LLAMA.binary(llama(), None) == "llama-server"
    assert LLAMA.binary(llama(), EngineSpec(binary="/e")) == "/e"
    own = ModelSpec(engine=Engine.LLAMA_CPP, weights="w", binary="/own")
    assert LLAMA.binary(own, EngineSpec(binary="/e")) == "/own"
    assert COMMAND.binary(command("python3", "{port}"), None) == "python3"


def test_command_is_filled_in() -> None:
    spec = command("py", "--model={weights}", "--name", "{model}", "--port", "{port}", weights="w", NAME="{model}")
    made = COMMAND.command("org/m", spec, binary="/usr/bin/py", files=Files("/abs/{model}"))
    assert made.argv == ("/usr/bin/py", "--model=/abs/{model}", "--name", "org/m", "--port", "{port}")
    assert made.listen == "tcp"
    assert made.env["NAME"] == "org/m"
    assert COMMAND.command("m", command("s", "{socket}"), binary="s", files=Files()).listen == "unix"
    assert COMMAND.command("m", command("s", PORT="{port}"), binary="s", files=Files()).listen == "tcp"


@pytest.mark.parametrize(
    ("spec", "path", "why"),
    [
        (command(), "command", "must hold the server's command line"),
        (command("s"), "command", "must hold '{socket}', or '{host}' and '{port}'"),
        (command("s", "{socket}", "{port}"), "command", "one is enough"),
        (command("s", "{socket}", "{weights}"), "command", "set 'weights'"),
        (command("s", "{port}", "{modle}"), "command", "did you mean '{model}'?"),
        (command("s", "{port}", "a\0"), "command", "holds a NUL byte"),
        (
            ModelSpec(engine=Engine.COMMAND, command=("s", "{port}"), args={"a": 1}),
            "args",
            "is not for engine = 'command'",
        ),
        (ModelSpec(engine=Engine.COMMAND, command=("s", "{port}"), binary="b"), "binary", "write it into 'command'"),
    ],
)
def test_command_refuses(spec: ModelSpec, path: str, why: str) -> None:
    found = refused(spec)
    assert list(found) == [path]
    assert why in found[path]


def test_command_takes_what_is_right() -> None:
    assert refused(command("python3", "-m", "s", "--uds", "{socket}", '{"a": {b}}')) == {}


def test_command_is_proven_by_a_chat_and_has_no_drain_probe() -> None:
    spec = command("s", "{port}")
    assert [getattr(COMMAND.request(kind, "m", spec), "path", None) for kind in ProbeKind] == [
        "/v1/chat/completions",
        "/v1/models",
        "/v1/chat/completions",
        None,
    ]


def test_llama_loads_what_belongs_beside_the_weights() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="w", mmproj="p", draft="d", lora=("a", "b"), lora_scales=(1, 0.5))
    files = Files("/w", "/p", "/d", ("/a", "/b"))
    argv = " ".join(LLAMA.command("m", spec, binary="/b", files=files).argv)
    assert "--model /w --alias m --mmproj /p --model-draft /d --lora-scaled /a:1,/b:0.5 " in argv
    plain = ModelSpec(engine=Engine.LLAMA_CPP, weights="w", lora=("a", "b"))
    assert " --lora /a,/b " in " ".join(
        LLAMA.command("m", plain, binary="/b", files=Files("/w", lora=("/a", "/b"))).argv
    )
    assert not refused(spec)


def test_adapters_are_refused_where_the_command_line_could_not_tell_them_apart() -> None:
    spec = ModelSpec(engine=Engine.LLAMA_CPP, weights="w", lora=("a,b.gguf", "hf:o/r/c.gguf"), lora_scales=(1.0,))
    assert list(refused(spec)) == ["lora", "lora_scales"]


def test_own_server_is_given_all_files() -> None:
    spec = ModelSpec(
        engine=Engine.COMMAND, command=("s", "{socket}", "{mmproj}", "{lora}"), mmproj="p", lora=("a", "b")
    )
    made = COMMAND.command("m", spec, binary="s", files=Files(None, "/p", None, ("/a", "/b")))
    assert made.argv == ("s", "{socket}", "/p", "/a,/b")
    assert list(refused(ModelSpec(engine=Engine.COMMAND, command=("s", "{socket}", "{draft}")))) == ["command"]
