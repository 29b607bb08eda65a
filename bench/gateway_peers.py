"""nginx, HAProxy and the gateway, each as one worker in front of the same engine, and the load that is put on them.

nginx writes its access log, as whoever runs a service would have it; both pass pieces on as they come.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import peers
from modelsupd.runtime.shim import tree
from waiting import until

#: What each program needs beside itself and what every Debian has.
_PACKAGES = {
    "nginx": ("nginx",),
    "haproxy": ("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"),
    "wrk": ("wrk", "libluajit-5.1-2"),
}

_NGINX = """
user {user}; daemon off; worker_processes 1; pid {place}/{name}.pid; error_log {place}/{name}.err;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
 access_log {access}; keepalive_requests 1000000000; keepalive_timeout 1h; client_body_temp_path {place}/{name}.body;
 proxy_temp_path {place}/{name}.proxy; fastcgi_temp_path {place}/{name}.f; uwsgi_temp_path {place}/{name}.u;
 scgi_temp_path {place}/{name}.s;
 {http}
}}
"""

_PASSING = """
 upstream e {{ server {engine}; keepalive 256; keepalive_requests 1000000000; }}
 server {{ listen 127.0.0.1:{port} backlog=4096;
  location / {{ proxy_pass http://e; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }}
"""

#: What a small answer that does not stream looks like.
_ANSWER = (
    '{"id":"x","object":"chat.completion","created":1790000000,"model":"m","choices":[{"index":0,"message":'
    '{"role":"assistant","content":"hello there, this is an answer"},"finish_reason":"stop"}],'
    '"usage":{"prompt_tokens":3,"completion_tokens":7,"total_tokens":10}}'
)

_HAPROXY = """
global
 nbthread 1
 no strict-limits
 maxconn 16384
defaults
 mode http
 option http-no-delay
 option http-keep-alive
 timeout connect 5s
 timeout client 1h
 timeout server 1h
listen l
 bind 127.0.0.1:{port} backlog 4096
 http-reuse always
 server e {engine}
"""


@dataclass(frozen=True, slots=True)
class Proxy:
    """One that runs: what it is called, where it listens, and the process that does the work."""

    name: str
    port: int
    pid: int


def program(name: str) -> tuple[Path, dict[str, str]]:
    """Return a program of Debian's, and the environment to run it in. Raises peers.Unavailable."""
    found = shutil.which(name)
    if found is not None:
        return Path(found), dict(os.environ)
    roots = [peers.unpacked(package) for package in _PACKAGES[name]]
    path = next(
        (each for each in (roots[0] / f"usr/{where}/{name}" for where in ("sbin", "bin")) if each.exists()), None
    )
    if path is None:
        raise peers.Unavailable(f"the package {name} holds no {name}")
    libraries = [str(library.parent) for root in roots for library in root.glob("usr/lib/*/*.so*")]
    return path, {**os.environ, "LD_LIBRARY_PATH": ":".join(dict.fromkeys(libraries))}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str | Path], env: dict[str, str], log: Path, answers: str | int) -> Iterator[int]:
    """Run a program until it listens on a path or a port; yield its pid."""
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        until(lambda: process.poll() is not None or listens(answers), what=log.read_text)
        if process.poll() is not None:
            raise peers.Unavailable(log.read_text().strip())
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()


def listens(where: str | int) -> bool:
    """Tell whether somebody listens on a path or a port."""
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_INET
    with socket.socket(family) as sock:
        return sock.connect_ex(where if isinstance(where, str) else ("127.0.0.1", where)) == 0


def _nginx(place: Path, name: str, http: str, access: str, answers: str | int) -> AbstractContextManager[int]:
    binary, env = program("nginx")
    user = "root" if os.geteuid() == 0 else "nobody"
    config = place / f"{name}.conf"
    config.write_text(_NGINX.format(place=place, name=name, http=http, access=access, user=user))
    return running([binary, "-c", config, "-e", place / f"{name}.err"], env, place / f"{name}.log", answers)


def plain_engine(place: Path) -> AbstractContextManager[int]:
    """Run an engine on `place/plain.sock` that answers at once what nginx can hold in its hand."""
    path = f"{place}/plain.sock"
    server = f"server {{ listen unix:{path}; location / {{ default_type application/json; return 200 '{_ANSWER}'; }} }}"
    return _nginx(place, "plain", server, "off", path)


def streaming_engine(place: Path) -> AbstractContextManager[int]:
    """Run an engine on `place/stream.sock` that streams."""
    path = f"{place}/stream.sock"
    command: list[str | Path] = [sys.executable, Path(__file__).with_name("gateway_engine.py"), path]
    return running(command, dict(os.environ), place / "stream.log", path)


@contextlib.contextmanager
def nginx(place: Path, engine: str) -> Iterator[Proxy]:
    """Run nginx before an engine's socket."""
    port = free_port()
    with _nginx(
        place, "nginx", _PASSING.format(engine=f"unix:{engine}", port=port), f"{place}/access.log", port
    ) as pid:
        # It listens before it has forked its worker.
        until(lambda: bool(list(tree.descendants(pid))), what="nginx's worker runs")
        yield Proxy("nginx", port, next(each.pid for each in tree.descendants(pid)))


@contextlib.contextmanager
def haproxy(place: Path, engine: str) -> Iterator[Proxy]:
    """Run HAProxy before an engine's socket."""
    port = free_port()
    binary, env = program("haproxy")
    config = place / "haproxy.cfg"
    config.write_text(_HAPROXY.format(engine=f"unix@{engine}", port=port))
    with running([binary, "-db", "-f", config], env, place / "haproxy.log", port) as pid:
        yield Proxy("HAProxy", port, pid)


@contextlib.contextmanager
def relay_alone(place: Path, engine: str) -> Iterator[Proxy]:
    """Run the gateway's relay, with a service that does nothing else."""
    port = free_port()
    command: list[str | Path] = [
        sys.executable,
        Path(__file__).with_name("gateway_relay.py"),
        str(port),
        f"unix:{engine}",
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "tests")}
    with running(command, env, place / "relay.log", port) as pid:
        yield Proxy("relay alone", port, pid)
