"""What each run has delivered, counted on the loop: for the daemon evidence of life, or of its absence, and of use."""

from __future__ import annotations

from collections.abc import Callable, Collection

from modelsupd.gateway import wire


class RunTraffic:
    """The counters of one run. Instants are on the loop's clock, which is CLOCK_MONOTONIC."""

    __slots__ = (
        "_ledger",
        "busy_since",
        "bytes",
        "errors",
        "events",
        "in_flight",
        "last_delivery_at",
        "requests",
        "run",
    )

    def __init__(self, run: str, ledger: Ledger) -> None:
        """Begin with nothing for the run of this key."""
        self.run = run
        self._ledger = ledger
        self.in_flight = 0
        self.requests = 0
        self.bytes = 0
        self.events = 0
        self.errors = 0
        self.last_delivery_at: float | None = None
        self.busy_since = 0.0

    def begin(self, now: float) -> None:
        """Count a request that is sent to it."""
        if self.in_flight == 0:
            self.busy_since = now
        self.in_flight += 1
        self.requests += 1

    def delivered(self, now: float, count_bytes: int, events: int = 0) -> None:
        """Count a piece of an answer's body, and the events that ended within it."""
        self.last_delivery_at = now
        self.bytes += count_bytes
        self.events += events

    def end(self) -> None:
        """Count a request as over, whatever came of it."""
        self.in_flight -= 1
        if self.in_flight == 0:
            on_idle = self._ledger.on_idle
            if on_idle is not None:
                on_idle()

    def failed(self) -> None:
        """Count a failure of which evidence is sent."""
        self.errors += 1

    def told(self) -> wire.Traffic:
        """Return it as the daemon is told."""
        return wire.Traffic(
            run=self.run,
            in_flight=self.in_flight,
            requests=self.requests,
            bytes=self.bytes,
            events=self.events,
            errors=self.errors,
            last_delivery_at=self.last_delivery_at,
            quiet_since=max(self.busy_since, self.last_delivery_at or 0.0) if self.in_flight else None,
        )


class Ledger:
    """The counters of all runs that there were since this gateway began."""

    def __init__(self) -> None:
        """Begin with none."""
        self.on_idle: Callable[[], object] | None = None
        """Called when a run has nothing in flight any more, if that is of interest."""
        self._runs: dict[str, RunTraffic] = {}
        self._told: dict[str, wire.Traffic] = {}

    def of(self, run: str) -> RunTraffic:
        """Return the counters of a run, by its key."""
        found = self._runs.get(run)
        if found is None:
            found = self._runs[run] = RunTraffic(run, self)
        return found

    def aside(self, run: str) -> RunTraffic:
        """Return counters of which nothing is told, for what is no use of a model: an operator's look at its engine."""
        return RunTraffic(run, self)

    def forget_all_but(self, runs: Collection[str]) -> None:
        """Drop the runs that are gone, once nothing of theirs is in flight, and that was told."""
        for key in [key for key, traffic in self._runs.items() if key not in runs and not traffic.in_flight]:
            told = self._told.get(key)
            if told is None or not told.in_flight:
                del self._runs[key]
                self._told.pop(key, None)

    def all(self) -> tuple[wire.Traffic, ...]:
        """Return all of it. From any thread."""
        return tuple(traffic.told() for traffic in list(self._runs.values()))

    def changed(self) -> tuple[wire.Traffic, ...]:
        """Return the runs of which something has changed since this was last asked."""
        found = []
        for key, traffic in self._runs.items():
            now = traffic.told()
            if now != self._told.get(key):
                self._told[key] = now
                found.append(now)
        return tuple(found)

    @property
    def in_flight(self) -> int:
        """Return how many requests are with engines."""
        return sum(traffic.in_flight for traffic in self._runs.values())
