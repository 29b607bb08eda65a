"""modelsupd's own gateway, run as engines are: with a shim of its own, so that it outlives the daemon.

It generates nothing; that its admin socket answers is what makes it ready, and what it tells there of its connections
is its sign of life.
"""

from __future__ import annotations

import re

from modelsupd.core.events import Exit, Failure, FailureClass, Outcome, ProbeKind
from modelsupd.core.spec import Engine, EngineSpec, ModelSpec, Problem
from modelsupd.engines import patterns
from modelsupd.engines.base import Answer, Command, Files, Request, base_env, parse, read_refusal

_K = FailureClass
RULES = (*patterns.COMMON, patterns.rule(_K.MISSING_LIBRARY, r"^(?:ModuleNotFoundError|ImportError): "))


class GatewayAdapter:
    """The adapter of `python -m modelsupd.gateway`."""

    kind = Engine.GATEWAY
    modules: tuple[str, ...] = ()
    served: re.Pattern[str] | None = None
    one_at_a_time = False

    def idle_cpus(self, spec: ModelSpec) -> float:  # noqa: ARG002 - the protocol's signature
        """Return none: it sleeps while it has nothing to do."""
        return 0.0

    def problems(self, name: str, spec: ModelSpec) -> list[Problem]:  # noqa: ARG002 - the protocol's signature
        """Return that nobody declares a gateway as a model."""
        return [Problem(("engine",), str(spec.engine), "is modelsupd's own: [gateway] declares it")]

    def binary(self, spec: ModelSpec, engine: EngineSpec | None) -> str:  # noqa: ARG002 - the same
        """Return that it is our own interpreter."""
        return ""

    def command(self, name: str, spec: ModelSpec, *, binary: str, files: Files) -> Command:  # noqa: ARG002 - the same
        """Return the command line; `args` of the spec are flags of the gateway."""
        argv = [binary, "-I", "-m", "modelsupd.gateway", "--admin", "{socket}"]
        for flag, value in spec.args.items():
            argv += [f"--{flag}", str(value)]
        return Command(argv=tuple(argv), env=base_env(spec), listen="unix")

    def request(self, kind: ProbeKind, name: str, spec: ModelSpec) -> Request | None:  # noqa: ARG002 - the same
        """Return the same request for every probe."""
        return Request(method="GET", path="/health")

    def read(self, kind: ProbeKind, status: int, body: bytes) -> Answer:
        """Return what its answer shows; that it answers stands for what engines show by generating."""
        if status != 200:  # noqa: PLR2004 - an HTTP status is best read as its number
            return read_refusal(status, body)
        told = parse(body)
        if told is None:
            return Answer(outcome=Outcome.FAILED, evidence="answered 200 with no JSON object")
        in_flight = told.get("in_flight")
        in_flight = in_flight if isinstance(in_flight, int) else None
        words = f"answers, {in_flight} requests in flight"
        if kind in (ProbeKind.START, ProbeKind.GENERATION):
            return Answer(outcome=Outcome.TOKENS, evidence=words)
        return Answer(
            outcome=Outcome.ANSWERED, evidence=words, in_flight=in_flight if kind is ProbeKind.DRAIN else None
        )

    def classify(self, exit: Exit, log_tail: str) -> Failure:  # noqa: A002 - the name the event has
        """Return the class of an exit, by messages of Python."""
        return patterns.classify(exit, patterns.clean(log_tail), RULES, was_ready=True)

    def progress(self, log_tail: str) -> str | None:
        """Return the last line of its log."""
        lines = patterns.clean(log_tail)
        return lines[-1] if lines else None
