"""What we call damaged, the engine refuses as well: we never keep a file from it that it would load."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

import llama_server
from engine_process import real_binary
from gguf_models import Model, write
from modelsupd.weights import gguf

pytestmark = pytest.mark.real

SEED = 20261121
FLIPS, CUTS = 80, 10


def test_bad_is_what_the_engine_refuses(tmp_path: Path) -> None:
    real_binary()
    tool = llama_server.fit_params()
    if tool is None:
        pytest.skip("there is no llama-fit-params beside the llama-server on PATH")

    def loads(path: Path) -> bool:
        command = [str(tool), "-m", str(path), "-c", "256", "-fitp", "on"]
        # Else an engine that gives up calls a debugger to print where.
        return not subprocess.run(command, env={"GGML_NO_BACKTRACE": "1"}, capture_output=True, check=False).returncode

    draw = random.Random(SEED)  # noqa: S311 - any numbers, the same each time
    path = write(tmp_path / "m.gguf", Model(layers=1))
    assert loads(path)
    whole = path.read_bytes()
    tensors = whole.index(b"token_embd.weight") - 8
    places = [
        draw.choice([draw.randrange(200), draw.randrange(tensors, gguf.read(path).data_offset)]) for _ in range(FLIPS)
    ]
    damaged = [whole[:at] + bytes([whole[at] ^ 1 << draw.randrange(8)]) + whole[at + 1 :] for at in places]
    damaged += [whole[: draw.randrange(len(whole))] for _ in range(CUTS)]
    bad = []
    for content in damaged:
        path.write_bytes(content)
        if gguf.check_file(path).kind == "bad":
            bad.append(content)
            assert not loads(path)
    assert len(bad) > FLIPS // 4
