"""`modelsupd run`: puts the parts together, recovers, serves, and goes as it is asked to.

Three ways to go: SIGTERM or SIGINT drains and stops every engine (again: skip the drain; a third time: kill; a fourth
time: kill without waiting for the disk);
SIGUSR1 leaves, engines untouched, for the next daemon to adopt; a crash does the same unasked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
import uvloop

from modelsupd import __version__, narrator
from modelsupd.adoption import start_record, take_over
from modelsupd.config import Config
from modelsupd.config.standing import not_emptied, until_restart
from modelsupd.control.port import LaunchPlan
from modelsupd.control.server import serve as serve_control
from modelsupd.core.events import Event, RestartAsked, StartAsked, StopAsked
from modelsupd.core.fleet import Declared, fresh, plan, targets
from modelsupd.core.phases import Replica
from modelsupd.core.recovery import Boot
from modelsupd.core.spec import ModelSpec, gpu_count
from modelsupd.departure import end_all, kill_unrecorded
from modelsupd.errors import ModelsupdError, Refused
from modelsupd.followers import Followers
from modelsupd.gatekeeper import Gatekeeper, is_gateway
from modelsupd.metrics import Metrics
from modelsupd.metrics import serve as serve_metrics
from modelsupd.on_demand import OnDemand
from modelsupd.rounds import EXTEND_BY_S, Rounds
from modelsupd.runtime import declared, routes
from modelsupd.runtime.driver import NOT_WRITABLE, Driver
from modelsupd.runtime.effects import RuntimeEffects
from modelsupd.runtime.fetching import Fetches
from modelsupd.runtime.gpus.keeper import Gpus
from modelsupd.runtime.identity import boot_id
from modelsupd.runtime.inputs import Stock
from modelsupd.runtime.journal import Damaged, Journal, Reading, Unwritable
from modelsupd.runtime.paths import LockedError, hold
from modelsupd.runtime.process import Processes
from modelsupd.runtime.systemd import Notifier
from modelsupd.weights import lockdiff
from modelsupd.weights.base import FileDone, Progress

log = structlog.get_logger("daemon")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

_COMMANDS: Mapping[str, Callable[[str], Event]] = {"start": StartAsked, "stop": StopAsked, "restart": RestartAsked}


def run(config: Config, reread: Callable[[], Config]) -> int:
    """Supervise until told to go; return the exit status. `reread` reads the configuration again.

    Raises ModelsupdError where it cannot start: another daemon holds a directory, the journal is damaged.
    """
    # A signal that comes before the loop takes them must wait for it, not end us in the middle.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    narrator.configure(config.declaration.daemon.log_level)
    try:
        held = [hold(config.state_dir), hold(config.runtime_dir)]
        journal, reading = Journal.open(config.state_dir / "journal", config.declaration.daemon.journal)
        daemon = Daemon(config, reread, journal)
    except (LockedError, Damaged, OSError) as error:
        raise ModelsupdError(f"cannot start: {error}") from error
    # No `with`: the end of a runner waits for every thread, and one may wait for a file system that is gone.
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        return runner.run(daemon.main(reading))
    except BaseException:
        runner.close()
        raise
    finally:
        for fd in held:
            os.close(fd)


class Daemon:
    """The daemon; it is also what the admin API and the metrics see (`control.port.Port`), and observes the driver."""

    def __init__(self, config: Config, reread: Callable[[], Config], journal: Journal) -> None:
        """Prepare; nothing is touched before `main`."""
        self.version = __version__
        self.pid = os.getpid()
        self.started_at = time.monotonic()
        self.state_dir: Path = config.state_dir
        self.runtime_dir: Path = config.runtime_dir
        self._config = config
        self._reread = reread
        self._journal = journal
        self._notify = Notifier()
        self._narrator = narrator.Narrator()
        self._processes = Processes(config.runtime_dir, config.state_dir)
        self._fetches = Fetches(lambda: self._config.declaration.weights.downloads, self._file_done)
        self._demand = OnDemand(
            replicas=self.replicas,
            put=self._put,
            usage=lambda: self._gate.usage(),  # noqa: PLW0108 - the gate is made later
            on_closed=self._refresh_soon,
        )
        self._gpus = gpus = Gpus(
            config.state_dir,
            spec=lambda: self._config.declaration.gpus,
            wanted=lambda: any(gpu_count(spec) for spec in self._config.declaration.models.values()),
            replicas=self.replicas,
            put=self._put,
            placing=self._demand.placer,
            counted=self._apply_for_gateway,
            note=self._note,
        )
        self.gpus, self.gpu_command, self.look_at_gpus = gpus.rows, gpus.command, gpus.told
        self._effects = RuntimeEffects(
            self._processes,
            self._fetches,
            lambda: self._config.declaration.engines,
            lambda: Stock(self._config.weights, self._config.lock),
            self._gpus,
            lambda within_s: self._gate.seen(within_s),  # noqa: PLW0108 - the gate is made later
        )
        self.plan = functools.partial(self._demand.plan, size=self._effects.size)
        self._metrics = Metrics(self, self._processes)
        self._followers = Followers(config.state_dir / "journal")
        self._signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._leaving = False
        self._driver: Driver
        self._rounds: Rounds
        self._gate = Gatekeeper(
            config,
            replicas=lambda: self._driver.replicas,
            apply=self._apply_for_gateway,
            put=self._put,
            used=self._demand.look_soon,
        )
        self._refreshing = False

    async def main(self, reading: Reading) -> int:
        """Recover, serve until a signal says otherwise, and go."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        self._warn()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._journal.close)
            self._journal.on_sync = self._metrics.synced
            stack.push_async_callback(self._processes.close)
            await self._processes.open()
            stack.push_async_callback(self._fetches.close)
            boot = Boot(time.monotonic(), boot_id(), time.time() - time.monotonic())
            self._driver = Driver(self._journal, self._effects, self, wall=lambda: datetime.now(UTC), boot=boot.mark)
            stack.push_async_callback(self._driver.close)
            self._rounds = Rounds(
                driver=self._driver,
                journal=self._journal,
                processes=self._processes,
                fetches=self._fetches,
                notify=self._notify,
                effects=self._effects,
                leaving=lambda: self._leaving,
                compare_every_s=lambda: self._config.declaration.weights.change_look_s,
                refresh=self._refresh,
                more_pids=self._gpus.pids,
            )
            await self._gpus.open()
            stack.push_async_callback(self._gpus.close)
            # What can refuse to start does so before anything is decided.
            if self._config.metrics_listen is not None:
                stack.push_async_callback(await serve_metrics(self._metrics, self._config.metrics_listen))
            try:
                self._gate.configure(self._config)
                await self._recover(reading, boot)
            except OSError as error:
                raise ModelsupdError(f"cannot start: {error}") from error
            stack.callback(self._gate.close)
            stack.push_async_callback(await serve_control(self, self.runtime_dir))
            rounds = asyncio.create_task(self._rounds.go())
            stack.callback(rounds.cancel)
            looking = asyncio.create_task(self._gpus.go())
            stack.callback(looking.cancel)
            self._notify.tell(READY=1)
            log.info("ready", pid=self.pid, version=self.version, config=str(self._config.path))
            return await self._serve()

    async def _serve(self) -> int:
        while True:
            match await self._signals.get():
                case signal.SIGHUP:
                    await self._reload_for_signal()
                case signal.SIGUSR1:
                    log.info("leaving; engines go on")
                    await self._note("left; engines go on")
                    return 0
                case _:
                    return await self._go()

    async def _go(self) -> int:
        """Stop every engine; each further signal is one more reason to hurry."""
        self._leaving = True
        self._notify.tell(STOPPING=1, STATUS="stopping engines", EXTEND_TIMEOUT_USEC=int(EXTEND_BY_S * 1e6))
        log.info("stopping every engine; a second signal skips the drain, a third kills")
        kill = functools.partial(kill_unrecorded, self._driver, self._processes)
        stuck = await end_all(self._driver, self._signals, is_gateway, kill)
        await self._note("stopped" if not stuck else f"stopped, but for processes that cannot be killed: {stuck}")
        if stuck:
            log.error("left behind what cannot be killed", replicas=stuck)
        else:
            log.info("stopped")
        return 1 if stuck else 0

    async def _note(self, words: str) -> None:
        body = {"kind": "note", "at": self.now(), "wall": datetime.now(UTC).isoformat(), "why": words}
        try:
            self.recorded(await self._journal.append(body), body)
        except Unwritable as error:
            log.warning("record lost", error=error.why, why=words)

    def _warn(self) -> None:
        for warning in self._config.warnings:
            log.warning(warning)

    # Recovery and configuration

    async def _recover(self, reading: Reading, boot: Boot) -> None:
        present = [str(state["model"]) for state in reading.states.values() if "model" in state]
        known = self._models_declared(present) | self._gate.recovering(reading.states)
        recovered = await take_over(reading.states, self._processes, known, boot)
        try:
            await self._journal.append(start_record(boot, self.pid, self.version))
        except Unwritable as error:
            log.warning("record lost", error=error.why)
        for name, replica in recovered.replicas.items():
            self._driver.introduce(replica, recovered.actions[name], "Recovered", existed=True)
        self._gate.open()
        self._apply()
        self._refresh()

    def _models_declared(self, present: Sequence[str]) -> dict[str, Declared]:
        """Return what is declared; `present` is the model of each replica that there is."""
        return declared.models(self._config.declaration, lambda name, spec: self._gpus.count_for(name, spec, present))

    def _apply(self) -> tuple[str, ...]:
        """Bring the fleet to what is declared; return what changes, in words."""
        present = [replica.model for replica in self._driver.replicas.values()]
        everything = self._gate.declared() | self._models_declared(present)
        planned = plan(self._driver.replicas, everything, self._driver.unsettled())
        words = []
        for name, (model, entry) in planned.added.items():
            replica, actions = fresh(name, model, entry, self.now(), self._processes.highest_run(name))
            self._driver.introduce(replica, actions, "Declared", existed=False)
            words.append(f"{name}: new")
        for name, event in planned.events.items():
            words.append(f"{name}: {type(event).__name__.lower()}")
            self._driver.put(name, event)
        return tuple(words)

    async def reload(self) -> tuple[str, ...]:
        """Read the configuration again; return what changes, in words. Raises ConfigError, changing nothing."""
        config = not_emptied(self._config, self._reread())
        if not await self._journal.probe_writable():
            raise Refused(f"cannot reload now: {NOT_WRITABLE}: {self._journal.read_only}")
        if self._leaving:
            raise Refused("cannot reload: the daemon is stopping")
        fixed = until_restart(self._config, config)
        try:
            self._gate.configure(config)
        except OSError as error:
            raise Refused(f"cannot reload: {error}") from error
        fixed += lockdiff.words(self._config.lock, config.lock)
        self._config = config
        self._warn()
        self._gate.rebind()
        words = self._apply()
        self._refresh()
        log.info("configuration read again", changes=list(words) or "none", config=str(config.path))
        return (*words, *fixed)

    async def _reload_for_signal(self) -> None:
        try:
            self._notify.tell(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            await self.reload()
        except ModelsupdError as error:
            log.warning("configuration not changed", error=str(error))
        self._notify.tell(READY=1)

    # What the admin API and the metrics see

    def now(self) -> float:
        """Return the present instant."""
        return time.monotonic()

    def wall(self, at: float) -> datetime:
        """Return the wall time, in UTC, of an instant of this boot."""
        return datetime.now(UTC) - timedelta(seconds=time.monotonic() - at)

    def replicas(self) -> Mapping[str, Replica]:
        """Return the published state."""
        return self._driver.replicas

    def fetching(self) -> Mapping[str, Progress]:
        """Return how far the weights of each replica have come that waits for some."""
        return self._fetches.progress()

    def changes(self) -> Mapping[str, str]:
        """Return, by replica, what has changed on disk since its engine was started."""
        return self._rounds.changes()

    async def gateway_metrics(self) -> bytes:
        """Return what the gateway tells Prometheus, nothing where there is none."""
        return await self._gate.metrics()

    def gateway(self) -> Mapping[str, Any] | None:
        """Return what `status` tells of the gateway, None where there is none."""
        return self._gate.status()

    def models(self) -> Mapping[str, ModelSpec]:
        """Return what is declared, by name."""
        return self._config.declaration.models

    def journal(self) -> tuple[int, str | None]:
        """Return the last sequence number and, when operators' commands are refused, why."""
        return self._journal.seq, self._journal.read_only

    async def command(self, verb: str, target: str, by: str) -> tuple[str, ...]:
        """Carry out `start`, `stop` or `restart`; return the replicas meant, once their records are on disk."""
        if self._leaving:
            raise Refused(f"cannot {verb} '{target}': the daemon is stopping")
        names = targets(self._driver.replicas, target)
        outcomes = await asyncio.gather(
            *(self._driver.ask(name, _COMMANDS[verb](by)) for name in names), return_exceptions=True
        )
        failed = {name: error for name, error in zip(names, outcomes, strict=True) if error is not None}
        done = [name for name in names if name not in failed]
        for error in failed.values():
            words = f"{verb} was taken for {', '.join(done)}, but not for {', '.join(failed)}: {error}"
            raise Refused(words) if done else error
        return names

    def launch_plan(self, replica: str) -> LaunchPlan:
        """Return how the replica's engine is started. Raises KeyError for an unknown one."""
        known = self._driver.replicas[replica]
        launch = self._effects.launch(known, known.last_run if known.process else known.last_run + 1)
        argv, env = self._processes.filled(launch, known.process)
        return LaunchPlan(argv, env, frozenset(known.spec.env))

    def records(self, after_seq: int) -> AsyncIterator[Mapping[str, Any]]:
        """Yield journal records after `after_seq`, the ones on disk first, then each new one as it is written."""
        return self._followers.records(after_seq)

    def _apply_for_gateway(self) -> None:
        # On the way out nothing new is begun, or the end of it would be waited for in vain.
        if not self._leaving:
            self._apply()

    def _put(self, name: str, event: Event) -> None:
        if name in self._driver.replicas:
            self._driver.put(name, event)

    # What the driver tells

    def changed(self, before: Replica | None, after: Replica, event: Event | str) -> None:
        """Pass a change on to the log and the metrics."""
        self._narrator.changed(before, after, event)
        self._metrics.changed(before, after, event)
        self._gpus.changed(before, after)
        if before is None or before.phase is not after.phase:
            self._refresh_soon()

    def _refresh_soon(self) -> None:
        if not self._refreshing:
            self._refreshing = True  # once for all changes of this turn of the loop
            asyncio.get_running_loop().call_soon(self._refresh)

    def _refresh(self) -> None:
        """Tell gateways what may be routed to by now."""
        self._refreshing = False
        told = self._config.declaration.models, self._driver.replicas, self._fetches.progress(), self.now()
        self._gate.publish(routes.models(*told, self._demand.closed))
        self._gate.look()

    def _file_done(self, replicas: frozenset[str], done: FileDone) -> None:
        """Pass on what became of one file of weights."""
        self._narrator.file_done(replicas, done)
        self._metrics.file_done(replicas, done)

    def recorded(self, seq: int, body: Mapping[str, Any]) -> None:
        """Pass a record on to those who follow the journal."""
        self._followers.recorded(seq, body)
