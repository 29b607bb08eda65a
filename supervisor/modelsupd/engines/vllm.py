"""vLLM's own server, `vllm serve`.

Facts come from running the pinned version on CPU and from its sources. Five of them shape this file.

1. `/health` only looks whether its processes live, and a frozen engine answers 200 there; so alive is `/metrics`, whose
   counters move with every step of the engine. Its gauges come from the engine and are stale while that hangs: what is
   in flight at a stop is told by open connections instead.
2. A dead engine makes the server exit with code 0.
3. SIGTERM is swallowed while the engine loads, and obeyed at once when it is ready: answers in flight are aborted. So
   modelsupd drains first, and a start is ended by SIGKILL after `stop.load_term_timeout_s`.
4. Its processes talk through sockets whose paths have room for little, and it compiles for minutes what it can find
   again in a cache: the former get the run's own folder of sockets, the latter one that outlives runs.
5. Flags come and go between versions, and are checked against those of the installed one (see `vllm_help`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Final

from modelsupd.core.events import Exit, Failure, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, EngineSpec, ModelSpec, ProbeRequest, Problem, gpu_count
from modelsupd.engines import patterns, vllm_help
from modelsupd.engines import vllm_flags as flags
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
    parse,
    read_generation,
    read_refusal,
    shown,
)

_SERVE: Final = ("-m", "vllm.entrypoints.cli.main", "serve")

#: Without GPUs and without a word on it, vLLM takes nearly all memory of the host for its cache. In GiB.
DEFAULT_CPU_KV_GIB = 4

_OWNED_ENV: Final = {
    **OWNED_ENV,
    "VLLM_API_KEY": "the engine's socket is private already, and probes have no key",
    "VLLM_RPC_BASE_PATH": "every run gets a folder of its own",
    "VLLM_PORT": "it is not the server's port, and modelsupd gives every run an endpoint of its own",
    "VLLM_LOGGING_STREAM": "modelsupd reads the engine's log to tell why it died",
    "VLLM_LOGGING_CONFIG_PATH": "modelsupd reads the engine's log to tell why it died",
    "VLLM_CONFIGURE_LOGGING": "modelsupd reads the engine's log to tell why it died",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "a server without its engine has to end, so that it is replaced",
    "VLLM_ENGINE_READY_TIMEOUT_S": "how long a start may take is said by 'health.start_limit_s'",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "the gateway closes connections before the engine does, by what that is",
    "VLLM_SERVER_DEV_MODE": "it opens paths by which whoever reaches the engine can run anything in it",
    "VLLM_USE_RUST_FRONTEND": "only the server in Python is known to modelsupd",
    "HF_HUB_OFFLINE": "an engine loads local files only, which were verified",
    "TRANSFORMERS_OFFLINE": "an engine loads local files only, which were verified",
}

_ENV: Final = {
    "DO_NOT_TRACK": "1",
    "NO_COLOR": "1",
    "PYTHONUNBUFFERED": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "FLASHINFER_WORKSPACE_BASE": "{cache_dir}",
    "TORCHINDUCTOR_CACHE_DIR": "{cache_dir}/inductor",
    "TRITON_CACHE_DIR": "{cache_dir}/triton",
    "VLLM_CACHE_ROOT": "{cache_dir}/vllm",
    "VLLM_LOGGING_COLOR": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_RPC_BASE_PATH": "{run_dir}",
}

#: `(EngineCore pid=7) ERROR 11-25 16:33:01 [core.py:1100] `, of which each part may be missing.
_PREFIX = re.compile(r"(?:\([\w. -]+ pid=\d+\) )*(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \[[^\]\s]+:\d+\] ?)?")
_READY = re.compile(r"^INFO: +Application startup complete\.|Application startup complete\.$")
_LOADING = re.compile(
    r"^(?:Initializing a V1 LLM engine|Starting to load model|Loading \w+ (?:checkpoint )?shards: |Loading weights took"
    r"|Model loading took|Using cache directory|Dynamo bytecode|Compiling a graph|Directly load|torch\.compile took"
    r"|(?:Available|GPU|CPU) KV cache|Capturing |Graph capturing|Warming up|init engine|Starting vLLM server)"
)

#: The level of sleep from which weights are not kept.
_DROPS_WEIGHTS: Final = 2

_K = FailureClass
_ERROR = r"^(?:\w+\.)*(?:ValueError|RuntimeError|OSError|Exception): "
RULES = (
    patterns.rule(_K.BAD_FLAG, r": error: (?:unrecognized arguments: |argument \S+: |ambiguous option: )"),
    patterns.rule(_K.ADDRESS_IN_USE, r"^OSError: \[Errno 98\] "),
    patterns.rule(_K.MISSING_LIBRARY, r"^(?:ModuleNotFoundError|ImportError): |: No module named vllm"),
    patterns.rule(
        _K.UNSUPPORTED_MODEL,
        r"Model architectures? .* (?:not supported for now|was supported in vLLM until|not supported in-tree anymore)"
        r"|has no vLLM implementation and the Transformers implementation is not compatible"
        r"|[Tt]he checkpoint you are trying to load has model type `[^`]*` but Transformers does not recognize",
    ),
    patterns.rule(
        _K.BAD_WEIGHTS,
        r"SafetensorError: |" + _ERROR + r"Cannot find any model weights with|HFValidationError: "
        r"|"
        + _ERROR
        + r".* does not appear to have a file named |"
        + _ERROR
        + r"(?:Can't load (?:tokenizer|the config)|Couldn't instantiate the backend tokenizer)"
        r"|" + _ERROR + r"Invalid repository ID or local directory specified|^LocalEntryNotFoundError: ",
    ),
    # A cache too small for one request stays too small; its advice, how long a context would fit, is in the line.
    patterns.rule(_K.BAD_FLAG, r"^ValueError: To serve at least one request with the model"),
    *patterns.COMMON,
    # On CPU it compares what it is told to take with what is free now, which may be more later.
    patterns.rule(_K.OUT_OF_MEMORY, r"^ValueError: Available memory on node \d+ .* is less than "),
    patterns.rule(_K.BAD_FLAG, r"^Value error, "),
)


class VllmAdapter:
    """The adapter of `vllm serve`."""

    kind = Engine.VLLM
    modules: tuple[str, ...] = ("vllm", "torch", "transformers", "uvicorn", "fastapi", "zmq")
    served: re.Pattern[str] | None = None
    one_at_a_time = False
    help: tuple[str, ...] = (*_SERVE, "--help=all")

    is_sleeping = Request(method="GET", path="/is_sleeping")

    def sleep(self, level: int) -> tuple[Request, ...]:
        """Return what makes it sleep; whatever is in flight by then has had its time, and is cut."""
        return (Request(method="POST", path=f"/sleep?level={level}&mode=abort"),)

    def wake(self, level: int) -> tuple[Request, ...]:
        """Return what wakes it: from level 2, weights that were dropped are read again before the cache is made."""
        if level < _DROPS_WEIGHTS:
            return (Request(method="POST", path="/wake_up"),)
        return (
            Request(method="POST", path="/wake_up?tags=weights"),
            Request(method="POST", path="/collective_rpc", body=b'{"method":"reload_weights"}'),
            Request(method="POST", path="/wake_up?tags=kv_cache"),
        )

    def read_sleeping(self, status: int, body: bytes) -> bool | None:
        """Return what `/is_sleeping` says."""
        said = (parse(body) or {}).get("is_sleeping") if status == 200 else None  # noqa: PLR2004 - an HTTP status
        return said if isinstance(said, bool) else None

    def idle_cpus(self, spec: ModelSpec) -> float:
        """Return what its processes use while they wait for each other, or for a GPU that may never answer.

        On CPU its worker was seen to use an eighth of one while idle, and all of those it may while it computes.
        """
        return 0.5 if spec.gpus == 0 else math.inf

    def problems(self, name: str, spec: ModelSpec) -> list[Problem]:  # noqa: ARG002 - the protocol's signature
        """Return what it cannot be run with, whatever its version."""
        found = common_problems(spec, _OWNED_ENV)
        if not spec.weights:
            found.append(Problem(("weights",), spec.weights, "must name the folder or repository that vLLM loads"))
        if spec.command:
            found.append(Problem(("command",), spec.command, "is for engine = 'command'; flags go into [args]"))
        if spec.binary:
            found.append(Problem(("binary",), spec.binary, "is not for this engine, a Python package: set 'python'"))
        found += _beside_problems(spec)
        found += _parallel_problems(spec)
        seen = set[str]()
        for key, value in spec.args.items():
            why = "is given twice, with '-' and with '_'" if _key(key) in seen else _refusal(_key(key), value)
            seen.add(_key(key))
            if why:
                found.append(Problem(("args", key), value, why))
        if spec.health.probe_request is ProbeRequest.EMBEDDING and not _pools(spec):
            why = 'asks for what vLLM does not do without args.runner = "pooling"'
            found.append(Problem(("health", "probe_request"), "embedding", why))
        return found

    def drift(self, spec: ModelSpec, told: str) -> list[Problem]:
        """Return which of its flags the version whose `--help` is `told` would not take."""
        known = vllm_help.read(told)
        if not known.keys() >= {"uds", "served_model_name"}:
            return []  # no help text, or none that can be read: the engine itself will say what it does not know
        return list(vllm_help.drift(spec.args, known, "the installed vLLM"))

    def binary(self, spec: ModelSpec, engine: EngineSpec | None) -> str:
        """Return the interpreter of the model, else of [engines], else "" for the one that we run on."""
        return spec.python or (engine.python if engine else None) or ""

    def command(self, name: str, spec: ModelSpec, *, binary: str, files: Files) -> Command:
        """Return the command line, on a unix socket; the model's own flags come last."""
        argv = [binary, *_SERVE, files.weights or "", "--uds", "{socket}", "--served-model-name", name]
        argv += ["--disable-uvicorn-access-log"]
        given = {_key(key): value for key, value in spec.args.items()}
        if gpu_count(spec) > 1 and not given.keys() & {*flags.PARALLEL}:
            argv += ["--tensor-parallel-size", str(gpu_count(spec))]
        if "data_parallel_size" in given:
            argv += ["--api-server-count", "1"]  # or it would be as many, of which each has a part of the counters
        for key, value in given.items():
            argv += _words(key, value)
        env = {**_ENV, "VLLM_ENGINE_READY_TIMEOUT_S": str(math.ceil(spec.health.start_limit_s))}
        if spec.demand.sleep:
            # Its ways to sleep are among those for developers, which are on the run's own socket and on no other.
            argv += ["--enable-sleep-mode"]
            env["VLLM_SERVER_DEV_MODE"] = "1"
        if spec.gpus == 0 and not given.keys() & flags.KV_SIZE:
            env["VLLM_CPU_KVCACHE_SPACE"] = str(DEFAULT_CPU_KV_GIB)
        env |= base_env(spec)
        if "/" in binary and "PATH" not in spec.env:
            # What it compiles with (ninja) lies beside its interpreter.
            env["PATH"] = f"{binary.rpartition('/')[0]}:{env['PATH']}"
        return Command(argv=tuple(argv), env=env, listen="unix")

    def request(self, kind: ProbeKind, name: str, spec: ModelSpec) -> Request | None:
        """Return the request of a probe; there is none for drain, which counts connections."""
        if kind is ProbeKind.DRAIN:
            return None
        if kind is ProbeKind.ALIVE:
            return Request(method="GET", path=spec.health.alive_path or "/metrics")
        default = ProbeRequest.EMBEDDING if _pools(spec) else ProbeRequest.COMPLETION
        return generation_request(spec.health.probe_request or default, name, spec, {})

    def read(self, kind: ProbeKind, status: int, body: bytes) -> Answer:
        """Return what an answer shows; counters where the body is vLLM's /metrics."""
        if kind in (ProbeKind.START, ProbeKind.GENERATION):
            return read_generation(status, body)
        if status != 200:  # noqa: PLR2004 - an HTTP status is best read as its number
            return read_refusal(status, body)
        return _read_metrics(body)

    def classify(self, exit: Exit, log_tail: str) -> Failure:  # noqa: A002 - the name the event has
        """Return the class of an exit by vLLM's own messages, and those of Python and torch below it."""
        lines, was_ready = patterns.since_ready(_clean(log_tail), _READY)
        return patterns.classify(exit, lines, RULES, was_ready=was_ready)

    def progress(self, log_tail: str) -> str | None:
        """Return the last line about loading: the phase of the start, or how many shards are read."""
        telling = [line for line in _clean(log_tail) if _LOADING.search(line) or _READY.search(line)]
        return clip(telling[-1]) if telling else None


def _clean(log_tail: str) -> list[str]:
    lines = (_PREFIX.sub("", line, count=1).strip() for line in patterns.clean(log_tail))
    return [line for line in lines if line]


# Declarations


def _key(name: str) -> str:
    """Return a flag by its name in the tables; of a nested one, `compilation_config.mode`, only the flag's own part."""
    base, dot, rest = name.partition(".")
    return base.replace("-", "_") + dot + rest


def _pools(spec: ModelSpec) -> bool:
    given = {_key(key): value for key, value in spec.args.items()}
    return given.get("runner") == "pooling" or given.get("convert") in ("embed", "embedding")


def _beside_problems(spec: ModelSpec) -> Iterator[Problem]:
    weights = spec.weights or ""
    if weights.startswith("hf:") and weights.count("/") > 1:
        yield Problem(("weights",), weights, "must be a whole repository, hf:ORG/REPO: vLLM loads no single file")
    elif weights.endswith((".gguf", ".safetensors")):
        yield Problem(("weights",), weights, "must be a folder: vLLM needs config and tokenizer beside the weights")
    if spec.mmproj:
        yield Problem(("mmproj",), spec.mmproj, "is not for this engine: a projector is part of vLLM's weights")
    if spec.draft:
        yield Problem(("draft",), spec.draft, "is not for this engine yet: set args.speculative_config")
    if spec.lora:
        why = "is not for this engine: to vLLM adapters are models of other names, which args.lora_modules gives"
        yield Problem(("lora",), spec.lora, why)
    if spec.lora_scales:
        yield Problem(("lora_scales",), spec.lora_scales, "is not for this engine, which has no such scales")


def _parallel_problems(spec: ModelSpec) -> Iterator[Problem]:
    """Yield what is wrong with the number of GPUs, where [args] say how a model is spread over them."""
    given = {_key(key): value for key, value in spec.args.items()}
    sizes = {name: str(given[name]) for name in flags.PARALLEL if name in given}
    if gpu_count(spec) and sizes and all(size.isdecimal() for size in sizes.values()):
        needed = math.prod(map(int, sizes.values()))
        if needed != gpu_count(spec):
            said = " times ".join(f"args.{name} = {size}" for name, size in sizes.items())
            yield Problem(("gpus",), spec.gpus, f"must be {needed}, by {said}")


def _refusal(key: str, value: Argument) -> str | None:
    """Return why a flag may not stand in [args] with that value, whatever the version."""
    base = key.partition(".")[0]
    long = flags.SHORT.get(base, base)
    owned = flags.OWNED.get(long) or flags.OWNED.get(long.removeprefix("no_"))
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*(?:\.[A-Za-z0-9_.-]+\+?)?", key):
        return "is no flag: write the long flag without its dashes, '_' or '-' inside"
    if owned:
        return f"cannot be set here: {owned}"
    if long != base:
        return f"must be written by its long name: '{long}'"
    if base in flags.ELSEWHERE:
        return f"is no flag of vLLM; did you mean '{flags.ELSEWHERE[base]}'?"
    short_of = next((name for name in flags.OWNED if name.startswith(base)), None)
    if short_of and base not in flags.WHOLE:
        return f"would be taken for '{short_of}', which cannot be set here: {flags.OWNED[short_of]}"
    return _value_refusal(value, nested="." in key)


def _value_refusal(value: Argument, *, nested: bool) -> str | None:
    """Return why a value cannot be passed on a command line."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        return "is an empty list"
    if any(isinstance(item, str) and "\0" in item for item in values):
        return "holds a NUL byte"
    if any(isinstance(item, float) and not math.isfinite(item) for item in values):
        return "must be a finite number"
    if isinstance(value, tuple) and not nested and any(str(item).startswith("-") for item in value):
        return "holds a value that begins with '-', which in a list is taken for a flag"
    return None


def _words(key: str, value: Argument) -> list[str]:
    """Return the words of the command line for one flag."""
    base, dot, rest = key.partition(".")
    flag = f"--{base.replace('_', '-')}{dot}{rest}"
    if isinstance(value, bool):
        if dot:
            return [flag, str(value).lower()]
        return [flag] if value else ["--no-" + flag.removeprefix("--")]
    if isinstance(value, tuple) and dot:
        # Of a nested flag the parser takes one word: JSON, or for `x.y+` what is between commas.
        value = ",".join(map(str, value)) if rest.endswith("+") else json.dumps(value)
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    # Else what begins with a dash would be taken for a flag; so is -0.5, for its dot, by the parser of nested ones.
    return [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


# Answers

_METRIC = re.compile(
    r"^vllm:(prompt_tokens_total|generation_tokens_total|iteration_tokens_total_count|num_requests_running"
    r"|num_requests_waiting)(?:\{[^}]*\})? ([0-9.eE+-]+)$",
    re.MULTILINE,
)
_DELIVERED = ("prompt_tokens_total", "generation_tokens_total", "iteration_tokens_total_count")
_IN_FLIGHT = ("num_requests_running", "num_requests_waiting")


def _read_metrics(body: bytes) -> Answer:
    """Return the counters of /metrics, added up over its engines; without them it is an answer all the same."""
    metrics: dict[str, int] = {}
    for name, value in _METRIC.findall(body.decode(errors="replace")):
        try:
            metrics[name] = metrics.get(name, 0) + int(float(value))
        except (ValueError, OverflowError):
            continue
    if not metrics.keys() >= {"generation_tokens_total", *_IN_FLIGHT}:
        return Answer(outcome=Outcome.ANSWERED, evidence=f"answered 200: {shown(body) or 'no body'}")
    delivered = sum(metrics.get(name, 0) for name in _DELIVERED)
    in_flight = sum(metrics[name] for name in _IN_FLIGHT)
    evidence = (
        f"{metrics['generation_tokens_total']} tokens generated, {metrics.get('prompt_tokens_total', 0)} read, "
        f"{in_flight} {'request' if in_flight == 1 else 'requests'} in flight"
    )
    return Answer(outcome=Outcome.ANSWERED, evidence=evidence, delivered=delivered, in_flight=in_flight)
