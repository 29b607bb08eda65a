"""Our estimate against the engine's own: llama-fit-params of the same build loads without memory and counts.

It prints MiB, rounded down, of device, weights, context and compute buffers.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import llama_server
import tiny_gguf
from engine_process import real_binary
from gguf_models import Model, write
from modelsupd.weights import claim
from modelsupd.weights.claim import Use
from waiting import until

pytestmark = pytest.mark.real

MIB = 1024 * 1024
WINDOW: dict[str, int | float | list[int] | list[bool]] = {"attention.sliding_window": 512}
GEMMA3 = Model(architecture="gemma3", layers=13, numbers=WINDOW)
GEMMA2 = Model(architecture="gemma2", layers=9, tied=True, numbers=WINDOW | {"attn_logit_softcapping": 50.0})
MAMBA = Model(
    architecture="mamba",
    layers=12,
    embedding=512,
    numbers={"ssm.inner_size": 1024, "ssm.state_size": 64, "ssm.time_step_rank": 32, "ssm.conv_kernel": 4},
)
MAMBA2 = Model(
    architecture="mamba2",
    layers=12,
    embedding=256,
    numbers={
        "ssm.inner_size": 512,
        "ssm.state_size": 64,
        "ssm.time_step_rank": 8,
        "ssm.conv_kernel": 4,
        "ssm.group_count": 2,
    },
)
LFM2 = Model(architecture="lfm2", layers=6, tied=True, kv_heads=[0, 2, 0, 2, 0, 2], numbers={"shortconv.l_cache": 3})
DEEPSEEK2 = Model(
    architecture="deepseek2",
    layers=27,
    kv_heads=1,
    head_size=144,
    numbers={
        "attention.kv_lora_rank": 128,
        "rope.dimension_count": 16,
        "attention.value_length": 128,
        "attention.key_length_mla": 48,
        "attention.value_length_mla": 32,
        "leading_dense_block_count": 27,
        "expert_count": 2,
        "expert_used_count": 1,
        "expert_feed_forward_length": 32,
        "expert_shared_count": 1,
        "expert_weights_scale": 1.0,
    },
)

CASES: list[tuple[Model, Use, list[str]]] = [
    (Model(layers=5, kv_heads=3, heads=6), Use(context=30_000, parallel=1), []),
    (Model(layers=7, kv_heads=1, head_size=64), Use(context=12_345, parallel=1), []),
    (Model(layers=5, architecture="deci", kv_heads=[1, 2, 3, 2, 1], heads=6), Use(context=30_000, parallel=1), []),
    (
        Model(layers=5, head_size=64),
        Use(context=30_000, parallel=1, type_k="q8_0", type_v="q4_0"),
        ["-ctk", "q8_0", "-ctv", "q4_0"],
    ),
    (Model(layers=5), Use(context=30_000, parallel=1, type_k="f32", type_v="bf16"), ["-ctk", "f32", "-ctv", "bf16"]),
    (Model(layers=5, heads=8, kv_heads=8), Use(context=40_000, parallel=3), []),
    (Model(layers=3, tied=True, embedding=1024), Use(context=4096, parallel=1), []),
    (Model(layers=3, embedding=1024), Use(context=0, parallel=1), []),
    (GEMMA3, Use(context=30_000, parallel=1), []),
    (GEMMA3, Use(context=30_000, parallel=3), []),
    (GEMMA3, Use(context=30_000, parallel=1, swa_full=True), ["--swa-full"]),
    (GEMMA3, Use(context=30_000, parallel=1, ubatch=2048), ["-ub", "2048"]),
    (GEMMA2, Use(context=30_000, parallel=1), []),
    (DEEPSEEK2, Use(context=30_000, parallel=1), []),
    (MAMBA, Use(context=30_000, parallel=5), []),
    (MAMBA2, Use(context=30_000, parallel=5), []),
    (LFM2, Use(context=30_000, parallel=5), []),
]


@pytest.mark.parametrize(("model", "use", "flags"), CASES)
def test_we_say_what_the_engine_s_own_tool_says(model: Model, use: Use, flags: list[str], tmp_path: Path) -> None:
    real_binary()
    tool = llama_server.fit_params()
    if tool is None:
        pytest.skip("there is no llama-fit-params beside the llama-server on PATH")
    path = write(tmp_path / "m.gguf", model)
    fixed = ["-m", str(path), "-c", str(use.context), "-np", str(use.parallel), "-fitp", "on"]
    said = subprocess.run([tool, *fixed, *flags], capture_output=True, text=True, check=True, timeout=60).stdout
    counts = re.search(r"^Host (\d+) (\d+) (\d+)", said, re.MULTILINE)
    assert counts, said
    facts = claim.describe({"m.gguf": path})
    assert facts is not None
    found = claim.claim(facts, use)
    assert found.words == ""
    assert found.kv_bytes is not None
    assert found.weights_bytes is not None
    assert found.kv_bytes // MIB == int(counts[2])
    assert abs(found.weights_bytes // MIB - int(counts[1])) <= 1  # the engine aligns each tensor


@pytest.mark.parametrize(("flags", "use"), [([], Use(context=9000)), (["-np", "3"], Use(context=9000, parallel=3))])
def test_llama_server_says_the_same_of_its_slots(flags: list[str], use: Use, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    tiny_gguf.write(path)
    facts = claim.describe({"tiny.gguf": path})
    assert facts is not None
    command = [real_binary(), "-m", path, "-c", str(use.context), *flags, "--host", tmp_path / "e.sock", "-v"]
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen([*map(str, command), "--no-warmup", "--offline"], stdout=log, stderr=log)
        try:
            said = wait_for(process, tmp_path / "log", r"llama_kv_cache: size = +([0-9.]+) MiB")
        finally:
            process.kill()
            process.wait()
    assert f"{(claim.claim(facts, use).kv_bytes or 0) / MIB:.2f}" == said


def wait_for(process: subprocess.Popen[bytes], log: Path, pattern: str) -> str:
    """Return what the pattern's group matches, once the log has it."""

    def found() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()[-2000:]
        return re.search(pattern, log.read_text())

    until(lambda: found() is not None)
    match = found()
    assert match is not None
    return match[1]
