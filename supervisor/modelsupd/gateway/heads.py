"""Heads of requests and answers, each read whole, by llhttp and by what `parsing` adds to it.

A head is read as a pure function of its bytes, and what was read is kept for a while: the heads that a client sends on
a connection, and an engine's, differ in little but Content-Length, which is therefore taken out beforehand. So most
heads are not read at all. Whoever keeps one may not change it.
"""

from __future__ import annotations

from typing import Final

import httptools

from modelsupd.gateway import parsing
from modelsupd.gateway.parsing import Headers, Refusal

END: Final = b"\r\n\r\n"

#: How many heads are kept, and of what size and how many lines: some 12 MiB at the worst, of each kind.
KEPT: Final = 512
_KEPT_BYTES: Final = 4096
_KEPT_LINES: Final = 64

#: As clients and engines write it.
_LENGTH: Final = b"\r\nContent-Length: "
_LENGTH_IN_LOWER_CASE: Final = _LENGTH.lower()
_MAX_DIGITS: Final = 15
_ZERO: Final = ord("0")

_MAX_ANSWER_HEADERS: Final = 256

#: Headers of an answer that go no further: those of its framing and of the connection to the engine (RFC 9110, 7.6.1),
#: and what an engine says of other origins, which does not hold for the gateway's.
_NOT_FOR_CLIENTS: Final = parsing.HOP_BY_HOP | {
    b"access-control-allow-credentials",
    b"access-control-allow-headers",
    b"access-control-allow-methods",
    b"access-control-allow-origin",
    b"access-control-allow-private-network",
    b"access-control-expose-headers",
    b"access-control-max-age",
}


class RequestHead:
    """A request's head that may go on. `length` counts bytes of the body where there is a Content-Length."""

    __slots__ = ("chunked", "expects", "headers", "keep", "length", "method", "minor", "path", "query")

    def __init__(  # noqa: PLR0913 - what a head says, each named where it is given
        self,
        method: str,
        path: str,
        query: str,
        headers: Headers,
        *,
        minor: int,
        keep: bool,
        length: int,
        chunked: bool,
        expects: bool,
    ) -> None:
        """Hold this. No dataclass, whose attributes are looked up by name even where it is compiled."""
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.minor = minor
        self.keep = keep
        self.length = length
        self.chunked = chunked
        self.expects = expects


class AnswerHead:
    """An answer's head. `length` is None where another thing tells the body's end; `headers` are those that go on."""

    __slots__ = ("chunked", "headers", "keep", "length", "status")

    def __init__(self, status: int, headers: Headers, *, keep: bool, length: int | None, chunked: bool) -> None:
        """Hold this."""
        self.status = status
        self.headers = headers
        self.keep = keep
        self.length = length
        self.chunked = chunked


_requests: Final[dict[bytes, RequestHead | Refusal]] = {}
_answers: Final[dict[bytes, AnswerHead | str]] = {}


def read_request(head: bytes) -> tuple[RequestHead | Refusal, int]:
    """Return what a request's head says, and the length of its body if that is told beforehand, else 0."""
    head, length = _without_length(head)
    found = _requests.get(head)
    if found is None:
        found = _request(head)
        if _may_be_kept(head):
            if len(_requests) >= KEPT:
                del _requests[next(iter(_requests))]
            _requests[head] = found
    if length < 0:
        return found, 0 if isinstance(found, Refusal) else found.length
    return found, length


def read_answer(head: bytes) -> tuple[AnswerHead | str, int | None]:
    """Return what an answer's head says, or what is wrong with it; and the length of its body if that is told."""
    head, length = _without_length(head)
    found = _answers.get(head)
    if found is None:
        found = _answer(head)
        if _may_be_kept(head):
            if len(_answers) >= KEPT:
                del _answers[next(iter(_answers))]
            _answers[head] = found
    if length < 0:
        return found, None if isinstance(found, str) else found.length
    return found, length


def forget() -> None:
    """Keep none of the heads that were read."""
    _requests.clear()
    _answers.clear()


def _may_be_kept(head: bytes) -> bool:
    return len(head) <= _KEPT_BYTES and head.count(b"\n") <= _KEPT_LINES


def _without_length(head: bytes) -> tuple[bytes, int]:
    """Return the head with a Content-Length of 0 in place of its own, and that; -1 where there is none.

    A line that begins so is a header and nothing else, since llhttp refuses lines that are folded. One that is written
    in another way is read with the rest.
    """
    at = head.find(_LENGTH)
    if at < 0:
        at = head.find(_LENGTH_IN_LOWER_CASE)
        if at < 0:
            return head, -1
    start = end = at + len(_LENGTH)
    length = 0
    while end < len(head) and end - start <= _MAX_DIGITS:
        digit = head[end] - _ZERO
        if not 0 <= digit <= 9:  # noqa: PLR2004 - a digit
            break
        length = 10 * length + digit
        end += 1
    if not 0 < end - start <= _MAX_DIGITS or head[end : end + 2] != b"\r\n":
        return head, -1
    return head[:start] + b"0" + head[end:], length


class _Parts:
    """What a parser finds in a head."""

    def __init__(self) -> None:
        self.parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.headed = False
        self.keep = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.headed = True
        parser, self.parser = self.parser, None  # else the two would hold each other
        self.keep = parser is not None and parser.should_keep_alive()  # which it forgets with the end of the message


def _request(head: bytes) -> RequestHead | Refusal:
    parts = _Parts()
    parts.parser = parser = httptools.HttpRequestParser(parts)
    wrong: Refusal | None = None
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # an offer of another protocol is passed over
    except httptools.HttpParserError as error:
        wrong = Refusal(400, f"the request cannot be read: {error}")
    if not parts.headed:
        return wrong or Refusal(400, "the request cannot be read")
    headers = Headers(parts.pairs)
    version, method = parser.get_http_version(), parser.get_method()
    wrong = parsing.examine(method, version, headers) or wrong
    if wrong is not None:
        return wrong
    name = method.decode()
    target = parsing.target(parts.url, name)
    if isinstance(target, Refusal):
        return target
    return RequestHead(
        name,
        target[0],
        target[1],
        Headers([pair for pair in parts.pairs if pair[0] != b"content-length"]),
        minor=0 if version == "1.0" else 1,
        keep=parts.keep,
        length=int(headers.first.get(b"content-length", b"0")),
        chunked=b"transfer-encoding" in headers.first,
        expects=b"expect" in headers.first and version == "1.1",
    )


def _answer(head: bytes) -> AnswerHead | str:
    parts = _Parts()
    parts.parser = parser = httptools.HttpResponseParser(parts)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        return f"another protocol, or none: {error}"
    headers = Headers(parts.pairs)
    coding, length = headers.first.get(b"transfer-encoding"), headers.first.get(b"content-length")
    wrong = _wrong_with(parts, headers)
    if wrong is not None:
        return wrong
    return AnswerHead(
        parser.get_status_code(),
        Headers([pair for pair in parts.pairs if pair[0] not in _NOT_FOR_CLIENTS]),
        keep=parts.keep,
        length=None if length is None else int(length),
        chunked=coding is not None,
    )


def _wrong_with(parts: _Parts, headers: Headers) -> str | None:
    """Return what an answer's head may not say, though it can be read."""
    coding = headers.first.get(b"transfer-encoding")
    if not parts.headed:
        return "its head is not whole"
    if len(parts.pairs) > _MAX_ANSWER_HEADERS:
        return f"more than {_MAX_ANSWER_HEADERS} headers"
    if coding is not None and (coding.lower() != b"chunked" or headers.count(b"transfer-encoding") > 1):
        return "a Transfer-Encoding other than `chunked`"
    if coding is not None and b"content-length" in headers.first:
        return "both Content-Length and Transfer-Encoding"
    return None
