"""What an answer says of itself: the tokens that it took, and why it is at its end. Found by words, not by parsing it.

Words are searched for by `rfind`: `in` takes its argument for a number first, and CPython makes an exception of that
each time.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

_SCAN: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # what its own raw_decode calls

#: Where an API says why an answer is at its end, as engines write it; and how much of a reason is kept. Each API has
#: its own word, since vLLM's `stop_reason` beside a `finish_reason` repeats what a client asked for, and no log has it.
FINISH_REASON: Final[tuple[bytes, ...]] = (b'"finish_reason":"', b'"finish_reason": "')
STOP_REASON: Final[tuple[bytes, ...]] = (b'"stop_reason":"', b'"stop_reason": "')
_REASON_BYTES: Final = 32
_USAGE_WORD: Final = b'"usage"'
_OBJECT: Final = re.compile(rb"\s*:\s*\{")
#: An object of what was used that is longer than this tells nothing.
_USAGE_BYTES: Final = 4096
#: A number of tokens that is larger is none. Once counted, it could be one that no float holds, which metrics are.
_MOST_TOKENS: Final = 10**15


class Usage:
    """Tokens as the engine counted them; None where it did not say."""

    __slots__ = ("tokens_in", "tokens_out")

    def __init__(self, tokens_in: int | None = None, tokens_out: int | None = None) -> None:
        """Hold this. No tuple with names, which takes a microsecond to make."""
        self.tokens_in = tokens_in
        self.tokens_out = tokens_out

    def __eq__(self, other: object) -> bool:
        """Tell whether another says the same."""
        return isinstance(other, Usage) and self._all() == other._all()

    def __hash__(self) -> int:
        """Return the hash of what it says."""
        return hash(self._all())

    def _all(self) -> tuple[int | None, int | None]:
        return self.tokens_in, self.tokens_out


def last_reason(text: bytes, words: tuple[bytes, ...]) -> str | None:
    """Return the last reason that a text says for having finished, behind one of the words; None where it says none."""
    for word in words:
        at = text.rfind(word)
        while at >= 0:
            start = at + len(word)
            reason = text[start : start + _REASON_BYTES]
            if (end := reason.find(b'"')) >= 0:
                reason = reason[:end]
            if reason:
                return reason.decode("ascii", "replace")
            at = text.rfind(word, 0, at)
    return None


def last_usage(text: bytes) -> bytes | None:
    """Return the last object in a text that tells what was used, and what follows it; None where there is none."""
    at = text.rfind(_USAGE_WORD)
    while at >= 0:
        start = at + len(_USAGE_WORD)
        if text[start : start + 2] == b":{":
            return text[start + 1 : start + 1 + _USAGE_BYTES]
        found = _OBJECT.match(text, start)
        if found is not None:
            start = found.end() - 1
            return text[start : start + _USAGE_BYTES]
        at = text.rfind(_USAGE_WORD, 0, at)
    return None


def tokens_in_and_out(text: bytes) -> tuple[int | None, int | None]:
    """Return the tokens in and out that an object tells; it may be cut off, and then tells nothing."""
    if not text:
        return None, None
    try:
        used, _ = _SCAN(text.decode("latin-1"), 0)
    except (ValueError, RecursionError, StopIteration):
        return None, None
    return _number(used, "prompt_tokens", "input_tokens"), _number(used, "completion_tokens", "output_tokens")


def _number(used: dict[str, Any], name: str, other: str) -> int | None:
    value = used.get(name)
    if value is None:
        value = used.get(other)
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
