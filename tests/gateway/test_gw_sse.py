"""What is seen of answers that pass by, and that they pass as they are."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gw_world import DONE, GOOD_STREAM, event, whole_answer
from modelsupd.gateway.base import Api
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.sse import KEPT_BYTES, MAX_HELD_BYTES, Scanner
from modelsupd.gateway.traffic import Ledger, RunTraffic
from modelsupd.gateway.usage import Usage
from modelsupd.gateway.wire import Kind

STREAM = Headers([(b"content-type", b"text/event-stream; charset=utf-8")])
JSON = Headers([(b"content-type", b"application/json")])
MENDED = b"<mended>"


class Seen:
    """A scanner, and what it let pass of the pieces that it was given."""

    def __init__(self, *pieces: bytes, api: Api = Api.CHAT, headers: Headers = STREAM, status: int = 200) -> None:
        self.traffic = RunTraffic("m/0#1", Ledger())
        self.now = 0.0
        self.scanner = Scanner(api, self.traffic, self.clock, mend=lambda: MENDED)
        self.scanner.head(status, headers)
        self.passed: list[bytes] = []
        for piece in pieces:
            self.give(piece)

    def clock(self) -> float:
        self.now += 1
        return self.now

    def give(self, piece: bytes) -> None:
        instead = self.scanner.data(piece)
        self.passed.append(piece if instead is None else instead)

    def end(self) -> Seen:
        self.passed.append(self.scanner.end() or b"")
        return self

    @property
    def whole(self) -> bytes:
        return b"".join(self.passed)


def pieces_of(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(body) + 1) for cut in cuts} | {0, len(body)})
    return [body[start:end] for start, end in itertools.pairwise(places)]


CUTS = st.lists(st.integers(0, 10**6), max_size=12)

EVENTS = st.lists(
    st.one_of(
        st.text(max_size=20).map(event),
        st.just(b": ping\n\n"),
        st.just(b":\n\n"),
        st.just(b"event: x\r\ndata: {}\r\n\r\n"),
        st.just(b"data: a\ndata: b\n\n"),
        st.just(b'data: "' + b"x" * (MAX_HELD_BYTES + 10) + b'"\n\n'),
        st.just(b"\n\n\n"),
        st.binary(max_size=30),
    ),
    max_size=8,
)


@given(EVENTS, CUTS, st.sampled_from(list(Api)))
@example([b"x" * MAX_HELD_BYTES * 2, b"\n", b"\n"], [MAX_HELD_BYTES * 2 + 1], Api.CHAT)
def test_bytes_pass_as_they_are_whatever_their_pieces(events: list[bytes], cuts: list[int], api: Api) -> None:
    body = b"".join(events) + b"\n\n" + event(None, "stop") + DONE
    seen = Seen(*pieces_of(body, cuts), api=api).end()
    mended = api in (Api.MESSAGES, Api.RESPONSES)  # whose streams end otherwise
    assert seen.whole == body + (MENDED if mended and seen.scanner.cut else b"")
    assert seen.scanner.size_bytes == seen.traffic.bytes == len(body)


@given(EVENTS, CUTS)
def test_what_is_not_held_back_ends_with_whole_events_unless_one_is_too_long(
    events: list[bytes], cuts: list[int]
) -> None:
    body = b"".join(events)
    seen = Seen()
    for piece in pieces_of(body, cuts):
        seen.give(piece)
        assert body.startswith(seen.whole)
        if not seen.scanner.mid_event and seen.whole:
            assert seen.whole.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))


@given(CUTS)
def test_counting_does_not_depend_on_the_pieces(cuts: list[int]) -> None:
    tokens = GOOD_STREAM.replace(DONE, event(None, None, usage={"prompt_tokens": 7, "completion_tokens": 2}) + DONE)
    seen = Seen(*pieces_of(tokens, cuts)).end()
    scanner = seen.scanner
    assert (scanner.events, scanner.finish_reason, scanner.done) == (5, "stop", True)
    assert scanner.usage == Usage(7, 2)
    assert scanner.fault is None
    assert seen.traffic.events == 5


def test_a_comment_is_no_delivery() -> None:
    seen = Seen(event("one"))
    at = seen.scanner.event_at
    seen.give(b":\n\n")
    seen.give(b": ping 1\n\n: ping 2\n\n")
    assert seen.scanner.event_at == at
    assert seen.scanner.events == 1


def test_lines_may_end_as_sse_starlette_writes_them() -> None:
    body = GOOD_STREAM.replace(b"\n", b"\r\n")
    for size in (1, 3, 50, len(body)):
        seen = Seen(*(body[at : at + size] for at in range(0, len(body), size))).end()
        assert seen.whole == body
        assert (seen.scanner.events, seen.scanner.done, seen.scanner.fault) == (4, True, None)


WORDS_IN_TEXT = (
    '[DONE] data: [DONE]\n\n{"finish_reason":"stop"} "error": {"code": 500} "usage": {"completion_tokens": 0}'
)


def test_no_word_of_a_text_is_taken_for_the_engine_s() -> None:
    seen = Seen(event(WORDS_IN_TEXT))
    scanner = seen.scanner
    assert not scanner.done
    assert scanner.finish_reason is None
    assert not scanner.told_end
    assert scanner.usage == Usage()
    assert scanner.events == 1


def test_zero_tokens_are_seen_in_streams_and_in_answers() -> None:
    nothing = event("") + event(None, "stop") + DONE
    assert _kind(Seen(nothing).end()) is Kind.NO_TOKENS
    counted = event("") + event(None, "stop", usage={"prompt_tokens": 3, "completion_tokens": 4}) + DONE
    assert _kind(Seen(counted).end()) is None, "tokens without a text are tokens"
    assert _kind(Seen(whole_answer("", 0), headers=JSON).end()) is Kind.NO_TOKENS
    assert _kind(Seen(whole_answer("", 1), headers=JSON).end()) is None
    assert _kind(Seen(b'{"choices": [{"message": {"content": null}}]}', headers=JSON).end()) is Kind.NO_TOKENS
    assert _kind(Seen(b'{"embedding": []}', headers=JSON, api=Api.OTHER).end()) is None


def test_what_was_said_is_no_silence_however_it_is_counted() -> None:
    miscounted = event("hello") + event(None, "stop", usage={"prompt_tokens": 3, "completion_tokens": 0}) + DONE
    assert _kind(Seen(miscounted).end()) is None
    assert _kind(Seen(whole_answer("hello", 0), headers=JSON).end()) is None
    long = b'{"choices": [{"message": {"content": "%b"}, "finish_reason": "stop"}]}' % (b"x" * KEPT_BYTES)
    assert _kind(Seen(long, headers=JSON).end()) is None, "its beginning is not kept, and nothing is counted"


def _kind(seen: Seen) -> Kind | None:
    fault = seen.scanner.fault
    return fault.kind if fault is not None else None


@pytest.mark.parametrize(
    "delta",
    [
        '{"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}',
        '{"reasoning_content": "hm"}',
        '{"content":"x"}',
        '{"content": "\\""}',
        '{"refusal": "no"}',
    ],
)
def test_whatever_is_said_is_no_silence(delta: str) -> None:
    said = f'data: {{"choices": [{{"delta": {delta}, "finish_reason": null}}]}}\n\n'.encode()
    assert _kind(Seen(said + event(None, "stop") + DONE).end()) is None


@pytest.mark.parametrize("delta", ['{"tool_calls": []}', '{"role": "assistant", "content": ""}', "{}"])
def test_what_says_nothing_is_silence(delta: str) -> None:
    said = f'data: {{"choices": [{{"delta": {delta}, "finish_reason": null}}]}}\n\n'.encode()
    assert _kind(Seen(said + event(None, "stop") + DONE).end()) is Kind.NO_TOKENS


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"error": {"message": "x", "type": "InternalServerError", "code": 500}}, Kind.ERROR_IN_STREAM),
        ({"error": "x"}, Kind.ERROR_IN_STREAM),
        ({"error": {"message": "x", "type": "BadRequestError", "code": 400}}, None),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, Kind.ERROR_IN_STREAM),
        ({"type": "error", "code": "server_error", "message": "x"}, Kind.ERROR_IN_STREAM),
        ({"type": "response.failed", "response": {"error": {"code": "server_error"}}}, Kind.ERROR_IN_STREAM),
    ],
)
def test_an_engine_s_own_error_is_found_in_every_shape(error: dict[str, object], kind: Kind | None) -> None:
    seen = Seen(event("one"), b"data: " + json.dumps(error).encode() + b"\n\n").end()
    fault = seen.scanner.fault
    assert fault is not None
    assert fault.kind is kind
    assert "x" not in fault.words.split()
    assert seen.scanner.told_end
    assert MENDED not in seen.whole


@pytest.mark.parametrize("text", ['{"error": null, "choices": []}', '{"errors": 1}', '{"x": {"error": 1}}', '"error"'])
def test_what_is_no_error_is_none(text: str) -> None:
    seen = Seen(b"data: " + text.encode() + b"\n\n" + event("one", "stop") + DONE).end()
    assert seen.scanner.fault is None


@pytest.mark.parametrize("held", [b"", b'data: {"id', event("two")[:-1]])
def test_a_stream_that_ends_in_silence_is_mended_and_half_an_event_dropped(held: bytes) -> None:
    seen = Seen(event("one"), held).end() if held else Seen(event("one")).end()
    assert seen.whole == event("one") + MENDED
    assert _kind(seen) is Kind.CLOSED


def test_a_last_event_without_its_end_counts() -> None:
    seen = Seen(event("one") + event(None, "stop"), b"data: [DONE]").end()
    assert seen.whole.endswith(b"data: [DONE]")
    assert seen.scanner.fault is None


def test_an_end_without_a_reason_is_told_from_one_without_done() -> None:
    assert _kind(Seen(event("one") + DONE).end()) is Kind.NO_FINISH_REASON
    assert _kind(Seen(event("one") + event(None, "stop")).end()) is None


def _named(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: ".encode() + json.dumps({"type": name, **fields}).encode() + b"\n\n"


MESSAGES = (
    _named("message_start", message={"stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 1}})
    + _named("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + _named("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hello"})
    + _named("content_block_stop", index=0)
)  # fmt: skip
MESSAGES_END = _named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5}) + _named(
    "message_stop"
)


def test_anthropic_s_events() -> None:
    seen = Seen(MESSAGES, MESSAGES_END, api=Api.MESSAGES).end()
    scanner = seen.scanner
    assert (scanner.done, scanner.finish_reason, scanner.usage) == (True, "end_turn", Usage(9, 5))
    assert scanner.fault is None
    assert Seen(MESSAGES, api=Api.MESSAGES).end().whole == MESSAGES + MENDED


RESPONSES = (
    _named("response.created", response={"status": "in_progress", "error": None, "usage": None}, sequence_number=0)
    + _named("response.output_text.delta", delta="Hi", sequence_number=1)
    + _named("response.output_text.done", text="Hi", sequence_number=2)
)
RESPONSES_END = _named(
    "response.completed",
    response={"status": "completed", "error": None, "usage": {"input_tokens": 4, "output_tokens": 1}},
    sequence_number=3,
)


def test_the_events_of_responses() -> None:
    seen = Seen(RESPONSES, RESPONSES_END, api=Api.RESPONSES).end()
    scanner = seen.scanner
    assert (scanner.done, scanner.finish_reason, scanner.usage) == (True, "completed", Usage(4, 1))
    assert scanner.fault is None
    cut = Seen(RESPONSES, api=Api.RESPONSES).end()
    assert cut.whole == RESPONSES + MENDED
    assert cut.scanner.events == 3


@pytest.mark.parametrize("stop", ["END", "###", "User: x", 'a"b'])
def test_what_a_client_wants_to_stop_at_is_no_reason(stop: str) -> None:
    """VLLM repeats it beside the reason, and the record has nothing of a prompt."""
    choice = json.dumps({"index": 0, "delta": {"content": "x"}, "finish_reason": "stop", "stop_reason": stop})
    for text in (choice, choice.replace(": ", ":").replace(", ", ",")):
        data = b'{"choices":[%b]}' % text.encode()
        assert Seen(b"data: " + data + b"\n\n").end().scanner.finish_reason == "stop"
        assert Seen(data, headers=JSON).end().scanner.finish_reason == "stop"


def test_the_last_reason_is_one_that_says_something() -> None:
    for empty in ("", None):
        assert Seen(event("x", "length") + event("", empty)).end().scanner.finish_reason == "length"
    assert Seen(event("x", "y" * 50)).end().scanner.finish_reason == "y" * 32


def test_a_number_of_tokens_that_cannot_be_is_none() -> None:
    for count, told in ((10**15, 10**15), (10**15 + 1, None), (10**400, None), (True, None), (2.0, None), (-1, None)):
        usage = {"prompt_tokens": 1, "completion_tokens": count}
        assert Seen(event("x", "stop", usage=usage)).end().scanner.usage == Usage(1, told)


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
def test_what_is_compressed_is_no_evidence_and_passes(kind: bytes) -> None:
    headers = Headers([(b"content-type", kind), (b"content-encoding", b"gzip")])
    body = gzip.compress(GOOD_STREAM)
    seen = Seen(body[:20], body[20:], headers=headers).end()
    assert seen.whole == body
    assert seen.scanner.fault is None
    failed = Seen(body, headers=headers, status=500).end()
    assert _kind(failed) is Kind.BAD_ANSWER
    plain = Headers([(b"content-type", b"text/event-stream"), (b"content-encoding", b"Identity")])
    assert Seen(event("x"), headers=plain).scanner.events == 1


def test_a_response_made_in_the_background_is_no_silence() -> None:
    assert _kind(Seen(b'{"status": "queued", "output": []}', api=Api.RESPONSES, headers=JSON).end()) is None


def test_an_answer_that_is_no_stream_is_read_at_its_end() -> None:
    body = whole_answer("x" * 200_000, 5, "length")
    seen = Seen(*(body[at : at + 1000] for at in range(0, len(body), 1000)), headers=JSON).end()
    assert seen.whole == body
    assert (seen.scanner.usage, seen.scanner.finish_reason, seen.scanner.events) == (Usage(7, 5), "length", 1)


@pytest.mark.parametrize(("status", "kind"), [(500, Kind.BAD_ANSWER), (503, None), (429, None), (400, None)])
def test_a_status_speaks_for_itself(status: int, kind: Kind | None) -> None:
    seen = Seen(b"{}", headers=JSON, status=status).end()
    fault = seen.scanner.fault
    assert fault is not None
    assert (fault.kind, fault.code) == (kind, f"status_{status}")


@given(st.binary(max_size=300), st.sampled_from(list(Api)), CUTS, st.booleans())
def test_nothing_that_an_engine_says_is_too_much(body: bytes, api: Api, cuts: list[int], streams: bool) -> None:
    seen = Seen(*pieces_of(body, cuts), api=api, headers=STREAM if streams else JSON).end()
    assert seen.scanner.usage is not None
    assert seen.scanner.fault is None or seen.scanner.fault.words
    assert seen.whole in (body, seen.whole.removesuffix(MENDED) + MENDED)


def test_a_long_event_passes_as_it_comes_and_says_so() -> None:
    long = b'data: "' + b"x" * MAX_HELD_BYTES
    seen = Seen(event("one"), long)
    assert seen.scanner.mid_event
    assert seen.whole == event("one") + long
    seen.give(b'"\n')
    seen.give(b"\n" + event("two") + event("three")[:5])
    assert not seen.scanner.mid_event
    assert seen.whole == event("one") + long + b'"\n\n' + event("two")
    assert seen.scanner.events == 3
