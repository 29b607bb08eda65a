"""A client of a daemon's gateway, and what a daemon with a gateway is declared with."""

from __future__ import annotations

import http.client
import json
from typing import Any

from hosts import Host
from waiting import until

GATEWAY = "[gateway]\nlisten = '127.0.0.1:0'\ndrain_timeout_s = 20\n"


def limits(name: str = "m", **changed: float | str) -> str:
    """Return limits that no machine reaches, however busy; a test that is about one of them sets its own."""
    told = {"start_wait_s": 45, "stream_stall_s": 30, "first_byte_timeout_s": 30, **changed}
    return f"[models.{name}.gateway]\n" + "".join(f"{key} = {value}\n" for key, value in told.items())


def behind(*models: str, more: str = "") -> str:
    return GATEWAY + more + "".join(models)


class Client:
    """A client of the gateway."""

    def __init__(self, daemon: Host) -> None:
        self.daemon = daemon
        self._open: list[http.client.HTTPConnection | http.client.HTTPResponse] = []
        until(lambda: self.address() is not None, what=lambda: f"{daemon.client.status()['gateway']} {daemon.said()}")
        address = self.address()
        assert address is not None
        self.host, _, self.port = address.rpartition(":")

    def address(self) -> str | None:
        told = self.daemon.client.status()["gateway"]
        ready = any(run["accepts"] for run in told["runs"])
        return str(told["listen"][0]) if ready and told["listen"] else None

    def connect(self, timeout_s: float = 60) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=timeout_s)
        self._open.append(connection)
        return connection

    def close(self) -> None:
        for each in self._open:
            each.close()

    def send(self, *, model: str = "m", stream: bool = False, tokens: int = 4) -> http.client.HTTPConnection:
        connection = self.connect()
        body = {"model": model, "stream": stream, "max_tokens": tokens, "messages": [{"role": "user", "content": "x"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return connection

    def ask(self, **how: Any) -> http.client.HTTPResponse:  # noqa: ANN401 - as `send` takes it
        answer = self.send(**how).getresponse()
        self._open.append(answer)
        return answer

    def get(self, path: str) -> tuple[int, Any]:
        connection = self.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        return answer.status, json.loads(said) if said else None

    def state(self, model: str = "m") -> str:
        """Return what the gateway has been told of a model: what is published by the daemon it hears a moment later."""
        listed = self.get("/v1/models")[1]["data"]
        return next(str(each["state"]) for each in listed if each["id"] == model)

    def text(self, **how: Any) -> str:  # noqa: ANN401 - the same
        answer = self.ask(**how)
        said = answer.read().decode()
        assert answer.status == 200, said
        return said


def events_of(text: str) -> list[str]:
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
