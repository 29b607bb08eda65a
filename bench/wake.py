"""A request for a model that sleeps: from the request to the first byte, less what the engine itself takes for it.

What looks like vLLM, on a GPU of the tests' fake driver; it sleeps and wakes at once, so that what is measured is ours.
What it takes of that is measured in turn, at the same engine started bare: told to wake, and asked for the same answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import child
import fake_engine
import measure
import tiny_llama
from fake_gpus import GIB, Cards
from swap import Client
from waiting import until

WAKES = 320
_NAME = "a"
_CONFIG = """
[gateway]
listen = '127.0.0.1:0'
[gpus]
nvml = '{nvml}'
[engines.vllm]
python = '{python}'
[models.a]
engine = 'vllm'
weights = '{weights}'
gpus = 1
start = 'on-demand'
placement.vram_bytes = {awake}
[models.a.args]
max_model_len = 64
[models.a.demand]
sleep = 1
asleep_vram_bytes = {asleep}
residence_s = 0
idle_timeout_s = 0.02
"""


class Bare:
    """The same engine without a supervisor."""

    def __init__(self, python: Path, path: Path) -> None:
        """Start it at that path, and wait until it answers."""
        argv = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", "tiny", "--uds", str(path)]
        argv += ["--served-model-name", _NAME]
        env = {"VLLM_SERVER_DEV_MODE": "1", "PATH": os.environ["PATH"]}
        self._process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._path = path
        self.took_s: list[float] = []
        until(self._answers, timeout_s=20, what="the bare engine answers")

    def round(self) -> None:
        """Let it sleep, and measure how long it takes from the word to wake until it has answered."""
        self._post("/sleep?level=1")
        began_at = time.perf_counter()
        self._post("/wake_up")
        self._post("/v1/chat/completions")
        self.took_s.append(time.perf_counter() - began_at)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            self._post("/v1/chat/completions")
        except OSError:
            return False
        return True

    def _post(self, path: str) -> None:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection):
            connection.sock.connect(str(self._path))
            asked = {"model": _NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
            connection.request("POST", path, json.dumps(asked))
            connection.getresponse().read()


@contextlib.contextmanager
def _bare(python: Path, path: Path) -> Iterator[Bare]:
    bare = Bare(python, path)
    try:
        yield bare
    finally:
        bare.close()


def main(runs: int = 0) -> None:
    """Measure and print; `runs` is wakes."""
    measure.heading("wake: a request for a model that sleeps -> its first byte")
    with child.place() as place:
        tiny_llama.write(place / "tiny", context_length=64)
        for file in (place / "tiny").iterdir():
            os.utime(file, (1_000_000_000, 1_000_000_000))
        cards = Cards(place / "cards", 8)
        (place / "vllm").mkdir()
        python = fake_engine.install_vllm(place / "vllm", (cards.folder, 5 * GIB, GIB))
        config = _CONFIG.format(nvml=cards.nvml, python=python, weights=place / "tiny", awake=5 * GIB, asleep=GIB)
        whole: list[float] = []
        with child.daemon(place, config) as host, _bare(python, place / "bare.sock") as bare:
            client = Client(host)

            def sleeps() -> bool:
                return bool(host.client.status()["models"][0]["replicas"][0]["phase"] == "asleep")

            client.ask(_NAME)
            for _ in range(runs or WAKES):
                until(sleeps, timeout_s=20, what="it sleeps")
                asked_at, came_at = client.ask(_NAME)
                whole.append(came_at - asked_at)
                bare.round()
            client.close()
        floor = measure.median(bare.took_s)
        print(f"  {'request to first byte':58} {measure.milliseconds(whole)}")
        print(f"  {'the engine bare: wake and answer':58} {measure.milliseconds(bare.took_s)}")
        print(f"  {'ours: less the median of that':58} {measure.milliseconds([each - floor for each in whole])}")
