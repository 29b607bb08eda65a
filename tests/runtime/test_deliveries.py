"""What counts as delivered where an engine tells no counters: served requests in its log, and bytes of open streams."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from modelsupd.runtime.deliveries import Connection, Deliveries, acknowledged
from waiting import until

RUN = ("m/0", 1)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def endpoint(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_the_kernel_tells_what_each_client_has_taken(listener: socket.socket) -> None:
    assert acknowledged(endpoint(listener)) == {}
    with socket.create_connection(listener.getsockname()) as one, socket.create_connection(listener.getsockname()):
        (ours, _), (other, _) = listener.accept(), listener.accept()
        with ours, other:
            before = acknowledged(endpoint(listener))
            assert len(before) == 2
            ours.send(b"x" * 1000)
            until(lambda: acknowledged(endpoint(listener)) != before)
            after = acknowledged(endpoint(listener))
            grown = {key: after[key] - before[key] for key in after}
            assert sorted(grown.values()) == [0, 1000]
            assert next(key for key, by in grown.items() if by)[0] == one.getsockname()[1]
        until(lambda: acknowledged(endpoint(listener)) == {})


def count(seen: Deliveries, *served: str, sent: dict[Connection, int] | None = None, probed: bool = False) -> int:
    return seen.count(RUN, served, sent or {}, probed=probed)


def test_what_was_there_at_first_is_no_delivery() -> None:
    seen = Deliveries()
    assert count(seen, "a", "b", sent={(1, 1): 500}) == 0
    assert count(seen, "a", "b", sent={(1, 1): 500}) == 0


def test_bytes_of_a_connection_count_from_the_second_look_on() -> None:
    seen = Deliveries()
    count(seen)
    assert count(seen, sent={(1, 1): 300}) == 0, "the head of an answer is sent before anything is generated"
    assert count(seen, sent={(1, 1): 301}) == 1
    assert count(seen, sent={(1, 1): 301}) == 1
    assert count(seen, sent={(1, 2): 900}) == 1, "another connection from the same port"
    assert count(seen) == 1, "a client that goes away shows nothing"


def test_served_requests_count_when_they_are_new() -> None:
    seen = Deliveries()
    count(seen, "a")
    assert count(seen, "a", "b", "c") == 2
    assert count(seen, "c", "d") == 3
    assert count(seen, "x", "y") == 5, "all that was known has scrolled out of the tail"
    assert count(seen) == 5


def test_a_request_of_our_own_probe_is_no_evidence_whenever_its_line_comes() -> None:
    seen = Deliveries()
    count(seen)
    assert count(seen, "probe", probed=True) == 0
    assert count(seen, "probe", "client") == 1
    assert count(seen, "probe", "client", probed=True) == 1
    assert count(seen, "probe", "client", "probe 2") == 1, "it was logged after it had been answered"
    assert count(seen, "probe", "client", "probe 2", "client 2") == 2


def test_a_run_that_is_forgotten_begins_anew() -> None:
    seen = Deliveries()
    count(seen)
    assert count(seen, "a") == 1
    seen.forget(*RUN)
    assert count(seen, "a", "b") == 0
