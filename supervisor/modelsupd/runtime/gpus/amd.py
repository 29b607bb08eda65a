"""AMD's GPUs through sysfs (amdgpu): how much memory each has and uses. Which process uses it is not told there."""

from __future__ import annotations

from pathlib import Path

from modelsupd.runtime.gpus.reading import AMD, Seen

DRM = Path("/sys/class/drm")
_VENDOR = "0x1002"


def read(drm: Path, known: dict[str, Seen]) -> list[Seen]:
    """Return all that have memory of their own and a unique id; those of `known` that no longer answer are lost."""
    found: dict[str, Seen] = {}
    cards = sorted(drm.glob("card[0-9]*"), key=lambda card: (len(card.name), card.name))
    for card in cards:
        device = card / "device"
        if "-" in card.name or _text(device / "vendor") != _VENDOR:
            continue
        total, used = _text(device / "mem_info_vram_total"), _text(device / "mem_info_vram_used")
        unique = _text(device / "unique_id")
        if not (total.isdecimal() and unique):
            continue
        uuid = f"GPU-{unique}"
        name = _text(device / "product_name") or "AMD GPU"
        index = int(card.name.removeprefix("card"))
        # A card that fell off the bus keeps its directory for a while, and answers nothing or all ones.
        lost = not used.isdecimal() or int(used) > int(total)
        size = 0 if lost else int(used)
        found[uuid] = Seen(
            uuid=uuid, index=index, name=name, vendor=AMD, total_bytes=int(total), used_bytes=size, lost=lost
        )
    gone = [
        Seen(uuid=seen.uuid, index=seen.index, name=seen.name, vendor=AMD, total_bytes=seen.total_bytes, lost=True)
        for uuid, seen in known.items()
        if uuid not in found
    ]
    known |= found
    return [*found.values(), *gone]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
