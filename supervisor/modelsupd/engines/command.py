"""Any server that speaks the OpenAI API, started by a command line of the operator's.

Nothing is known of such a server but its API, so the generation probe is a chat, alive is `/v1/models`, requests in
flight are not told (the runtime counts connections), and its exits are read by messages of the linker, of Python, and
of the servers that are written in it.
"""

from __future__ import annotations

import difflib
import re

from modelsupd.core.events import Exit, Failure, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec, ProbeRequest, Problem
from modelsupd.engines import patterns
from modelsupd.engines.base import (
    PLACEHOLDERS,
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

#: Filled in by the adapter itself; the others by the shim.
_FILES = ("weights", "mmproj", "draft", "lora")
_OURS = (*(f"{{{name}}}" for name in _FILES), "{model}", "{gpus}")

#: Not uvicorn's "Application startup complete", which comes before it binds its address.
_READY = re.compile(r"Uvicorn running on|[Ll]istening (?:on|at)\b")
_LOADING = re.compile(r"(?i)\bload(?:ing|ed)?\b|startup|warm(?:ing|ed)? up|\d ?%|shards|progress")

_K = FailureClass
RULES = (
    patterns.rule(_K.ADDRESS_IN_USE, r"\[Errno 98\]|Address already in use|EADDRINUSE"),
    *patterns.COMMON,
    patterns.rule(_K.MISSING_LIBRARY, r"^(?:ModuleNotFoundError|ImportError): "),
    patterns.rule(
        # argparse, click, and getopt of GNU, in the forms in which they print.
        _K.BAD_FLAG,
        r": error: (?:unrecognized arguments|argument \S+: |the following arguments are required)"
        r"|^Error: (?:No such option|Invalid value for)|: (?:unrecognized|invalid) option\b",
    ),
)

_ALIVE_WITHOUT = (404, 405, 501)


class CommandAdapter:
    """The adapter of a server of the operator's own."""

    kind = Engine.COMMAND
    modules: tuple[str, ...] = ()
    served: re.Pattern[str] | None = None
    one_at_a_time = False

    def idle_cpus(self, spec: ModelSpec) -> float:  # noqa: ARG002 - the protocol's signature
        """Return none: it sleeps while it has nothing to do."""
        return 0.0

    def problems(self, name: str, spec: ModelSpec) -> list[Problem]:  # noqa: ARG002 - the protocol's signature
        """Return what such a server cannot be run with."""
        found = common_problems(spec)
        for setting, value in (("args", dict(spec.args)), ("binary", spec.binary), ("python", spec.python)):
            if value:
                found.append(Problem((setting,), value, "is not for engine = 'command': write it into 'command'"))
        if not spec.command or not spec.command[0]:
            found.append(Problem(("command",), spec.command, "must hold the server's command line"))
            return found
        text = "\n".join((*spec.command, *spec.env.values()))
        if "\0" in "".join(spec.command):
            found.append(Problem(("command",), spec.command, "holds a NUL byte"))
        if "{socket}" in text and "{port}" in text:
            found.append(Problem(("command",), spec.command, "holds both '{socket}' and '{port}': one is enough"))
        if "{socket}" not in text and "{port}" not in text:
            why = "must hold '{socket}', or '{host}' and '{port}': modelsupd gives every run an endpoint of its own"
            found.append(Problem(("command",), spec.command, why))
        found += _file_problems(spec, text)
        for word in sorted(set(re.findall(r"\{\w+\}", "\n".join(spec.command)))):
            near = difflib.get_close_matches(word, (*PLACEHOLDERS, *_OURS), n=1, cutoff=0.75)
            if near and near[0] != word:
                found.append(Problem(("command",), spec.command, f"holds '{word}'; did you mean '{near[0]}'?"))
        return found

    def binary(self, spec: ModelSpec, engine: EngineSpec | None) -> str:  # noqa: ARG002 - the protocol's signature
        """Return the first word of the command line."""
        return spec.command[0] if spec.command else ""

    def command(self, name: str, spec: ModelSpec, *, binary: str, files: Files) -> Command:
        """Return the operator's command line with the paths of files, {model} and {gpus} filled in."""
        values = {"{weights}": files.weights, "{mmproj}": files.mmproj, "{draft}": files.draft}
        values |= {"{lora}": ",".join(files.lora), "{model}": name}
        values["{gpus}"] = ",".join(spec.gpus) if isinstance(spec.gpus, tuple) else ""

        def fill(text: str) -> str:
            return re.sub("|".join(map(re.escape, _OURS)), lambda found: values[found[0]] or "", text)

        env = {key: fill(value) for key, value in base_env(spec).items()}
        argv = (binary, *(fill(word) for word in spec.command[1:]))
        uses_port = any("{port}" in text for text in (*argv, *env.values()))
        return Command(argv=argv, env=env, listen="tcp" if uses_port else "unix")

    def request(self, kind: ProbeKind, name: str, spec: ModelSpec) -> Request | None:
        """Return the request of a probe; there is none for drain."""
        if kind is ProbeKind.DRAIN:
            return None
        if kind is ProbeKind.ALIVE:
            return Request(method="GET", path=spec.health.alive_path or "/v1/models")
        return generation_request(spec.health.probe_request or ProbeRequest.CHAT, name, spec, {})

    def read(self, kind: ProbeKind, status: int, body: bytes) -> Answer:
        """Return what an answer shows. An alive probe that finds no such path has found a server that answers."""
        if kind in (ProbeKind.START, ProbeKind.GENERATION):
            return read_generation(status, body)
        if status == 200:  # noqa: PLR2004 - an HTTP status is best read as its number
            return Answer(outcome=Outcome.ANSWERED, evidence="answered 200")
        if status in _ALIVE_WITHOUT:
            evidence = f"answered {status}: it answers, but has no such path; set health.alive_path"
            return Answer(outcome=Outcome.ANSWERED, evidence=evidence)
        return read_refusal(status, body)

    def classify(self, exit: Exit, log_tail: str) -> Failure:  # noqa: A002 - the name the event has
        """Return the class of an exit by messages that servers of any kind share."""
        lines, was_ready = patterns.since_ready(patterns.clean(log_tail), _READY)
        return patterns.classify(exit, lines, RULES, was_ready=was_ready)

    def progress(self, log_tail: str) -> str | None:
        """Return the last line that looks like loading, else simply the last."""
        lines = patterns.clean(log_tail)
        telling = [line for line in lines if _LOADING.search(line)] or lines
        return clip(telling[-1]) if telling else None


def _file_problems(spec: ModelSpec, text: str) -> list[Problem]:
    found = [
        Problem(("command",), spec.command, f"holds '{{{name}}}', but there are none: set '{name}'")
        for name in _FILES
        if f"{{{name}}}" in text and not getattr(spec, name)
    ]
    if spec.lora_scales:
        found.append(Problem(("lora_scales",), spec.lora_scales, "is not for engine = 'command'"))
    return found
