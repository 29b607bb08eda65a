"""The last event of a stream whose engine died: exactly one, in the shape of the API, where the client can read it.

`[DONE]` follows only where clients of that API wait for it; they have met the error by then.
"""

from __future__ import annotations

from typing import Final

from modelsupd.gateway.base import Api
from modelsupd.gateway.errors import Trouble, dump, shape

#: Ends an event that was cut, so that what follows is an event of its own.
BOUNDARY: Final = b"\n\n"

_DONE: Final = b"data: [DONE]\n\n"


def final(api: Api, trouble: Trouble, request_id: str, *, sequence: int = 0, mid_event: bool = False) -> bytes:
    """Return the bytes that end a stream.

    `sequence` counts the events that the client has, as Responses number them; `mid_event` when the last of them is not
    complete.
    """
    return (BOUNDARY if mid_event else b"") + _event(api, trouble, request_id, sequence)


def _event(api: Api, trouble: Trouble, request_id: str, sequence: int) -> bytes:
    error = shape(api, trouble, request_id)
    if api is Api.MESSAGES:
        return _named(error)
    if api is Api.RESPONSES:
        # The reference has the fields at the top, the service itself sends them under `error`; clients read either.
        flat = {"type": "error", "code": trouble.code, "message": trouble.words, "param": None}
        return _named({**flat, "sequence_number": sequence, **error})
    plain = b"data: " + dump(error) + BOUNDARY
    return plain + _DONE if api in (Api.CHAT, Api.COMPLETION) else plain


def _named(error: dict[str, object]) -> bytes:
    return b"event: error\ndata: " + dump(error) + BOUNDARY


def comment(words: str) -> bytes:
    """Return a comment, which clients pass over: it keeps a connection warm."""
    return b": " + words.replace("\r", " ").replace("\n", " ").encode(errors="replace") + BOUNDARY
