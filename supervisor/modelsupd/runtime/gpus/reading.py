"""What a look at the GPUs tells, as it goes from the process that reads it to the daemon. One line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

NVIDIA, AMD = "nvidia", "amd"

#: Compute modes: one process alone may use the GPU, or none.
EXCLUSIVE, PROHIBITED = "exclusive", "prohibited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One GPU, or one MIG device of it (`parent` is then the GPU's UUID), as its driver tells. Sizes in bytes.

    `processes` are pid and memory in use, None where that is not told; the whole is None where not even the pids are.
    `mode` is the compute mode where it is not the usual one.
    `lost` where the driver says that it cannot be reached any more. `xids` are errors since the last look, by NVIDIA's
    numbers; `ecc_errors` uncorrected ones since the driver was loaded. `notes` are states that keep nothing from
    running: hot, a memory row to be remapped.
    """

    uuid: str
    index: int
    name: str
    vendor: str = NVIDIA
    parent: str | None = None
    total_bytes: int = 0
    used_bytes: int = 0
    processes: tuple[tuple[int, int | None], ...] | None = None
    lost: bool = False
    mode: str = ""
    xids: tuple[int, ...] = ()
    ecc_errors: int | None = None
    temperature_c: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """All GPUs at one moment; `notes` are what kept a vendor's from being read, in words.

    `unread` are those vendors: of their GPUs nothing is told, which does not say that they are gone. `divided` are the
    GPUs in MIG mode, by UUID, also those without a device.
    """

    gpus: tuple[Seen, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    divided: tuple[str, ...] = ()


def written(reading: Reading) -> bytes:
    """Return a reading as a line."""
    return json.dumps({"v": 1, **asdict(reading)}).encode() + b"\n"


def read(line: bytes) -> Reading:
    """Return what a line says; raises ValueError for what is none."""
    try:
        told = json.loads(line)
        words = (tuple(told[name]) for name in ("notes", "unread", "divided"))
        return Reading(tuple(_seen(gpu) for gpu in told["gpus"]), *words)
    except (KeyError, TypeError) as error:
        raise ValueError(f"no reading of GPUs: {error!r}") from error


def _seen(told: dict[str, Any]) -> Seen:
    processes: Iterable[Any] | None = told["processes"]
    more = {name: tuple(told[name]) for name in ("xids", "notes")}
    pairs = None if processes is None else tuple((int(pid), size) for pid, size in processes)
    return Seen(**{**told, **more, "processes": pairs})
