"""llama.cpp's own server, `llama-server`.

Facts come from running the pinned build and from its sources (tools/server). Two of them shape this file: `/health`
only shows that HTTP threads live, while `/metrics` is answered by the inference loop, so that is the alive probe; and
context and GPU layers are silently lowered by `--fit` when unset, so both are always given and fitting is off unless
asked for.
"""

from __future__ import annotations

import math
import re
from typing import Final

from modelsupd.core.events import Exit, Failure, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, EngineSpec, ModelSpec, ProbeRequest, Problem
from modelsupd.engines import llama_flags as flags
from modelsupd.engines import patterns
from modelsupd.engines.base import (
    OWNED_ENV,
    Answer,
    Command,
    Files,
    Request,
    base_env,
    clip,
    common_problems,
    generation_request,
    read_generation,
    read_refusal,
    shown,
)

#: The context in tokens when a model's [args] do not say `ctx_size`. llama-server's own default is whatever the model
#: was trained with, which can be more memory than the machine has.
DEFAULT_CTX_SIZE = 4096

_OWNED_ENV: Final = {
    **OWNED_ENV,
    "LLAMA_ARG_": "an engine's flag is written in [args]",
    "LLAMA_API_KEY": "the engine's socket is private already, and probes have no key",
    "LLAMA_SERVER_ROUTER_PORT": "the engine would take itself for a router's child and exit",
    "GGML_NO_BACKTRACE": "a debugger that writes a backtrace would hold up the engine's end",
}

_READY = re.compile(r"\bmodel loaded$|server is listening on|listening on (?:unix|http)s?://")
_LOADING = re.compile(
    r"load_model: |load_tensors: |llama_context: |common_init|init_from_params|warming up|print_info: "
)

#: Failures to open or read that come from the machine and not from the file: a crash, tried again.
_MACHINE = r"(?!.*(?:Too many open files|Input/output error|Stale file handle|Transport endpoint))"

_K = FailureClass
RULES = (
    patterns.rule(
        _K.BAD_FLAG,
        r"^error: invalid argument: |^error while handling argument |^error: --model is required"
        r"|the argument has been removed\. |^error while handling environment variable ",
    ),
    patterns.rule(_K.ADDRESS_IN_USE, r"couldn't bind (?:to )?HTTP server socket"),
    *patterns.COMMON,
    patterns.rule(_K.MISSING_LIBRARY, r"no CPU backend found|failed to load backend "),
    patterns.rule(
        # ggml names the buffer: CPU, CPU_Mapped, CPU_REPACK and the pinned CUDA_Host are the host's memory.
        _K.OUT_OF_GPU_MEMORY,
        r"(?:failed|unable) to allocate (?!CPU|\w*_Host)[A-Za-z]+\d+ buffer"
        r"|Device memory allocation of size \d+ failed",
        starting=False,
    ),
    patterns.rule(
        _K.OUT_OF_MEMORY,
        r"ggml_aligned_malloc: insufficient memory|(?:failed|unable) to allocate (?:CPU\w*|\w+_Host) buffer"
        r"|ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer|GGML_ASSERT\(ctx->mem_buffer != NULL\)"
        r"|failed to allocate buffer for (?:kv|rs) cache|failed to allocate compute \w+ buffers",
        starting=False,
    ),
    patterns.rule(
        _K.UNSUPPORTED_MODEL,
        r"unknown model architecture: |unsupported model architecture: |unknown (?:pre-)?tokenizer(?: type)?: "
        r"|this GGUF file is version \d+ but this software only supports"
        r"|wrong number of tensors; expected |missing tensor '|has invalid ggml type \d+",
    ),
    patterns.rule(
        _K.BAD_WEIGHTS,
        rf"gguf_init_from_(?:file|reader)\w*: {_MACHINE}(?!failed to read key-value pairs|failed to read header)"
        rf"|error loading model: {_MACHINE}(?!llama_model_loader: failed to load model from )"
        r"|failed to load lora adapter |llama_adapter_lora_init: failed |failed to load multimodal model, "
        r"|tensor '[^']*' has invalid data",
    ),
    # What says no more than that it failed, when none of the lines that say why is there.
    patterns.rule(_K.BAD_WEIGHTS, r"gguf_init_from_reader: failed to read |error loading model: (?=.*corrupted)"),
)


class LlamaCppAdapter:
    """The adapter of `llama-server`."""

    kind = Engine.LLAMA_CPP
    modules: tuple[str, ...] = ()
    served: re.Pattern[str] | None = None
    one_at_a_time = False

    def idle_cpus(self, spec: ModelSpec) -> float:  # noqa: ARG002 - the protocol's signature
        """Return none: it sleeps while it has nothing to do."""
        return 0.0

    def problems(self, name: str, spec: ModelSpec) -> list[Problem]:  # noqa: ARG002 - the protocol's signature
        """Return what llama-server cannot be run with."""
        found = common_problems(spec, _OWNED_ENV)
        if not spec.weights:
            found.append(Problem(("weights",), spec.weights, "must name the GGUF file that llama-server loads"))
        if spec.command:
            found.append(Problem(("command",), spec.command, "is for engine = 'command'; flags go into [args]"))
        if spec.python:
            found.append(Problem(("python",), spec.python, "is for engines in Python; llama-server is a 'binary'"))
        found += _argument_problems(spec)
        found += _lora_problems(spec)
        wants_embedding = _embeds(spec)
        if spec.health.probe_request is ProbeRequest.EMBEDDING and not wants_embedding:
            why = "asks for what llama-server does without args.embedding = true"
            found.append(Problem(("health", "probe_request"), "embedding", why))
        return found

    def binary(self, spec: ModelSpec, engine: EngineSpec | None) -> str:
        """Return the binary of the model, else of [engines], else the name `llama-server`."""
        return spec.binary or (engine.binary if engine else None) or "llama-server"

    def command(self, name: str, spec: ModelSpec, *, binary: str, files: Files) -> Command:
        """Return the command line, on a unix socket; the model's own flags come last."""
        argv = [binary, "--host", "{socket}", "--model", files.weights or "", "--alias", name]
        argv += _beside(spec, files)
        argv += ["--metrics", "--no-ui", "--offline", "--log-colors", "off"]
        given = {_key(key): value for key, value in spec.args.items()}
        if not given.keys() & {"ctx_size", "kv_unified_per_slot"}:
            argv += ["--ctx-size", str(DEFAULT_CTX_SIZE)]
        if not given.keys() & flags.GPU_LAYERS:
            argv += ["--gpu-layers", "0" if spec.gpus == 0 else "all"]
        if "fit" not in given:
            argv += ["--fit", "off"]
        for key, value in given.items():
            argv += _words(key, value)
        env = {"GGML_NO_BACKTRACE": "1", **base_env(spec)}
        return Command(argv=tuple(argv), env=env, listen="unix")

    def request(self, kind: ProbeKind, name: str, spec: ModelSpec) -> Request | None:
        """Return the request of a probe; alive and drain both ask the inference loop for its counters."""
        if kind is ProbeKind.ALIVE and spec.health.alive_path:
            return Request(method="GET", path=spec.health.alive_path)
        if kind in (ProbeKind.ALIVE, ProbeKind.DRAIN):
            return Request(method="GET", path="/metrics")
        default = ProbeRequest.EMBEDDING if _embeds(spec) else ProbeRequest.COMPLETION
        # Without cache_prompt the prompt would be taken from the last probe's cache instead of being computed.
        return generation_request(spec.health.probe_request or default, name, spec, {"cache_prompt": False})

    def read(self, kind: ProbeKind, status: int, body: bytes) -> Answer:
        """Return what an answer shows; counters where the body is llama-server's /metrics."""
        if kind in (ProbeKind.START, ProbeKind.GENERATION):
            return read_generation(status, body)
        if status != 200:  # noqa: PLR2004 - an HTTP status is best read as its number
            return read_refusal(status, body)
        return _read_metrics(body)

    def classify(self, exit: Exit, log_tail: str) -> Failure:  # noqa: A002 - the name the event has
        """Return the class of an exit by llama-server's own messages."""
        lines, was_ready = patterns.since_ready(patterns.clean(log_tail), _READY)
        return patterns.classify(exit, lines, RULES, was_ready=was_ready)

    def progress(self, log_tail: str) -> str | None:
        """Return the last line about loading."""
        telling = [line for line in patterns.clean(log_tail) if _LOADING.search(line) or _READY.search(line)]
        return clip(telling[-1]) if telling else None


def _key(name: str) -> str:
    return name.replace("-", "_")


def _embeds(spec: ModelSpec) -> bool:
    return any(_key(name) in flags.EMBEDDING and value is True for name, value in spec.args.items())


def _lora_problems(spec: ModelSpec) -> list[Problem]:
    found = [
        Problem(("lora",), path, "cannot hold ',' or ':', which separate adapters and scales on the command line")
        for path in spec.lora
        if not path.startswith("hf:") and re.search("[,:]", path)
    ]
    if spec.lora_scales and len(spec.lora_scales) != len(spec.lora):
        why = f"must hold one number for each of the {len(spec.lora)} in 'lora'"
        found.append(Problem(("lora_scales",), spec.lora_scales, why))
    return found


def _beside(spec: ModelSpec, files: Files) -> list[str]:
    """Return the flags for what is loaded beside the weights."""
    argv = ["--mmproj", files.mmproj] if files.mmproj else []
    argv += ["--model-draft", files.draft] if files.draft else []
    if spec.lora_scales:
        scaled = (f"{path}:{scale:g}" for path, scale in zip(files.lora, spec.lora_scales, strict=True))
        return [*argv, "--lora-scaled", ",".join(scaled)]
    return [*argv, "--lora", ",".join(files.lora)] if files.lora else argv


def _argument_problems(spec: ModelSpec) -> list[Problem]:
    found, seen = [], set[str]()
    for name, value in spec.args.items():
        key = _key(name)
        why = _refusal(key, value, spec)
        if key in seen:
            why = "is given twice, with '-' and with '_'"
        seen.add(key)
        if why:
            found.append(Problem(("args", name), value, why))
    return found


def _refusal(key: str, value: Argument, spec: ModelSpec) -> str | None:
    """Return why a flag may not stand in [args], whatever its value."""
    long = flags.SHORT.get(key, key)
    owned = flags.OWNED.get(long) or flags.OWNED.get(long.removeprefix("no_"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._]*", key):
        why = "is no flag: write the long flag without its dashes, '_' or '-' inside"
    elif owned:
        why = f"cannot be set here: {owned}"
    elif long != key:
        why = f"must be written by its long name: '{long}'"
    elif key in flags.GPU_LAYERS and spec.gpus == 0 and value not in (0, "0"):
        why = "must be 0 with gpus = 0, which hides every GPU"
    else:
        return _value_refusal(key, value)
    return why


def _value_refusal(key: str, value: Argument) -> str | None:
    """Return why a value cannot be passed on a command line."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        return "is an empty list"
    if key in flags.PAIRS and len(values) != 2:  # noqa: PLR2004 - a pair
        return "takes a list of two values"
    if any(isinstance(item, str) and "\0" in item for item in values):
        return "holds a NUL byte"
    if any(isinstance(item, float) and not math.isfinite(item) for item in values):
        return "must be a finite number"
    return None


def _words(key: str, value: Argument) -> list[str]:
    """Return the words of the command line for one flag."""
    flag = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return _switch(key, flag, on=value)
    if not isinstance(value, tuple):
        return [flag, str(value)]
    if key in flags.JOINED:
        return [flag, flags.JOINED[key].join(map(str, value))]
    if key in flags.PAIRS:
        return [flag, *map(str, value)]
    return [word for item in value for word in (flag, str(item))]


def _switch(key: str, flag: str, *, on: bool) -> list[str]:
    if key in flags.ON_OFF:
        return [flag, "on" if on else "off"]
    if on:
        return [flag]
    if key in flags.SWITCHES:
        return []
    return ["--" + flag.removeprefix("--no-") if key.startswith("no_") else "--no-" + flag.removeprefix("--")]


_METRIC = re.compile(r"^llamacpp:(\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)
_DELIVERED = ("prompt_tokens_total", "tokens_predicted_total", "n_decode_total")
_IN_FLIGHT = ("requests_processing", "requests_deferred")


def _read_metrics(body: bytes) -> Answer:
    """Return the counters of /metrics; without them, as of another `alive_path`, it is an answer all the same."""
    metrics: dict[str, int] = {}
    for name, value in _METRIC.findall(body.decode(errors="replace")):
        try:
            metrics[name] = int(float(value))
        except (ValueError, OverflowError):
            continue
    if not metrics.keys() >= {*_DELIVERED, *_IN_FLIGHT}:
        return Answer(outcome=Outcome.ANSWERED, evidence=f"answered 200: {shown(body) or 'no body'}")
    delivered = sum(metrics[name] for name in _DELIVERED)
    in_flight = sum(metrics[name] for name in _IN_FLIGHT)
    evidence = (
        f"{metrics['tokens_predicted_total']} tokens generated, {metrics['prompt_tokens_total']} read, "
        f"{in_flight} {'request' if in_flight == 1 else 'requests'} in flight"
    )
    return Answer(outcome=Outcome.ANSWERED, evidence=evidence, delivered=delivered, in_flight=in_flight)
