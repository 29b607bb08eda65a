"""What an engine adapter is, and what all of them share.

Two rules. An adapter is pure: it describes a command line, a request, the meaning of an answer and of a log, and
touches no file, process, clock or socket. And what it calls proof is proof: a probe's answer counts as generation only
when tokens can be counted in it, an exit counts as more than a crash only when the engine's own words say so.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from modelsupd.core.events import Exit, Failure, Outcome, ProbeKind
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec, ProbeRequest, Problem, gpu_count

#: What the shim fills in, in argv and in the values of the environment, once it knows the run.
PLACEHOLDERS = ("{socket}", "{host}", "{port}", "{tmp}", "{run_dir}", "{cache_dir}")

#: The part of every engine's environment that is the same: built, never inherited, so that no LLAMA_ARG_*, VLLM_* or
#: NOTIFY_SOCKET of whoever started the daemon reaches an engine. The shim adds TMPDIR and its token.
BASE_ENV: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "{tmp}",
    "LANG": "C.UTF-8",
    "HF_HUB_OFFLINE": "1",
}

#: Variables that a model's [env] may not set, by prefix or name, and why.
OWNED_ENV: Mapping[str, str] = {
    "MODELSUPD_": "modelsupd marks its processes with such variables",
    "TMPDIR": "every run gets a folder of its own",
    "SPT_NOENV": "it keeps the mark readable by which modelsupd finds its processes",
    "CUDA_VISIBLE_DEVICES": "which GPUs an engine sees is said by 'gpus'",
    "NOTIFY_SOCKET": "it belongs to the daemon",
    "LISTEN_FDS": "it belongs to the daemon",
    "WATCHDOG_USEC": "it belongs to the daemon",
}

#: The same, of a model that uses GPUs.
OWNED_GPU_ENV: Mapping[str, str] = dict.fromkeys(
    ("CUDA_DEVICE_ORDER", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
    OWNED_ENV["CUDA_VISIBLE_DEVICES"],
)

#: How ROCm names a GPU, which is how we do: by the 64 bits that amdgpu tells as `unique_id`.
AMD_UUID = re.compile(r"GPU-[0-9a-fA-F]{16}")

#: Text that a probe asks to be continued. Short, and plain in every tokenizer.
PROBE_PROMPT = "Hello"

#: Of a body or a log line, how much is shown to people.
SHOWN_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start an engine. `argv` and the values of `env` may hold the PLACEHOLDERS, which the shim fills in."""

    argv: tuple[str, ...]
    env: dict[str, str]
    listen: Literal["unix", "tcp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; `body` is JSON or empty."""

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Files:
    """What an engine loads, as paths of this host: what was found and verified, or, before that, what is declared."""

    weights: str | None = None
    mmproj: str | None = None
    draft: str | None = None
    lora: tuple[str, ...] = ()

    @classmethod
    def declared(cls, spec: ModelSpec) -> Files:
        """Return the sources themselves, for when a command is shown before anything was resolved."""
        return cls(spec.weights, spec.mmproj, spec.draft, spec.lora)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an answer shows: `evidence` for people, and the engine's own counters where it tells them."""

    outcome: Outcome
    evidence: str
    delivered: int | None = None
    in_flight: int | None = None


class Adapter(Protocol):
    """One kind of engine."""

    kind: Engine

    #: What the interpreter that runs it must be able to import; empty for an engine that is a program.
    modules: tuple[str, ...]

    #: What its log says, with a count other than 0, for each request that was served; None where its probes tell, or
    #: nothing does. With it the engine writes no byte to a connection that is open for longer but what it generated.
    served: re.Pattern[str] | None

    #: It works on one request at a time, and stands still with it while the client does not read its answer.
    one_at_a_time: bool

    def idle_cpus(self, spec: ModelSpec) -> float:
        """Return how many CPUs its processes may use together though they have nothing to do; inf: CPU tells nothing.

        What a ready engine uses beyond that shows that it works.
        """

    def problems(self, name: str, spec: ModelSpec) -> list[Problem]:
        """Return everything in `spec` that this engine cannot be run with; paths are relative to the model."""

    def binary(self, spec: ModelSpec, engine: EngineSpec | None) -> str:
        """Return the engine's program as declared: a path, a name to be found on PATH, or "" for our interpreter."""

    def command(self, name: str, spec: ModelSpec, *, binary: str, files: Files) -> Command:
        """Return how to start it, with `binary` and `files` as resolved paths."""

    def request(self, kind: ProbeKind, name: str, spec: ModelSpec) -> Request | None:
        """Return the request of that probe, None where this engine has no such probe."""

    def read(self, kind: ProbeKind, status: int, body: bytes) -> Answer:
        """Return what the answer to that request shows. Never raises, whatever the engine sent."""

    def classify(self, exit: Exit, log_tail: str) -> Failure:  # noqa: A002 - the name the event has; the builtin is no use here
        """Return how an exit reads that nobody asked for; `CRASH` unless a message of the engine says more."""

    def progress(self, log_tail: str) -> str | None:
        """Return the last line that tells how far loading has come, for people; None when there is none."""


@runtime_checkable
class Drifting(Protocol):
    """An adapter of an engine whose flags are checked against those of the version that is installed."""

    #: What its interpreter is given to have it print all of its flags.
    help: tuple[str, ...]

    def drift(self, spec: ModelSpec, told: str) -> list[Problem]:
        """Return which flags in `spec` the version would not take that printed `told`; paths as of `problems`."""


@runtime_checkable
class Sleeper(Protocol):
    """An adapter of an engine that can sleep, and be woken, by requests to itself."""

    #: Asks whether it sleeps.
    is_sleeping: Request

    def sleep(self, level: int) -> tuple[Request, ...]:
        """Return what makes it sleep at that level, in order."""

    def wake(self, level: int) -> tuple[Request, ...]:
        """Return what wakes it up from that level, in order."""

    def read_sleeping(self, status: int, body: bytes) -> bool | None:
        """Return whether it sleeps, by its answer; None where that does not say."""


def adapter(kind: Engine) -> Adapter:
    """Return the adapter of that kind of engine."""
    from modelsupd.engines.command import CommandAdapter  # noqa: PLC0415 - the adapters themselves import this module
    from modelsupd.engines.gateway import GatewayAdapter  # noqa: PLC0415 - the same
    from modelsupd.engines.llama_cpp import LlamaCppAdapter  # noqa: PLC0415 - the same
    from modelsupd.engines.llama_cpp_python import LlamaCppPythonAdapter  # noqa: PLC0415 - the same
    from modelsupd.engines.vllm import VllmAdapter  # noqa: PLC0415 - the same

    adapters: dict[Engine, Adapter] = {
        Engine.LLAMA_CPP: LlamaCppAdapter(),
        Engine.LLAMA_CPP_PYTHON: LlamaCppPythonAdapter(),
        Engine.VLLM: VllmAdapter(),
        Engine.COMMAND: CommandAdapter(),
        Engine.GATEWAY: GatewayAdapter(),
    }
    return adapters[kind]


# Declarations


def common_problems(spec: ModelSpec, owned_env: Mapping[str, str] = OWNED_ENV) -> list[Problem]:
    """Return what is wrong with the parts of a declaration that every engine shares."""
    owned = {**owned_env, **(OWNED_GPU_ENV if gpu_count(spec) else {})}
    found = [
        Problem(("env", name), "…", f"cannot be set here: {why}")  # the value may be a secret, so it is not quoted
        for name in spec.env
        for prefix, why in owned.items()
        if name == prefix or (prefix.endswith("_") and name.startswith(prefix))
    ]
    found += [Problem(("env", name), "…", "holds a NUL byte") for name, value in spec.env.items() if "\0" in value]
    path = spec.health.alive_path
    if path is not None and not re.fullmatch(r"/[!-~]*", path):
        found.append(Problem(("health", "alive_path"), path, "must begin with '/' and hold no spaces"))
    declared = {"weights": spec.weights, "mmproj": spec.mmproj, "draft": spec.draft, "lora": "\n".join(spec.lora)}
    found += [
        Problem((name,), value, f"cannot hold '{placeholder}', which would be filled in")
        for name, value in declared.items()
        for placeholder in PLACEHOLDERS
        if placeholder in (value or "")
    ]
    return found


def base_env(spec: ModelSpec) -> dict[str, str]:
    """Return the environment that every engine gets, with the model's own variables last.

    Of a run that has been given GPUs, `spec.gpus` are their UUIDs: it sees no others.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if spec.gpus == 0 else {}
    return {**BASE_ENV, **hidden, **spec.env, **_gpu_env(spec)}


def _gpu_env(spec: ModelSpec) -> dict[str, str]:
    """Return what shows an engine its GPUs, by UUID: indices are not the same for the driver and for CUDA."""
    if isinstance(spec.gpus, int):
        return {}
    listed = ",".join(spec.gpus)
    if all(AMD_UUID.fullmatch(uuid) for uuid in spec.gpus):
        return {"ROCR_VISIBLE_DEVICES": listed}
    return {"CUDA_VISIBLE_DEVICES": listed, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


# Requests


def generation_request(proof: ProbeRequest, name: str, spec: ModelSpec, extra: Mapping[str, Any]) -> Request:
    """Return the request by which an engine shows that it generates; `extra` are fields only this engine knows."""
    if proof is ProbeRequest.EMBEDDING:
        return _post("/v1/embeddings", {"model": name, "input": PROBE_PROMPT})
    limits = {"max_tokens": spec.health.probe_tokens, "temperature": 0, "stream": False, **extra}
    if proof is ProbeRequest.COMPLETION:
        return _post("/v1/completions", {"model": name, "prompt": PROBE_PROMPT, **limits})
    messages = [{"role": "user", "content": PROBE_PROMPT}]
    return _post("/v1/chat/completions", {"model": name, "messages": messages, **limits})


def _post(path: str, body: Mapping[str, Any]) -> Request:
    return Request(method="POST", path=path, body=json.dumps(body, separators=(",", ":")).encode())


# Answers


def read_generation(status: int, body: bytes) -> Answer:
    """Return what the answer to a generation request shows, by the tokens that can be counted in it."""
    if status != 200:  # noqa: PLR2004 - an HTTP status is best read as its number
        return read_refusal(status, body)
    parsed = parse(body)
    if parsed is None:
        return Answer(outcome=Outcome.FAILED, evidence=f"answered 200 with no JSON object: {shown(body)}")
    error = error_message(parsed)
    if error:
        return Answer(outcome=Outcome.FAILED, evidence=f"answered 200 with an error: {error}")
    tokens, how = count_tokens(parsed)
    if tokens > 0:
        return Answer(outcome=Outcome.TOKENS, evidence=f"{tokens} {how}")
    return Answer(outcome=Outcome.NO_TOKENS, evidence=f"answered 200 with zero tokens: {how}")


def count_tokens(answer: Mapping[str, Any]) -> tuple[int, str]:
    """Return how many tokens an OpenAI-shaped answer shows, and how that was seen.

    In this order: `usage.completion_tokens`, llama.cpp's `timings.predicted_n`, text of any kind (reasoning and tool
    calls included), an embedding with numbers in it. Empty text with tokens counted is generation: a first token may be
    half a character, or the end of the text.
    """
    for part, field_name in (("usage", "completion_tokens"), ("timings", "predicted_n")):
        counted = _mapping(answer.get(part)).get(field_name)
        if isinstance(counted, int) and not isinstance(counted, bool) and counted > 0:
            return counted, "token generated" if counted == 1 else "tokens generated"
    choices = _mappings(answer.get("choices"))
    if any(_has_text(choice) for choice in choices):
        return 1, "piece of text generated, tokens not counted by the engine"
    vectors = [item.get("embedding") for item in _mappings(answer.get("data"))]
    # Without pooling there is one vector per token, and the first one stands for all.
    vectors = [
        vector[0] if isinstance(vector, list) and vector and isinstance(vector[0], list) else vector
        for vector in vectors
    ]
    sizes = [len(vector) for vector in vectors if isinstance(vector, list) and vector and all(map(_is_number, vector))]
    if sizes:
        return 1, f"embedding of {sizes[0]} numbers"
    if any(isinstance(vector, str) and vector for vector in vectors):
        return 1, "embedding, encoded"
    if any(isinstance(vector, list) and vector for vector in vectors):
        return 0, "the embedding holds no numbers"
    reasons = [str(choice.get("finish_reason")) for choice in choices]
    return 0, f"no text, finish_reason {', '.join(reasons)}" if reasons else "neither choices nor an embedding"


def _has_text(choice: Mapping[str, Any]) -> bool:
    message = {**_mapping(choice.get("message")), **_mapping(choice.get("delta"))}
    said = (choice.get("text"), *(message.get(key) for key in ("content", "reasoning_content", "reasoning")))
    return any(isinstance(text, str) and text for text in said) or bool(message.get("tool_calls"))


def read_refusal(status: int, body: bytes) -> Answer:
    """Return what any status but 200 shows: busy, still loading, or failed."""
    parsed = parse(body)
    words = (error_message(parsed) if parsed else "") or shown(body) or "no body"
    evidence = f"answered {status}: {words}"
    if status == 429:  # noqa: PLR2004 - an HTTP status is best read as its number
        return Answer(outcome=Outcome.BUSY, evidence=evidence)
    if status == 503:  # noqa: PLR2004 - the same
        loading = re.search(r"loading|starting|warming|initiali[sz]ing|not ready", words, re.IGNORECASE)
        return Answer(outcome=Outcome.LOADING if loading else Outcome.BUSY, evidence=evidence)
    return Answer(outcome=Outcome.FAILED, evidence=evidence)


def parse(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in `body`, None when it is anything else."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):  # a deep nest of brackets ends in the latter
        return None
    return parsed if isinstance(parsed, dict) else None


def error_message(answer: Mapping[str, Any]) -> str:
    """Return the message of an OpenAI-shaped error, or of FastAPI's `detail`; "" when there is none."""
    error = answer.get("error") or answer.get("detail")
    message = error.get("message") if isinstance(error, dict) else error
    return clip(str(message)) if message else ""


def shown(body: bytes) -> str:
    """Return the beginning of a body as one printable line."""
    return clip(body[: 4 * SHOWN_CHARS].decode(errors="replace"))


def clip(text: str) -> str:
    """Return `text` as one line of printable characters, no longer than is of use in a reason."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1] + "…"


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mappings(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
