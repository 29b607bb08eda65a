"""Fuzz the readers of formats with atheris: whatever a file holds, they answer or raise FormatError, soon and small.

`make fuzz` runs each target for FUZZ_SECONDS=60. What was found to reach new code is kept in `.fuzz/TARGET`, so that
the next run goes on from there; an input that fails is left in `.fuzz` and named. The same property, on inputs made by
rules, is part of every test run (tests/weights/test_formats_fuzz.py).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["modelsupd.weights"]):
    from modelsupd.weights import claim, gguf, hf_config, safetensors, structure
    from modelsupd.weights.base import FormatError

from format_files import ARRAY, STRING, array, entry, small, text, u16, u32

KEPT = Path(__file__).parent.parent / ".fuzz"
MEMORY_MIB = 600
SECONDS_EACH = 10


def look_at_gguf(path: Path) -> None:
    """Read a header and everything that is told from it."""
    gguf.check_file(path)
    structure.check_set({"m-00001-of-00001.gguf": path}, "llama.cpp")
    facts = claim.facts([gguf.read(path)])
    for layers in (None, 0, 3):
        claim.claim(facts, claim.Use(context=4096, gpu_layers=layers))


def look_at_safetensors(path: Path) -> None:
    """Do the same for safetensors."""
    safetensors.check_file(path)
    claim.claim(claim.facts_of_folder([safetensors.read(path)], {}), claim.Use())


def look_at_json(path: Path) -> None:
    """Read an index, a config, and JSON of which nothing is asked."""
    structure.check_file(path, "config.json")
    for read in (safetensors.index, hf_config.read):
        try:
            found = read(path)
        except FormatError:
            continue
        if isinstance(found, dict):
            claim.claim(claim.facts_of_folder([], found), claim.Use())


TARGETS: dict[str, Callable[[Path], None]] = {
    "gguf": look_at_gguf,
    "safetensors": look_at_safetensors,
    "json": look_at_json,
}


def seeds(target: str) -> Iterable[bytes]:
    """Return inputs to begin with."""
    if target == "gguf":
        texts = entry(b"tokens", ARRAY, array(STRING, 3, text(b"x") * 3))
        numbers = [u32(f"llama.{key}", 2) for key in ("block_count", "attention.head_count", "embedding_length")]
        yield small(u32("general.alignment", 32), texts, *numbers).encode()
        yield small(u16("split.no", 0), u16("split.count", 1), names=()).encode()
    elif target == "safetensors":
        header = b'{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        yield len(header).to_bytes(8, "little") + header + bytes(8)
    else:
        yield b'{"metadata":{"total_size":8},"weight_map":{"x":"a.safetensors"}}'
        yield b'{"architectures":["A"],"num_hidden_layers":2,"num_attention_heads":2,"hidden_size":8,"kv_lora_rank":0}'


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    look = TARGETS[target]
    corpus = KEPT / target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(target):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    memory = os.memfd_create("input")
    path = Path(f"/proc/self/fd/{memory}")

    def once(content: bytes) -> None:
        os.ftruncate(memory, 0)
        os.pwrite(memory, content, 0)
        try:
            look(path)
        except FormatError:
            return

    limits = [f"-max_total_time={seconds}", f"-timeout={SECONDS_EACH}", f"-rss_limit_mb={MEMORY_MIB}"]
    words = ["-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={KEPT}/{target}-"]
    atheris.Setup([sys.argv[0], *limits, *words, str(corpus)], once)
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
