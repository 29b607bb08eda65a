"""A connection to where an address says, through the proxy that the environment names, with TLS where it belongs.

Waiting ends as soon as the caller's event is set. The resolver, which nothing can interrupt, is asked in a thread that
touches nothing else.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import http.client
import os
import queue
import select
import socket
import ssl
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

_PORTS = {"http": 80, "https": 443}
_OK = 200

#: How long may pass until the end of a wait is noticed, in seconds.
_SLICE_S = 0.1

#: After so many seconds without an answer another of a host's addresses is tried as well.
_NEXT_ADDRESS_S = 0.3

#: Who has not answered after so many seconds is behind a firewall that drops what comes.
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """The end of a connection: host and port, whether TLS is spoken with it, and through which proxy."""

    scheme: str
    host: str
    port: int
    proxy: str | None

    @classmethod
    def of(cls, parts: SplitResult) -> Self:
        """Return where an address leads; ValueError for one that is not of http or https."""
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"'{parts.scheme}://{parts.hostname or ''}' is no address of http or https")
        port = parts.port or _PORTS[parts.scheme]
        return cls(parts.scheme, parts.hostname, port, _proxy(parts.scheme, parts.hostname, port))

    @property
    def host_header(self) -> str:
        """Return what stands in Host: the port only where it is not the usual one, since addresses are signed so."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


class Connection:
    """One connection, speaking HTTP/1.1. Any thread may `abort` it while another one waits in it."""

    def __init__(self, place: Place, timeout_s: float, ended: threading.Event) -> None:
        """Connect; raises OSError and http.client.HTTPException. Each wait lasts at most `timeout_s`."""
        self.place = place
        proxy = urlsplit(place.proxy) if place.proxy else None
        target = (proxy.hostname or "", proxy.port or _PORTS["http"]) if proxy else (place.host, place.port)
        sock = _dialled(proxy, *target, min(timeout_s, CONNECT_TIMEOUT_S), ended)
        sock.settimeout(timeout_s)
        # What is wrapped by TLS is shut down through a descriptor of its own, without touching the TLS state that
        # another thread is using.
        self._twin = sock.dup()
        self._proxy = proxy
        self.http = http.client.HTTPConnection(place.host, place.port)
        self.http.sock = sock
        self.http.auto_open = 0  # or else it would connect by itself, past TLS and proxy, once the server has closed
        #: What a request to this place begins with, and the headers that the proxy wants.
        self.prefix = f"http://{place.host_header}" if proxy and place.scheme == "http" else ""
        self.proxy_headers = _authorization(proxy) if proxy and self.prefix else {}

    def secure(self, ended: threading.Event) -> None:
        """Speak TLS from now on, if the place is one for that; raises OSError, ssl.SSLError and HTTPException.

        Whoever sets `ended` and then aborts all connections may have missed this one, so it is looked at first.
        """
        if ended.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        if self.place.scheme == "https":
            if self._proxy:
                _tunnel(self.http.sock, self.place, self._proxy)
            context = _trusting(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
            self.http.sock = context.wrap_socket(self.http.sock, server_hostname=self.place.host)

    @property
    def alive(self) -> bool:
        """Tell whether the server has not said that it closes it."""
        return self.http.sock is not None

    def abort(self) -> None:
        """End every wait in it."""
        with contextlib.suppress(OSError):  # it may have ended already
            self._twin.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self.http.close()
        self._twin.close()


def _dialled(
    proxy: SplitResult | None, host: str, port: int, timeout_s: float, ended: threading.Event
) -> socket.socket:
    try:
        return dial(host, port, timeout_s, ended)
    except OSError as error:
        if proxy is None:
            raise
        words = f"the proxy {proxy.hostname} cannot be reached: {error.strerror or error}"
    # Outside of the handler: what is seen as the cause would be told as the server's fault.
    raise http.client.HTTPException(words)


def dial(host: str, port: int, timeout_s: float, ended: threading.Event) -> socket.socket:
    """Return a connected socket; raises OSError, the last one of several addresses.

    An address that does not answer soon is not waited for before the next one is tried, as of a host whose IPv6 leads
    nowhere. After `timeout_s` all are given up.
    """
    ways, trying = _resolved(host, port, ended), dict[int, socket.socket]()
    poll = select.poll()
    failed = OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
    next_at = began_at = time.monotonic()
    try:
        while ways or trying:
            _still_wanted(ended, began_at + timeout_s)
            if ways and (not trying or time.monotonic() >= next_at):
                next_at = time.monotonic() + _NEXT_ADDRESS_S
                try:
                    sock = _begun(*ways.pop(0))
                except OSError as error:
                    failed = error
                    continue
                trying[sock.fileno()] = sock
                poll.register(sock, select.POLLOUT)
            for fd, _ in poll.poll(_SLICE_S * 1000):
                poll.unregister(fd)
                sock = trying.pop(fd)
                if not (code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                    return sock
                sock.close()
                failed = OSError(code, os.strerror(code))
    finally:
        for sock in trying.values():
            sock.close()
    raise failed


def _begun(family: int, kind: int, protocol: int, address: Any) -> socket.socket:  # noqa: ANN401 - as Python has it
    """Return a socket whose connection is under way; raises OSError."""
    sock = socket.socket(family, kind, protocol)
    sock.setblocking(False)
    code = sock.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock


def _still_wanted(ended: threading.Event, until: float) -> None:
    code = errno.ECANCELED if ended.is_set() else errno.ETIMEDOUT if time.monotonic() > until else 0
    if code:
        raise OSError(code, os.strerror(code))


def _resolved(host: str, port: int, ended: threading.Event) -> list[tuple[int, int, int, Any]]:
    """Return family, kind, protocol and address of each way to a host."""
    answers: queue.SimpleQueue[list[tuple[int, int, int, Any]] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answers.put([(family, kind, protocol, address) for family, kind, protocol, _, address in found])
        except UnicodeError:
            answers.put(ValueError(f"'{host[:80]}' is no name of a host"))
        except OSError as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    while not ended.is_set():
        with contextlib.suppress(queue.Empty):
            answer = answers.get(timeout=_SLICE_S)
            if isinstance(answer, Exception):
                raise answer
            return answer
    raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))


@functools.cache
def _trusting(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """Return a context that trusts whom the system trusts; made once, since it reads some hundred certificates."""
    return ssl.create_default_context()


def _proxy(scheme: str, host: str, port: int) -> str | None:
    """Return the proxy that the environment names for an address: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY."""
    proxies = urllib.request.getproxies()
    named = proxies.get(scheme) or proxies.get("all")
    if not named or urllib.request.proxy_bypass(f"{host}:{port}"):
        return None
    named = named if "://" in named else f"http://{named}"
    if urlsplit(named).scheme != "http":
        raise ValueError(f"the proxy that is set for {scheme} is none of http://, the only kind that can be used")
    return named


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    words = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(words.encode()).decode()}"}


def _tunnel(sock: socket.socket, place: Place, proxy: SplitResult) -> None:
    host = f"[{place.host}]" if ":" in place.host else place.host
    lines = [f"CONNECT {host}:{place.port} HTTP/1.1", f"Host: {host}:{place.port}"]
    lines += [f"{name}: {value}" for name, value in _authorization(proxy).items()]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    response = http.client.HTTPResponse(sock, method="CONNECT")
    try:
        response.begin()
        if response.status != _OK:
            raise http.client.HTTPException(f"the proxy {proxy.hostname} answers {response.status}")
    finally:
        response.close()
