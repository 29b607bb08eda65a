"""What a head may hold beyond what llhttp already insists upon, and how heads and chunks are written.

llhttp, as httptools builds it, refuses bare CR and LF, folded lines, NUL and control characters, space before a colon,
Content-Length beside Transfer-Encoding, more than one Content-Length, and one that is no plain number. What it lets
pass and is refused here: other methods and versions, targets that are no path, Transfer-Encoding other than plain
`chunked` or with HTTP/1.0, Host missing, doubled or malformed. Both sides of a proxy must see the same request, so
whatever could be read in two ways is an error, and nothing is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})

#: Headers of one connection, not of the message (RFC 9110, 7.6.1), and those that frame it: never passed in either way.
HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
        b"content-length",
    }
)

#: What an engine is never told: who asks. Nor may it compress, since what it says has to be read, nor answer questions
#: of origin, which are the gateway's to answer.
_NOT_FOR_ENGINES: Final = HOP_BY_HOP | {
    b"host",
    b"expect",
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"cookie",
    b"accept-encoding",
    b"origin",
}

_PATH: Final = re.compile(rb"/[!\"$-~]*|\*")
_ABSOLUTE: Final = re.compile(rb"(?i:https?)://([^/?#@]*)(/[!\"$-~]*)?")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_STATUS_LINES: Final = {code: f"HTTP/1.1 {code} {reason}".encode() for code, reason in _REASONS.items()}

_CONTINUES: Final = b"100-continue"
_PLAIN: Final = b"identity"
_END: Final = b"\r\n"
_COLON: Final = b": "
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})

JSON: Final = (b"content-type", b"application/json")
LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not taken: the status it is answered with, and the words."""

    status: int
    words: str
    retry_after_s: int = 0


class Headers:
    """The headers of a message, in order. Names are matched in any case; values are latin-1."""

    __slots__ = ("_for_engine", "_lines", "first", "pairs")

    def __init__(self, pairs: list[tuple[bytes, bytes]]) -> None:
        """Take names in lower case, and values."""
        self.pairs = pairs
        self.first = dict(pairs)
        """The first value of each name, which is in lower case."""
        if len(self.first) != len(pairs):
            self.first = dict(reversed(pairs))
        self._lines: bytes | None = None
        self._for_engine: bytes | None = None

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of that name, or `default`."""
        found = self.first.get(name.lower().encode("latin-1"))
        return default if found is None else found.decode("latin-1")

    def getall(self, name: str) -> list[str]:
        """Return all values of that name."""
        wanted = name.lower().encode("latin-1")
        return [value.decode("latin-1") for key, value in self.pairs if key == wanted]

    def __contains__(self, name: str) -> bool:
        """Tell whether there is one of that name."""
        return name.lower().encode("latin-1") in self.first

    def lines(self) -> bytes:
        """Return them as lines, each with its end."""
        if self._lines is None:
            self._lines = _lines(self.pairs)
        return self._lines

    def for_engine(self) -> bytes:
        """Return, as lines, what an engine is told of them: not what is of the connection, nor of who asks."""
        if self._for_engine is None:
            dropped = _NOT_FOR_ENGINES
            named = self.first.get(b"connection")
            if named is not None:
                dropped = dropped | {word.strip().lower() for word in named.split(b",")}
            # A name with an underscore is the same as one with a hyphen to every server that speaks CGI or WSGI.
            passed = [pair for pair in self.pairs if pair[0] not in dropped and b"_" not in pair[0]]
            self._for_engine = _lines(passed)
        return self._for_engine

    def plain(self) -> bool:
        """Tell whether the body is as it is, not compressed or otherwise coded."""
        return self.first.get(b"content-encoding", _PLAIN).lower() == _PLAIN

    def count(self, name: bytes) -> int:
        """Return how many there are of that name, which is given in lower case."""
        return sum(key == name for key, _ in self.pairs)


def _lines(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % pair for pair in pairs])


def examine(method: bytes, version: str, headers: Headers) -> Refusal | None:
    """Return why the request with this head is not taken, None if it may go on."""
    return _examine_line(method, version, headers) or _examine_body(version, headers)


def _examine_line(method: bytes, version: str, headers: Headers) -> Refusal | None:
    if method not in METHODS:
        return Refusal(501, f"method {method.decode()} is not supported")
    if version not in ("1.1", "1.0"):
        return Refusal(505, f"HTTP/{version} is not supported")
    hosts = headers.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        return Refusal(400, "there must be exactly one Host header")
    if _HOST.fullmatch(headers.first.get(b"host", b"")) is None:
        return Refusal(400, "the Host header is malformed")
    return None


def _examine_body(version: str, headers: Headers) -> Refusal | None:
    first = headers.first
    coding = first.get(b"transfer-encoding")
    if coding is not None and version == "1.0":
        return Refusal(400, "HTTP/1.0 has no Transfer-Encoding")
    if coding is not None and (coding.lower() != b"chunked" or headers.count(b"transfer-encoding") > 1):
        return Refusal(501, "no Transfer-Encoding but `chunked` is supported")
    if version == "1.1" and first.get(b"expect", _CONTINUES).lower() != _CONTINUES:
        return Refusal(417, "no Expect but `100-continue` is supported")
    return None


def target(url: bytes, method: str) -> tuple[str, str] | Refusal:
    """Return path and query of a request's target, which has to be a path, or a URL with one (RFC 9112, 3.2)."""
    if _PATH.fullmatch(url) is None or (url == b"*" and method != "OPTIONS"):
        found = _ABSOLUTE.fullmatch(url)
        if found is None or not found[1] or _HOST.fullmatch(found[1]) is None:
            return Refusal(400, "the request's target is no path")
        url = found[2] or b"/"
    path, _, query = url.decode("ascii").partition("?")
    return path, query


def sane_request_id(value: bytes | None) -> str | None:
    """Return an id that came with a request, if it may stand in headers and logs."""
    return value.decode("ascii") if value is not None and _REQUEST_ID.fullmatch(value) else None


def request_head(method: str, path: str, headers: Headers, host: bytes, length: int) -> bytes:
    """Return the head of the request to an engine."""
    line = f"{method} {path} HTTP/1.1".encode("latin-1")
    if length or method in _WITH_BODY:
        return b"%b\r\nhost: %b\r\n%bcontent-length: %d\r\n\r\n" % (line, host, headers.for_engine(), length)
    return b"%b\r\nhost: %b\r\n%b\r\n" % (line, host, headers.for_engine())


def answer_head(status: int, headers: Headers, added: Sequence[tuple[bytes, bytes]], framing: bytes) -> bytes:
    """Return the head of an answer that an engine gave.

    `framing` is the lines, each with its end, that say where the body ends and what becomes of the connection. Headers
    that are added, by names in lower case, take the place of the engine's own of the same name.
    """
    lines: list[bytes] = []
    for name, value in added:
        if name in headers.first:
            headers = Headers([pair for pair in headers.pairs if pair[0] != name])
        lines.append(name)
        lines.append(_COLON)
        lines.append(value)
        lines.append(_END)
    return b"".join([status_line(status), _END, headers.lines(), *lines, framing, _END])


def own_head(status: int, headers: Iterable[tuple[bytes, bytes]], framing: bytes, date: bytes) -> bytes:
    """Return the head of an answer of the gateway's own."""
    return b"\r\n".join([status_line(status), date, *map(b": ".join, headers), framing + b"\r\n"])


def status_line(status: int) -> bytes:
    """Return the first line of an answer, without its end."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status


def error_body(status: int, words: str) -> bytes:
    """Return what a request is answered with that never became one."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return json.dumps({"error": {"message": words, "type": kind, "param": None, "code": status}}).encode()


def chunk(data: bytes) -> bytes:
    """Return data as a chunk; nothing for nothing, since an empty chunk would be the last."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def chunks(pieces: Iterable[bytes]) -> bytes:
    """Return pieces as chunks."""
    return b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece])
