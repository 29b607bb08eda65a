"""What an answer says of itself: the tokens that it took, and why it is at its end. Found by words, not by parsing it.

Words are searched for by `find`: `in` takes its argument for a number first, and CPython makes an exception of that
each time.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple

_DECODER: Final = json.JSONDecoder()

#: What follows `"finish` or `"stop` where there is a reason, as engines write it; and how much of one is kept.
_REASON_WORD: Final = b'_reason":"'
_REASON_WORD_SPACED: Final = b'_reason": "'
_REASON_BYTES: Final = 32
_USAGE_WORD: Final = b'"usage"'
_OBJECT: Final = re.compile(rb"\s*:\s*\{")
#: An object of what was used that is longer than this tells nothing.
_USAGE_BYTES: Final = 4096


class Usage(NamedTuple):
    """Tokens as the engine counted them; None where it did not say."""

    tokens_in: int | None = None
    tokens_out: int | None = None


def last_reason(text: bytes) -> str | None:
    """Return the last reason that a text says for having finished; None where it says none."""
    word = _REASON_WORD
    if text.find(word) < 0:
        word = _REASON_WORD_SPACED
        if text.find(word) < 0:
            return None
    before, found, after = text.rpartition(word)
    while found:
        if before[-7:] == b'"finish' or before[-5:] == b'"stop':
            return after.partition(b'"')[0][:_REASON_BYTES].decode("ascii", "replace")
        before, found, after = before.rpartition(word)
    return None


def last_usage(text: bytes) -> bytes | None:
    """Return the last object in a text that tells what was used, and what follows it; None where there is none."""
    if text.find(_USAGE_WORD) < 0:
        return None
    before, word, after = text.rpartition(_USAGE_WORD)
    while word:
        found = _OBJECT.match(after)
        if found is not None:
            return after[found.end() - 1 : _USAGE_BYTES]
        before, word, after = before.rpartition(_USAGE_WORD)
    return None


def tokens_in_and_out(text: bytes) -> tuple[int | None, int | None]:
    """Return the tokens in and out that an object tells; it may be cut off, and then tells nothing."""
    if not text:
        return None, None
    try:
        used, _ = _DECODER.raw_decode(text.decode("latin-1"))
    except (ValueError, RecursionError):
        return None, None
    return _number(used, "prompt_tokens", "input_tokens"), _number(used, "completion_tokens", "output_tokens")


def _number(used: dict[str, Any], name: str, other: str) -> int | None:
    value = used.get(name)
    if value is None:
        value = used.get(other)
    return value if type(value) is int and value >= 0 else None
