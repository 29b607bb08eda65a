"""The server of llama-cpp-python: `python -m llama_cpp.server`.

Facts come from running the pinned version and from its sources (llama_cpp/server). Four of them shape this file.

1. It works on one request at a time, behind one lock that all of its API takes; only pages such as `/docs` do not, so
   that is the alive probe. A generation probe waits for its turn like any other request.
2. By default a new request *cuts* the stream that is being sent, which then ends with `finish_reason` null and a
   [DONE] as if nothing had happened. That is always off.
3. Every setting is also read from an environment variable of its name, in any case; HOST and PORT even win over the
   flags, CONFIG_FILE over everything. None of them reaches it.
4. It tells no counters. What shows that it moves while a probe waits for its turn is that it logs each request when it
   has served it, and that bytes of a stream go out; pings, which go out of a hung one as well, are always off.
"""

from __future__ import annotations

import difflib
import math
import re
from typing import Final

from modelsupd.core.events import Exit, Failure, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Argument, Engine, EngineSpec, ModelSpec, ProbeRequest, Problem
from modelsupd.engines import llama_cpp, patterns
from modelsupd.engines import llama_cpp_python_flags as flags
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
)

ALIVE_PATH: Final = "/docs"

#: Paths behind the lock: a probe of one would wait behind every request.
_LOCKED = ("/v1/", "/extras/")

_OWNED_ENV: Final = {
    **OWNED_ENV,
    "GGML_NO_BACKTRACE": "a debugger that writes a backtrace would hold up the engine's end",
    "WEB_CONCURRENCY": "uvicorn refuses to start more than one worker here",
    "PYTHONUNBUFFERED": "modelsupd reads the engine's log as it is written",
}

_READY = re.compile(r"Uvicorn running on ")
_LOADING = re.compile(r"load_tensors: |llama_context: |print_info: |Waiting for application startup|llama_kv_cache: ")

_K = FailureClass
RULES = (
    patterns.rule(
        # argparse, and the settings' own validation, whose line with the value comes before a page of help.
        _K.BAD_FLAG,
        r": error: (?:unrecognized arguments: |argument --\w+: |ambiguous option: )|\[type=\w+, input_value=",
    ),
    patterns.rule(_K.BAD_FLAG, r"^ValueError: Invalid chat (?:format|handler): |^KeyError: 'Invalid .*draft"),
    patterns.rule(_K.ADDRESS_IN_USE, r"\[Errno 98\] "),
    patterns.rule(
        _K.MISSING_LIBRARY,
        r"^(?:ModuleNotFoundError|ImportError): |: No module named llama_cpp"
        r"|^RuntimeError: Failed to load shared library |^FileNotFoundError: Shared library with base name ",
    ),
    # The lines of llama.cpp itself, which say why; those of the binding below say only that.
    *llama_cpp.RULES,
    patterns.rule(_K.BAD_WEIGHTS, r"^ValueError: (?:Model path does not exist|Clip model path does not exist): "),
    patterns.rule(_K.OUT_OF_MEMORY, r"^numpy\.\S*MemoryError: "),
)


class LlamaCppPythonAdapter:
    """The adapter of `python -m llama_cpp.server`."""

    kind = Engine.LLAMA_CPP_PYTHON
    modules: tuple[str, ...] = (
        "llama_cpp", "uvicorn", "fastapi", "pydantic_settings", "sse_starlette", "starlette_context", "yaml",
    )  # fmt: skip
    served: re.Pattern[str] | None = re.compile(r"llama_perf_context_print: +total time = .* / +[1-9]\d* tokens")
    one_at_a_time = True

    def idle_cpus(self, spec: ModelSpec) -> float:  # noqa: ARG002 - the protocol's signature
        """Return none: it sleeps while it has nothing to do."""
        return 0.0

    def problems(self, name: str, spec: ModelSpec) -> list[Problem]:  # noqa: ARG002 - the protocol's signature
        """Return what it cannot be run with."""
        found = common_problems(spec, _OWNED_ENV)
        found += [
            Problem(("env", name), "…", "cannot be set here: the engine reads its settings from such variables too")
            for name in spec.env
            if name.lower() in flags.KNOWN
        ]
        if not spec.weights:
            found.append(Problem(("weights",), spec.weights, "must name the GGUF file that llama-cpp-python loads"))
        if spec.command:
            found.append(Problem(("command",), spec.command, "is for engine = 'command'; flags go into [args]"))
        if spec.binary:
            found.append(Problem(("binary",), spec.binary, "is not for this engine, a Python package: set 'python'"))
        for key, value in spec.args.items():
            why = _twice(key, spec) or _refusal(_key(key), value, spec)
            if why:
                found.append(Problem(("args", key), value, why))
        if spec.health.probe_request is ProbeRequest.EMBEDDING and not _embeds(spec):
            why = "asks for what llama-cpp-python does without args.embedding = true"
            found.append(Problem(("health", "probe_request"), "embedding", why))
        found += _file_problems(spec)
        path = spec.health.alive_path
        if path is not None and path.startswith(_LOCKED):
            why = f"would wait behind every request, for the engine has one lock for all of them; {ALIVE_PATH} does not"
            found.append(Problem(("health", "alive_path"), path, why))
        return found

    def binary(self, spec: ModelSpec, engine: EngineSpec | None) -> str:
        """Return the interpreter of the model, else of [engines], else "" for the one that we run on."""
        return spec.python or (engine.python if engine else None) or ""

    def command(self, name: str, spec: ModelSpec, *, binary: str, files: Files) -> Command:
        """Return the command line, on a port of the loopback; it cannot listen on a unix socket."""
        argv = [binary, "-m", "llama_cpp.server", "--host", "{host}", "--port", "{port}"]
        argv += ["--model", files.weights or "", "--model_alias", name]
        argv += ["--clip_model_path", files.mmproj] if files.mmproj else []
        argv += ["--lora_path", files.lora[0]] if files.lora else []
        argv += ["--interrupt_requests", "false", "--disable_ping_events", "true", "--verbose", "true"]
        given = {_key(key): value for key, value in spec.args.items()}
        if "n_gpu_layers" not in given:
            argv += ["--n_gpu_layers", "0" if spec.gpus == 0 else "-1"]
        for key, value in given.items():
            values = value if isinstance(value, tuple) else (value,)
            argv += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
        env = {"GGML_NO_BACKTRACE": "1", "PYTHONUNBUFFERED": "1", **base_env(spec)}
        return Command(argv=tuple(argv), env=env, listen="tcp")

    def request(self, kind: ProbeKind, name: str, spec: ModelSpec) -> Request | None:
        """Return the request of a probe; there is none for drain, which counts connections."""
        if kind is ProbeKind.DRAIN:
            return None
        if kind is ProbeKind.ALIVE:
            return Request(method="GET", path=spec.health.alive_path or ALIVE_PATH)
        default = ProbeRequest.COMPLETION
        if _embeds(spec):
            default = ProbeRequest.EMBEDDING
        elif any(_key(name) == "chat_format" for name in spec.args):
            default = ProbeRequest.CHAT  # a format that does not exist shows in a chat only
        return generation_request(spec.health.probe_request or default, name, spec, {})

    def read(self, kind: ProbeKind, status: int, body: bytes) -> Answer:
        """Return what an answer shows."""
        if kind in (ProbeKind.START, ProbeKind.GENERATION):
            return read_generation(status, body)
        if status == 200:  # noqa: PLR2004 - an HTTP status is best read as its number
            return Answer(outcome=Outcome.ANSWERED, evidence="answered 200")
        return read_refusal(status, body)

    def classify(self, exit: Exit, log_tail: str) -> Failure:  # noqa: A002 - the name the event has
        """Return the class of an exit by the messages of the server, of Python, and of llama.cpp below them."""
        lines, was_ready = patterns.since_ready(patterns.clean(log_tail), _READY)
        return patterns.classify(exit, lines, RULES, was_ready=was_ready)

    def progress(self, log_tail: str) -> str | None:
        """Return the last line about loading."""
        telling = [line for line in patterns.clean(log_tail) if _LOADING.search(line) or _READY.search(line)]
        return clip(telling[-1]) if telling else None


def _key(name: str) -> str:
    return name.replace("-", "_")


def _embeds(spec: ModelSpec) -> bool:
    return any(_key(name) == "embedding" and value is True for name, value in spec.args.items())


def _twice(name: str, spec: ModelSpec) -> str | None:
    both = "-" in name and _key(name) in spec.args
    return "is given twice, with '-' and with '_'" if both else None


def _refusal(key: str, value: Argument, spec: ModelSpec) -> str | None:
    """Return why a flag may not stand in [args] with that value."""
    if key in flags.OWNED:
        return f"cannot be set here: {flags.OWNED[key]}"
    if key not in flags.TAKEN:
        near = flags.ELSEWHERE.get(key) or next(iter(difflib.get_close_matches(key, flags.TAKEN, n=1)), None)
        return "is no flag of llama-cpp-python" + (f"; did you mean '{near}'?" if near else "")
    if key == "n_gpu_layers" and spec.gpus == 0 and value not in (0, "0"):
        return "must be 0 with gpus = 0, which hides every GPU"
    return _value_refusal(key, value)


def _value_refusal(key: str, value: Argument) -> str | None:
    """Return why a value cannot be passed on a command line, or is not of the flag's kind."""
    values = value if isinstance(value, tuple) else (value,)
    wrong = {
        "must be true or false": key in flags.SWITCHES and not isinstance(value, bool),
        "takes a value, not true or false": key not in flags.SWITCHES
        and any(isinstance(item, bool) for item in values),
        "takes one value, not a list": key not in flags.LISTS and isinstance(value, tuple),
        "is an empty list": not values,
        "holds a NUL byte": any(isinstance(item, str) and "\0" in item for item in values),
        "must be a finite number": any(isinstance(item, float) and not math.isfinite(item) for item in values),
    }
    return next((why for why, is_so in wrong.items() if is_so), None)


def _file_problems(spec: ModelSpec) -> list[Problem]:
    found = []
    if spec.draft:
        found.append(Problem(("draft",), spec.draft, "is not for this engine: it drafts by looking up the prompt"))
    if len(spec.lora) > 1:
        found.append(Problem(("lora",), spec.lora, "holds more than one, and this engine loads one"))
    if spec.lora_scales:
        found.append(Problem(("lora_scales",), spec.lora_scales, "is not for this engine: set args.lora_scale"))
    return found
