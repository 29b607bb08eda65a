"""What clients are told when something is wrong: an honest status, in the shape of the API that they called.

Words are for people and repeat no secret: not a key, not a header, not a path of this host.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from modelsupd.gateway.base import Api

_JSON: Final = (b"content-type", b"application/json")

#: Names repeated in an error, at most: a host with hundreds of models must not send them all to whoever mistypes one.
_MAX_NAMES: Final = 50

#: Status → OpenAI's and Anthropic's word for that kind of error.
_KINDS: Final[dict[int, tuple[str, str]]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    502: ("server_error", "api_error"),
    503: ("service_unavailable_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
}
_OTHER_KIND: Final = ("server_error", "api_error")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a request is not served. `code` is for programs, `words` are for people."""

    status: int
    code: str
    words: str
    retry_after_s: float | None = None


def answer(
    api: Api, trouble: Trouble, request_id: str, headers: Iterable[tuple[bytes, bytes]] = ()
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer that says so; without Content-Length, which the wire adds."""
    lines = [_JSON, *headers]
    if trouble.retry_after_s is not None:
        lines.append((b"retry-after", str(max(1, math.ceil(trouble.retry_after_s))).encode()))
    return trouble.status, lines, dump(shape(api, trouble, request_id))


def shape(api: Api, trouble: Trouble, request_id: str) -> dict[str, Any]:
    """Return the error object of an API."""
    openai, anthropic = _KINDS.get(trouble.status, _OTHER_KIND)
    if api is Api.MESSAGES:
        error = {"type": anthropic, "message": trouble.words}
        return {"type": "error", "error": error, "request_id": request_id}
    return {"error": {"message": trouble.words, "type": openai, "param": None, "code": trouble.code}}


def dump(value: object) -> bytes:
    """Return JSON in one line, as an event needs it."""
    return json.dumps(value, separators=(",", ":")).encode()


def message_in(body: bytes) -> str:
    """Return what an engine's answer of an error says to its client; empty where it says nothing in a known shape."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def not_found(asked: str, names: Sequence[str]) -> Trouble:
    """Return that there is no such model, with those that there are."""
    return Trouble(404, "model_not_found", f"there is no model '{asked}' here; {known(names)}")


def known(names: Sequence[str]) -> str:
    """Return which models there are, in words."""
    shown = ", ".join(f"'{name}'" for name in names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"there are {shown}{more}" if names else "there are none"


def not_ready(name: str, reason: str, retry_after_s: float) -> Trouble:
    """Return that a model cannot serve now, and why."""
    why = f": {reason}" if reason else ""
    return Trouble(503, "model_not_ready", f"model '{name}' cannot serve now{why}", retry_after_s)


def queue_full(name: str, waiting: int, retry_after_s: float) -> Trouble:
    """Return that nobody more may wait for a model."""
    words = f"model '{name}' is busy and {waiting} requests wait for it already, which is its limit (max_queued)"
    return Trouble(429, "queue_full", words, retry_after_s)


def waited_too_long(name: str, waited_s: float, position: int, retry_after_s: float) -> Trouble:
    """Return that a request's turn did not come in time."""
    words = f"model '{name}' is busy: waited {waited_s:.1f} s and is still number {position} of those that wait"
    return Trouble(429, "queue_timeout", words, retry_after_s)
