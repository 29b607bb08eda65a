"""Nine thousand clients at once: as many are served as may be, the others are told when to come again."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gateway_daemon import listening_socket
from gateway_process import Client, Gateway, engine, linked, prepared, serving
from hosts import fake
from modelsupd.gateway.base import Availability, Limits, Model, Run
from waiting import auntil

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

CROWD = 9000
SERVED, QUEUED = 50, 150

#: How long the gateway may work, on whatever it likes, between the question of whoever watches over it and its answer,
#: in seconds of its own processor time: what the machine gives to others meanwhile is not its doing.
WATCHED_WITHIN_S = 0.1

SCRIPT = Path(__file__).parent.parent / "crowd.py"


class Watch(threading.Thread):
    """Asks for health and metrics again and again, and keeps how long the gateway worked before each answer."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._end = threading.Event()
        self._worked_s: dict[str, list[float]] = {"/health": [], "/metrics": []}

    def run(self) -> None:
        while not self._end.wait(0.02):
            for path, worked_s in self._worked_s.items():
                before_s = self._processor_s()
                assert self._gateway.ask(path)
                worked_s.append(self._processor_s() - before_s)

    def close(self) -> dict[str, tuple[float, ...]]:
        """Return the two longest of each path, in seconds."""
        self._end.set()
        self.join()
        assert all(len(worked_s) > 20 for worked_s in self._worked_s.values())
        return {path: tuple(sorted(worked_s)[-2:]) for path, worked_s in self._worked_s.items()}

    def _processor_s(self) -> float:
        """Return the processor time of the gateway's event loop so far (Documentation/scheduler/sched-stats)."""
        return int(Path(f"/proc/{self._gateway.process.pid}/schedstat").read_text().split()[0]) / 1e9


def needs_descriptors(count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count:
        pytest.skip(f"needs a limit of {count} open files, and there may be {hard}")


@pytest.mark.parametrize("most", [16384, CROWD - 100])
def test_nine_thousand_clients_at_once_are_served_or_told_when_to_come_again(tmp_path: Path, most: int) -> None:
    """With the limit of connections at its default, and with one that a hundred of them meet."""
    needs_descriptors(CROWD + 1000)

    async def main() -> None:
        gateway = Gateway(tmp_path, prepared(tmp_path, limits=Limits(max_connections=most, idle_timeout_s=600)))
        async with linked(tmp_path, [gateway]) as daemon:
            with engine(tmp_path, hang="completions") as run, listening_socket() as listening:
                model = Model(
                    name="qwen",
                    availability=Availability.READY,
                    runs=(run,),
                    max_concurrent=SERVED,
                    max_queued=QUEUED,
                    retry_after_s=7,
                )
                await serving(daemon, gateway, listening, model)
                before = gateway.descriptors()
                watch = Watch(gateway)
                watch.start()
                try:
                    found = await asyncio.to_thread(_asked, listening.getsockname()[1], run)
                finally:
                    worked_s = watch.close()
                # What all of the crowd asked in one moment is read before anybody is answered: that happens once.
                # If who watches stood in line behind the crowd, each would have to wait for more than a second of work.
                for long_s, longest_s in worked_s.values():
                    assert long_s < WATCHED_WITHIN_S, worked_s
                    assert longest_s < 5 * WATCHED_WITHIN_S, worked_s
                turned_away = max(0, CROWD - most)
                assert {status: each[0] for status, each in found.items()} == {
                    "200": SERVED + QUEUED,
                    "429": CROWD - turned_away - SERVED - QUEUED,
                    **({"503": turned_away} if turned_away else {}),
                }
                assert all(count == told for status, (count, told, _) in found.items() if status != "200")
                await auntil(lambda: gateway.health()["connections"] == 0)
                await auntil(lambda: gateway.descriptors() <= before + 2)
                client = Client(listening)
                assert (await asyncio.to_thread(client.chat)).read()
                client.close()

    asyncio.run(main())


def _asked(port: int, run: Run) -> dict[str, list[float]]:
    """Let all of them connect, then ask, then go; return what they got.

    The engine answers nobody before the others have been told: however long all that takes, nobody's place is free yet.
    """
    words = [sys.executable, str(SCRIPT), str(port), str(CROWD), str(SERVED + QUEUED)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        assert crowd.stdout.readline() == "connected\n"
        crowd.stdin.write("\n")
        crowd.stdin.flush()
        assert crowd.stdout.readline() == "told\n"
        fake(run.endpoint, hang="")
        found = json.loads(crowd.stdout.readline())
        assert isinstance(found, dict)
        crowd.communicate("\n", timeout=20)
        return found
