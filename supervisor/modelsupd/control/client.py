"""The client of the admin API. Blocking, and of the standard library alone, so that a command starts fast."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from modelsupd.control.wire import SOCKET_NAME

#: How long a daemon may take to answer, in seconds: a command waits for its record to be on disk.
ANSWER_TIMEOUT_S = 30.0

#: A status is answered from memory; a daemon that cannot do that in this time is worth an error message.
STATUS_TIMEOUT_S = 5.0

_FAILED = 400


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


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("modelsupd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the unix socket in place of a host."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise


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
        connection, answer = self._request("GET", f"/v1/events?{urlencode(query)}", None, ANSWER_TIMEOUT_S)
        try:
            if connection.sock is not None and follow:
                connection.sock.settimeout(None)  # silence is no failure of whoever waits for events
            for line in answer:
                yield json.loads(line)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unanswered(f"cannot follow events: the daemon at '{self.path}' went away: {_words(error)}") from error
        finally:
            connection.close()

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
        connection, answer = self._request(method, target, body, timeout_s)
        try:
            parsed: dict[str, Any] = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unanswered(f"cannot understand the daemon at '{self.path}': {_words(error)}") from error
        finally:
            connection.close()
        return parsed

    def _request(
        self, method: str, target: str, body: object, timeout_s: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = _Connection(self.path, timeout_s)
        payload = None if body is None else json.dumps(body)
        headers = {} if payload is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, target, payload, headers)
            answer = connection.getresponse()
            message = _message(answer) if answer.status >= _FAILED else None
        except BaseException as error:
            connection.close()
            if isinstance(error, (OSError, http.client.HTTPException)):
                raise self._unreachable(error) from error
            raise
        if message is not None:
            connection.close()
            raise ApiError(answer.status, message)
        return connection, answer

    def _unreachable(self, error: Exception) -> Exception:
        if isinstance(error, FileNotFoundError | ConnectionRefusedError | NotADirectoryError):
            return NoDaemon(f"cannot reach a daemon: nobody listens on '{self.path}'; start one with 'modelsupd run'")
        if isinstance(error, PermissionError):
            return Unanswered(
                f"cannot reach the daemon: permission denied for '{self.path}'; its own user and root may ask it"
            )
        if isinstance(error, TimeoutError):
            return Unanswered(f"cannot get an answer: the daemon at '{self.path}' is there and does not answer in time")
        return Unanswered(f"cannot get an answer from the daemon at '{self.path}': {_words(error)}")


def _message(answer: http.client.HTTPResponse) -> str:
    raw = answer.read()
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP status {answer.status}: {raw[:200].decode(errors='replace')}"


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
