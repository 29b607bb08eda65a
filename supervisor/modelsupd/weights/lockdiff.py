"""What differs between two locks, for people who decide whether they want it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelsupd.weights.base import Pin, Pinned, size_words
from modelsupd.weights.lock import Lock, key_of

_SHORT = 12  # digits by which people tell commits apart


@dataclass(frozen=True, slots=True)
class Change:
    """One source that two locks do not agree about; `old` or `new` is None where only one of them has it."""

    old: Pinned | None
    new: Pinned | None

    @property
    def fetched_bytes(self) -> int:
        """Return how many bytes the new one has that the old one has not."""
        known = _by_path(self.old)
        new = self.new.files if self.new else ()
        return sum(pin.size_bytes for pin in new if pin.path not in known or not _is_same(known[pin.path], pin))

    def __str__(self) -> str:
        """Return it in lines: the source, and below it each file that is new, gone or changed."""
        if self.old is None or self.new is None:
            pinned = self.new or self.old
            assert pinned is not None  # noqa: S101 - one of the two is there
            count = "1 file" if len(pinned.files) == 1 else f"{len(pinned.files)} files"
            size = size_words(sum(pin.size_bytes for pin in pinned.files))
            at = f" at {pinned.commit[:_SHORT]}" if pinned.commit and self.new else ""
            return f"{'+' if self.new else '-'} {pinned.source}: {count}, {size}{at}"
        commits = [(pinned.commit or "none")[:_SHORT] for pinned in (self.old, self.new)]
        moved = f"commit {commits[0]} -> {commits[1]}" if commits[0] != commits[1] else "other files"
        return "\n".join([f"~ {self.new.source}: {moved}", *_files(_by_path(self.old), _by_path(self.new))])


def diff(old: Lock, new: Lock) -> tuple[Change, ...]:
    """Return what changes from one lock to the other, by source. A file without a sha256 is compared by its blob."""
    before = {key_of(entry): entry for entry in old.entries}
    after = {key_of(entry): entry for entry in new.entries}
    found = [Change(before.get(key), after.get(key)) for key in sorted(before.keys() | after.keys())]
    return tuple(change for change in found if _differs(change))


def words(old: Lock, new: Lock) -> tuple[str, ...]:
    """Return what changes from one lock to the other, in a line for each source."""
    return tuple("models.lock: " + str(change).partition("\n")[0] for change in diff(old, new))


def _differs(change: Change) -> bool:
    if change.old is None or change.new is None:
        return True
    before, after = _by_path(change.old), _by_path(change.new)
    same = before.keys() == after.keys() and all(_is_same(before[path], after[path]) for path in before)
    return change.old.commit != change.new.commit or not same


def _by_path(pinned: Pinned | None) -> Mapping[str, Pin]:
    return {pin.path: pin for pin in pinned.files} if pinned else {}


def _is_same(one: Pin, other: Pin) -> bool:
    if one.sha256 and other.sha256:
        return one.sha256 == other.sha256
    return one.size_bytes == other.size_bytes and one.blob == other.blob


def _files(before: Mapping[str, Pin], after: Mapping[str, Pin]) -> list[str]:
    lines = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old is None and new is not None:
            lines.append(f"    + {path}: {size_words(new.size_bytes)}")
        elif new is None and old is not None:
            lines.append(f"    - {path}: {size_words(old.size_bytes)}")
        elif old is not None and new is not None and not _is_same(old, new):
            sizes = [size_words(pin.size_bytes) for pin in (old, new)]
            how = f"{sizes[0]} -> {sizes[1]}" if old.size_bytes != new.size_bytes else f"{sizes[0]}, other content"
            lines.append(f"    ~ {path}: {how}")
    return lines
