"""The client of the admin API. Blocking, and small, so that a command starts fast.

It speaks HTTP/1.0, in which an answer ends where the connection does: with that, a socket is all that is needed, and
the 20 ms that importing the standard library's client takes are saved.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlencode

from modelsupd.control.wire import SOCKET_NAME

#: How long a daemon may take to answer, in seconds: a command waits for its record to be on disk.
ANSWER_TIMEOUT_S = 30.0

#: A status is answered from memory; a daemon that cannot do that in this time is worth an error message.
STATUS_TIMEOUT_S = 5.0

_FAILED = 400
_LONGEST_LINE = 64 * 1024


class NoDaemon(Exception):  # noqa: N818 - named for what is the case
    """Nobody listens on the control socket."""


class Unanswered(Exception):  # noqa: N818 - named for what happened
    """Someone listens, and no sensible answer came."""


class ApiError(Exception):
    """The daemon refused, with its reason; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.status = status


class Client:
    """Talks to the daemon of one runtime directory; one connection a request."""

    def __init__(self, runtime_dir: Path) -> None:
        """Connect to nothing yet."""
        self.path = runtime_dir / SOCKET_NAME

    def version(self) -> dict[str, Any]:
        """Return version, pid and directories of the daemon."""
        return self._ask("GET", "/v1/version", timeout_s=STATUS_TIMEOUT_S)

    def status(self) -> dict[str, Any]:
        """Return the status document."""
        return self._ask("GET", "/v1/status", timeout_s=STATUS_TIMEOUT_S)

    def targets(self, target: str) -> list[str]:
        """Return the replicas that are meant by a model, an alias or a replica."""
        names: list[str] = self._ask("GET", "/v1/targets", {"target": target})["replicas"]
        return names

    def plan(self, target: str) -> list[dict[str, Any]]:
        """Return what would become of the replicas meant if they were asked for now."""
        rows: list[dict[str, Any]] = self._ask("GET", "/v1/plan", {"target": target})["replicas"]
        return rows

    def gpus(self) -> dict[str, Any]:
        """Return the GPUs, as the status document tells of them, and notes on what kept some from being read."""
        return self._ask("GET", "/v1/gpus", timeout_s=ANSWER_TIMEOUT_S)

    def gpu(self, verb: str, target: str, why: str = "") -> str:
        """Put a GPU into quarantine or release it; return its UUID."""
        body = {"verb": verb, "target": target, "why": why}
        return str(self._ask("POST", "/v1/gpu", body=body)["uuid"])

    def show(self, target: str, *, reveal: bool = False) -> list[dict[str, Any]]:
        """Return how the replicas meant are declared and started; secrets are masked unless `reveal`."""
        query = {"target": target, "reveal": "1" if reveal else "0"}
        shown: list[dict[str, Any]] = self._ask("GET", "/v1/show", query)["replicas"]
        return shown

    def command(self, verb: str, target: str) -> list[str]:
        """Ask for `start`, `stop` or `restart`; return the replicas meant, once that is on disk."""
        names: list[str] = self._ask("POST", "/v1/command", body={"verb": verb, "target": target})["replicas"]
        return names

    def reload(self) -> list[str]:
        """Have the configuration read again; return what changes, a sentence each."""
        changes: list[str] = self._ask("POST", "/v1/reload", body={})["changes"]
        return changes

    def events(
        self, *, after_seq: int = 0, target: str | None = None, follow: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yield journal records after `after_seq`; with `follow` until the daemon goes."""
        query = {"after": str(after_seq), "follow": "1" if follow else "0"}
        if target is not None:
            query["target"] = target
        with self._request("GET", f"/v1/events?{urlencode(query)}", None, ANSWER_TIMEOUT_S) as (connection, answer):
            if follow:
                connection.settimeout(None)  # silence is no failure of whoever waits for events
            try:
                for line in answer:
                    yield json.loads(line)
            except (OSError, ValueError) as error:
                raise Unanswered(f"cannot follow events: the daemon at '{self.path}' went away") from error

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> dict[str, Any]:
        target = f"{path}?{urlencode(query)}" if query else path
        with self._request(method, target, body, timeout_s) as (_, answer):
            try:
                parsed: dict[str, Any] = json.loads(answer.read())
            except OSError as error:
                raise self._unreachable(error) from error
            except ValueError as error:
                raise Unanswered(f"cannot understand what answers at '{self.path}': {error}") from error
            return parsed

    @contextlib.contextmanager
    def _request(
        self, method: str, target: str, body: object, timeout_s: float
    ) -> Iterator[tuple[socket.socket, BinaryIO]]:
        """Yield the connection, and the answer's body to be read from it; raise what stands in place of one."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {target} HTTP/1.0\r\nHost: modelsupd\r\nContent-Length: {len(payload)}\r\n\r\n"
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
            connection.makefile("rb") as answer,
        ):
            connection.settimeout(timeout_s)
            try:
                connection.connect(str(self.path))
                connection.sendall(head.encode() + payload)
                status = _status_of(answer)
                message = _message(status, answer.read()) if status is None or status >= _FAILED else None
            except OSError as error:
                raise self._unreachable(error) from error
            if status is None:
                raise Unanswered(f"cannot understand what answers at '{self.path}': it is no daemon of ours")
            if message is not None:
                raise ApiError(status, message)
            yield connection, answer

    def _unreachable(self, error: OSError) -> Exception:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return NoDaemon(f"cannot reach a daemon: nobody listens on '{self.path}'; start one with 'modelsupd run'")
        if isinstance(error, PermissionError):
            return Unanswered(
                f"cannot reach the daemon: permission denied for '{self.path}'; its own user and root may ask it"
            )
        if isinstance(error, TimeoutError):
            return Unanswered(f"cannot get an answer: the daemon at '{self.path}' is there and does not answer in time")
        return Unanswered(f"cannot get an answer from the daemon at '{self.path}': {error.strerror or error}")


def _status_of(answer: BinaryIO) -> int | None:
    """Return the HTTP status, having read past the header; None for what is not HTTP."""
    match = re.match(rb"HTTP/1\.[01] ([0-9]{3})", answer.readline(_LONGEST_LINE))
    while answer.readline(_LONGEST_LINE) not in (b"\r\n", b"\n", b""):
        pass
    return int(match[1]) if match else None


def _message(status: int | None, raw: bytes) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {status}: {raw[:200].decode(errors='replace')}"
