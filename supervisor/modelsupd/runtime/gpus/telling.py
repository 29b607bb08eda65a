"""What people and dashboards are told of a GPU."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from modelsupd.core.phases import Replica
from modelsupd.errors import Refused
from modelsupd.runtime.gpus.inventory import Look
from modelsupd.runtime.gpus.ledger import Account
from modelsupd.runtime.gpus.quarantine import Entry


def row(account: Account, replicas: Mapping[str, Replica], entry: Entry | None, trouble: str) -> dict[str, Any]:
    """Return a GPU's entry in the status document; `trouble` is why nothing may be placed there, "" where it may."""
    seen = account.seen
    claimed = {
        name: max(size, account.used.get(name, 0))
        for name, replica in replicas.items()
        if replica.hold is not None
        for uuid, size in zip(replica.hold.gpus, replica.hold.bytes, strict=True)
        if uuid == seen.uuid
    }
    state = "lost" if seen.lost else "quarantined" if entry else "unknown" if trouble else "ok"
    return {
        "uuid": seen.uuid,
        "index": seen.index,
        "name": seen.name,
        "total_bytes": seen.total_bytes,
        "used_bytes": seen.used_bytes,
        "claimed_bytes": sum(claimed.values()),
        "foreign_bytes": account.foreign_bytes,
        "state": state,
        "reason": "; ".join(text for text in (entry.why if entry else trouble, *seen.notes) if text),
        "pids": list(entry.pids) if entry else [],
        "replicas": sorted(claimed),
        "temperature_c": seen.temperature_c,
        "ecc_errors": seen.ecc_errors,
    }


def processes(pids: Collection[int]) -> str:
    """Return processes in words: `process 5`, `processes 5, 6`."""
    words = ", ".join(map(str, pids))
    return f"process {words}" if len(pids) == 1 else f"processes {words}"


def meant(verb: str, target: str, known: Mapping[str, int], last: Look) -> str:
    """Return the UUID of what is named by UUID, by its beginning, or by index; `known` are the indices. Or Refused."""
    found = [uuid for uuid, index in known.items() if uuid == target or str(index) == target]
    found = found or [uuid for uuid in known if len(target) > len("GPU-") and uuid.startswith(target)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{index} ({uuid})" for uuid, index in known.items()) or "none"
    trouble = "; ".join(text for text in (last.trouble, *last.notes) if text)
    which = "several GPUs are" if found else "there is no GPU"
    raise Refused(
        f"cannot {verb} '{target}': {which} '{target}'; known are {listed}{f' ({trouble})' if trouble else ''}"
    )
