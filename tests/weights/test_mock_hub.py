"""The mock hub does what it is told to, so that a test against it that passes means something."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest

import hub_faults as faults
from mock_hub import MockHub
from waiting import until

DATA = bytes(range(256)) * 40
FILE = "org/name/model.gguf"


class Client:
    """A plain client, which shows what came and what did not."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and as much of the body as came."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, headers=named)
        answer = self.connection.getresponse()
        try:
            body = answer.read()
        except http.client.IncompleteRead as error:
            body = error.partial
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def ask(url: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask once, over a connection of its own."""
    with Client(url) as client:
        return client.ask(path, method, **headers)


def serve(content: bytes | Path = DATA, *, cdn: bool = False) -> tuple[MockHub, str]:
    hub = MockHub(cdn=cdn)
    repo = hub.add("org/name", {"model.gguf": content, "config.json": b"{}"}, lfs={"model.gguf"})
    return hub, f"/org/name/resolve/{repo.commit}/model.gguf"


@pytest.mark.parametrize("on_disk", [False, True])
def test_ranges_and_whole_files_over_one_connection(place: Path, on_disk: bool) -> None:
    (place / "model").write_bytes(DATA)
    hub, path = serve(place / "model" if on_disk else DATA)
    size = len(DATA)
    with hub, Client(hub.url) as client:
        etag = f'"{hub.repos["org/name"].file("model.gguf").sha256}"'
        assert client.ask(path)[2] == DATA
        for asked, start, end in (("5-9", 5, 10), ("5-", 5, size), ("-7", size - 7, size), ("0-99999", 0, size)):
            status, headers, body = client.ask(path, Range=f"bytes={asked}", If_Range=etag)
            assert (status, headers["content-range"]) == (206, f"bytes {start}-{end - 1}/{size}")
            assert (headers["etag"], body) == (etag, DATA[start:end])
        assert client.ask(path, Range="bytes=5-9", If_Range='"other"')[::2] == (200, DATA)
        assert client.ask(path, Range=f"bytes={size}-")[0] == 416
        status, headers, body = client.ask(path, "HEAD")
        assert (status, headers["content-length"], headers["x-linked-size"], body) == (200, str(size), str(size), b"")
        assert hub.got(FILE)[:3] == ["", "bytes=5-9", "bytes=5-"]
        assert (hub.got(FILE, "HEAD"), hub.connections_made) == ([""], 1)


def test_large_files_are_elsewhere_as_with_the_real_hub() -> None:
    hub, path = serve(cdn=True)
    with hub:
        status, headers, _ = ask(hub.url, path)
        assert (status, headers["x-linked-size"]) == (302, str(len(DATA)))
        found = urlsplit(headers["location"])
        assert f"{found.scheme}://{found.netloc}" == hub.cdn_url != hub.url
        status, headers, body = ask(hub.cdn_url, f"{found.path}?{found.query}", Range="bytes=1-2")
        assert (status, body, headers["etag"][:5], "x-repo-commit" in headers) == (206, DATA[1:3], '"cdn-', False)
        assert hub.got(FILE) == ["", "bytes=1-2"]


@pytest.mark.parametrize(
    ("fault", "status", "length", "body"),
    [
        (faults.End(after=100), 200, len(DATA), DATA[:100]),
        (faults.Length(by=-10), 200, len(DATA) - 10, DATA[:-10]),
        (faults.Length(by=10), 200, len(DATA) + 10, DATA),
        (faults.Truncated(after=10), 200, 10, DATA[:10]),
        (faults.Wrong(at=1000), 200, len(DATA), DATA[:1000] + bytes([DATA[1000] ^ 1]) + DATA[1001:]),
        (faults.Html(body=b"<html>"), 200, 6, b"<html>"),
        (faults.Status(status=503, body=b"later"), 503, 5, b"later"),
        (faults.Drip(piece=5000, every_s=0.001), 200, len(DATA), DATA),
    ],
    ids=["end", "short", "long", "truncated", "wrong", "html", "503", "drip"],
)
def test_what_comes_of_a_fault(fault: faults.Fault, status: int, length: int, body: bytes) -> None:
    hub, path = serve()
    with hub:
        hub.faults[FILE] = fault
        fault.times = 1
        got = ask(hub.url, path)
        assert (got[0], got[1]["content-length"], got[2]) == (status, str(length), body)
        assert ask(hub.url, path)[::2] == (200, DATA)
        assert fault.times == 0


def test_ranges_that_are_spoiled() -> None:
    hub, path = serve()
    with hub, Client(hub.url) as client:
        hub.faults[FILE] = faults.NoRange()
        assert client.ask(path, Range="bytes=5-9")[::2] == (200, DATA)
        hub.faults[FILE] = faults.WrongRange(by=1)
        status, headers, body = client.ask(path, Range="bytes=5-9")
        assert (status, headers["content-range"], body) == (206, f"bytes 6-10/{len(DATA)}", DATA[5:10])
        hub.faults[FILE] = faults.WrongRange(total_by=1)
        assert client.ask(path, Range="bytes=5-9")[1]["content-range"] == f"bytes 5-9/{len(DATA) + 1}"
        hub.faults[FILE] = faults.OtherETag()
        etag = hub.repos["org/name"].file("model.gguf").etag
        status, headers, body = client.ask(path, Range="bytes=5-9", If_Range=f'"{etag}"')
        assert (status, headers["etag"], body) == (200, f'"{"0" * 40}"', DATA)
        hub.faults[FILE] = faults.NoRange(only_from=100)
        assert [client.ask(path, Range=f"bytes={at}-{at}")[0] for at in (5, 99, 100)] == [206, 206, 200]


def test_a_drop_is_a_reset_after_exactly_so_many_bytes() -> None:
    big = bytes(3_000_000)
    hub, path = serve(big)
    with hub:
        hub.faults[FILE] = faults.Drop(after=2_500_000)
        with socket.create_connection(("127.0.0.1", urlsplit(hub.url).port or 0), timeout=5) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            got = bytearray()
            reset = False
            while not reset:
                try:
                    got += client.recv(100_000)
                except ConnectionResetError:
                    reset = True
        assert len(got.partition(b"\r\n\r\n")[2]) == 2_500_000 == hub.body_bytes_sent


@pytest.mark.parametrize("fault", [faults.Stall(after=100), faults.Silence()], ids=["stall", "silence"])
def test_a_connection_that_hangs_ends_with_the_hub(fault: faults.Fault) -> None:
    hub, path = serve()
    with hub:
        hub.faults[FILE] = fault
        came: list[object] = []

        def hang() -> None:
            try:
                came.append(ask(hub.url, path)[2])
            except (OSError, http.client.HTTPException) as error:
                came.append(type(error))

        thread = threading.Thread(target=hang)
        thread.start()
        sent = len(DATA[:100]) if isinstance(fault, faults.Stall) else 0
        until(lambda: hub.requests and hub.body_bytes_sent == sent)
        assert came == []
    thread.join(5)
    assert came == [DATA[:100] if isinstance(fault, faults.Stall) else http.client.RemoteDisconnected]


def test_who_may_see_what() -> None:
    hub, path = serve()
    with hub, Client(hub.url) as client:
        repo = hub.repos["org/name"]
        assert client.ask("/api/models/org/none")[0] == 401
        assert client.ask("/api/models/org/none", Authorization="Bearer t")[1]["x-error-code"] == "RepoNotFound"
        assert client.ask("/api/models/org/name/revision/v9")[1]["x-error-code"] == "RevisionNotFound"
        assert client.ask(path + ".none")[1]["x-error-code"] == "EntryNotFound"

        repo.gated, repo.granted = True, {"good"}
        assert client.ask("/api/models/org/name")[0] == 200
        statuses = [client.ask(path, **headers)[0] for headers in ({}, {"Authorization": "Bearer bad"})]
        assert (statuses, client.ask(path)[1]["x-error-code"]) == ([401, 403], "GatedRepo")
        assert client.ask(path, Authorization="Bearer good")[0] == 200

        repo.gated, repo.token = False, "mine"
        assert client.ask(path)[0] == 401
        assert client.ask(path, Authorization="Bearer mine")[0] == 200
        assert {request.token for request in hub.requests} == {None, "t", "bad", "good", "mine"}


def test_a_fault_of_one_host_alone_and_a_redirect_to_the_other() -> None:
    hub, path = serve()
    with hub:
        hub.faults[f"127.0.0.1/{FILE}"] = faults.Redirect(to=hub.cdn_url + "{path}")
        status, headers, _ = ask(hub.url, path)
        assert (status, headers["location"]) == (302, hub.cdn_url + path)
        assert ask(hub.cdn_url, path)[2] == DATA
        hub.faults["*"] = faults.Status(status=429, retry_after="7", times=1)
        assert ask(hub.cdn_url, path)[1]["retry-after"] == "7"


def test_the_rest_of_the_api() -> None:
    with MockHub(page=2) as hub, Client(hub.url) as client:
        repo = hub.add("org/name", {"a": b"1", "b/c": b"2", "b/d": b"3"}, lfs={"b/d"})
        _, headers, body = client.ask(f"/api/models/org/name/tree/{repo.commit}?recursive=true")
        assert ([item["path"] for item in json.loads(body)], "next" in headers["link"]) == (["a", "b/c"], True)
        client.connection.request("POST", "/api/models/org/name/paths-info/main", json.dumps({"paths": ["b/d"]}))
        (found,) = json.loads(client.connection.getresponse().read())
        assert found["lfs"]["oid"] == repo.file("b/d").sha256


def test_many_connections_at_once_and_none_left(place: Path) -> None:
    (place / "big").write_bytes(DATA * 100)
    hub, path = serve(place / "big")
    before = threading.active_count()
    with hub:
        results: list[bool] = []
        threads = [
            threading.Thread(target=lambda: results.append(ask(hub.url, path)[2] == DATA * 100)) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert results == [True] * 16
    # A thread that has taken leave of the hub takes a moment to end.
    until(lambda: threading.active_count() <= before)
    with pytest.raises(ConnectionRefusedError):
        ask(hub.url, path)
