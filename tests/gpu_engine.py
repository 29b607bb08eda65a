"""The fake engine, on GPUs of the fake library: takes its memory of each GPU that it sees before it loads.

`gpu_engine.py FOLDER BYTES [BYTES WHILE ASLEEP] ...`, then the fake engine's own command line. Where a GPU
has not so much left, it dies as real ones do; with `--cuda-says WORDS` it says those words and dies.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import fake_engine


def taken(folder: Path, uuid: str) -> int:
    """Return what living processes have of a GPU."""
    pairs = [(path, path.name.partition(".")) for path in (folder / "alloc").iterdir()]
    living = [path for path, (pid, _, of) in pairs if of == uuid and Path(f"/proc/{pid}").exists()]
    return sum(int(path.read_text() or 0) for path in living)


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
