"""What a request's body says that the gateway has to know: the model, and whether the answer is to be a stream.

A small body is parsed. A large one may hold megabytes of images, or a million empty lists, so it is walked: keys at the
top are read, all else is skipped by searches that run at the speed of memory and build nothing. For a body that the
parser takes, the result is the parser's (of two equal keys the last one counts); one that it does not take may be let
through, and the engine refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final

from modelsupd.core.routing import Need

#: The largest body that is parsed: up to here that is faster, takes a few milliseconds, and some thirty at worst.
PARSED_BYTES: Final = 1024 * 1024

#: Steps that one walk may take, at a quarter of a microsecond each. A conversation of ten thousand messages takes half.
MAX_STEPS: Final = 200_000

#: What a model may be called, and an error repeat. Names in the configuration are shorter.
MAX_MODEL_CHARS: Final = 256

MAX_PARTS: Final = 64
_MAX_PART_HEAD_BYTES: Final = 4096

_SCAN: Final = json.JSONDecoder().scan_once  # type: ignore[attr-defined] # what its own raw_decode calls

_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_SCALAR: Final = re.compile(rb"[-+.0-9A-Za-z]++")
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
#: What lies between two brackets: anything else, and the strings that are not long; a long one is quicker by a search.
#: Not possessive, which CPython 3.11.2 gets wrong in a repeated group; as nothing stands behind it, it never goes back.
_GAP: Final = re.compile(rb'(?:[^"{}\[\]]+|"[^"\\]{0,4096}(?:\\.[^"\\]{0,4096})*")*', re.DOTALL)

_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_OPENING: Final = frozenset(b"{[")
_COMMA: Final = 0x2C
_COLON: Final = 0x3A
_OPEN_OBJECT: Final = 0x7B
_CLOSE_OBJECT: Final = 0x7D

_LIMITS: Final[tuple[str, ...]] = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_WANTED: Final = frozenset(key.encode() for key in ("model", "stream", "tools", "functions", *_LIMITS))

_IMAGE: Final = re.compile(rb'"type"\s*:\s*"(?:image_url|input_image|image)"')
_INLINE: Final = b";base64,"

#: What an image may cost, where only its file is known; and how many bytes of a text make a token, on the average.
_IMAGE_TOKENS: Final = 1000
_BYTES_PER_TOKEN: Final = 4
_DIGITS: Final = re.compile(rb"[0-9]{1,9}")

_BOUNDARY: Final = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_PART_NAME: Final = re.compile(rb';[ \t]*name[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]+))', re.IGNORECASE)


class BodyError(ValueError):
    """A body that cannot be used, with the reason; the client is told."""


class Asked:
    """What a body asks for. `silent`: no token at all, so that an answer of none is as it should be."""

    __slots__ = ("model", "silent", "stream")

    def __init__(self, model: str | None = None, stream: bool = False, silent: bool = False) -> None:
        """Hold this. No tuple with names, which takes a microsecond to make."""
        self.model = model
        self.stream = stream
        self.silent = silent

    def __eq__(self, other: object) -> bool:
        """Tell whether another says the same."""
        return isinstance(other, Asked) and self._all() == other._all()

    def __hash__(self) -> int:
        """Return the hash of what it says."""
        return hash(self._all())

    def _all(self) -> tuple[str | None, bool, bool]:
        return self.model, self.stream, self.silent


def read_json(body: bytes) -> Asked:
    """Return what a JSON body asks for. Raises `BodyError`."""
    if len(body) > PARSED_BYTES:
        return walk_json(body)
    try:
        parsed = _parsed(body.decode())
    except (ValueError, RecursionError) as error:
        raise BodyError(f"the body is no JSON: {_why(error)}") from None
    if not isinstance(parsed, dict):
        raise BodyError("the body must be a JSON object")
    model = model_name(parsed.get("model"))
    silent = False
    for key in _LIMITS:
        # `false` is 0, too, but not for an engine.
        if key in parsed and parsed[key] == 0 and type(parsed[key]) is int:
            silent = True
    return Asked(model, parsed.get("stream") is True, silent)


def _parsed(text: str) -> object:
    """Return what json.loads does, in half the time where nothing stands around the object."""
    if text.startswith("{"):
        try:
            value, end = _SCAN(text, 0)
            if end == len(text):
                return value
        except StopIteration:
            pass  # json.loads tells it better
    return json.loads(text)


def _why(error: Exception) -> str:
    """Return what is wrong with it without a word of it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[:1].lower()}{error.msg[1:]} at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return f"no UTF-8 at byte {error.start}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def model_name(value: object) -> str | None:
    """Return what a client calls a model, if it may be called so. Raises `BodyError`."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise BodyError("'model' must be a string")
    if len(value) > MAX_MODEL_CHARS:
        raise BodyError(f"'model' must not be longer than {MAX_MODEL_CHARS} characters")
    return value


def walk_json(body: bytes) -> Asked:
    """Return the same without building what is not asked for. Raises `BodyError`."""
    found = _walk(body)
    model = None
    if b"model" in found:
        start, end = found[b"model"][-1]
        model = model_name(_literal(body[start:end]))
    last = {key: body[spans[-1][0] : spans[-1][1]] for key, spans in found.items()}
    return Asked(model, last.get(b"stream") == b"true", any(last.get(key.encode()) == b"0" for key in _LIMITS))


def renamed_json(body: bytes, name: str) -> bytes:
    """Return the body with the model called `name`: engines know a model by its own name only."""
    return _replaced(body, _walk(body).get(b"model", ()), json.dumps(name).encode())


def needs(body: bytes, *, embedding: bool = False) -> Need:
    """Return what a JSON body asks of a model, by its size and the words that stand in it. Raises `BodyError`."""
    found = _walk(body)
    last = {key.decode(): body[spans[-1][0] : spans[-1][1]] for key, spans in found.items()}
    tools = any(last.get(key, b"null").strip(b"[] \t\r\n") not in (b"", b"null") for key in ("tools", "functions"))
    images = len(_IMAGE.findall(body))
    prompt = 1 + (len(body) - _inline_bytes(body)) // _BYTES_PER_TOKEN + images * _IMAGE_TOKENS
    answer = max((int(value) for key in _LIMITS if _DIGITS.fullmatch(value := last.get(key, b""))), default=0)
    return Need(
        images=images > 0,
        tools=tools,
        embedding=embedding,
        prompt_tokens=prompt,
        context_tokens=prompt + answer,
    )


def _inline_bytes(body: bytes) -> int:
    """Return how many bytes of it are files that stand in it."""
    total = at = 0
    while (at := body.find(_INLINE, at)) >= 0:
        end = body.find(b'"', at)
        end = len(body) if end < 0 else end
        total += end - at
        at = end
    return total


def _replaced(body: bytes, spans: Sequence[tuple[int, int]], text: bytes) -> bytes:
    parts, at = [], 0
    for start, end in spans:
        parts += [body[at:start], text]
        at = end
    return b"".join((*parts, body[at:]))


def _walk(body: bytes) -> dict[bytes, list[tuple[int, int]]]:
    """Return where the values of the wanted keys of the outermost object stand. Raises `BodyError`."""
    try:
        return _members(body)
    except IndexError:
        raise BodyError("the body is no JSON: it ends too early") from None


def _members(body: bytes) -> dict[bytes, list[tuple[int, int]]]:
    found: dict[bytes, list[tuple[int, int]]] = {}
    at = _space(body, 0)
    if not body or body[at] != _OPEN_OBJECT:
        raise BodyError("the body must be a JSON object")
    at = _space(body, at + 1)
    ended = body[at] == _CLOSE_OBJECT
    at += ended
    for _ in range(MAX_STEPS):
        if ended:
            break
        key, start, end, at = _member(body, at)
        ended = body[at - 1] == _CLOSE_OBJECT
        if key in _WANTED:
            found.setdefault(key, []).append((start, end))
    else:
        raise BodyError(f"the body has more than {MAX_STEPS} members")
    if _space(body, at) != len(body):
        raise BodyError("the body is no JSON: something follows the object")
    return found


def _member(body: bytes, at: int) -> tuple[bytes, int, int, int]:
    """Return key, start and end of the value, and where the next member begins, after the comma or brace."""
    at = _space(body, at)
    if body[at] != _QUOTE:
        raise BodyError(f"the body is no JSON: no key at byte {at}")
    end = _string_end(body, at)
    key = body[at + 1 : end - 1]
    if _BACKSLASH in key:
        key = str(_literal(body[at:end])).encode(errors="surrogatepass")
    at = _space(body, end)
    if body[at] != _COLON:
        raise BodyError(f"the body is no JSON: no colon at byte {at}")
    start = _space(body, at + 1)
    end = _value_end(body, start)
    at = _space(body, end)
    if body[at] not in (_COMMA, _CLOSE_OBJECT):
        raise BodyError(f"the body is no JSON: neither comma nor brace at byte {at}")
    return key, start, end, at + 1


def _space(body: bytes, at: int) -> int:
    found = _SPACE.match(body, at)
    return found.end() if found else at


def _value_end(body: bytes, at: int) -> int:
    first = body[at]
    if first == _QUOTE:
        return _string_end(body, at)
    if first in _OPENING:
        return _nested_end(body, at)
    found = _SCALAR.match(body, at)
    if found is None:
        raise BodyError(f"the body is no JSON: no value at byte {at}")
    return found.end()


def _string_end(body: bytes, at: int) -> int:
    """Return where a string ends that begins at `at`, after its quote."""
    end = body.find(b'"', at + 1)
    if end < 0:
        raise BodyError(f"the body is no JSON: the string at byte {at} does not end")
    if body[end - 1] != _BACKSLASH:
        return end + 1
    found = _STRING.match(body, at)
    if found is None:
        raise BodyError(f"the body is no JSON: the string at byte {at} does not end")
    return found.end()


def _nested_end(body: bytes, at: int) -> int:
    """Return where the object or array ends that begins at `at`."""
    depth = 1
    at += 1
    for _ in range(MAX_STEPS):
        gap = _GAP.match(body, at)
        at = gap.end() if gap else at
        char = body[at]
        if char == _QUOTE:
            at = _string_end(body, at)
            continue
        at += 1
        depth += 1 if char in _OPENING else -1
        if depth == 0:
            return at
    raise BodyError(f"the body has more than {MAX_STEPS} objects, arrays and long strings")


def _literal(value: bytes) -> object:
    """Return the value that stands there; what is no string or null is only told apart from them."""
    if value == b"null":
        return None
    try:
        return json.loads(value.decode()) if value[:1] == b'"' else ()
    except ValueError:
        raise BodyError("the body is no JSON: a string is broken") from None


def read_form(body: bytes, content_type: str) -> Asked:
    """Return what a multipart form asks for. Raises `BodyError`."""
    parts = _parts(body, content_type)
    model = None
    for start, end in _only_model(parts):
        model = model_name(body[start : min(end, start + MAX_MODEL_CHARS + 1)].decode(errors="replace"))
    streams = [body[start:end].lower() for start, end in parts.get(b"stream", [])]
    return Asked(model, streams[-1:] == [b"true"])


def renamed_form(body: bytes, content_type: str, name: str) -> bytes:
    """Return the form with the model called `name`."""
    return _replaced(body, _only_model(_parts(body, content_type)), name.encode())


def _only_model(parts: Mapping[bytes, list[tuple[int, int]]]) -> list[tuple[int, int]]:
    models = parts.get(b"model", [])
    if len(models) > 1:
        raise BodyError("the form has two parts called 'model'")
    return models


def _parts(body: bytes, content_type: str) -> dict[bytes, list[tuple[int, int]]]:
    """Return where the contents of each named part stand."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise BodyError("the form has no boundary in its content type")
    delimiter = b"--" + (boundary[1] or boundary[2]).encode("latin-1", "replace")
    at = 0 if body.startswith(delimiter) else body.find(b"\r\n" + delimiter) + 2
    if not body.startswith(delimiter, at):
        raise BodyError("the form's boundary is not in the body")
    parts: dict[bytes, list[tuple[int, int]]] = {}
    for _ in range(MAX_PARTS):
        at += len(delimiter)
        if body.startswith(b"--", at):
            return parts
        name, start, end = _part(body, at, b"\r\n" + delimiter)
        parts.setdefault(name, []).append((start, end))
        at = end + 2
    raise BodyError(f"the form has more than {MAX_PARTS} parts")


def _part(body: bytes, at: int, delimiter: bytes) -> tuple[bytes, int, int]:
    """Return the name of the part whose delimiter ends at `at`, and where its content starts and ends."""
    head_end = body.find(b"\r\n\r\n", at, at + _MAX_PART_HEAD_BYTES)
    if head_end < 0:
        raise BodyError("a part of the form has no head that ends")
    start = head_end + 4
    end = body.find(delimiter, start - 2)
    if end < 0:
        raise BodyError("a part of the form does not end")
    name = b""
    for line in body[at:head_end].split(b"\r\n"):
        if line[:20].lower() == b"content-disposition:":
            names = _PART_NAME.findall(line)
            if len(names) > 1:
                raise BodyError("a part of the form has two names")
            name = names[0][0] or names[0][1] if names else b""
    return name, start, max(start, end)
