"""Errors and last events, in the shape of each API."""

from __future__ import annotations

import json

import pytest

from modelsupd.gateway import errors, finals
from modelsupd.gateway.base import Api
from modelsupd.gateway.errors import Trouble

TROUBLE = Trouble(502, "closed", "the engine stopped", 2.5)


def events(data: bytes) -> list[tuple[str, str]]:
    """Read events as a client does that knows the standard."""
    found = []
    for block in data.decode().split("\n\n")[:-1]:
        fields = [line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":")]
        name = next((value for key, value in fields if key == "event"), "message")
        text = "\n".join(value for key, value in fields if key == "data")
        if text:
            found.append((name, text))
    return found


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETION])
def test_openai_streams_end_with_an_error_and_done(api: Api) -> None:
    (_, error), (_, done) = events(finals.final(api, TROUBLE, "r1"))
    assert json.loads(error) == {
        "error": {"message": "the engine stopped", "type": "server_error", "param": None, "code": "closed"}
    }
    assert done == "[DONE]"


def test_anthropic_streams_end_with_their_own_error_event() -> None:
    ((name, error),) = events(finals.final(Api.MESSAGES, TROUBLE, "r1"))
    assert name == "error"
    assert json.loads(error) == {
        "type": "error",
        "error": {"type": "api_error", "message": "the engine stopped"},
        "request_id": "r1",
    }


def test_responses_end_with_an_error_event_that_goes_on_counting() -> None:
    ((name, data),) = events(finals.final(Api.RESPONSES, TROUBLE, "r1", sequence=7))
    error = json.loads(data)
    assert name == error["type"] == "error"
    assert error["sequence_number"] == 7
    assert error["message"] == error["error"]["message"] == "the engine stopped"


def test_streams_of_no_known_api_end_with_an_error_alone() -> None:
    ((_, error),) = events(finals.final(Api.OTHER, TROUBLE, "r1"))
    assert json.loads(error)["error"]["code"] == "closed"


def test_half_an_event_is_closed_first() -> None:
    cut = b'data: {"choices": [{"te' + finals.final(Api.CHAT, TROUBLE, "r1", mid_event=True)
    assert [text for _, text in events(cut)][-1] == "[DONE]"
    assert json.loads(events(cut)[-2][1])["error"]["code"] == "closed"


def test_a_comment_is_no_event_whatever_it_says() -> None:
    assert events(finals.comment("loading:\r\n\ndata: x")) == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (404, "not_found_error"), (429, "rate_limit_error"),
     (503, "overloaded_error"), (504, "timeout_error"), (500, "api_error")],
)  # fmt: skip
def test_anthropic_has_its_own_kinds(status: int, kind: str) -> None:
    assert errors.shape(Api.MESSAGES, Trouble(status, "x", "y"), "r")["error"]["type"] == kind


def test_the_time_to_come_again_is_in_whole_seconds_and_never_none() -> None:
    assert (b"retry-after", b"3") in errors.answer(Api.CHAT, TROUBLE, "r")[1]
    assert (b"retry-after", b"1") in errors.answer(Api.CHAT, Trouble(503, "x", "y", 0.01), "r")[1]
    assert all(name != b"retry-after" for name, _ in errors.answer(Api.CHAT, Trouble(400, "x", "y"), "r")[1])


def test_a_hundred_names_are_not_all_repeated() -> None:
    words = errors.not_found("x", [f"m{number}" for number in range(100)]).words
    assert "'m49'" in words
    assert "'m50'" not in words
    assert "50 more" in words


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"detail": "no"}', ""),
        (b"no", ""),
        (b"[1]", ""),
        (b'{"error": {"message": 3}}', ""),
    ],
)
def test_an_engine_s_words_are_found_in_the_shapes_they_come_in(body: bytes, said: str) -> None:
    assert errors.message_in(body) == said
