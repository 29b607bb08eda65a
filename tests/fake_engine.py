"""An engine for tests: speaks the OpenAI API, counts tokens, and fails on demand in every way that real ones do.

Only the standard library, and of that only what starts fast: it is up in a few dozen milliseconds. It takes
llama-server's own command line too (`install` puts it where a test wants its `llama-server`), tells its counters under
llama-server's names, and the contract test holds it against the real one. `install_vllm` puts it where a test wants an
interpreter that has vLLM, and then it behaves as that does. What differs is the faults: each is a field
of `Faults`, given as a flag (`token_s` → `--token-s 3`) or changed at run time by `POST /fake {"hang": "loop"}`;
`GET /fake` tells settings, counters and environment.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fake_answers import Connection
from fake_faults import Engine, start_faults

#: Of the help of `vllm serve`, what tests need, as it is printed.
VLLM_HELP = """usage: vllm serve [model_tag] [options]

options:
  --config CONFIG       Read CLI options from a config file.
  --disable-uvicorn-access-log, --no-disable-uvicorn-access-log
                        Disable uvicorn access log. (default: False)
  --dtype {auto,bfloat16,float,float16,float32,half}
  --enable-sleep-mode, --no-enable-sleep-mode
  --enforce-eager, --no-enforce-eager
  --gpu-memory-utilization GPU_MEMORY_UTILIZATION, --device-memory-utilization GPU_MEMORY_UTILIZATION
  --headless            Run in headless mode.
  --kv-cache-memory-bytes KV_CACHE_MEMORY_BYTES
  --max-model-len MAX_MODEL_LEN
  --served-model-name SERVED_MODEL_NAME [SERVED_MODEL_NAME ...]
  --tensor-parallel-size TENSOR_PARALLEL_SIZE, -tp TENSOR_PARALLEL_SIZE
  --uds UDS             Unix domain socket path.
"""


#: Flags without a value that change nothing here.
BARE = frozenset(
    "metrics no-ui offline embedding disable-uvicorn-access-log enforce-eager enable-sleep-mode".split()  # noqa: SIM905 - as above
)


def options(engine: Engine, words: list[str]) -> tuple[str, int]:
    """Read the command line; return the address as path or host, and the port."""
    address, port = "127.0.0.1", 8080
    if words[:2] == ["-m", "vllm.entrypoints.cli.main"]:
        as_vllm(engine, words)
    ignored = {
        "model",
        "max-model-len",
        "dtype",
        "gpu-memory-utilization",
        "kv-cache-memory-bytes",
        "tensor-parallel-size",
        "log-colors",
        "ctx-size",
        "gpu-layers",
        "fit",
        "threads",
        "parallel",
        "cache-ram",
    }
    while words:
        word = words.pop(0)
        name = word.removeprefix("--")
        fault = name.replace("-", "_")
        if name in ("host", "uds"):
            address = words.pop(0)
        elif name == "port":
            port = int(words.pop(0))
        elif name in ("alias", "served-model-name"):
            engine.model = words.pop(0)
        elif name in ignored:
            words.pop(0)
        elif isinstance(getattr(engine.faults, fault, None), bool):
            engine.faults.set(fault, "true")
        elif fault in engine.faults.all():
            engine.faults.set(fault, words.pop(0))
        elif name not in BARE:
            vllm = f"usage: vllm serve [model_tag] [options]\nmain.py serve: error: unrecognized arguments: {word}\n"
            os.write(2, vllm.encode() if engine.vllm else f"error: invalid argument: {word}\n".encode())
            os._exit(2 if engine.vllm else 1)
    return address, port


def as_vllm(engine: Engine, words: list[str]) -> None:
    """Take vLLM's command line, and its ways: nobody is answered while it loads, and SIGTERM is swallowed then."""
    del words[:2]
    if "--help=all" in words:
        # As argparse prints it; every fault is a flag too.
        faults = "\n".join(f"  --{name.replace('_', '-')} {name.upper()}" for name in engine.faults.all())
        os.write(1, f"{VLLM_HELP}{faults}\n".encode())
        os._exit(0)
    del words[:2]  # serve, and the model
    engine.vllm = True
    engine.faults.load_mode, engine.faults.term, engine.faults.term_loading = "refuse", "abort", "swallow"


def bind(engine: Engine, address: str, port: int) -> socket.socket:
    """Return the bound socket; like the real ones, a stale socket file is an address in use."""
    to_path = "/" in address
    listener = socket.socket(socket.AF_UNIX if to_path else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address if to_path else (address, port))
    except OSError:
        if engine.vllm:
            os.write(2, b"OSError: [Errno 98] Address already in use\n")
        engine.log(f"couldn't bind HTTP server socket, hostname: {address}, port: {port}", "E")
        engine.log("exiting due to HTTP server error", "E")
        os._exit(1)
    return listener


def accept(engine: Engine, listener: socket.socket) -> None:
    """Serve each connection in a thread of its own."""
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=Connection(engine, sock).serve, daemon=True).start()


def load(engine: Engine) -> None:
    """Take the time that loading takes, and log it."""
    engine.log("Starting to load model tiny..." if engine.vllm else "load_model: loading model")
    begun = time.monotonic()
    while (left_s := begun + engine.faults.load_s - time.monotonic()) > 0:
        time.sleep(min(0.1, left_s))
        # It may be told meanwhile to be done at once.
        if not engine.faults.load_silent and (whole_s := engine.faults.load_s) > 0:
            percent = f"{100 * min(1, (time.monotonic() - begun) / whole_s):.0f}"
            shards = f"Loading safetensors checkpoint shards: {percent}% Completed"
            engine.log(shards if engine.vllm else f"load_tensors: {percent} %")


def on_term(engine: Engine) -> None:
    """Do what this engine does on SIGTERM; called in the main thread, between two waits."""
    engine.count(terms=1)
    how = engine.faults.term if engine.ready else {"swallow": "ignore", "die": "abort"}[engine.faults.term_loading]
    if how == "abort" or (how != "ignore" and engine.ended.is_set()):
        os._exit(1 if engine.ended.is_set() else 0)
    if how != "ignore":
        engine.ended.set()


def main(on_sleep: Callable[[bool], None] | None = None) -> None:
    """Start, load, serve, and end when told to; `on_sleep` hears when it falls asleep and when it wakes."""
    engine = Engine()
    engine.on_sleep = on_sleep or engine.on_sleep
    address, port = options(engine, sys.argv[1:])
    faults = engine.faults
    if faults.term_loading != "die":
        signal.signal(signal.SIGTERM, lambda *_: on_term(engine))
    if faults.say:
        os.write(2, faults.say.encode() + b"\n")
    start_faults(engine)
    if faults.exit_after_requests == 0:
        engine.end()
    listener = bind(engine, address, port)
    if faults.load_mode == "refuse":
        load(engine)
    listener.listen(512)
    threading.Thread(target=accept, args=(engine, listener), daemon=True).start()
    if faults.load_mode != "refuse":
        load(engine)
    signal.signal(signal.SIGTERM, lambda *_: on_term(engine))
    signal.signal(signal.SIGINT, lambda *_: on_term(engine))
    engine.ready = True
    engine.log("Application startup complete." if engine.vllm else "model loaded")
    engine.log(f"listening on {'unix://' if '/' in address else 'http://'}{address}")
    engine.ended.wait()
    listener.close()
    while engine.in_flight:
        time.sleep(0.01)
    os._exit(0)


def install(folder: Path, name: str = "llama-server") -> Path:
    """Put a program of that name into `folder` that is this engine, for tests; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    here = str(Path(__file__).parent)
    lines = (f"#!{sys.executable} -IS", "import sys", f"sys.path.insert(0, {here!r})", "import fake_engine")
    program.write_text("\n".join((*lines, "fake_engine.main()", "")))
    program.chmod(0o755)
    return program


def install_vllm(folder: Path, on_gpus: tuple[Path, int, int] | None = None) -> Path:
    """Put a `python` into `folder` that has vLLM, as far as anybody looks, and is this engine when it is run.

    `on_gpus`: the folder of the fake library, and what it takes of each GPU, awake and asleep.
    """
    for name in ("vllm", "torch", "transformers", "uvicorn", "fastapi", "zmq"):
        (folder / "site" / name).mkdir(parents=True)
        (folder / "site" / name / "__init__.py").write_text("raise SystemExit('it is only looked for')\n")
    program = install(folder, "python")
    lines = program.read_text().splitlines()
    site = str(folder / "site")
    asked = f"if sys.argv[1] == '-c': import os; os.execve({sys.executable!r}, sys.argv, {{'PYTHONPATH': {site!r}}})"
    if on_gpus is not None:
        taken = [str(each) for each in on_gpus]
        lines[-2:] = ["import gpu_engine", f"sys.argv[1:1] = {taken!r}", "gpu_engine.main()"]
    program.write_text("\n".join((*lines[:2], asked, *lines[2:], "")))
    return program


if __name__ == "__main__":
    main()
