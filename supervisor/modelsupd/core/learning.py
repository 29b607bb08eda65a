"""What a start has shown, for the next one of the same: how long it takes, how long it stands still, what it uses.

A rule: only of the same is anything learned. Another declaration, other weights or another program start afresh.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelsupd.core.spec import HealthLimits


@dataclass(frozen=True, slots=True)
class Learned:
    """What was seen of the last start that ended ready, of this launch digest and these inputs.

    `start_s` is from the process to the first token, `still_s` the longest time in it without any progress, None where
    not all of it was seen; `bytes` is the most that it was seen to use of one of its GPUs, None where that is not told.
    """

    digest: str
    inputs: str
    start_s: float
    still_s: float | None
    bytes: int | None = None

    def of(self, digest: str, inputs: str) -> bool:
        """Tell whether this holds for a start of that digest from those inputs."""
        return (self.digest, self.inputs) == (digest, inputs)


def stall_after_s(limits: HealthLimits, learned: Learned | None) -> float:
    """Return after how long without progress a start has stalled: never more than declared, less if that is known."""
    if learned is None or learned.still_s is None or limits.start_stall_factor == 0:
        return limits.start_stall_s
    return min(limits.start_stall_s, max(limits.start_stall_least_s, limits.start_stall_factor * learned.still_s))
