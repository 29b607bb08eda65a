"""Watches an engine's answer pass by: how much of it there is, whether it is whole, and whether it is a lie.

Three rules:

1. Bytes pass as they are. The half of an event waits for its other half, so that an engine's death leaves the client
   with whole events only; nothing else is ever held back, and nothing changed.
2. It is cheap: a token's event is searched for a few words, and parsed only where one of them says that it matters.
   None of these words, with its quotes, can stand in a prompt's or an answer's text: JSON escapes the quotes there.
3. A comment is no delivery. llama-server sends them from a thread that goes on when its inference hangs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from modelsupd.gateway.base import Api
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.traffic import RunTraffic
from modelsupd.gateway.usage import (
    FINISH_REASON,
    STOP_REASON,
    Usage,
    last_reason,
    last_usage,
    tokens_in_and_out,
)
from modelsupd.gateway.wire import Kind

#: As much of an event is held back until it is whole; a longer one passes as it comes, and counts as an answer.
MAX_HELD_BYTES: Final = 65536

#: Of an answer that is no stream, so much of its end is kept: what it used stands there.
KEPT_BYTES: Final = 65536

#: As names of the module they are found at once; in its class CPython 3.11 looks a member up by code of its own.
_OTHER: Final = Api.OTHER
_MESSAGES: Final = Api.MESSAGES
_RESPONSES: Final = Api.RESPONSES

_EVENTS: Final = b"text/event-stream"

_OK: Final = 200
_CLIENT_ERROR: Final = 400
_SERVER_ERROR: Final = 500
_BUSY: Final = 503

#: Something was said: text that is not empty, reasoning, the call of a tool, or a part of its arguments.
_CONTENT: Final = re.compile(
    rb'"(?:content|text|delta|reasoning|reasoning_content|thinking|refusal|arguments|partial_json|summary_text)"'
    rb'\s*:\s*"[^"]|"(?:tool_calls|function_call)"\s*:\s*(?:\[\s*\{|\{)|"type"\s*:\s*"tool_use"'
)
_DONE: Final = re.compile(rb"(?:^|\n)data: ?\[DONE\][ ]*(?:\n|$)")
_DONE_WORD: Final = b"[DONE]"
_ERROR_WORD: Final = b'"error"'
_RETURN: Final = ord("\r")
#: How a stream says that it is whole, beside or in place of [DONE], with a word that few other events hold.
_MESSAGES_END: Final = (b"message_stop", re.compile(rb'"type"\s*:\s*"message_stop"'))
_RESPONSES_END: Final = (
    b'"response"',
    re.compile(rb'"type"\s*:\s*"response\.(completed|incomplete|failed|cancelled)"'),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with an answer that came: evidence against its run unless `kind` is None."""

    kind: Kind | None
    code: str
    words: str


class Scanner:
    """The observer of one relay. What it found is in its attributes, and is whole once the answer has ended."""

    # These stand in the class since most answers never change most of them.
    status = 0
    streams = False
    size_bytes = 0
    events = 0
    done = False
    ended = False
    finish_reason: str | None = None
    first_at: float | None = None
    """When the answer began."""
    content_at: float | None = None
    """When a stream first said something."""
    event_at: float | None = None
    """When the last event came."""
    _held = b""
    _kept = b""
    _loose = False
    _error: dict[str, Any] | None = None
    _usage_at = b""
    _usage_first = b""
    _counted: Usage | None = None

    def __init__(
        self,
        api: Api,
        traffic: RunTraffic,
        clock: Callable[[], float],
        *,
        silent: bool = False,
        mend: Callable[[], bytes] | None = None,
    ) -> None:
        """Watch an answer of `api`, and count it in `traffic`. `silent` when no token was asked for.

        `mend` is asked for the last bytes of a stream that ends as if it were whole, and is not.
        """
        self._api = api
        self._generates = api is not _OTHER
        self._traffic = traffic
        self._clock = clock
        self._silent = silent
        self._mend = mend
        # No table by `api`, since the hash of an enum's member is computed by Python.
        self._end: tuple[bytes, re.Pattern[bytes]] | None = None
        self._reason_words = FINISH_REASON
        if api is _MESSAGES:
            self._end = _MESSAGES_END
            self._reason_words = STOP_REASON
        elif api is _RESPONSES:
            self._end = _RESPONSES_END

    # Observer

    def head(self, status: int, headers: Headers) -> None:
        """Note the status, and whether events follow."""
        self.first_at = self._clock()
        self.status = status
        if not headers.plain():
            # Nobody asked for that, and nothing can be read in it: it passes, and proves nothing against the engine.
            self._generates = False
            return
        kind = headers.first.get(b"content-type")
        self.streams = kind is not None and kind[: len(_EVENTS)].lower() == _EVENTS

    def data(self, piece: bytes, /) -> bytes | None:
        """Look at a piece; return None to pass it, or what passes instead because an event is not whole yet."""
        self.size_bytes += len(piece)
        if not self.streams:
            self._keep(piece)
            return None
        if self._loose:
            return self._through(piece)
        whole = self._held + piece if self._held else piece
        if whole.endswith(b"\n\n"):
            self._held = b""
            self._look(whole, len(piece))
            return None if whole is piece else whole
        cut = _boundary(whole)
        self._look(whole[:cut], len(piece))
        if len(whole) - cut > MAX_HELD_BYTES:
            return self._let_go(whole)
        self._held = whole[cut:]
        return whole[:cut]

    def end(self) -> bytes | None:
        """Finish; return what was held back: an engine may leave out the end of its last event.

        Of a stream that was cut the half of an event goes to nobody, and what mends it takes its place.
        """
        self.ended = True
        held, self._held = self._held, b""
        if held:
            self._look(held, 0)
        elif not self.streams:
            self._look_at_answer()
        if self._mend is not None and self.cut:
            return self._mend()
        return held or None

    # What it found

    @property
    def mid_event(self) -> bool:
        """Tell whether the client has the beginning of an event of which it does not have the end."""
        return self._loose

    @property
    def told_end(self) -> bool:
        """Tell whether the client has met the end of the stream: one was said, or an error of the engine's own."""
        return self.done or self._error is not None

    @property
    def cut(self) -> bool:
        """Tell whether a stream of which more was to come has ended without saying so."""
        if not self.streams or self.done or self._error is not None or self.status != _OK:
            return False
        return self._generates and self.finish_reason is None

    @property
    def usage(self) -> Usage:
        """Return the tokens, as far as the engine said."""
        if self._counted is None or not self.ended:
            tokens_in, tokens_out = tokens_in_and_out(self._usage_at)
            if self._usage_first:
                # Anthropic's streams tell what went in at their start, and what came out at their end.
                first_in, first_out = tokens_in_and_out(self._usage_first)
                tokens_in = first_in if tokens_in is None else tokens_in
                tokens_out = first_out if tokens_out is None else tokens_out
            self._counted = Usage(tokens_in, tokens_out)
        return self._counted

    @property
    def fault(self) -> Fault | None:
        """Return what is wrong with the answer, once it has ended."""
        if self.status >= _CLIENT_ERROR:
            # A busy engine is no broken one.
            kind = Kind.BAD_ANSWER if self.status >= _SERVER_ERROR and self.status != _BUSY else None
            return Fault(kind, f"status_{self.status}", f"answered {self.status}")
        if self._error is not None:
            return _judged(self._error)
        return self._lie() if self.status == _OK and self._generates else None

    def _lie(self) -> Fault | None:
        """Return what a good status hides."""
        if self.cut:
            return Fault(Kind.CLOSED, "cut", "a stream ended with neither a finish reason nor [DONE]")
        if self._said_nothing and not self._silent:
            return Fault(Kind.NO_TOKENS, "no_tokens", "answered 200 with no token")
        if self.streams and self.done and self.finish_reason is None:
            return Fault(Kind.NO_FINISH_REASON, "no_finish_reason", "a stream ended with [DONE] and no finish reason")
        return None

    @property
    def _said_nothing(self) -> bool:
        tokens = self.usage.tokens_out
        if tokens:
            return False
        if self.streams:
            return self.content_at is None  # whatever was counted: what was said counts more
        if self.size_bytes > KEPT_BYTES or (tokens is None and self._api is _RESPONSES):
            # So much is not nothing, and where it began to speak is not kept. A response that is made in the background
            # is answered with before anything was made.
            return False
        return _CONTENT.search(self._kept) is None

    # Events

    def _look(self, text: bytes, count_bytes: int) -> None:
        """Search whole events."""
        # Searched by `find`: `in` takes the word for a number first, and CPython makes an exception of that each time.
        if _RETURN in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        events = text.count(b"\ndata:") + (text[:5] == b"data:")
        now = self._clock()
        if text.find(_DONE_WORD) >= 0 and _DONE.search(text):
            self.done = True
            events -= 1
        self._traffic.delivered(now, count_bytes, events)
        if not events:
            return
        self.events += events
        self.event_at = now
        if self.content_at is None and _CONTENT.search(text):
            self.content_at = now
        self.finish_reason = last_reason(text, self._reason_words) or self.finish_reason
        if text.find(_ERROR_WORD) >= 0:
            self._look_for_error(text)
        self._note_usage(text)
        if self._end is not None and text.find(self._end[0]) >= 0 and (end := self._end[1].search(text)):
            self.done = True
            if end.lastindex:
                self.finish_reason = end[1].decode()

    def _look_for_error(self, text: bytes) -> None:
        for event in text.split(b"\n\n"):
            if event.find(_ERROR_WORD) < 0:
                continue
            data = b"\n".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:"))
            error = _error_in(data)
            if error is not None:
                self._error = error

    def _note_usage(self, text: bytes) -> None:
        """Keep the last object that tells what was used: how much of it matters is known at the end."""
        found = last_usage(text)
        if found is not None:
            self._usage_at = found
            if not self._usage_first and self._api is _MESSAGES:
                self._usage_first = found

    def _let_go(self, whole: bytes) -> bytes:
        """Pass an event on that is too long to be held back, as it comes; its other half is an answer anyway."""
        self._held = b""
        self._loose = True
        self._kept = whole[-3:]
        now = self._clock()
        self._traffic.delivered(now, 0, 1)
        self.events += 1
        self.event_at = now
        self.content_at = self.content_at or now
        return whole

    def _through(self, piece: bytes) -> bytes | None:
        """Pass a piece of an event that is too long; after its end everything is as before."""
        joined = self._kept + piece
        ends = [at + len(end) for end in (b"\n\n", b"\r\n\r\n") if (at := joined.find(end)) >= 0]
        self.event_at = self._clock()
        if not ends:
            self._kept = joined[-3:]
            self._traffic.delivered(self.event_at, len(piece))
            return None
        at = max(0, min(ends) - len(self._kept))
        self._loose = False
        self._kept = b""
        self._traffic.delivered(self.event_at, at)
        self.size_bytes -= len(piece) - at  # the rest counts itself
        rest = self.data(piece[at:])
        return None if rest is None else piece[:at] + rest

    # Answers that are no stream

    def _keep(self, piece: bytes) -> None:
        self._traffic.delivered(self._clock(), len(piece))
        self._kept = piece if not self._kept else (self._kept + piece)[-KEPT_BYTES:]

    def _look_at_answer(self) -> None:
        text = self._kept
        self.events = 1
        self._traffic.delivered(self._clock(), 0, 1)
        self.finish_reason = last_reason(text, self._reason_words)
        self._note_usage(text)


def _boundary(text: bytes) -> int:
    """Return where the last whole event ends; 0 where none does."""
    cut = text.rfind(b"\n\n")
    cut = cut + 2 if cut >= 0 else 0
    if _RETURN in text:
        for end in (b"\r\n\r\n", b"\r\r"):
            at = text.rfind(end)
            if at >= 0:
                cut = max(cut, at + len(end))
    return cut


def _error_in(data: bytes) -> dict[str, Any] | None:
    """Return the error that an event is, if it is one."""
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    if parsed.get("type") == "response.failed":
        response = parsed.get("response")
        return (_as_error(response.get("error")) if isinstance(response, dict) else None) or {}
    if parsed.get("type") == "error":
        return _as_error(parsed.get("error")) or {"code": parsed.get("code")}
    return _as_error(parsed.get("error"))


def _as_error(value: object) -> dict[str, Any] | None:
    if isinstance(value, dict):
        return value
    return {"message": value} if isinstance(value, str) and value else None


def _judged(error: Mapping[str, Any]) -> Fault:
    """Return what an engine's own error says of it: nothing, if the client was wrong."""
    code = error.get("code")
    shown = [str(word)[:40] for word in (error.get("type"), code) if isinstance(word, str | int)]
    words = f"put an error into its answer: {' '.join(shown) or 'of no type'}"
    if isinstance(code, int) and _CLIENT_ERROR <= code < _SERVER_ERROR:
        return Fault(None, f"status_{code}", words)
    return Fault(Kind.ERROR_IN_STREAM, "error_in_stream", words)
