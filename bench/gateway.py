"""The gateway against nginx and HAProxy: one worker each, before the same engine, under the same load.

Requests a second and CPU of small answers that do not stream; time to the first event and CPU of a thousand events at
100 streams; memory of a stream; 10,000 idle connections. All take turns, and ratios are of medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import child
import gateway_load
import gateway_peers
import measure
import peers
from gateway_daemon import Daemon
from gateway_peers import Proxy
from gateway_process import Gateway, linked, prepared, serving
from idle import cpu_s, pss_mib
from modelsupd.gateway.base import Availability, Model, Run

ROUNDS = 5
ROUND_S = 3
CLIENTS = 32

IDLE_CONNECTIONS = 10_000
HELD_STREAMS = 1_000

_POST = """
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model": "m", "messages": [{"role": "user", "content": "hello, how are you?"}], "max_tokens": 16}'
"""
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def main(runs: int = 0) -> None:
    """Measure and print; `runs` is rounds."""
    rounds = runs or ROUNDS
    measure.heading(f"the gateway, one worker, {rounds} rounds of {ROUND_S} s in turn")
    with child.place() as place:
        try:
            with gateway_peers.plain_engine(place), _proxies(place, f"{place}/plain.sock") as proxies:
                requests(place, proxies, rounds)
                idle_connections(proxies)
            with gateway_peers.streaming_engine(place), _proxies(place, f"{place}/stream.sock") as proxies:
                streams(f"{place}/stream.sock", proxies, rounds)
                held_streams(proxies)
        except peers.Unavailable as error:
            print(f"  cannot be measured here: {error}")


@contextlib.contextmanager
def _proxies(place: Path, engine: str) -> Iterator[list[Proxy]]:
    """Run all of them; what cannot be had is left out by name."""
    with contextlib.ExitStack() as stack:
        found = []
        for start in (gateway_peers.nginx, gateway_peers.haproxy, gateway_peers.relay_alone, _everything_on):
            try:
                found.append(stack.enter_context(start(place, engine)))
            except peers.Unavailable as error:
                print(f"  left out: {start.__name__}: {error}")
        yield found


@contextlib.contextmanager
def _everything_on(place: Path, engine: str) -> Iterator[Proxy]:
    """Run the gateway's real process, with its records, metrics and the daemon's end of its link."""
    folder = place / f"{Path(engine).stem}.d"
    folder.mkdir()
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    model = Model(name="m", availability=Availability.READY, runs=(Run("m/0", 1, f"unix:{engine}"),), max_queued=20_000)

    @contextlib.asynccontextmanager
    async def linked_to() -> AsyncIterator[Gateway]:
        gateway = Gateway(folder, prepared(folder))
        async with linked(folder, [gateway]) as daemon:
            assert isinstance(daemon, Daemon)  # noqa: S101 - says what the next line is given
            await serving(daemon, gateway, listening, model)
            yield gateway

    with listening, _in_thread(linked_to) as gateway:
        yield Proxy("gateway, everything on", listening.getsockname()[1], gateway.process.pid)


@contextlib.contextmanager
def _in_thread(held: Callable[[], contextlib.AbstractAsyncContextManager[Gateway]]) -> Iterator[Gateway]:
    """Hold an asynchronous context open on a loop in a thread of its own, whatever this thread does meanwhile."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    context = held()
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def requests(place: Path, proxies: list[Proxy], rounds: int) -> None:
    """Print requests a second, p99 and CPU of small answers over kept connections."""
    script = place / "post.lua"
    script.write_text(_POST)
    binary, env = gateway_peers.program("wrk")
    found: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for proxy in proxies:
            before = cpu_s(proxy.pid)
            command: list[str | Path] = [binary, "-t1", f"-c{CLIENTS}", f"-d{ROUND_S}", "--latency", "-s", script]
            done = subprocess.run(
                [*command, f"http://127.0.0.1:{proxy.port}"], env=env, capture_output=True, text=True, check=True
            )
            if "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
                print(f"  {proxy.name}: {done.stdout}")
            count = float(_in(r"(\d+) requests in", done.stdout)[0])
            slow = _in(r"99%\s+([0-9.]+)(us|ms|s)", done.stdout)
            second = float(_in(r"Requests/sec:\s+([0-9.]+)", done.stdout)[0])
            used_s = (cpu_s(proxy.pid) - before) / count
            found.setdefault(proxy.name, []).append((second, float(slow[0]) * _SECONDS[slow[1]], used_s))
    print(f"  {CLIENTS} clients, small answers that do not stream")
    floor = [measure.median(column) for column in zip(*next(iter(found.values())), strict=True)]
    for name, values in found.items():
        second, slow_s, used_s = (measure.median(column) for column in zip(*values, strict=True))
        print(
            f"    {name:24} {second:8.0f} requests/s ({second / floor[0]:4.2f}x)   p99 {slow_s * 1e3:6.2f} ms"
            f" ({slow_s / floor[1]:4.2f}x)   CPU {used_s * 1e6:5.1f} us each ({used_s / floor[2]:4.2f}x)"
        )


def _in(pattern: str, text: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"there is no {pattern!r} in {text!r}")
    return found.groups()


def streams(engine: str, proxies: list[Proxy], rounds: int) -> None:
    """Print the time to the first event, and the CPU of a thousand events, at 100 streams."""
    first: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    for _ in range(rounds):
        direct = gateway_load.streams(engine, seconds=ROUND_S)
        first.setdefault("the engine itself", []).extend(direct.first_s)
        for proxy in proxies:
            before = cpu_s(proxy.pid)
            came = gateway_load.streams(proxy.port, seconds=ROUND_S)
            used.setdefault(proxy.name, []).append((cpu_s(proxy.pid) - before) / came.events)
            first.setdefault(proxy.name, []).extend(came.first_s)
    print(f"  {gateway_load.STREAMS} streams of {gateway_load.EVENTS} events, one every {gateway_load.PACE_MS} ms")
    floor = measure.median(first["the engine itself"])
    for name, values in first.items():
        print(
            f"    {name:24} first event {measure.milliseconds(values)}"
            f"   added at p50 {(measure.median(values) - floor) * 1e3:6.3f} ms"
        )
    least = measure.median(next(iter(used.values())))
    for name, values in used.items():
        ratio = measure.median(values) / least
        print(f"    {name:24} CPU of 1,000 events {measure.median(values) * 1e6:6.1f} ms ({ratio:4.2f}x)")


def held_streams(proxies: list[Proxy]) -> None:
    """Print what one stream that goes on takes of memory."""
    for proxy in proxies:
        before = pss_mib(proxy.pid)
        with gateway_load.held_streams(proxy.port, HELD_STREAMS):
            each_kib = (pss_mib(proxy.pid) - before) * 1024 / HELD_STREAMS
        print(f"    {proxy.name:24} memory of a stream {each_kib:6.1f} KiB, with {HELD_STREAMS} of them")


def idle_connections(proxies: list[Proxy]) -> None:
    """Print what many idle connections take of memory, and of CPU while nothing happens."""
    for proxy in proxies:
        before = pss_mib(proxy.pid)
        with gateway_load.idle_connections(proxy.port, IDLE_CONNECTIONS) as held:
            used_s = held.watched(proxy.pid)
            after = pss_mib(proxy.pid)
        print(
            f"    {proxy.name:24} {IDLE_CONNECTIONS} idle connections: {after:6.1f} MiB in all, {before:5.1f} before;"
            f" CPU {used_s * 1e3:5.2f} ms a second"
        )
