"""Engines as processes: spawn, wait, end, adopt.

1. A spawned and an adopted run are the same thing: two pidfds and a run directory.
2. Nothing here decides. Each call does one thing to one run, and says what came of it.
3. Only what is proven to be ours is signalled (see `identity`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelsupd.core.events import Exit, Process
from modelsupd.runtime import identity, paths, rundir, vitals
from modelsupd.runtime.ballast import Ballast
from modelsupd.runtime.identity import Pidfd, Token
from modelsupd.runtime.reserve import Reserve
from modelsupd.runtime.rundir import RunDir
from modelsupd.runtime.runs import (
    Ended,
    Found,
    Held,
    Launch,
    SpawnError,
    filled,
    gpus_of,
    process_of,
    refusal,
    spawn_error,
    spec_of,
)
from modelsupd.runtime.shim import tree
from modelsupd.runtime.shim.shim import NAME as SHIM_NAME
from modelsupd.runtime.shim.shim import SAY_UNCLEARED_AFTER_S
from modelsupd.runtime.spawning import NoReportError, Spawner
from modelsupd.runtime.vitals import TreeVitals, connections

__all__ = ["Ended", "Found", "Launch", "Processes", "SpawnError", "TreeVitals", "connections"]

REPORT_TIMEOUT_S = 10.0
"""How long a shim may take to report; it takes some 3 ms on a quiet machine."""

RUN_JSON_TIMEOUT_S = 5.0
"""How long recovery waits for a live shim to say who it is."""

_SHIM_ANSWER_S = SAY_UNCLEARED_AFTER_S + 0.5
_PDEATH_S = 1.0
_STRAY_KILL_S = 10.0
_AGAIN_S = 0.005


class Processes:
    """All runs of one installation, by replica and run number."""

    def __init__(self, runtime_dir: Path, state_dir: Path) -> None:
        """Make the directories and the installation id if they are not there; raises OSError."""
        self._runtime = paths.make_private(runtime_dir)
        self._state = paths.make_private(state_dir)
        self.installation = identity.make_installation_id(state_dir)
        self._boot_id = identity.boot_id()
        self._spawner = Spawner()
        self._ballast = Ballast(self._runtime)
        self._reserve = Reserve()
        self._runs: dict[tuple[str, int], Held] = {}

    async def open(self) -> None:
        """Start the warm process that forks shims; raises OSError. Only `spawn` needs it."""
        self._spawner.start()

    async def close(self) -> None:
        """Let go of everything; no shim and no engine notices."""
        for held in self._runs.values():
            held.close()
        self._runs.clear()
        self._reserve.close()
        await self._spawner.stop()

    def children(self) -> frozenset[int]:
        """Return the pids of this process's children that are waited for here: the spawner's, if it runs."""
        pid = self._spawner.pid
        return frozenset() if pid is None else frozenset({pid})

    # Start

    async def spawn(self, launch: Launch) -> Process:
        """Start a run and return once its exec has worked; raises SpawnError."""
        place = self._place(launch.replica, launch.run)
        self._ballast.trim()
        if place.runtime.exists():
            raise spawn_error(launch, "it was begun before")
        try:
            token = self._token(launch.replica, launch.run)
            place.write_spec(spec_of(launch, place, place.make(), token, self._boot_id))
        except OSError as error:
            place.unmake()
            raise spawn_error(launch, error) from error
        try:
            answer, fds = await self._spawner.ask(place.runtime, REPORT_TIMEOUT_S)
        except (OSError, NoReportError) as error:
            raise await self._given_up(launch, spawn_error(launch, error)) from error
        except asyncio.CancelledError:
            await asyncio.shield(self._given_up(launch, spawn_error(launch, "cancelled")))
            raise
        if "step" in answer:
            raise await self._given_up(launch, refusal(launch, answer))
        return self._hold(launch, answer, fds)

    def _hold(self, launch: Launch, answer: Mapping[str, Any], fds: list[int]) -> Process:
        process = process_of(answer, launch.gpus)
        if len(fds) == 2:  # noqa: PLR2004 - one of the shim, one of the engine
            shim, engine = (Pidfd(fd) for fd in fds)
        else:  # descriptors ran out while the report was on its way; what was reserved for it may be free now
            for fd in fds:
                os.close(fd)
            with self._reserve.released():
                shim, engine = (Pidfd.open(answer[who]) or Pidfd(-1) for who in ("shim", "engine"))
        self._runs[launch.replica, launch.run] = Held(process, shim, engine)
        return process

    async def _given_up(self, launch: Launch, error: SpawnError) -> SpawnError:
        """See to it that a run that was not started is not started later; return the error, which knows if so."""
        error.cleared = not await self.clear(launch.replica, launch.run, timeout_s=5.0)
        if error.cleared and not (place := self._place(launch.replica, launch.run)).read_exit():
            place.unmake()
        return error

    # Watch

    async def wait(self, replica: str, run: int) -> Ended:
        """Wait for the end of a run.

        Returns when its shim is gone, or when the engine is and its shim could not clear the rest within about 2 s.
        """
        held = self._runs.get((replica, run))
        if held is None:
            with self._reserve.released():
                return self._ended(replica, run, note="it ended while no daemon watched")
        first = [asyncio.ensure_future(held.shim.gone()), asyncio.ensure_future(held.engine.gone())]
        try:
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in first:
                task.cancel()
        gone = await held.shim.gone(_SHIM_ANSWER_S)
        with self._reserve.released():
            said = self._place(replica, run).read_exit()
            if gone and said is None:
                # The parent-death signal is on its way to the engine.
                await held.engine.gone(_PDEATH_S)
                return self._ended(replica, run, note="the shim was killed, and the engine with it")
            return self._ended(replica, run, said, note="" if said else "its shim does not answer")

    def _ended(self, replica: str, run: int, said: Mapping[str, Any] | None = None, *, note: str = "") -> Ended:
        """Return what is known of the end of a run; `said` is its exit.json where that has been read."""
        said = said or self._place(replica, run).read_exit()
        how = Exit() if said is None else Exit(said["code"], said["signal"], said["peak_rss_bytes"], said["cpu_s"])
        note = (said["note"] if said is not None else "") or note
        asked = said is not None and bool(said.get("asked"))
        if said is not None and said["cleared"]:
            return Ended(how, cleared=True, note=note, asked=asked)
        spec = self._place(replica, run).read_spec()
        if spec is not None and spec["boot_id"] != self._boot_id:
            return Ended(how, cleared=True, note=note or "the machine was rebooted")
        return Ended(how, cleared=False, pids_left=self._pids_left(replica, run), note=note, asked=asked)

    def _pids_left(self, replica: str, run: int) -> tuple[int, ...]:
        held = self._runs.get((replica, run))
        if held is not None and not held.shim.dead:
            return tuple(each.pid for each in tree.descendants(held.process.shim_pid) if not each.dead)
        return tuple(pid for pid, _ in self._leftovers(replica, run))

    def _leftovers(self, replica: str, run: int) -> list[tuple[int, int]]:
        return identity.left_of(self._token(replica, run), self._place(replica, run).read_run())

    def filled(self, launch: Launch, process: Process | None) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return argv and environment as the engine of this launch gets them, or got them if it is `process`."""
        place = self._place(launch.replica, launch.run)
        spec = spec_of(launch, place, place.state / "tmp", self._token(launch.replica, launch.run), self._boot_id)
        return filled(spec, process)

    @staticmethod
    def listener_is_ours(process: Process) -> bool:
        """Return whether a process of the run listens at the run's endpoint; False too while nobody does."""
        return vitals.listener_is_ours(process)

    def vitals(self, replica: str, run: int) -> TreeVitals:
        """Return what a run has used so far; of one that is gone, what was seen last."""
        held = self._runs.get((replica, run))
        if held is None:
            return TreeVitals()
        log_bytes = self._place(replica, run).log_bytes()
        if not held.shim.dead:
            held.vitals = vitals.measure(held.process.shim_pid, log_bytes, held.vitals)
        return held.vitals

    def log_tail(self, replica: str, run: int, max_bytes: int = 65536) -> str:
        """Return the end of a run's log, whole lines, at most `max_bytes`; '' if there is none."""
        return self._place(replica, run).log_tail(max_bytes)

    # End

    def terminate(self, replica: str, run: int, backstop_s: float | None = None) -> None:
        """Send SIGTERM to the engine, through its shim; harmless when asked again or too late.

        `backstop_s` replaces what the run was started with: the limits may be others since.
        """
        held = self._runs.get((replica, run))
        if backstop_s is not None:
            self._place(replica, run).write_backstop(backstop_s)
        if held is not None and not held.shim.send(signal.SIGTERM):
            held.engine.send(signal.SIGTERM)

    def kill(self, replica: str, run: int) -> None:
        """Send SIGKILL to everything of the run: through its shim, which sees that nothing is left, else directly."""
        held = self._runs.get((replica, run))
        if held is not None and not held.shim.dead:
            held.shim.send(signal.SIGUSR2)
            held.shim.send(signal.SIGCONT)  # a stopped shim would not obey
            return
        with self._reserve.released():
            for pid, start in self._leftovers(replica, run):
                tree.send(pid, start, signal.SIGKILL)

    async def clear(self, replica: str, run: int, timeout_s: float) -> tuple[int, ...]:
        """End whatever is left of a run and wait until it is gone; return the pids that withstood.

        () means that nothing is left: the run directory in RUNTIME is removed, log and exit.json stay.
        """
        with self._reserve.released():
            return await self._clear(replica, run, timeout_s)

    async def _clear(self, replica: str, run: int, timeout_s: float) -> tuple[int, ...]:
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        held = self._runs.get((replica, run))
        place = self._place(replica, run)
        if self._foreign(place, str(self._token(replica, run))):
            return place.lock_holders()
        if held is not None and not held.shim.dead:
            left = await self._clear_through_shim(held, timeout_s)
            if left:
                return left
        while True:
            said = place.read_exit()
            cleared = said is not None and said["cleared"]
            left = () if cleared else await self._kill_leftovers(replica, run, give_up_at)
            if left:
                return left
            if place.void() and (cleared or not self._leftovers(replica, run)):
                break
            # A shim holds the lock that does not show its token yet, or someone who is not ours to signal.
            if asyncio.get_running_loop().time() > give_up_at:
                return place.lock_holders()
            await asyncio.sleep(_AGAIN_S)
        await place.remove()
        if held is not None:
            del self._runs[replica, run]
            held.close()
        return ()

    async def _clear_through_shim(self, held: Held, timeout_s: float) -> tuple[int, ...]:
        held.shim.send(signal.SIGUSR2)
        held.shim.send(signal.SIGCONT)
        if await held.shim.gone(timeout_s / 2):
            return ()
        # It does not obey, or cannot kill what is left: the same is done from here.
        for each in tree.descendants(held.process.shim_pid):
            tree.send(each.pid, each.start, signal.SIGKILL)
        if await held.shim.gone(timeout_s / 2):
            return ()
        left = tuple(each.pid for each in tree.descendants(held.process.shim_pid) if not each.dead)
        if not left:
            held.shim.send(signal.SIGKILL)
            await held.shim.gone(_PDEATH_S)
        return left

    async def _kill_leftovers(self, replica: str, run: int, give_up_at: float) -> tuple[int, ...]:
        loop = asyncio.get_running_loop()
        while left := self._leftovers(replica, run):
            for pid, start in left:
                tree.send(pid, start, signal.SIGKILL)
            withstood = await self._until_dead(left, give_up_at - loop.time())
            if withstood:
                return tuple(withstood)
        return ()

    # Recover

    async def scan(self) -> list[Found]:
        """Return every run in the run directories that is not held yet, and every process of ours without a directory.

        Runs that are proven to live are held from here on, like spawned ones. A run without a shim is given up, so that
        a late shim goes, and what is left of it gets SIGKILL; `clear` or `end_strays` waits for that and removes the
        directory. Nothing else is ended here.
        """
        rundir.sweep(self._runtime)
        places = rundir.all_in(self._runtime, self._state)
        unknown = [each for each in places if (each[0], each[1]) not in self._runs]
        found = list(await asyncio.gather(*(self._examine(*each) for each in unknown)))
        with_directory = {(replica, run) for replica, run, _ in places}
        strays: dict[tuple[str, int], list[int]] = {}
        for each in identity.owned(self.installation):
            key = (each.token.replica, each.token.run)
            if key not in with_directory and key not in self._runs:
                strays.setdefault(key, []).append(each.pid)
        for (replica, run), pids in sorted(strays.items()):
            ended = Ended(Exit(), cleared=False, pids_left=tuple(pids), note="its run directory is gone")
            found.append(Found(replica, run, None, token_matches=True, ended=ended))
        return found

    async def _examine(self, replica: str, run: int, place: RunDir) -> Found:
        token = str(self._token(replica, run))
        if self._foreign(place, token):
            return Found(replica, run, None, token_matches=False, ended=None)
        give_up_at = asyncio.get_running_loop().time() + RUN_JSON_TIMEOUT_S
        while not place.void():
            # A shim lives. It may not have written run.json yet, or be about to go.
            held = self._adopt(place.read_run(), token, gpus_of(place.read_spec()))
            if held is not None:
                self._runs[replica, run] = held
                return Found(replica, run, held.process, token_matches=True, ended=None)
            if asyncio.get_running_loop().time() > give_up_at:
                note = "its lock is held, but by no process that run.json names"
                ended = Ended(Exit(), cleared=False, pids_left=place.lock_holders(), note=note)
                return Found(replica, run, None, token_matches=True, ended=ended, gpus=gpus_of(place.read_spec()))
            await asyncio.sleep(_AGAIN_S)
        for pid, start in self._leftovers(replica, run):
            tree.send(pid, start, signal.SIGKILL)
        ended, gpus = self._ended(replica, run), gpus_of(place.read_spec())
        return Found(replica, run, None, token_matches=True, ended=ended, gpus=gpus)

    def _adopt(self, record: Mapping[str, Any] | None, token: str, gpus: tuple[str, ...]) -> Held | None:
        """Return a run whose shim is proven to live; its engine may have ended while nobody looked."""
        if record is None or record["boot_id"] != self._boot_id or record["token"] != token:
            return None
        shim = Pidfd.open(record["shim"], token)
        if shim is None:
            return None
        return Held(process_of(record, gpus), shim, Pidfd.open(record["engine"], token) or Pidfd(-1))

    async def end_strays(self, found: Sequence[Found], timeout_s: float) -> tuple[int, ...]:
        """End runs that `scan` found: SIGTERM, SIGKILL after `timeout_s`; return the pids that withstood both.

        Runs of another installation are left alone.
        """
        ours = [each for each in found if each.token_matches]
        left = await asyncio.gather(*(self._end_stray(each.replica, each.run, timeout_s) for each in ours))
        return tuple(pid for pids in left for pid in pids)

    async def _end_stray(self, replica: str, run: int, timeout_s: float) -> tuple[int, ...]:
        held = self._runs.get((replica, run))
        if held is not None:
            self.terminate(replica, run)
            await held.shim.gone(timeout_s)
        else:
            # If a shim is among those with the token, it clears its tree better than we could.
            for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGUSR2, _SHIM_ANSWER_S)):
                left = self._leftovers(replica, run)
                shims = [each for each in left if tree.name_of(each[0]) == SHIM_NAME]
                for pid, start in shims or (left if number == signal.SIGTERM else []):
                    tree.send(pid, start, number)
                await self._until_dead(left, patience_s if shims or number == signal.SIGTERM else 0)
        return await self.clear(replica, run, _STRAY_KILL_S)

    @staticmethod
    async def _until_dead(pids: Sequence[tuple[int, int]], timeout_s: float) -> list[int]:
        """Wait until none of these lives; return those that do after `timeout_s`."""
        give_up_at = asyncio.get_running_loop().time() + timeout_s
        while (left := identity.alive(pids)) and asyncio.get_running_loop().time() < give_up_at:  # noqa: ASYNC110 - a foreign process's end sets no event, and a pidfd for each of a big tree could run out
            await asyncio.sleep(_AGAIN_S)
        return left

    def highest_run(self, replica: str) -> int:
        """Return the highest run number of a replica that there is a directory of, 0 if none."""
        return paths.highest_run(self._runtime, self._state, replica)

    def prune(self, replica: str, keep_runs: int) -> None:
        """Remove log and exit.json of all but the `keep_runs` latest runs of a replica; none that may live."""
        for run in paths.old_runs(self._state, replica, keep_runs):
            place = self._place(replica, run)
            if not place.runtime.exists():
                shutil.rmtree(place.state, ignore_errors=True)

    def _place(self, replica: str, run: int) -> RunDir:
        return RunDir.of(self._runtime, self._state, replica, run)

    def _token(self, replica: str, run: int) -> Token:
        return Token(self.installation, replica, run)

    @staticmethod
    def _foreign(place: RunDir, token: str) -> bool:
        """Return whether a run directory was made by another installation, whose state directory was here before."""
        spec = place.read_spec()
        return spec is not None and spec["token"] != token
