"""Fuzz the gateway's readers of HTTP with atheris: no bytes crash them, and no bytes smuggle a request or an answer.

`make fuzz` runs each target for FUZZ_SECONDS=60; see formats.py on what is kept. The same properties, on inputs made by
rules, are part of every test run (tests/gateway/test_gw_heads.py).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["modelsupd.gateway"]):
    from http_oracle import check_answer, check_requests

KEPT = Path(__file__).parent.parent / ".fuzz"
MEMORY_MIB = 600
SECONDS_EACH = 10

_CUT_BYTES = 3
"""An input's first bytes say where the rest is cut, and how an answer was asked for."""

_HOST = b"Host: h\r\n"
_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
_LENGTH = b"Content-Length: 3\r\n\r\nabc"


def look_at_requests(data: bytes) -> None:
    """Read what a client sends."""
    check_requests(data[_CUT_BYTES:], list(data[:_CUT_BYTES]))


def look_at_answers(data: bytes) -> None:
    """Read what an engine sends."""
    check_answer(data[_CUT_BYTES:], list(data[:_CUT_BYTES]), "HEAD" if data[:1] == b"\0" else "POST")


TARGETS: dict[str, Callable[[bytes], None]] = {"requests": look_at_requests, "answers": look_at_answers}


def seeds(target: str) -> Iterable[bytes]:
    """Return inputs to begin with."""
    if target == "requests":
        yield b"abcGET / HTTP/1.1\r\n" + _HOST + b"\r\nGET http://h/x?y HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        yield b"abcPOST / HTTP/1.1\r\n" + _HOST + _LENGTH + b"\r\nPOST / HTTP/1.1\r\n" + _HOST + _CHUNKS
        yield b"abcPOST / HTTP/1.1\r\nExpect: 100-continue\r\nConnection: upgrade\r\nUpgrade: h2c\r\n" + _HOST + _LENGTH
    else:
        yield b"abcHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + _CHUNKS
        yield b"abcHTTP/1.1 200 OK\r\n" + _LENGTH
        yield b"abcHTTP/1.0 200 OK\r\n\r\nto the end"


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    corpus = KEPT / target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(target):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={MEMORY_MIB}"]
    words = ["-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={KEPT}/{target}-"]
    atheris.Setup([sys.argv[0], *limits, *words, str(corpus)], TARGETS[target])
    atheris.Fuzz()


def main() -> None:
    """Fuzz what is named; without a name each target in a process of its own, one after another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", nargs="?", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="how long for each target (default 60)")
    asked = parser.parse_args()
    if asked.target:
        fuzz(asked.target, asked.seconds)
    for target in TARGETS:
        print(f"{target}: {asked.seconds} s", flush=True)
        command = [sys.executable, __file__, target, "--seconds", str(asked.seconds)]
        if subprocess.run(command, check=False).returncode:
            sys.exit(f"{target} failed; the input lies in {KEPT}")


if __name__ == "__main__":
    main()
