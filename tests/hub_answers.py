"""How the mock hub answers one connection; what it serves and what it spoils is in tests/mock_hub.py."""

from __future__ import annotations

import fcntl
import json
import re
import socket
import struct
import termios
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import hub_faults as faults

if TYPE_CHECKING:
    from mock_hub import Content, File, MockHub, Repo

#: At most so many bytes in memory are sent at once, so that what a client never took is not counted as sent.
_PIECE = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """One connection, with as many requests as the client cares to send."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, connection: socket.socket, address: tuple[str, int], hub: MockHub, host: str) -> None:
        """Serve the connection until it ends."""
        self.hub = hub
        self.host = host
        self.leaving = False
        super().__init__(connection, address, None)  # type: ignore[arg-type]  # no socketserver behind it

    def log_message(self, *_: object) -> None:
        """Say nothing: requests are kept in the hub's log."""

    def do_GET(self) -> None:
        """Answer GET."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer HEAD."""
        self._answer()

    def do_POST(self) -> None:
        """Answer POST, which only paths-info is asked by."""
        self._answer()

    # -- what is asked for ------------------------------------------------------------------------------------------

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.leaving:
            self.close_connection = True
            return
        path = urlsplit(self.path).path
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+))?", path):
            self._answer_api(found[1], found[2] or "revision", unquote(found[3] or "main"), body)
        elif found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", path):
            self._answer_file(found[1], found[2], unquote(found[3]), by_cdn=True)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._answer_file(found[1], unquote(found[2]), unquote(found[3]), by_cdn=False)
        else:
            self._json({"error": "not found"}, 404)

    def _allowed(self, name: str) -> Repo | None:
        """Return the repo if whoever asks may see it; else say what the real hub says."""
        repo = self.hub.repos.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is not None and repo.token in (None, token):
            return repo
        if token:
            self._error(404, "RepoNotFound", "Repository not found")
        else:
            self._error(401, "", "Invalid username or password.")
        return None

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit in repo.commits:
            return commit
        self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _answer_api(self, name: str, what: str, revision: str, body: bytes) -> None:
        fault = self.hub.take_fault(self.command, None, name, f"{name}:{what}", f"{self.host}/{name}")
        if self._spoiled(fault) or (repo := self._allowed(name)) is None:
            return
        if (commit := self._commit(repo, revision)) is None:
            return
        files = repo.commits[commit]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            answer: Any = {"id": name, "modelId": name, "sha": commit, "private": repo.token is not None}
            answer |= {"gated": "manual" if repo.gated else False, "siblings": siblings, "tags": [], "downloads": 0}
            self._json(answer, fault=fault)
        elif what == "tree":
            self._answer_tree(name, commit, files, fault)
        else:
            wanted = json.loads(body)["paths"]
            self._json([entry(path, file) for path, file in files.items() if path in wanted], fault=fault)

    def _answer_tree(self, name: str, commit: str, files: Mapping[str, File], fault: faults.Fault | None) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        entries = [entry(path, file) for path, file in sorted(files.items())]
        folders = {str(folder) for path in files for folder in Path(path).parents} - {"."}
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in sorted(folders)]
        until = start + self.hub.page
        headers = {}
        if until < len(entries):
            base = f"{self.hub.url}/api/models/{name}/tree/{commit}?recursive=true&expand=false"
            headers["Link"] = f'<{base}&cursor={until}>; rel="next"'
        self._json(entries[start:until], headers=headers, fault=fault)

    # -- files ------------------------------------------------------------------------------------------------------

    def _answer_file(self, name: str, revision: str, path: str, *, by_cdn: bool) -> None:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and asked[1] else None
        served_here = by_cdn or not self.hub.redirects_to_cdn
        keys = [f"{name}/{path}"] if served_here else []
        fault = self.hub.take_fault(self.command, start or 0, *keys, f"{self.host}/{name}/{path}")
        if self._spoiled(fault):
            return
        repo = self.hub.repos[name] if by_cdn else self._allowed(name)
        if repo is None or (commit := self._commit(repo, revision)) is None:
            return
        if not by_cdn and self._refused_by_gate(repo):
            return
        file = repo.commits[commit].get(path)
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit}
        if file.lfs:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        if file.lfs and not served_here:
            headers["Location"] = f"{self.hub.cdn_url}/cdn/{name}/{commit}/{quote(path)}?signature=of-{file.sha256[:8]}"
            self._send(302, {**headers, "ETag": f'"{file.git_sha1}"', "Content-Length": "0"})
            return
        self._send_file(file, {} if by_cdn else headers, fault, by_cdn=by_cdn)

    def _refused_by_gate(self, repo: Repo) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not repo.gated or token in repo.granted:
            return False
        message = f"Access to model {repo.name} is restricted and you are not in the authorized list."
        self._error(403 if token else 401, "GatedRepo", message)
        return True

    def _send_file(self, file: File, headers: dict[str, str], fault: faults.Fault | None, *, by_cdn: bool) -> None:
        etag = fault.etag if isinstance(fault, faults.OtherETag) else f"cdn-{file.etag}" if by_cdn else file.etag
        headers |= {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        start, end, status = 0, file.size, 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range") in (None, f'"{etag}"')
        if asked and any(asked.groups()) and fresh and not isinstance(fault, faults.NoRange):
            status = 206
            if asked[1]:
                start, end = int(asked[1]), min(int(asked[2]) + 1, file.size) if asked[2] else file.size
            else:
                start = max(0, file.size - int(asked[2]))
            if start >= file.size or start >= end:
                self._send(416, headers | {"Content-Range": f"bytes */{file.size}", "Content-Length": "0"})
                return
            shift = fault.by if isinstance(fault, faults.WrongRange) else 0
            total = file.size + (fault.total_by if isinstance(fault, faults.WrongRange) else 0)
            headers["Content-Range"] = f"bytes {start + shift}-{end - 1 + shift}/{total}"
        length = end - start
        if isinstance(fault, faults.Truncated):
            end = min(end, start + fault.after)
            length = end - start
        length += fault.by if isinstance(fault, faults.Length) else 0
        self._send(status, headers | {"Content-Length": str(max(0, length))})
        if self.command != "HEAD":
            self._send_bytes(file.content, start, end, fault)

    def _send_bytes(self, content: Content, start: int, end: int, fault: faults.Fault | None) -> None:
        stop = end
        if isinstance(fault, faults.Drop | faults.End | faults.Stall):
            stop = min(end, start + fault.after)
        try:
            if isinstance(fault, faults.Wrong) and start <= fault.at < end:
                self._write(content, start, fault.at)
                (byte,) = cut(content, fault.at, fault.at + 1)
                self._put(bytes([byte ^ 1]))
                self._write(content, fault.at + 1, end)
            elif isinstance(fault, faults.Drip | faults.Pause):
                self._write_slowly(content, start, stop, fault)
            else:
                self._write(content, start, stop)
        except OSError:  # the client is gone
            self.close_connection = True
            return
        if isinstance(fault, faults.Length | faults.Truncated | faults.End):
            self.close_connection = True
        elif isinstance(fault, faults.Drop):
            self._reset()
        elif isinstance(fault, faults.Stall):
            self._wait_for_the_end()

    def _write_slowly(self, content: Content, start: int, end: int, fault: faults.Drip | faults.Pause) -> None:
        if isinstance(fault, faults.Pause):
            middle = min(end, start + fault.after)
            self._write(content, start, middle)
            while not fault.go.is_set() and not self.hub.closing.wait(0.005):
                pass
            self._write(content, middle, end)
            return
        for at in range(start, end, fault.piece):
            self._write(content, at, min(end, at + fault.piece))
            if self.hub.closing.wait(fault.every_s):
                break

    def _write(self, content: Content, start: int, end: int) -> None:
        if isinstance(content, bytes):
            self._put(memoryview(content)[start:end])
            return
        with content.open("rb") as file:
            file.seek(start)
            try:
                if end > start:
                    self.connection.sendfile(file, start, end - start)
            finally:  # sendfile leaves the position behind what was sent, also when the client went away
                self.hub.count_sent(file.tell() - start)

    def _put(self, data: bytes | memoryview) -> None:
        at = 0
        while at < len(data):
            sent = self.connection.send(data[at : at + _PIECE])
            self.hub.count_sent(sent)
            at += sent

    # -- answers ----------------------------------------------------------------------------------------------------

    def _spoiled(self, fault: faults.Fault | None) -> bool:
        """Answer by the fault alone, if it is one that leaves nothing to say; tell whether it did."""
        self.leaving = isinstance(fault, faults.Leave)
        if isinstance(fault, faults.Status):
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            self._error(fault.status, fault.code, fault.message, headers, body=fault.body)
        elif isinstance(fault, faults.Html):
            headers = {"Content-Type": "text/html", "Content-Length": str(len(fault.body))}
            self._send(200, headers, fault.body)
        elif isinstance(fault, faults.Redirect):
            location = fault.to.replace("{path}", self.path)
            self._send(fault.status, {"Location": location, "Content-Length": "0", **fault.headers})
        elif isinstance(fault, faults.Silence):
            self._record(0)
            self._wait_for_the_end()
        else:
            return False
        return True

    def _error(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        named = {"X-Error-Code": code, "X-Error-Message": message}
        body = body or json.dumps({"error": message}).encode()
        given = {key: value for key, value in named.items() if value} | dict(headers or {})
        self._send(status, given | {"Content-Type": "application/json", "Content-Length": str(len(body))}, body)

    def _json(
        self,
        answer: object,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        fault: faults.Fault | None = None,
    ) -> None:
        body = json.dumps(answer).encode()
        if isinstance(fault, faults.Truncated):
            body = body[: fault.after]
        length = len(body) + (fault.by if isinstance(fault, faults.Length) else 0)
        sent = {"Content-Type": "application/json", "Content-Length": str(length), **(headers or {})}
        self._send(status, sent)
        if self.command != "HEAD":
            self._send_bytes(body, 0, len(body), fault)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
        self._record(status)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and body:
            self.wfile.write(body)

    def _record(self, status: int) -> None:
        from mock_hub import Request  # noqa: PLC0415 - mock_hub imports this module

        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.record(Request(self.host, self.command, self.path, headers, status))

    def _reset(self) -> None:
        """Close so that the client sees a reset and not an end, but only once it has what was sent."""
        unsent = bytearray(4)
        while not self.hub.closing.wait(0.0005):
            fcntl.ioctl(self.connection, termios.TIOCOUTQ, unsent)
            if not any(unsent):
                break
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _wait_for_the_end(self) -> None:
        """Hold the connection open until the hub closes."""
        self.hub.closing.wait()
        self.close_connection = True


def entry(path: str, file: File) -> dict[str, object]:
    """Return a file as the hub's listing has it."""
    found: dict[str, object] = {"type": "file", "oid": file.git_sha1, "size": file.size, "path": path}
    if file.lfs:
        found["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return found


def cut(content: Content, start: int, end: int) -> bytes:
    """Return a piece of a file."""
    if isinstance(content, bytes):
        return content[start:end]
    with content.open("rb") as file:
        file.seek(start)
        return file.read(end - start)
