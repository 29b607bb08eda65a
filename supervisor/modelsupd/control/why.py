"""Why a replica is as it is, in plain sentences, from its journal records. Pure: the words depend on nothing else.

What is told: the state and since when; the story that led there, with its evidence; what happens next.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelsupd.control.words import Timeline, ago, clock, count, duration, either, parsed, signal_name, size

Record = Mapping[str, Any]

#: How many records of the present and the last run are told.
STORY_LENGTH = 15

_IS = {
    "stopped": "has been stopped",
    "resolving": "has been about to start (its weights and its program are being looked at)",
    "waiting": "has been waiting for GPUs or for its turn",
    "spawning": "has been about to start (its process is being made)",
    "starting": "has been starting",
    "ready": "has been ready",
    "draining": "has been draining (requests in flight may finish)",
    "stopping": "has been told to end (SIGTERM)",
    "killing": "has been told to end (SIGKILL)",
    "clearing": "has been clearing away what its last run left",
    "backoff": "has been waiting for its next start",
    "failed": "has been failed",
}
_IS_ASLEEP = {
    "falling": "has been falling asleep",
    "asleep": "has been asleep",
    "waking": "has been asleep, and wakes up",
}
_TOLD_ELSEWHERE = frozenset({"Resolved", "Rechecked"})
_DELIBERATE = {
    "operator": "stays stopped",
    "restart": "a new run is started",
    "replaced": "a new run is started as now declared",
    "removed": "it is forgotten, because the configuration no longer has it",
    "shutdown": "it stays as it is until the next daemon, which starts it if it is wanted",
    "evicted": "it starts again when a client asks for it",
    "sleep": "it starts again when a client asks for it",
    "stray": "it starts as declared, if it is wanted",
}


@dataclass(slots=True)
class Story:
    """The last records of a replica, and the failures that came before them, oldest first."""

    records: deque[Record] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH + 1))
    earlier: list[tuple[str, str]] = field(default_factory=list)


def story(records: Iterable[Record], name: str) -> Story:
    """Return what all records of the journal have to tell of a replica's present run and the one before."""
    told = Story()
    failures: list[tuple[int, str, str]] = []
    last: Record = {}
    for record in records:
        if record.get("kind") not in ("start", "note", "gap") and record.get("replica") != name:
            continue
        if record.get("kind") == "replica":
            kind = _failure_of(record, last)
            if kind:
                failures.append((record["seq"], str(record["wall"]), kind))
            if not _tells(record, last):
                last = record
                continue
            last = record
        told.records.append(record)
    runs = [record["run"] for record in told.records if record.get("kind") == "replica"]
    since_run = (runs[-1] if runs else 0) - 1
    while told.records and (told.records[0].get("run", since_run - 1) < since_run or len(told.records) > STORY_LENGTH):
        told.records.popleft()
    first_seq = told.records[0]["seq"] if told.records else None
    told.earlier = [(wall, kind) for seq, wall, kind in failures if first_seq is None or seq < first_seq]
    return told


def explain(
    name: str, state: Record, told: Story, timeline: Timeline, *, running: bool, row: Record | None = None
) -> str:
    """Return the explanation of a replica.

    `state` is its durable state, `row` what a running daemon's status has of it, if it has any; without `running` the
    state is what the last daemon left.
    """
    row = row or {}
    lines = []
    if not running:
        lines += ["No daemon is running: this is what the journal last told, and processes named here may be gone.", ""]
    lines += [_headline(name, state, told, timeline), *_state_lines(state, row.get("reason"))]
    if told.records or told.earlier:
        lines += ["", "What led there:"]
        lines += [f"  {line}" for line in _story_lines(told)]
    following_words = following(name, state, timeline, running=running, idle=bool(row.get("idle")))
    lines += ["", f"What happens next: {following_words}"]
    return "\n".join(lines)


def _headline(name: str, state: Record, told: Story, timeline: Timeline) -> str:
    phase = state["phase"]
    entered = next(
        (r for r in told.records if (r.get("state") or {}).get("phase", {}).get("since") == phase["since"]), {}
    )
    since = parsed(entered.get("wall")) or timeline.wall(phase["since"])
    words = _IS_ASLEEP[phase["state"]] if phase["name"] == "asleep" else _IS[phase["name"]]
    return f"{name} {words} since {clock(since)} ({ago(since, timeline.now)})."


def _state_lines(state: Record, reason: str | None) -> Iterator[str]:
    phase = state["phase"]
    process = phase.get("process")
    if process:
        yield f"  run {process['run']}, pid {process['pid']} under shim {process['shim_pid']}, at {process['endpoint']}"
    elif state["last_run"]:
        yield f"  last run {state['last_run']}"
    hold = state.get("hold")
    if hold:
        yield f"  on {either(hold['gpus'])}, where it may take {either([size(each) for each in hold['bytes']])}"
    said = reason if reason is not None else state["reason"]
    if said:
        yield f"  {said}"
    if state["restarts"]:
        yield f"  {count(state['restarts'], 'restart')} after failures so far"
    if state["removed"]:
        yield "  no longer in the configuration"
    elif state["want"] == "up":
        yield "  wanted up"
    else:
        yield "  wanted down, after a reboot too"


def following(name: str, state: Record, timeline: Timeline, *, running: bool, idle: bool = False) -> str:
    """Return what happens next to a replica in this state, in one sentence or two."""
    if running:
        return _next(name, state, timeline, idle=idle)
    if state["removed"]:
        return "nothing, the configuration no longer has it."
    if state["want"] == "down":
        return f"nothing, until a daemon runs and 'modelsupd start {name}' asks for it."
    if state["phase"].get("process"):
        return (
            "nothing, until 'modelsupd run': that daemon adopts the process if it still runs, else it starts it anew."
        )
    if state["phase"]["name"] == "failed":
        return f"nothing, until 'modelsupd run'; then: {_after_failure(name, state['phase'], timeline)}"
    return "nothing, until 'modelsupd run': that daemon starts it."


def _next(name: str, state: Record, timeline: Timeline, *, idle: bool) -> str:  # noqa: C901, PLR0911, PLR0912 - one sentence a phase
    phase = state["phase"]
    match phase["name"]:
        case "stopped" if idle:
            return f"nothing, until a client asks for it or 'modelsupd start {name}'."
        case "stopped" if state["want"] == "up" and not state["removed"]:
            return "the daemon is going; the next one starts it."
        case "stopped":
            return f"nothing, until 'modelsupd start {name}'."
        case "waiting":
            return (
                f"run {phase['run']} is started as soon as it fits. Models that start on demand give way in turn: see "
                f"'modelsupd plan --want {name}'. What else runs is not moved to make room: stop something, or let it "
                "claim less ([models.NAME.placement]); see 'modelsupd gpu list'."
            )
        case "resolving" | "spawning":
            return f"run {phase['run']} is started as soon as that is done."
        case "starting":
            return (
                "it is ready with the first token that it generates. A start may take as long as it makes progress; "
                "one that stalls is ended and tried again."
            )
        case "ready":
            return "nothing is due. It is probed all the time; if it hangs or dies, it is replaced."
        case "asleep":
            return _of_sleeper(name, phase["state"], idle=idle)
        case "draining" if phase["cause"] == "sleep":
            due = _due(phase["until"], timeline)
            return f"it is told to sleep when no request is in flight any more, or {due} at the latest."
        case "backoff":
            return f"the next start is due {_due(phase['until'], timeline)}."
        case "failed":
            return _after_failure(name, phase, timeline)
        case "clearing":
            left = phase.get("stuck")
            waits = f"processes {either([str(pid) for pid in left])} withstand SIGKILL; " if left else ""
            return f"{waits}when nothing of the run is left, {_after(state, phase['cause'])}."
        case _:
            return f"{_ending(phase, timeline)}; then {_after(state, phase['cause'])}."


def _of_sleeper(name: str, state: str, *, idle: bool) -> str:
    if state == "falling":
        return "it sleeps when its engine says so; one that cannot is stopped."
    if state == "waking":
        return "it proves that it generates when it is awake; one that cannot wake is started anew."
    if idle:
        return f"nothing, until a client asks for it or 'modelsupd start {name}'; then it wakes up."
    return (
        "it wakes up when its turn has come and its GPUs have room for it. Models that start on demand give way in "
        f"turn: see 'modelsupd plan --want {name}'."
    )


def _ending(phase: Record, timeline: Timeline) -> str:
    due = _due(phase["until"], timeline)
    if phase["name"] == "draining":
        return f"SIGTERM when no request is in flight any more, or {due} at the latest"
    if phase["name"] == "stopping":
        return f"SIGKILL {due}, unless it has ended by then"
    return f"it is called stuck and killed again {due}, unless it has ended by then"


def _after(state: Record, cause: Any) -> str:  # noqa: ANN401 - a reason's word or a fault, as recorded
    if state["want"] == "down":
        return "it stays stopped"
    if cause in ("evicted", "sleep") and state.get("demanded_by"):
        return "it waits for its next turn, for it is asked for again"
    if isinstance(cause, str):
        return _DELIBERATE.get(cause, f"it is settled what follows ({cause})")
    return "it is started again, at once or after a pause, as its history and the kind of failure say"


def _after_failure(name: str, phase: Record, timeline: Timeline) -> str:
    if phase["retry_at"] is not None:
        return (
            f"one more try is due {_due(phase['retry_at'], timeline)}; a change of its weights or its program, "
            f"or 'modelsupd start {name}', makes it one now."
        )
    return (
        "nothing, until its weights, its program or its configuration change, which is looked at all the time, "
        f"or 'modelsupd start {name}' asks for another try."
    )


def _due(at: float, timeline: Timeline) -> str:
    moment = timeline.wall(at)
    left_s = (moment - timeline.now).total_seconds()
    return f"in {duration(left_s)} ({clock(moment)})" if left_s > 0 else "now"


# The story


def _tells(record: Record, last: Record) -> bool:
    """Tell whether a record says something that the one before did not."""
    if (
        record["event"].get("type") in _TOLD_ELSEWHERE
        and not record["event"].get("evidence")
        and (record["state"] or {}).get("phase", {}).get("name") != "failed"
    ):
        return False
    if record["event"].get("type") == "Exited":
        return True
    return (record["why"], _phase_of(record)) != (last.get("why"), _phase_of(last))


def _phase_of(record: Record) -> str:
    state = record.get("state")
    return str(state["phase"]["name"]) if state else "gone" if record.get("kind") == "replica" else "daemon"


def _failure_of(record: Record, last: Record) -> str:
    """Return the class of the failure that a record tells of, '' if it tells of none."""
    state, before = record.get("state") or {}, last.get("state") or {}
    phase, phase_before = state.get("phase", {}), before.get("phase", {})
    gave_up = phase.get("name") == "failed" and phase_before.get("name") != "failed"
    if not gave_up and not (before and state.get("restarts", 0) > before["restarts"]):
        return ""
    if phase_before.get("name") == "failed":
        return ""  # one more try after a cool-down counts as a restart; its failure was told before
    cause = phase_before.get("cause")
    failure = phase.get("failure") or (cause or {}).get("failure") if not isinstance(cause, str) else None
    failure = failure or record["event"].get("failure") or {}
    return str(failure.get("kind", "internal"))


def _story_lines(told: Story) -> Iterator[str]:
    if told.earlier:
        kinds = Counter(kind for _, kind in told.earlier)
        each = either([f"{kind} {number}" for kind, number in kinds.most_common()])
        first = parsed(told.earlier[0][0])
        since = f" since {clock(first)}" if first else ""
        yield f"{count(len(told.earlier), 'failure')} before that{since}: {each}"
    for record in told.records:
        moment = parsed(record.get("wall"))
        stamp = clock(moment) if moment else "at an unknown time"
        yield f"{stamp}  {_phase_of(record):<9}  {sentence(record)}"


def sentence(record: Record) -> str:
    """Return what a record tells, in words: its reason, and for an exit how the process ended."""
    if record.get("kind") == "gap":
        return f"records before number {record['gap']['seq']} are lost since a repair of the journal"
    why = str(record.get("why") or "")
    event: Record = record.get("event") or {}
    kind = event.get("type")
    if kind == "Exited":
        plain, ended = _plain_exit(event["exit"]), exit_words(event["exit"])
        prefix = f"run {event['run']} ended"
        if why.startswith(prefix):
            return why.replace(plain, ended, 1)
        said = why.replace(f"crash: {plain}", "a crash", 1)
        return f"{prefix}: {ended}; {said}" if said else f"{prefix}: {ended}"
    return why or str(kind or record.get("kind"))


def exit_words(exited: Record) -> str:
    """Return how a process ended: `exit code 1`, `killed by signal 9 (SIGKILL), peak memory 1.2 GiB`."""
    number = exited.get("signal")
    words = _plain_exit(exited) if number is None else f"killed by {signal_name(number)}"
    peak = exited.get("peak_rss_bytes")
    return f"{words}, peak memory {size(peak)}" if peak else words


def _plain_exit(exited: Record) -> str:
    if exited.get("signal") is not None:
        return f"killed by signal {exited['signal']}"
    return "exit status unknown" if exited.get("code") is None else f"exit code {exited['code']}"


def names_of(states: Mapping[str, Record], target: str, aliases: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the replicas that `MODEL`, an alias or `MODEL/N` means among recorded states; [] if none."""
    models = {model for model, others in aliases.items() if target in others} | {target}
    named = [name for name, state in states.items() if state["model"] in models]
    return sorted(named) or [name for name in states if name == target]
