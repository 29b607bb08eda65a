"""A file of a mock hub on its way into a cache; as a program, the process that is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hub_faults import Pause
from mock_hub import MockHub
from modelsupd.weights import download
from modelsupd.weights.base import Location, Pin, Settings, WeightsError
from modelsupd.weights.transfer import Fetched, fetch
from waiting import until

REPO = "org/name"
MODEL = "model.safetensors"
KEY = f"{REPO}/{MODEL}"

# On a loopback one connection would do. What can go wrong with several is what is tested, in child processes too, so
# that all of them come at once; `test_transfer.py` tests when they come otherwise.
download._JOIN_ANYWAY_S = 0.0

#: Small enough that a file of a MiB is fetched in many pieces. A hub that is not given any CPU is not one that stands
#: still: tests that are about one of those say themselves how soon they take it for that.
QUICK: dict[str, Any] = {
    "part_bytes": 64 * 1024,
    "stall_timeout_s": 10.0,
    "attempts": 4,
    "backoff_initial_s": 0.01,
    "backoff_max_s": 0.05,
    "min_free_bytes": 0,
}


def noise(size: int, seed: int = 1) -> bytes:
    """Return bytes that compress to nothing less and are the same every time."""
    return random.Random(seed).randbytes(size)  # noqa: S311 - data for a test


def quick(place: Path, **changed: Any) -> Settings:  # noqa: ANN401 - settings of every kind
    """Return settings that make a test quick."""
    return Settings(place / "cache", place / "state", **{**QUICK, **changed})


class Target:
    """A file of a hub, and where it is to lie."""

    def __init__(
        self, place: Path, url: str, pin: Pin, headers: dict[str, str] | None = None, **settings: float
    ) -> None:
        self._place, self._changed = place, settings
        self.settings = quick(place, **settings)
        self.location = Location(url, headers or {}, f"{REPO}/{pin.path}")
        self.pin = pin
        self.final = place / "cache" / "models--org--name" / "blobs" / (pin.blob or "")
        self.stop = threading.Event()
        self.told: list[int] = []

    @classmethod
    def of(
        cls, hub: MockHub, place: Path, path: str = MODEL, headers: dict[str, str] | None = None, **settings: float
    ) -> Target:
        """Return a file of a mock hub."""
        repo = hub.repos[REPO]
        file = repo.file(path)
        url = f"{hub.url}/{REPO}/resolve/{repo.commit}/{path}"
        return cls(place, url, Pin(path, file.size, file.sha256 if file.lfs else None, file.etag), headers, **settings)

    def but(self, **changed: float) -> Target:
        """Change settings."""
        self._changed |= changed
        self.settings = quick(self._place, **self._changed)
        return self

    def fetch(self) -> Fetched:
        """Fetch it."""
        return fetch(
            self.location,
            pin=self.pin,
            final=self.final,
            settings=self.settings,
            progress=self.told.append,
            stop=self.stop,
        )

    @property
    def beside(self) -> list[str]:
        """Return what lies beside the final name."""
        if not self.final.parent.is_dir():
            return []
        return sorted(path.name.removeprefix(self.final.name) for path in self.final.parent.iterdir())

    def told_to_child(self) -> str:
        """Return what a process of this program has to know, in a line."""
        told = {
            "place": str(self.settings.cache_dir.parent),
            "url": self.location.url,
            "pin": [self.pin.path, self.pin.size_bytes, self.pin.sha256, self.pin.blob],
            "settings": {key: getattr(self.settings, key) for key in (*QUICK, "parts")},
        }
        return json.dumps(told)

    def command(self) -> list[str]:
        """Return the command of a process that fetches it each time when it is told to by a line."""
        return [sys.executable, __file__, self.told_to_child()]


@contextmanager
def together(hub: MockHub, connections: int) -> Iterator[None]:
    """Hold what no other fault spoils until so many connections are there: the first leaves nothing to the last."""
    hub.faults["*"] = held = Pause()

    def go_on() -> None:
        until(lambda: hub.connections_made >= connections)
        held.go.set()

    waiting = threading.Thread(target=go_on)
    waiting.start()
    yield
    waiting.join()


def target_of(told: str) -> Target:
    """Return what `told_to_child` told of."""
    plain = json.loads(told)
    return Target(Path(plain["place"]), plain["url"], Pin(*plain["pin"]), **plain["settings"])


def outcome(target: Target) -> dict[str, Any]:
    """Fetch it and return how that went."""
    try:
        fetched = target.fetch()
    except WeightsError as error:
        return {"error": str(error), "kind": error.kind}
    return {"received": fetched.received_bytes, "found": fetched.found}


class Forks:
    """Starts processes that fetch, each in milliseconds: copies of one that has imported everything."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__, "fork"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(self, target: Target) -> int:
        """Return the pid of a process that fetches it."""
        return int(self._say(target.told_to_child()))

    def reaped(self, pid: int) -> int:
        """Wait for the end of a process; return its status as waitpid has it."""
        return int(self._say(str(pid)))

    def _say(self, line: str) -> str:
        assert self._server.stdin
        assert self._server.stdout
        print(line, file=self._server.stdin, flush=True)
        return self._server.stdout.readline()

    def close(self) -> None:
        """End it."""
        self._server.communicate(timeout=10)


def say(answer: object) -> None:
    """Answer with a line."""
    sys.stdout.write(f"{answer}\n")
    sys.stdout.flush()


def fork_server() -> None:
    """Fork for each line that tells of a file, wait for each pid."""
    for line in sys.stdin:
        if line.strip().isdecimal():
            say(os.waitpid(int(line), 0)[1])
        elif pid := os.fork():
            say(pid)
        else:
            os._exit("error" in outcome(target_of(line)))


def main() -> None:
    """Fetch what the argument tells of, once for each line that comes, and say how it went."""
    if sys.argv[1] == "fork":
        fork_server()
        return
    target = target_of(sys.argv[1])
    for _ in sys.stdin:
        say(json.dumps(outcome(target)))


if __name__ == "__main__":
    main()
