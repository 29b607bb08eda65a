"""How a transfer gets to its server: redirects, tokens, proxies, TLS, names."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import hub_faults as faults
from fetching import KEY, MODEL, REPO, Target, noise
from mock_hub import MockHub
from modelsupd.core.events import FailureClass
from modelsupd.weights import ranged
from modelsupd.weights.base import Pin, WeightsError
from modelsupd.weights.ranged import Found, redirected

DATA = noise(300_000)
SECRET = "hf_secret"  # noqa: S105 - what a test calls secret
TOKEN = {"Authorization": f"Bearer {SECRET}", "User-Agent": "modelsupd/1"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def hub_of(*, cdn: bool = False, tls: ssl.SSLContext | None = None, token: str | None = None) -> Iterator[MockHub]:
    with MockHub(cdn=cdn, tls=tls) as hub:
        hub.add(REPO, {MODEL: DATA}, lfs={MODEL}, token=token)
        yield hub


def error_of(target: Target) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        target.fetch()
    assert "hf_secret" not in str(error.value)
    return error.value


def test_a_token_opens_a_private_repository(place: Path) -> None:
    with hub_of(token=SECRET) as hub:
        Target.of(hub, place, headers=TOKEN).fetch()
        assert {request.token for request in hub.requests} == {"hf_secret"}


def test_the_host_that_one_is_redirected_to_gets_no_token(place: Path) -> None:
    with hub_of(cdn=True, token=SECRET) as hub:
        Target.of(hub, place, headers=TOKEN).fetch()

        here = [request for request in hub.requests if request.host == "127.0.0.1"]
        there = [request for request in hub.requests if request.host == "127.0.0.2"]
        assert [request.token for request in here] == ["hf_secret"], "and it is asked once, not for each piece"
        assert len(there) >= 4
        assert {request.token for request in there} == {None}
        assert {request.headers["user-agent"] for request in there} == {"modelsupd/1"}


def test_an_address_that_has_run_out_is_asked_for_again(place: Path) -> None:
    with hub_of(cdn=True) as hub:
        hub.faults[f"127.0.0.2/{KEY}"] = faults.Status(status=403, only_from=150_000, times=1)
        Target.of(hub, place, parts=1).but(part_bytes=100_000, parts=3).fetch()
        assert len([request for request in hub.requests if request.host == "127.0.0.1"]) == 2


@pytest.mark.parametrize(
    ("to", "url", "kept"),
    [
        ("/other", "https://hub.example/other", True),
        ("https://hub.example:443/x", "https://hub.example:443/x", False),
        ("http://hub.example/x", "http://hub.example/x", False),
        ("https://hub.example:444/x", "https://hub.example:444/x", False),
        ("https://hub.example.evil/x", "https://hub.example.evil/x", False),
        ("//hub.example/x", "https://hub.example/x", True),
        ("https://HUB.example/x", "https://HUB.example/x", True),
        ("https://user@hub.example/x", "https://user@hub.example/x", True),
        ("/a b\u00e9", "https://hub.example/a%20b%C3%A9", True),
    ],
)
def test_what_may_be_sent_after_a_redirect(to: str, url: str, kept: bool) -> None:
    found = redirected(Found("https://hub.example/a", TOKEN), to)
    assert found == Found(url, TOKEN if kept else {"User-Agent": "modelsupd/1"}, moved=True)


def test_what_was_given_up_once_is_not_sent_on_the_way_back() -> None:
    there = redirected(Found("https://hub.example/a", TOKEN), "https://other.example/")
    assert "Authorization" not in redirected(there, "https://hub.example/b").headers


@pytest.fixture
def certificate(place: Path) -> tuple[Path, Path]:
    """Return a certificate for 127.0.0.1 and its key."""
    paths = place / "certificate", place / "key"
    words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=test",
    ]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(paths[0]), "-keyout", str(paths[1])]
    made = subprocess.run(["openssl", *words, *names], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("needs openssl to make a certificate")
    return paths


def served_by(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def test_tls_by_whom_the_system_trusts(
    place: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_of(tls=served_by(certificate)) as hub:
        error = error_of(Target.of(hub, place, headers=TOKEN))
        assert error.kind is FailureClass.UNREACHABLE
        assert "certificate of 127.0.0.1 is not trusted" in str(error)
        assert hub.requests == []

        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        target = Target.of(hub, place, headers=TOKEN)
        assert target.fetch().received_bytes == len(DATA)
        assert target.final.read_bytes() == DATA


class Proxy:
    """A proxy that takes CONNECT, and requests for whole addresses."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str | None]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:p%40ss@127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept)]
        self._open: list[socket.socket] = []
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._open.append(client)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        line, *headers = head.decode().split("\r\n")
        method, address, _ = line.split()
        given = {name.lower(): value for name, _, value in (header.partition(": ") for header in headers)}
        self.said.append((line, given.get("proxy-authorization")))
        host, _, port = address.removeprefix("http://").partition("/")[0].rpartition(":")
        server = socket.create_connection((host, int(port)))
        self._open.append(server)
        if method == "CONNECT":
            client.sendall(b"HTTP/1.1 200 go on\r\n\r\n")
        else:
            server.sendall(head.replace(f"http://{host}:{port}".encode(), b"", 1))
        other = threading.Thread(target=self._copy, args=(client, server))
        self._threads.append(other)
        other.start()
        self._copy(server, client)

    @staticmethod
    def _copy(source: socket.socket, to: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for connection in [self._listener, *self._open]:
            connection.close()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


#: user:p@ss
AUTHORIZATION = "Basic dXNlcjpwQHNz"


def test_http_goes_through_the_proxy_of_the_environment(
    place: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    with hub_of() as hub:
        target = Target.of(hub, place, parts=1)
        target.fetch()
        assert proxy.said == [(f"GET {target.location.url} HTTP/1.1", AUTHORIZATION)]

        monkeypatch.setenv("no_proxy", "127.0.0.1")
        target.final.unlink()
        target.fetch()
        assert len(proxy.said) == 1


def test_https_goes_through_the_proxy_untouched(
    place: Path, proxy: Proxy, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with hub_of(tls=served_by(certificate)) as hub:
        target = Target.of(hub, place, headers=TOKEN, parts=1)
        target.fetch()
        host = hub.url.removeprefix("https://")
        assert proxy.said == [(f"CONNECT {host} HTTP/1.1", AUTHORIZATION)]
        assert "proxy-authorization" not in hub.requests[0].headers


@pytest.mark.parametrize(
    ("proxy_url", "kind", "words"),
    [
        ("socks5://user:pw@127.0.0.1:1", FailureClass.WEIGHTS_UNAVAILABLE, "none of http://"),
        ("http://user:pw@127.0.0.1:9", FailureClass.UNREACHABLE, "the proxy 127.0.0.1 cannot be reached"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_said_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, proxy_url: str, kind: FailureClass, words: str
) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy_url)
    with hub_of() as hub:
        error = error_of(Target.of(hub, place))
    assert error.kind is kind
    assert words in str(error)
    assert "pw" not in str(error)


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        ("http://127.0.0.1:9/x", FailureClass.UNREACHABLE, "127.0.0.1 refuses the connection (4 attempts"),
        ("http://no-such-name.invalid/x", FailureClass.UNREACHABLE, "the name no-such-name.invalid cannot be resolved"),
        (f"http://{'x' * 70}.invalid/x", FailureClass.WEIGHTS_UNAVAILABLE, "is no name of a host"),
        ("http://[::1/x", FailureClass.WEIGHTS_UNAVAILABLE, "Invalid IPv6 URL"),
        ("http://127.0.0.1:99999/x", FailureClass.WEIGHTS_UNAVAILABLE, "Port out of range"),
    ],
)
def test_nobody_there(place: Path, url: str, kind: FailureClass, words: str) -> None:
    with hub_of() as hub:
        target = Target.of(hub, place)
    target.location = target.location.__class__(url, TOKEN, KEY)
    error = error_of(target)
    assert error.kind is kind
    assert words in str(error)


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class OldServer(_Quiet):
    """HTTP/1.0 without lengths or ranges: the end of the connection is the end of the file."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(DATA)


class Chunks(_Quiet):
    """A proxy's way: chunks, and no length."""

    protocol_version = "HTTP/1.1"
    coding = "identity"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Content-Encoding", self.coding)
        self.end_headers()
        for at in range(0, len(DATA), 7001):
            piece = DATA[at : at + 7001]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")


class Compressed(Chunks):
    """What nobody asked for."""

    coding = "gzip"


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/x"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def at(place: Path, url: str, **settings: float) -> Target:
    sha256 = hashlib.sha256(DATA).hexdigest()
    return Target(place, url, Pin(MODEL, len(DATA), sha256, sha256), None, **settings)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("handler", [OldServer, Chunks])
def test_servers_of_other_ways(place: Path, handler: type[BaseHTTPRequestHandler], parts: int) -> None:
    with served(handler) as url:
        target = at(place, url, parts=parts)
        target.fetch()
    assert target.final.read_bytes() == DATA


class TwoFaced(_Quiet):
    """Ends in the middle of the file, and then begins anew with other bytes in place of those that came."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        self.send_response(200)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        half = len(DATA) // 2
        self.wfile.write(DATA[:half] if len(self.asked) == 1 else bytes(half) + DATA[half:])


def test_what_was_hashed_is_not_written_again(place: Path) -> None:
    """Else the digest would be of bytes that came once, and the file would hold others."""
    TwoFaced.asked = []
    with served(TwoFaced) as url:
        target = at(place, url, parts=1)
        fetched = target.fetch()
    assert TwoFaced.asked == ["", f"bytes={len(DATA) // 2}-{len(DATA) - 1}"]
    assert target.final.read_bytes() == DATA
    assert fetched.received_bytes == len(DATA) * 3 // 2


def test_a_compressed_answer_is_refused(place: Path) -> None:
    with served(Compressed) as url:
        error = error_of(at(place, url))
    assert error.kind is FailureClass.BAD_WEIGHTS
    assert "'gzip'" in str(error)


class Drips(_Quiet):
    """Headers without end, each in time."""

    ended = threading.Event()

    def do_GET(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not self.ended.wait(0.02):
                self.wfile.write(b"x")


def test_an_answer_that_comes_in_drips_is_not_waited_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranged, "CONNECT_TIMEOUT_S", 0.0)
    try:
        with served(Drips) as url:
            error = error_of(at(place, url, stall_timeout_s=0.1, attempts=2))
    finally:
        Drips.ended.set()
    assert error.kind is FailureClass.UNREACHABLE
