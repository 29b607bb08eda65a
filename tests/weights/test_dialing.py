"""Connections to hosts of several addresses, of which some lead nowhere."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

from modelsupd.weights import dialing


def listening(host: str, backlog: int) -> socket.socket:
    listener = socket.socket()
    listener.bind((host, 0))
    listener.listen(backlog)
    return listener


def ways_to(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """Let every name have these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_an_address_that_leads_nowhere_does_not_hold_up_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening("127.0.0.1", 0) as full, listening("127.0.0.1", 5) as other, contextlib.ExitStack() as stack:
        for _ in range(2):  # a queue that is full drops what comes, as a firewall does
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        ways_to(monkeypatch, full.getsockname(), other.getsockname())
        with dialing.dial("somewhere", 80, 10, threading.Event()) as sock:
            assert sock.getpeername() == other.getsockname()
        ways_to(monkeypatch, full.getsockname())
        with pytest.raises(TimeoutError):
            dialing.dial("somewhere", 80, 0.2, threading.Event())
        ended = threading.Event()
        threading.Timer(0.1, ended.set).start()
        with pytest.raises(OSError, match="canceled"):
            dialing.dial("somewhere", 80, 60, ended)


def test_of_several_addresses_the_last_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ways_to(monkeypatch, ("255.255.255.255", 1), ("127.0.0.1", 9))
    with pytest.raises(ConnectionRefusedError):
        dialing.dial("somewhere", 80, 10, threading.Event())
    ways_to(monkeypatch)
    with pytest.raises(OSError, match="No route to host"):
        dialing.dial("somewhere", 80, 10, threading.Event())


def test_the_resolver_is_not_waited_for_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, ended, answer = threading.Event(), threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        asked.set()
        answer.wait(10)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    def end() -> None:
        asked.wait(10)
        ended.set()

    threading.Thread(target=end).start()
    with pytest.raises(OSError, match="canceled"):
        dialing.dial("somewhere", 80, 60, ended)
    answer.set()
