"""A hub for tests: speaks the real one's protocol over real sockets on loopback, and does wrong what it is told to.

    with MockHub() as hub:
        repo = hub.add("org/name", {"config.json": b"{}", "model.safetensors": path}, lfs={"model.safetensors"})
        hub.faults["org/name/model.safetensors"] = Drop(after=1000, times=1)     # from tests/hub_faults.py
        …
        assert hub.got("org/name/model.safetensors") == ["bytes=0-", "bytes=1000-"]

What is spoken: `/api/models/REPO[/revision/REV]`, `/api/models/REPO/tree/REV` (with pages), `paths-info`, and
`/REPO/resolve/REV/FILE` by HEAD and GET with Range and If-Range. With `cdn=True` large files are served as the real hub
does: by a redirect to another host, which has ETags of its own and wants no token.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from hub_answers import Handler
from hub_faults import Fault

Content = bytes | Path


@dataclass(frozen=True)
class File:
    """One file of a commit. `lfs`: a large file, named by its sha256 and not by git's sha1."""

    content: Content
    size: int
    git_sha1: str
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        """Return what the hub serves it under, and what the cache calls its blob."""
        return self.sha256 if self.lfs else self.git_sha1


@dataclass
class Repo:
    """A repository: its commits, and who may read it.

    `token`: without it the repo does not exist, as with private ones. `gated`: everybody sees the listing, but files go
    only to the bearers of `granted` tokens.
    """

    name: str
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    granted: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        """Return the commit of `main`."""
        return self.refs["main"]

    def file(self, path: str, revision: str = "main") -> File:
        """Return a file at a revision."""
        return self.commits[self.refs.get(revision, revision)][path]

    def push(self, files: Mapping[str, Content], *, lfs: Iterable[str] = (), ref: str = "main") -> str:
        """Commit these files, and only these, to a branch; return the commit."""
        large = set(lfs)
        made = {path: describe(content, lfs=path in large) for path, content in files.items()}
        words = repr([(path, file.etag) for path, file in sorted(made.items())] + [ref, len(self.commits)])
        commit = hashlib.sha1(f"{self.name}{words}".encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = made
        self.refs[ref] = commit
        return commit


@dataclass(frozen=True)
class Request:
    """A request that came, with the answer that it got. Names of headers are in lower case."""

    host: str
    method: str
    path: str
    headers: Mapping[str, str]
    status: int

    @property
    def token(self) -> str | None:
        """Return the bearer token that it carried."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


class MockHub:
    """The hub. `url` is its address; `cdn_url` that of the other host, which answers the same paths and `/cdn/…`."""

    def __init__(self, *, cdn: bool = False, page: int = 1000, tls: ssl.SSLContext | None = None) -> None:
        """Listen from now on; `page` is the number of files in one page of a listing."""
        self.redirects_to_cdn = cdn
        self._tls = tls
        self.page = page
        self.repos: dict[str, Repo] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[Request] = []
        self.body_bytes_sent = 0
        self.connections_made = 0
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._connections: set[socket.socket] = set()
        self._listeners: list[socket.socket] = []
        self.url = self._listen("127.0.0.1")
        self.cdn_url = self._listen("127.0.0.2")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def add(
        self,
        name: str,
        files: Mapping[str, Content],
        *,
        lfs: Iterable[str] = (),
        token: str | None = None,
        gated: bool = False,
    ) -> Repo:
        """Make a repository with one commit on `main`; `lfs` names its large files."""
        repo = Repo(name, token=token, gated=gated)
        repo.push(files, lfs=lfs)
        self.repos[name] = repo
        return repo

    def take_fault(self, method: str, start: int | None, *keys: str) -> Fault | None:
        """Return the fault that spoils this request, and count it; `*` is a key that fits all."""
        with self.lock:
            for key in (*keys, "*"):
                fault = self.faults.get(key)
                if fault is not None and fault.concerns(method, start):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
            return None

    def record(self, request: Request) -> None:
        """Keep a request in the log."""
        with self.lock:
            self.requests.append(request)

    def count_sent(self, size: int) -> None:
        """Count bytes of files that were handed to the network; some may never have been read by the client."""
        with self.lock:
            self.body_bytes_sent += size

    def got(self, name: str, method: str = "GET") -> list[str]:
        """Return the Range of each request so far for a file `org/name/path`, "" where there was none."""
        with self.lock:
            org, repo, path = name.split("/", 2)
            return [
                request.headers.get("range", "")
                for request in self.requests
                if request.method == method
                and request.path.startswith((f"/{org}/{repo}/resolve/", f"/cdn/{org}/{repo}/"))
                and request.path.partition("?")[0].endswith(f"/{path}")
            ]

    def close(self) -> None:
        """End every connection and thread; idempotent."""
        self.closing.set()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        with self.lock:
            connections, threads = list(self._connections), list(self._threads)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive(), "a thread of the mock hub does not end"
        for listener in self._listeners:
            listener.close()

    def _listen(self, host: str) -> str:
        listener = socket.create_server((host, 0), backlog=256)
        self._listeners.append(listener)
        self._start(threading.Thread(target=self._accept, args=(listener, host)))
        return f"{'https' if self._tls else 'http'}://{host}:{listener.getsockname()[1]}"

    def _start(self, thread: threading.Thread) -> None:
        with self.lock:
            self._threads.add(thread)
        thread.start()

    def _accept(self, listener: socket.socket, host: str) -> None:
        while not self.closing.is_set():
            try:
                connection, address = listener.accept()
            except OSError:
                return
            with self.lock:
                self._connections.add(connection)
                self.connections_made += 1
            if self.closing.is_set():  # whoever closed may have missed this one
                connection.close()
                return
            self._start(threading.Thread(target=self._serve, args=(connection, address, host)))

    def _serve(self, connection: socket.socket, address: tuple[str, int], host: str) -> None:
        plain = connection
        try:
            with contextlib.suppress(OSError):  # clients go away when they like, and those that distrust us do at once
                if self._tls:
                    connection = self._tls.wrap_socket(plain, True)
                    with self.lock:
                        self._connections.add(connection)
                Handler(connection, address, self, host)
        finally:
            with self.lock:
                self._connections -= {plain, connection}
            connection.close()
            with self.lock:
                self._threads.discard(threading.current_thread())


def describe(content: Content, *, lfs: bool) -> File:
    """Return the file with its digests."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    sha1 = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    sha256 = hashlib.sha256()
    for piece in pieces(content):
        sha256.update(piece)
        if not lfs:
            sha1.update(piece)
    if lfs:  # git keeps a pointer in place of the file
        sha1 = hashlib.sha1(sha256.digest(), usedforsecurity=False)
    return File(content, size, sha1.hexdigest(), sha256.hexdigest(), lfs)


def pieces(content: Content, size: int = 1 << 20) -> Iterator[bytes]:
    """Yield a file's bytes."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(size):
            yield piece
