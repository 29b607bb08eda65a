"""Which GPUs are given to nobody, and why. Kept in the state directory: it outlives the daemon, and a reboot.

Two rules:

1. What is known only by its evidence (memory that is not back, a process that cannot be killed) ends with the evidence,
   and with the boot that it is of. What a person or the hardware said ends when a person says so.
2. The weaker never takes the place of the stronger: a GPU that is broken stays so when memory on it is late as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog

from modelsupd.runtime.identity import boot_id

log = structlog.get_logger("gpus")

FILE = "gpus.json"


class Kind(StrEnum):
    """What put a GPU into quarantine, the weakest first."""

    MEMORY = "memory"
    STUCK = "stuck"
    LOST = "lost"
    HARDWARE = "hardware"
    OPERATOR = "operator"


_STRENGTH = {kind: strength for strength, kind in enumerate(Kind)}

#: Of these the evidence is processes and memory of one boot.
_BY_EVIDENCE = (Kind.MEMORY, Kind.STUCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One GPU in quarantine: since when (RFC 3339), by what, why in words, and which processes are to blame.

    `boot` is the boot of which these processes are, where that is known.
    """

    kind: Kind
    why: str
    since: str
    pids: tuple[int, ...] = ()
    bytes: int = 0
    boot: str = ""


class Quarantine:
    """The GPUs in quarantine, by UUID; `changes` is what is yet to be told of them, in words."""

    def __init__(self, state_dir: Path) -> None:
        """Read what was left; a file that cannot be read is told of and begun anew."""
        self._path = state_dir / FILE
        self._entries: dict[str, Entry] = {}
        self.unsaved = self._refused = False
        self.changes: deque[str] = deque()
        self._saving = asyncio.Lock()
        self._boot = boot_id()
        try:
            told = json.loads(self._path.read_bytes())["quarantined"]
            self._entries = {
                uuid: Entry(**{**entry, "kind": Kind(entry["kind"]), "pids": tuple(entry["pids"])})
                for uuid, entry in told.items()
            }
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("cannot read which GPUs are in quarantine", file=str(self._path), why=repr(error))
        for uuid, entry in list(self._entries.items()):
            if entry.kind in _BY_EVIDENCE and entry.boot not in ("", self._boot):
                # Its processes are no more, and who has their pids by now is not to blame.
                self.release(uuid, "the machine was restarted")

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return what is in quarantine."""
        return self._entries

    def put(self, uuid: str, entry: Entry) -> None:
        """Put a GPU into quarantine; what is stronger stays, and what a person said is told of what is seen since."""
        entry = replace(entry, boot=self._boot)
        known = self._entries.get(uuid)
        if known is not None:
            if known.kind is Kind.OPERATOR and entry.kind in (Kind.LOST, Kind.HARDWARE):
                if entry.why in known.why:
                    return
                entry = replace(known, why=f"{known.why}; {entry.why}")
            elif _STRENGTH[entry.kind] < _STRENGTH[known.kind] or (known.kind, known.why) == (entry.kind, entry.why):
                return
        self._entries[uuid] = entry
        self.unsaved = True
        self.changes.append(f"GPU {uuid} in quarantine: {entry.why}")
        log.error("GPU in quarantine", gpu=uuid, why=entry.why)

    def release(self, uuid: str, words: str) -> bool:
        """Let a GPU be used again; return whether it was in quarantine."""
        if self._entries.pop(uuid, None) is None:
            return False
        self.unsaved = True
        self.changes.append(f"GPU {uuid} out of quarantine: {words}")
        log.info("GPU out of quarantine", gpu=uuid, why=words)
        return True

    async def save(self) -> None:
        """Write down what has changed since it was last written; what a full disk refuses is tried again next time."""
        async with self._saving:
            if self.unsaved:
                told = {uuid: asdict(entry) for uuid, entry in sorted(self._entries.items())}
                self.unsaved = False
                self.unsaved = not await asyncio.to_thread(self._write, told) or self.unsaved

    def _write(self, told: Mapping[str, Any]) -> bool:
        new = self._path.with_suffix(".tmp")
        try:
            with new.open("w") as file:
                json.dump({"v": 1, "quarantined": told}, file)
                file.flush()
                os.fsync(file.fileno())
            new.rename(self._path)
        except OSError as error:
            if not self._refused:
                log.warning("cannot write down which GPUs are in quarantine; tried again", why=error.strerror)
            self._refused = True
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            return False
        self._refused = False
        return True
