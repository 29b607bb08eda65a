"""Reading the header of a GGUF file with a large vocabulary, against gguf's own reader, in turn.

The vocabulary is that of a large model: 150 000 tokens with score and type, 280 000 merges. Memory is what a fresh
interpreter takes on top of its imports, at the most.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf as peer
import numpy as np

import child
import measure
from modelsupd.weights import gguf

TOKENS, MERGES = 150_000, 280_000
RUNS = 320
#: The peer takes some ten seconds for each.
PEER_RUNS = 3

_MEMORY = """
import json, re, sys, tracemalloc
def peak():  # the peak of getrusage is the parent's when it was larger
    return int(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1]) * 1024
{imports}
before = peak()
{read}
taken = peak() - before
tracemalloc.start()
{read}
print(json.dumps([taken, tracemalloc.get_traced_memory()[1]]))
"""
_WAYS = {
    "ours": ("from pathlib import Path\nfrom modelsupd.weights import gguf", "gguf.read(Path(sys.argv[1]))"),
    "gguf.GGUFReader": ("import gguf", "gguf.GGUFReader(sys.argv[1])"),
}


def write(path: Path) -> None:
    """Write the file: the vocabulary and one tensor."""
    writer = peer.GGUFWriter(path, "llama")
    writer.add_token_list([f"tok{number}é" for number in range(TOKENS)])
    writer.add_token_scores([0.5] * TOKENS)
    writer.add_token_types([1] * TOKENS)
    writer.add_token_merges([f"ab{number} cd{number}" for number in range(MERGES)])
    writer.add_tensor("output.weight", np.zeros((64, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def memory(path: Path, imports: str, read: str) -> tuple[int, int]:
    """Return the bytes that a fresh interpreter takes to read it: of the kernel, and of Python's own counting."""
    script = _MEMORY.format(imports=imports, read=read)
    said = subprocess.run([sys.executable, "-c", script, path], stdout=subprocess.PIPE, check=True).stdout
    resident, traced = json.loads(said)
    return resident, traced


def main(runs: int = 0) -> None:
    """Measure and print."""
    measure.heading(f"gguf_header: {TOKENS} tokens, {MERGES} merges")
    with child.place() as place:
        path = place / "large.gguf"
        write(path)
        rows: dict[str, list[float]] = {name: [] for name in _WAYS}
        for turn in range(runs or RUNS):
            if turn < PEER_RUNS:
                rows["gguf.GGUFReader"].append(measure.timed(lambda: peer.GGUFReader(path)))
            rows["ours"].append(measure.timed(lambda: gguf.read(path)))
        measure.compare({**rows}, "ours")
        print(f"  ours is {measure.median(rows['gguf.GGUFReader']) / measure.median(rows['ours']):.0f} times faster")
        for name, (imports, read) in _WAYS.items():
            resident, traced = memory(path, imports, read)
            print(f"  {name:28} memory {resident / 1e6:8.1f} MB   by tracemalloc {traced / 1e6:8.1f} MB")
