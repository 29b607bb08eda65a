"""A verification whose process dies in between: what was not looked at to its end is not taken for verified."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hosts import settled, small_gguf
from modelsupd.weights.base import Pin
from modelsupd.weights.checking import Candidate, Checker, differs
from modelsupd.weights.verdicts import Verdicts

pytestmark = pytest.mark.real  # it starts and kills many processes

_VERIFY = """
import sys, threading
from pathlib import Path
from modelsupd.weights.base import Pin
from modelsupd.weights.checking import Candidate, Checker
from modelsupd.weights.verdicts import Verdicts
state, path, size, sha256 = sys.argv[1:]
checker = Checker(Verdicts(Path(state)), lambda _: None, lambda *_: None, threading.Event())
checker.check([Candidate(Pin(Path(path).name, int(size), sha256), Path(path))])
"""


@pytest.mark.parametrize("call", ["openat", "write", "rename"])
@pytest.mark.parametrize("spoiled", [False, True])
def test_at_whatever_call_it_dies_the_next_one_tells_the_truth(place: Path, call: str, spoiled: bool) -> None:
    """The n-th call of its kind, for each n that there is after the interpreter's own start."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace to kill at a system call")
    content = small_gguf(size_bytes=65536)
    pin = Pin("w.gguf", len(content), hashlib.sha256(content).hexdigest())
    told = bytearray(content)
    told[-1] ^= spoiled
    ended = 0
    for number in (*range(1, 6), *range(20, 400, 20)):
        folder = place / str(number)
        folder.mkdir()
        path = settled(folder / "w.gguf", bytes(told))
        argv = [sys.executable, "-c", _VERIFY, str(folder / "state"), str(path), str(len(content)), pin.sha256 or ""]
        inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}"]
        process = subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", *inject, *argv], capture_output=True, check=False, timeout=60
        )
        if b"ptrace" in process.stderr:
            pytest.skip("needs the right to trace our own processes")
        assert process.returncode in (0, -signal.SIGKILL), process.stderr
        ended += process.returncode == 0
        checker = Checker(Verdicts(folder / "state"), lambda _: None, lambda *_: None, threading.Event())
        verdict = checker.check([Candidate(pin, path)])[0]
        assert (differs(pin, verdict) is not None) is spoiled, number
        if ended > 1:
            break
