"""How unkind a world is: every rate is drawn from the seed, many are zero.

Fixed rates never reach the corners: with one crash an hour nothing ever fails for good, with one a second nothing ever
gets ready.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from modelsupd.core.spec import HealthLimits, RestartPolicy, StopLimits

#: Small limits, so that a few minutes hold everything; each is unlike the others.
HEALTH = HealthLimits(
    probe_interval_s=2,
    probe_timeout_s=3,
    hang_after_s=10,
    busy_limit_s=30,
    prove_every_s=15,
    start_interval_s=0.5,
    start_stall_s=20,
    start_limit_s=120,
)
STOP = StopLimits(
    drain_timeout_s=6, term_timeout_s=4, load_term_timeout_s=1, kill_timeout_s=3, beside_load_timeout_s=15
)
RESTART = RestartPolicy(
    healthy_after_s=8, backoff_max_s=16, max_crashes=4, window_s=120, cool_down_s=20, cool_down_max_s=80
)

#: By when a shim ends its engine if no daemon followed up a stop.
BACKSTOP_S = STOP.term_timeout_s + STOP.kill_timeout_s + 5


@dataclass(frozen=True)
class Rates:
    """Shares (0 to 1) of what goes wrong, mean pauses in seconds, and the size of the world."""

    models: int
    chaos_pause_s: float
    # of a process
    crash_in_load: float
    crash_after_s: float | None
    exits_badly: float
    out_of_memory: float
    address_taken: float
    stalls: float
    zero_tokens: float
    hang_after_s: float | None
    polite_hang: float
    prefill_every_s: float | None
    busy: float
    flaky: float
    ignores_term: float
    withstands_kill: float
    leaves_descendants: float
    # of what the daemon asks for
    fetches: float
    spawn_fails: float
    effect_raises: float
    slow_sync: float
    # weights of what is done to the daemon
    operator: float
    twice: float
    reload: float
    inputs: float
    disk: float
    kill: float
    term: float
    lag: float
    power: float
    clients: float


def draw(rng: random.Random) -> Rates:
    """Return the rates of one world."""

    def share(most: float = 1.0) -> float:
        return 0.0 if rng.random() < 0.5 else most * float(10 ** rng.uniform(-2, 0))

    def pause(least_s: float, most_s: float) -> float | None:
        return None if rng.random() < 0.4 else float(rng.uniform(least_s, most_s))

    def weight() -> float:
        return 0.0 if rng.random() < 0.4 else rng.random()

    return Rates(
        models=rng.randint(1, 3),
        chaos_pause_s=float(10 ** rng.uniform(-0.5, 1.9)),
        crash_in_load=share(),
        crash_after_s=pause(1, 60),
        exits_badly=rng.uniform(0, 0.3),
        out_of_memory=rng.uniform(0, 0.3),
        address_taken=rng.uniform(0, 0.5),
        stalls=share(0.5),
        zero_tokens=share(0.5),
        hang_after_s=pause(5, 100),
        polite_hang=rng.random(),
        prefill_every_s=pause(10, 60),
        busy=share(0.5),
        flaky=share(0.5),
        ignores_term=share(),
        withstands_kill=share(0.5),
        leaves_descendants=share(),
        fetches=share(),
        spawn_fails=share(0.5),
        effect_raises=share(0.05),
        slow_sync=share(0.5),
        operator=1.0,
        twice=rng.random(),
        reload=weight(),
        inputs=weight() / 2,
        disk=weight() / 2,
        kill=weight(),
        term=weight() / 2,
        lag=weight() / 2,
        power=weight() / 4,
        clients=weight(),
    )


def kind() -> Rates:
    """Return a world in which nothing goes wrong any more."""
    none = dict.fromkeys(Rates.__dataclass_fields__, 0.0)
    quiet = {"models": 0, "crash_after_s": None, "hang_after_s": None, "prefill_every_s": None}
    return Rates(**(none | quiet))  # type: ignore[arg-type]  # every field by its name
