"""What can go wrong with the fake engine, and the state that its threads share. See fake_engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any


class Faults:
    """What goes wrong, and the few things that tests want to set besides. The defaults are a healthy engine."""

    load_s = 0.0  # how long loading takes
    load_mode = "503"  # what it looks like: "503" as of llama-server, "refuse" (bound, not listening) as of vLLM
    load_silent = False  # do not log how far it is
    say = ""  # a line logged at the start
    hang = ""  # never answer: "completions" (only those), "loop" (/metrics too, as of llama.cpp), "all" (/health too)
    burn = False  # use all of a CPU, hung or not
    zero_tokens = False  # answer 200 with no text and no tokens
    busy = 0  # answer completions with this status, such as 429
    delay_s = 0.0  # pause before an answer
    token_s = 0.0  # pause before each token: a slow drip
    stream_fault = ""  # "error" (an SSE error object, then [DONE]), "cut", "freeze" or "null-finish", all in mid-stream
    exit_code = 0  # with what to exit, by one of the following
    exit_after_s = -1.0  # on its own, this long after the start
    exit_after_requests = -1  # when so many completions have been answered; 0: before it even listens
    exit_after_chunks = -1  # in the middle of a stream
    exit_signal = 0  # die by this signal in place of exiting
    term = "wait"  # SIGTERM: "wait" for clients to go as llama-server, "abort" them as vLLM, "finish" them, "ignore" it
    term_loading = "die"  # SIGTERM while loading: "die" of it, or "swallow" it as vLLM
    orphan = ""  # leave a child behind: "session" (same session), "setsid" (forked twice, a session of its own)
    orphan_ignores_term = False
    sleep_s = 0.0  # how long it takes to fall asleep, and to wake up
    sleep_fails = False
    flood_bytes = 0  # write so much to the log as fast as it goes; -1: for ever
    flood_line_bytes = 100
    flood_byte = "x"

    def set(self, name: str, value: object) -> None:
        """Set one by its name; a text is turned into what the default is."""
        default = getattr(Faults, name, None)
        if default is None or name.startswith("_") or callable(default):
            raise ValueError(f"no such fault: {name!r}")
        if isinstance(default, bool):
            setattr(self, name, value in (True, "true", "1", ""))
        else:
            setattr(self, name, type(default)(value))

    def all(self) -> dict[str, Any]:
        """Return every one by its name."""
        names = [name for name in vars(Faults) if not name.startswith("_") and not callable(getattr(Faults, name))]
        return {name: getattr(self, name) for name in names}


class Engine:
    """The state that all connections share."""

    def __init__(self) -> None:
        self.faults = Faults()
        self.model = "fake"
        self.vllm = False
        self.ready = False
        self.started_at = time.monotonic()
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("prompt", "predicted", "decode", "answered", "aborted", "terms"), 0)
        self.in_flight = 0
        self.ended = threading.Event()
        self.sleeps: int | None = None  # the level at which it sleeps
        self.orders: list[str] = []  # what it was told about sleeping, in order
        self.on_sleep: Callable[[bool], None] = lambda _asleep: None

    def count(self, **by: int) -> None:
        """Add to counters."""
        with self.lock:
            for name, more in by.items():
                self.counts[name] += more

    def log(self, text: str, level: str = "I") -> None:
        """Log one line the way llama-server does, or vLLM."""
        if self.vllm:
            kind = {"I": "INFO", "E": "ERROR"}[level]
            os.write(1, f"(EngineCore pid={os.getpid()}) {kind} 11-25 17:00:00 [core.py:133] {text}\n".encode())
            return
        since = time.monotonic() - self.started_at
        stamp = f"{int(since) // 60}.{int(since) % 60:02d}.{int(since * 1e3) % 1000:03d}.{int(since * 1e6) % 1000:03d}"
        os.write(2, f"{stamp} {level} srv  fake_engine: {text}\n".encode())

    def end(self) -> None:
        """Exit as the faults say, now."""
        if self.faults.exit_signal:
            os.kill(os.getpid(), self.faults.exit_signal)
            time.sleep(10)
        os._exit(self.faults.exit_code)

    def hang(self) -> None:
        """Stay here for as long as the hang lasts that this request ran into."""
        while self.faults.hang:
            time.sleep(0.02)


# Faults that do not wait for a request


def start_faults(engine: Engine) -> None:
    """Start what runs beside the requests, each once; what is switched off ends by itself."""
    faults = engine.faults
    for name, wanted, run in (
        ("burn", faults.burn, burn),
        ("flood", faults.flood_bytes != 0, flood),
        ("exit", faults.exit_after_s >= 0, exit_later),
        ("orphan", bool(faults.orphan), leave_orphan),
    ):
        running = any(thread.name == name for thread in threading.enumerate())
        if wanted and not running:
            threading.Thread(target=run, args=(engine,), name=name, daemon=True).start()


def burn(engine: Engine) -> None:
    """Use all the CPU there is for one thread."""
    while engine.faults.burn:
        pass


def flood(engine: Engine) -> None:
    """Write to the log as fast as it is read."""
    faults = engine.faults
    line = faults.flood_byte.encode("latin-1") * (faults.flood_line_bytes - 1) + b"\n"
    block = line * max(1, 65536 // len(line))
    while faults.flood_bytes:
        left = faults.flood_bytes if faults.flood_bytes > 0 else len(block)
        written = os.write(1, block[:left])
        if faults.flood_bytes > 0:
            faults.flood_bytes -= written


def exit_later(engine: Engine) -> None:
    """Exit without having been asked to."""
    time.sleep(engine.faults.exit_after_s)
    engine.end()


def leave_orphan(engine: Engine) -> None:
    """Leave a process behind that does nothing, holds the log's pipe, and may shrug SIGTERM off."""
    faults = engine.faults
    how, faults.orphan = faults.orphan, ""
    child = os.fork()
    if child == 0:
        if how == "setsid":
            os.setsid()
            if os.fork():
                os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if faults.orphan_ignores_term else signal.SIG_DFL)
        engine.log(f"orphan {os.getpid()}")
        os.execvp("sleep", ["sleep", "1000"])  # noqa: S606 - an own child with constant words
    if how == "setsid":
        os.waitpid(child, 0)
