"""The seeds that once failed, of `seeds.txt`."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def kept_seeds() -> dict[int, dict[str, bool]]:
    """Return the seeds that once failed, and what there is in their world; each line of the file tells why."""
    lines = Path(__file__).with_name("seeds.txt").read_text(encoding="utf-8").splitlines()
    told = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return {int(words[0]): {"gpus": "gpus:" in words[1:3], "demand": "demand:" in words[1:3]} for words in sorted(told)}
