"""One health request, from the question to what its answer shows.

Two rules. A probe never raises: whatever goes wrong is an outcome with its evidence. And silence is held against the
engine only when this process itself was listening: a deadline that was noticed much too late is void.
"""

from __future__ import annotations

import time

from modelsupd.core.events import Outcome, ProbeKind
from modelsupd.core.spec import ModelSpec
from modelsupd.engines.base import Adapter, Answer, Request
from modelsupd.runtime.http import (
    ProbeBrokenError,
    ProbeRefusedError,
    ProbeTimeoutError,
    ProbeUnableError,
    fetch,
)

#: A deadline noticed later than this many seconds, or this part of it, was noticed by a process without CPU.
_LATE_S = 1.0
_LATE_PART = 0.5

Result = tuple[Outcome, str, int | None, int | None, float]
"""Outcome, evidence, the engine's counter of tokens, its requests in flight, and how long it took in seconds."""


async def probe(
    adapter: Adapter, kind: ProbeKind, name: str, spec: ModelSpec, endpoint: str, timeout_s: float
) -> Result:
    """Send the probe of that kind to `endpoint` and return what it found. Never raises but for cancellation."""
    request = adapter.request(kind, name, spec)
    if request is None:
        return Outcome.VOID, f"{adapter.kind} has no {kind} probe", None, None, 0.0
    asked_at = time.monotonic()
    try:
        status, body = await fetch(endpoint, request, timeout_s)
        answer = adapter.read(kind, status, body)
    except ProbeTimeoutError as error:
        answer = _silence(str(error), time.monotonic() - asked_at, timeout_s)
    except ProbeRefusedError as error:
        answer = Answer(outcome=Outcome.REFUSED, evidence=str(error))
    except ProbeUnableError as error:
        answer = Answer(outcome=Outcome.VOID, evidence=str(error))
    except ProbeBrokenError as error:
        answer = Answer(outcome=Outcome.FAILED, evidence=str(error))
    took_s = time.monotonic() - asked_at
    return answer.outcome, f"{_named(request)}: {answer.evidence}", answer.delivered, answer.in_flight, took_s


def _silence(evidence: str, took_s: float, timeout_s: float) -> Answer:
    late_s = took_s - timeout_s
    if late_s > max(_LATE_S, timeout_s * _LATE_PART):
        return Answer(outcome=Outcome.VOID, evidence=f"{evidence}, noticed {late_s:.1f} s late: no CPU here")
    return Answer(outcome=Outcome.TIMED_OUT, evidence=evidence)


def _named(request: Request) -> str:
    return f"{request.method} {request.path}"
