"""What must hold of any bytes that a client or an engine sends, in any pieces: told to the tests and the fuzzer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass, field
from typing import cast

import httptools

from modelsupd.gateway import parsing
from modelsupd.gateway.base import Limits
from modelsupd.gateway.connection import Connection
from modelsupd.gateway.ends import EngineLine
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.front import Front
from modelsupd.gateway.line import Line
from modelsupd.gateway.request import Gauge, Reader

Request = tuple[str, bytes]
"""Method and body."""


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return data in pieces, cut at these places, whatever they are."""
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(edges) if end > begin]


def requests_of(pieces: list[bytes]) -> list[Request]:
    """Return the requests that a reader finds, up to the first that it refuses or that ends the connection."""
    gauge = Gauge()
    reader = Reader(Limits(), gauge)
    found: list[Request] = []
    between = True
    for piece in pieces:
        data = piece
        while data and reader.refusal is None and (reader.keep or between is False):
            if between:
                data = data.lstrip(b"\r\n")
                if not data:
                    break
                between = False
                reader.reset()
            data = reader.feed(data)
            if reader.complete:
                found.append((reader.method, reader.take_body()))
                reader.release()
                between = True
    reader.release()
    assert gauge.buffered_bytes == 0
    return found


class _Llhttp:
    """What llhttp alone makes of a connection."""

    def __init__(self, data: bytes) -> None:
        self.requests: list[Request] = []
        self.body = b""
        self.parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.requests.append((self.parser.get_method().decode(), self.body))


def check_requests(data: bytes, cuts: list[int]) -> None:
    """Assert that a client's bytes make no request that llhttp does not see, and the same ones in any pieces."""
    found = requests_of(pieces_of(data, cuts))
    if b"pgrade" not in data:  # of an offer of another protocol the two make different things, on purpose
        assert found == _Llhttp(data).requests[: len(found)]
    if b"hunked" not in data:  # what follows chunks in one piece is thrown away, so that there pieces matter
        assert found == requests_of([data])


@dataclass
class _Recorder:
    """A relay that notes what a connection to an engine tells it, and what would go to a client."""

    exchange: Exchange
    out: bytes = b""
    body: bytes = b""
    ends: list[str] = field(default_factory=list)
    framed: bool = False

    def took(self, line: EngineLine, data: bytes) -> None:
        """Note what came."""
        assert not self.ends
        self.framed = line.chunked
        self.body += b"".join(line.pieces)
        self.out += data if line.whole else parsing.chunks(line.pieces)
        if line.complete:
            self.out += b"" if line.whole else parsing.LAST_CHUNK
            self.ends.append("complete")
            line.release()

    def failed(self, kind: str, words: str) -> None:
        """Note a failure."""
        assert words
        self.ends.append(kind)

    def lost(self, words: str) -> None:
        """Note an end that came too soon."""
        assert words
        self.ends.append("lost")


class _Transport:
    """A transport that goes nowhere."""

    def abort(self) -> None:
        """Go nowhere."""

    def get_write_buffer_size(self) -> int:
        """Hold nothing."""
        return 0


class _Keeper:
    """A pool that keeps nothing."""

    def put(self, line: Line) -> None:
        """Keep nothing."""

    def forget(self, line: Line) -> None:
        """Forget nothing."""


def _answer(pieces: list[bytes], method: str) -> _Recorder:
    line = Line(_Keeper(), "unix:/none")
    line.connection_made(cast("asyncio.Transport", _Transport()))
    # Nothing is ever sent to this client, which has no transport: what would be stands in the recorder.
    front = Front(Limits(), lambda exchange: None)  # noqa: ARG005 - nothing comes in
    relay = _Recorder(Exchange(Connection(front), front.pool, method, "/", "", parsing.Headers([]), b"", 0.0))
    line.begin(relay, bodiless=method == "HEAD")
    for piece in pieces:
        if not relay.ends:
            line.data_received(piece)
    if not relay.ends:
        line.connection_lost(None)
    assert len(relay.ends) == 1
    return relay


def check_answer(data: bytes, cuts: list[int], method: str = "POST") -> None:
    """Assert that an engine's bytes end an answer once, that its framing holds, and that pieces do not matter."""
    answer = _answer(pieces_of(data, cuts), method)
    if answer.ends == ["complete"]:
        if answer.framed:
            _check_framing(answer)
        whole = _answer([data], method)
        assert (whole.ends, whole.body) == (answer.ends, answer.body)


def _check_framing(answer: _Recorder) -> None:
    """Assert that what goes to the client is one chunked body, by another parser than the one that read it."""
    seen: list[bytes] = []
    ended: list[bool] = []

    class Client:
        def on_body(self, piece: bytes) -> None:
            seen.append(piece)

        def on_message_complete(self) -> None:
            ended.append(True)

    parser = httptools.HttpResponseParser(Client())
    parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + answer.out)
    assert b"".join(seen) == answer.body
    assert ended == [True]
