"""The main job on a fresh machine: a real llama.cpp, a tiny model made on the spot, supervised and shown to generate.

Everything lies in `.demo/` of the checkout, or in `MODELSUPD_DEMO_DIR`. The daemon stays in the foreground until
Ctrl-C; `--once` stops it after the completion has been shown.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from llama_server import BuildError, provide
from modelsupd.control.client import Client, NoDaemon, Unanswered
from tiny_gguf import write

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(os.environ.get("MODELSUPD_DEMO_DIR") or ROOT / ".demo")
READY_TIMEOUT_S = 120.0
PROMPT = "Tell me about supervision."

#: What of a socket's path comes after the runtime directory; a path has room for 107 bytes.
SOCKET_TAIL = "/runs/0123456789ab-1234567890/engine.sock"
SOCKET_PATH_BYTES = 107

say = Console(stderr=True, highlight=False)


def runtime_dir() -> Path:
    """Return a place for sockets with a path that is short enough."""
    place = DEMO / "runtime"
    if len(str(place)) + len(SOCKET_TAIL) <= SOCKET_PATH_BYTES:
        return place
    short = hashlib.sha256(str(DEMO).encode()).hexdigest()[:8]
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    return Path(base) / f"modelsupd-{os.getuid()}-{short}"


def free_port(wanted: int) -> int:
    """Return `wanted` if it is free on loopback, else a port that is."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("cannot find a free port on loopback")


def configure(binary: Path) -> Path:
    """Write the demo's models.toml and return its path."""
    DEMO.mkdir(parents=True, exist_ok=True)
    model = DEMO / "tiny.gguf"
    if not model.exists():
        write(model)
    config = DEMO / "models.toml"
    config.write_text(
        f"""\
# Written by `make run`. The commented example of everything is ../models.toml.
[daemon]
state_dir = {json.dumps(str(DEMO / "state"))}
runtime_dir = {json.dumps(str(runtime_dir()))}
metrics_listen = "127.0.0.1:{free_port(9310)}"

[engines."llama.cpp"]
binary = {json.dumps(str(binary))}

[models.tiny]
engine = "llama.cpp"
weights = "tiny.gguf"

[models.tiny.args]
ctx_size = 512
"""
    )
    return config


def wait_until_ready(daemon: subprocess.Popen[bytes]) -> str:
    """Return the endpoint of the replica once it is ready."""
    give_up_at = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if daemon.poll() is not None:
            raise SystemExit(daemon.returncode or 1)
        try:
            replica = Client(runtime_dir()).status()["models"][0]["replicas"][0]
        except (NoDaemon, Unanswered, IndexError):
            replica = {"phase": "not there yet", "reason": ""}
        if replica["phase"] == "ready":
            return str(replica["endpoint"])
        if replica["phase"] == "failed":
            raise SystemExit(f"the model failed: {replica['reason']}")
        time.sleep(0.1)
    raise SystemExit(f"not ready within {READY_TIMEOUT_S:g} s")


class UnixConnection(http.client.HTTPConnection):
    """HTTP over the engine's unix socket."""

    def __init__(self, path: str) -> None:
        """Take the socket's path."""
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self.path)


def completion(endpoint: str) -> Iterator[str]:
    """Yield the pieces of one streamed chat completion, as they come."""
    connection = UnixConnection(endpoint.removeprefix("unix:"))
    body = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "stream": True, "max_tokens": 48}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    for line in connection.getresponse():
        text = line.decode().strip().removeprefix("data: ")
        if text.startswith("{"):
            for choice in json.loads(text).get("choices", []):
                yield choice["delta"].get("content") or ""
    connection.close()


def show(endpoint: str, config: Path) -> None:
    """Stream one completion to the screen, and say what can be done next."""
    say.print(f"\n[bold]one completion, streamed from the engine[/] (random weights, so no sense): {PROMPT}")
    pieces = 0
    for piece in completion(endpoint):
        pieces += bool(piece)
        print(piece, end="", flush=True)
    print()
    if not pieces:
        raise SystemExit("the engine streamed no token")
    command = f"{Path(sys.executable).parent / 'modelsupd'} --config {config}"
    say.print(
        f"""
[bold green]{pieces} pieces streamed.[/] The daemon goes on in the foreground. In another terminal:
  {command} status          what runs, and why
  {command} why tiny        how it came to be so
  {command} logs -f tiny    what the engine says
  {command} restart tiny    a new run
  kill -9 an engine's pid and look at `status` again: it is back
[bold]Ctrl-C[/] stops the engine and the daemon.
""",
        soft_wrap=True,
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--once", action="store_true", help="stop after the completion has been shown")
    arguments = parser.parse_args()
    try:
        config = configure(provide())
    except BuildError as error:
        raise SystemExit(str(error)) from error
    say.print(f"[bold]starting modelsupd[/] with {config}")
    daemon = subprocess.Popen([sys.executable, "-m", "modelsupd", "--config", str(config), "run"])
    # Ctrl-C reaches the daemon too, as one process group; what is left to do here is to wait for it.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: daemon.terminate())
    try:
        show(wait_until_ready(daemon), config)
        if arguments.once:
            daemon.terminate()
    except BaseException:
        daemon.terminate()
        daemon.wait()
        raise
    sys.exit(daemon.wait())


if __name__ == "__main__":
    main()
