"""Heads of clients and engines, as bytes: any of them, in any pieces."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from http_oracle import check_answer, check_requests
from modelsupd.gateway import heads
from modelsupd.gateway.heads import RequestHead
from modelsupd.gateway.parsing import Refusal

_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
_CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
_LINES = (b"Host: h\r\n", b"Content-Length: 3\r\n", b"content-length: 5\r\n", b"Transfer-Encoding: chunked\r\n")
_MORE_LINES = (b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"Content-Length: 3 \r\n")
_BITS = (
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b":",
    b" ",
    b"\0",
    b"\t",
    b"abc",
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n",
)

_REQUESTS = st.sampled_from(
    [
        *(b"GET", b"POST", b" / ", b"/x", b"HTTP/1.1", b"HTTP/1.0", *_LINES, *_MORE_LINES, *_BITS),
        *(_GET, _POST, b"POST / HTTP/1.1\r\nHost: h\r\n" + _CHUNKED),
    ]
)
_ANSWERS = st.sampled_from(
    [
        *(
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.1 204 No Content\r\n",
            *_LINES,
            *_MORE_LINES,
            *_BITS,
        ),
        *(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + _CHUNKED[:-5], _CHUNKED),
        *(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",),
    ]
)
_CUTS = st.lists(st.integers(0, 500), max_size=6)


@settings(max_examples=400, deadline=None)
@given(st.lists(_REQUESTS | st.binary(max_size=5), max_size=14), _CUTS)
@example([_GET, _GET], [3])
@example([_POST, _GET], [50, 52])
@example([_POST, b"\r\n", _GET], [55])
def test_no_bytes_make_a_request_that_llhttp_does_not_see(words: list[bytes], cuts: list[int]) -> None:
    check_requests(b"".join(words), cuts)


@settings(max_examples=400, deadline=None)
@given(st.lists(_ANSWERS | st.binary(max_size=5), max_size=10), _CUTS, st.sampled_from(["POST", "HEAD"]))
@example([b"HTTP/1.1 200 OK\r\n", _CHUNKED], [47, 48, 49, 50], "POST")
def test_any_answer_ends_once_and_reaches_the_client_well_framed(
    words: list[bytes], cuts: list[int], method: str
) -> None:
    check_answer(b"".join(words), cuts, method)


@pytest.mark.parametrize(
    ("line", "length"),
    [
        (b"Content-Length: 7\r\n", 7),
        (b"content-length: 0007\r\n", 7),
        (b"CONTENT-LENGTH:7\r\n", 7),
        (b"Content-Length: 7 \r\n", 7),
        (b"X: y\r\nContent-Length: 123456789012345\r\n", 123456789012345),
        (b"Content-Length: 1234567890123456\r\n", 1234567890123456),
        (b"", 0),
    ],
)
def test_the_length_is_read_however_it_is_written(line: bytes, length: int) -> None:
    head, found = heads.read_request(b"POST / HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n")
    assert isinstance(head, RequestHead)
    assert found == length


def test_heads_that_differ_in_their_length_alone_are_read_once() -> None:
    head = b"POST /once HTTP/1.1\r\nHost: once\r\nAuthorization: Bearer %d\r\nContent-Length: %d\r\n\r\n"
    first, length = heads.read_request(head % (1, 10))
    again, other = heads.read_request(head % (1, 11))
    assert (length, other) == (10, 11)
    assert again is first
    of_another, _ = heads.read_request(head % (2, 10))
    assert isinstance(of_another, RequestHead)
    assert of_another.headers.get("authorization") == "Bearer 2"


@pytest.mark.parametrize("size", [10, 5000])
def test_a_doubled_length_is_refused_in_whatever_case(size: int) -> None:
    filler = b"X: " + b"y" * size + b"\r\n"
    for lines in (
        (b"Content-Length: 3\r\n", b"content-length: 3\r\n"),
        (b"content-length: 3\r\n", b"Content-Length: 4\r\n"),
    ):
        head, _ = heads.read_request(b"POST / HTTP/1.1\r\nHost: h\r\n" + filler + b"".join(lines) + b"\r\n")
        assert isinstance(head, Refusal)
        assert head.status == 400


def test_what_is_kept_of_heads_that_clients_make_up_is_little() -> None:
    """A line of six bytes costs a hundred once it is read, and nobody has to show a key for that."""
    heads.forget()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for heads_sent, line_count, value in ((512, 58, b"a" * 60), (200, 400, b"a")):
            lines = b"".join(b"%03x: %b\r\n" % (line, value) for line in range(line_count))
            for number in range(heads_sent):
                head, _ = heads.read_request(b"GET /%d HTTP/1.1\r\nHost: h\r\n%b\r\n" % (number, lines))
                assert isinstance(head, RequestHead)
                head.headers.for_engine()
        assert tracemalloc.get_traced_memory()[0] - before < 14 * 2**20
    finally:
        tracemalloc.stop()
        heads.forget()
