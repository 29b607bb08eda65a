"""`python -m sim --seeds N`: play thousands of seeds, with progress, and say what they reached."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sim.checks import unreached
from sim.play import Outcome, play_many
from sim.seeds import kept_seeds


def main() -> int:
    """Play; return 1 if a seed failed or something was never reached."""
    parser = argparse.ArgumentParser(prog="sim", description="Play seeds of the simulator.")
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--first", type=int, default=1000, help="the first one (default 1000)")
    parser.add_argument("--kept", action="store_true", help="the kept seeds instead")
    parser.add_argument("--story", action="store_true", help="print each story, failed or not")
    options = parser.parse_args()
    seeds = list(kept_seeds()) if options.kept else list(range(options.first, options.first + options.seeds))
    began_at, shown_at, played = time.monotonic(), time.monotonic(), 0

    def progress(outcome: Outcome) -> None:
        nonlocal played, shown_at
        played += 1
        if outcome.broken or options.story:
            sys.stdout.write(f"{outcome}\n")
        if time.monotonic() - shown_at > 5 or played == len(seeds):
            shown_at = time.monotonic()
            rate = played / (shown_at - began_at)
            sys.stdout.write(f"{played} of {len(seeds)} seeds, {rate:.1f} a second, now at {outcome.seed}\n")
            sys.stdout.flush()

    coverage, failed = play_many(seeds, progress)
    sys.stdout.write(f"{coverage}\n")
    for outcome in failed:
        sys.stdout.write(f"seed {outcome.seed} failed: {outcome.broken[0]}\n")
    gaps = unreached(coverage) if len(seeds) >= 50 else []
    if gaps:
        sys.stdout.write(f"never reached: {', '.join(gaps)}\n")
    return 1 if failed or gaps else 0


if __name__ == "__main__":
    sys.exit(main())
