"""What is seen of a run from outside: its use of the machine, its listener, its connections."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest

from modelsupd.core.events import Process
from modelsupd.runtime import vitals
from modelsupd.runtime.process import connections
from running import FOREVER, PYTHON, Site, run
from waiting import auntil

#: What counts is CPU time, not how fast a machine is.
SPENDING = """
while time.process_time() < 0.2:
    pass
time.sleep(1000)
"""


def test_vitals_show_work_and_only_grow() -> None:
    async def test(site: Site) -> None:
        program = "import time\nopen('/dev/zero','rb').read(1<<20); print('x' * 100, flush=True)\n"
        await site.processes.spawn(site.launch(*PYTHON, program + SPENDING))
        await auntil(lambda: site.processes.vitals("tiny/0", 1).log_bytes == 101)
        await auntil(lambda: site.processes.vitals("tiny/0", 1).cpu_s >= 0.05)
        first = site.processes.vitals("tiny/0", 1)
        assert first.read_bytes >= 1 << 20
        assert first.rss_bytes > 1 << 20
        site.processes.kill("tiny/0", 1)
        await site.processes.wait("tiny/0", 1)
        last = site.processes.vitals("tiny/0", 1)
        assert (last.cpu_s, last.read_bytes, last.log_bytes) >= (first.cpu_s, first.read_bytes, first.log_bytes)
        assert site.processes.vitals("tiny/0", 2) == vitals.TreeVitals()

    run(test)


#: With an argument behind its path it does not listen before there is a file of that name.
SERVER = """
import os, socket, sys, time
if sys.argv[1].startswith("/"):
    s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print("bound", flush=True)
    while len(sys.argv) > 2 and not os.path.exists(sys.argv[2]): time.sleep(0.005)
else:
    s = socket.create_server((sys.argv[2], int(sys.argv[1])))
s.listen(); print("up", flush=True)
held = []
while True: held.append(s.accept())
"""


def test_a_unix_socket_its_listener_and_its_connections() -> None:
    async def test(site: Site) -> None:
        go = site.root / "go"
        started = await site.processes.spawn(site.launch(*PYTHON, SERVER, "{socket}", str(go)))
        await site.said("bound")
        assert not site.processes.listener_is_ours(started)
        go.touch()
        await site.said("up")
        assert site.processes.listener_is_ours(started)
        assert connections(started.endpoint) == 0
        with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
            first.connect(str(site.place().socket))
            second.connect(str(site.place().socket))
            await auntil(lambda: connections(started.endpoint) == 2)
        other = await site.processes.spawn(site.launch(*FOREVER, run=2))
        stranger = Process(1, other.pid, other.shim_pid, started.endpoint, "")
        assert not site.processes.listener_is_ours(stranger)

    run(test)


def test_a_tcp_port_is_kept_for_the_engine() -> None:
    async def test(site: Site) -> None:
        first = await site.processes.spawn(site.launch(*PYTHON, SERVER, "{port}", "{host}", listen="tcp"))
        second = await site.processes.spawn(site.launch(*FOREVER, listen="tcp", run=2))
        assert first.endpoint.startswith("http://127.0.0.1:")
        assert first.endpoint != second.endpoint
        await site.said("up")
        assert site.processes.listener_is_ours(first)
        port = int(second.endpoint.rpartition(":")[2])
        with socket.socket() as thief, pytest.raises(OSError, match="in use"):
            thief.bind(("127.0.0.1", port))
        # Somebody who sets the same option can take it, and is found out.
        with socket.create_server(("127.0.0.1", port)):
            assert not site.processes.listener_is_ours(second)
        with socket.create_connection(("127.0.0.1", int(first.endpoint.rpartition(":")[2]))):
            await auntil(lambda: connections(first.endpoint) == 1)
        await auntil(lambda: connections(first.endpoint) == 0)

    run(test)


def test_a_real_server_binds_the_kept_port() -> None:
    async def test(site: Site) -> None:
        argv = (PYTHON[0], "-m", "http.server", "{port}", "--bind", "{host}", "--directory", "{tmp}")
        started = await site.processes.spawn(site.launch(*argv, listen="tcp"))
        await auntil(lambda: site.processes.listener_is_ours(started))
        answer = await asyncio.to_thread(lambda: urllib.request.urlopen(started.endpoint).close())  # noqa: S310 - ours
        assert answer is None

    run(test)
