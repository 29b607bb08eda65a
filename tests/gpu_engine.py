"""The fake engine, on GPUs of the fake library: takes its memory of each GPU that it sees before it loads.

`gpu_engine.py FOLDER BYTES [BYTES WHILE ASLEEP] ...`, then the fake engine's own command line. Where a GPU
has not so much left, it dies as real ones do; with `--cuda-says WORDS` it says those words and dies.
`take_as_vllm` is the same for a fake vLLM.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path

import fake_engine


def taken(folder: Path, uuid: str) -> int:
    """Return what living processes have of a GPU."""
    pairs = [(path, path.name.partition(".")) for path in (folder / "alloc").iterdir()]
    living = [path for path, (pid, _, of) in pairs if of == uuid and Path(f"/proc/{pid}").exists()]
    return sum(int(path.read_text() or 0) for path in living)


def take_as_vllm(folder: Path, words: list[str]) -> None:
    """Take what vLLM would of each GPU that it sees: a share, or 1 GiB of weights and a cache."""
    given = dict(itertools.pairwise(words))
    totals = {line.split()[0]: int(line.split()[1]) for line in (folder / "gpus").read_text().splitlines()}
    seen = list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
    if len(seen) != int(given.get("--tensor-parallel-size", "1")):
        os.write(2, b"RuntimeError: it is spread over another number of GPUs than it sees\n")
        os._exit(1)
    for uuid in seen:
        share = int(float(given.get("--gpu-memory-utilization", "0.92")) * totals[uuid])
        cache = given.get("--kv-cache-memory-bytes")
        size = share if cache is None else (1 << 30) + int(cache)
        if taken(folder, uuid) + size > totals[uuid]:
            os.write(2, b"ValueError: Free memory on device cuda:0 (x) on startup is less than desired GPU memory\n")
            os._exit(1)
        (folder / "alloc" / f"{os.getpid()}.{uuid}").write_text(str(size))


def main() -> None:
    """Take memory, then be the fake engine."""
    folder, size, asleep = Path(sys.argv[1]), int(sys.argv[2]), 0
    words = sys.argv[3:]
    if words[0].isdigit():
        asleep = int(words.pop(0))
    if "--cuda-says" in words:
        at = words.index("--cuda-says")
        os.write(2, words[at + 1].encode() + b"\n")
        os._exit(1)
    totals = {line.split()[0]: int(line.split()[1]) for line in (folder / "gpus").read_text().splitlines()}
    for uuid in filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")):
        if taken(folder, uuid) + size > totals.get(uuid, 1 << 62):
            os.write(2, b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate more than there is.\n")
            os._exit(1)
        (folder / "alloc" / f"{os.getpid()}.{uuid}").write_text(str(size))
    mine = [path for path in (folder / "alloc").iterdir() if path.name.startswith(f"{os.getpid()}.")]

    def on_sleep(sleeps: bool) -> None:
        for path in mine:
            path.write_text(str(asleep if sleeps else size))

    sys.argv[1:] = words
    fake_engine.main(on_sleep)


if __name__ == "__main__":
    main()
