"""The mutants that may survive, with the reason for each: `survivors.txt`, read and compared with what survived."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("survivors.txt")

#: What a line of a reason begins with.
_REASON = "##"


@dataclass(frozen=True)
class Compared:
    """Survivors without a reason; entries whose mutant was killed; entries that name no mutant there is."""

    unjustified: tuple[str, ...]
    killed: tuple[str, ...]
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        """Tell whether anything is wrong."""
        return bool(self.unjustified or self.killed or self.unknown)

    def __str__(self) -> str:
        """Say what is wrong, and what to do about it."""
        return "\n".join(
            f"{words}\n" + "\n".join(f"  {name}" for name in names)
            for words, names in (
                (
                    "survived, and survivors.txt has no reason why they may; add a test, or the reason:",
                    self.unjustified,
                ),
                ("in survivors.txt, and killed; take them out:", self.killed),
                (
                    "in survivors.txt, and there is no such mutant; take them out or name what became of them:",
                    self.unknown,
                ),
            )
            if names
        )


def read(text: str) -> dict[str, str]:
    """Return name → reason. A reason stands above its mutants, in lines that begin with `##`.

    Raises ValueError for a mutant without a reason and for one that is named twice.
    """
    justified: dict[str, str] = {}
    reason: list[str] = []
    fresh = False
    for number, line in _lines(text):
        if line.startswith(_REASON):
            reason = [*reason, line[2:].strip()] if fresh else [line[2:].strip()]
            fresh = True
            continue
        fresh = False
        if not reason:
            raise ValueError(f"line {number} names a mutant before any reason: {line}")
        if line in justified:
            raise ValueError(f"line {number} names a mutant for the second time: {line}")
        justified[line] = " ".join(reason)
    return justified


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if line and (line.startswith(_REASON) or not line.startswith("#")):
            yield number, line


def compare(
    justified: Collection[str], known: Collection[str], judged: Collection[str], survived: Collection[str]
) -> Compared:
    """Compare the file with the mutants that there are, those that were judged, and those that survived."""
    kept, there, seen = set(justified), set(known), set(judged)
    return Compared(
        tuple(name for name in survived if name not in kept),
        tuple(name for name in justified if name in seen and name not in set(survived)),
        tuple(name for name in justified if name not in there),
    )
