"""Runs from spawn to clear, with real shims and engines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from modelsupd.core.events import Exit
from modelsupd.runtime.shim import tree
from running import FOREVER, PYTHON, Site, alive, run
from waiting import auntil


def test_a_run_from_spawn_to_clear() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        assert (started.run, started.digest) == (1, "d1")
        assert started.endpoint == f"unix:{site.place().socket}"
        assert {started.pid, started.shim_pid} == set(site.owned())
        for pid in (started.pid, started.shim_pid):
            seen = tree.stat(pid)
            assert seen is not None
            assert seen.session == pid  # each in a session of its own
        assert tree.read_file(f"/proc/{started.shim_pid}/comm") == b"modelsupd-shim\n"
        assert (tree.read_file(f"/proc/{started.shim_pid}/cmdline") or b"").startswith(b"modelsupd: shim tiny/0#1\0")
        site.processes.terminate("tiny/0", 1)
        site.processes.terminate("tiny/0", 1)
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit.code, ended.exit.signal, ended.cleared, ended.pids_left) == (None, signal.SIGTERM, True, ())
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert not site.place().runtime.exists()
        assert {path.name for path in site.place().state.iterdir()} == {"exit.json"}
        assert site.processes.highest_run("tiny/0") == 1
        assert site.processes.highest_run("tiny/1") == 0

    run(test)


def test_an_instant_exit_is_a_run_that_was_started_and_ended() -> None:
    async def test(site: Site) -> None:
        for number, (code, words) in enumerate([("exit 3", 3), ("exit 0", 0)], start=1):
            started = await site.processes.spawn(site.launch("sh", "-c", code, run=number))
            assert started.pid > 0
            ended = await site.processes.wait("tiny/0", number)
            assert (ended.exit.code, ended.exit.signal, ended.cleared) == (words, None, True)

    run(test)


def test_use_of_memory_and_cpu_is_recorded() -> None:
    async def test(site: Site) -> None:
        program = "b = bytearray(64 << 20); n = sum(range(3_000_000))"
        await site.processes.spawn(site.launch(*PYTHON, program))
        ended = await site.processes.wait("tiny/0", 1)
        assert ended.exit.peak_rss_bytes is not None
        assert 64 << 20 < ended.exit.peak_rss_bytes < 256 << 20
        assert ended.exit.cpu_s is not None
        assert 0.01 < ended.exit.cpu_s < 10
        said = json.loads((site.place().state / "exit.json").read_text())
        assert said["cleared"] is True
        assert said["log_lost_bytes"] == 0

    run(test)


def test_the_environment_is_built_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")

    async def test(site: Site) -> None:
        env = {"PATH": "/usr/bin:/bin", "KEY": "s3cret", "HOME": "{tmp}", "RAW": "{unknown}{socket}"}
        env["MODELSUPD_RUN"] = "nobody's"
        started = await site.processes.spawn(site.launch("sh", "-c", "env; echo done; sleep 1000", env=env))
        await site.said("done")
        seen = dict(line.split("=", 1) for line in site.lines() if "=" in line)
        tmp = str(site.place().state / "tmp")
        assert seen.pop("PWD") == tmp
        seen.pop("_", None)
        assert seen == {
            "MODELSUPD_RUN": f"{site.processes.installation}:tiny/0#1",
            "SPT_NOENV": "1",
            "TMPDIR": tmp,
            "HOME": tmp,
            "PATH": "/usr/bin:/bin",
            "KEY": "s3cret",
            "RAW": "{unknown}" + str(site.place().socket),
        }
        argv, shown = site.processes.filled(site.launch("sh", "{tmp}", env=env), started)
        assert argv == ("sh", tmp)
        assert shown == {**seen}
        for pid in (*site.processes.children(), started.shim_pid):
            for file in ("cmdline", "environ"):
                assert b"s3cret" not in (tree.read_file(f"/proc/{pid}/{file}") or b"")

    run(test)


def test_only_the_owner_can_read_what_a_run_leaves() -> None:
    async def test(site: Site) -> None:
        await site.processes.spawn(site.launch("sh", "-c", "echo hello; sleep 1000"))
        await site.said("hello")
        for top in (site.runtime, site.state):
            for path in (top, *top.rglob("*")):
                wanted = 0o700 if path.is_dir() else 0o600
                assert stat.S_IMODE(path.lstat().st_mode) == wanted, path

    run(test)


def test_an_engine_inherits_nothing() -> None:
    """No descriptor (a lock among them), no ignored signal, no controlling terminal."""

    async def test(site: Site) -> None:
        await site.processes.spawn(
            site.launch("sh", "-c", "ls -l /proc/self/fd; grep Sig[BI] /proc/self/status; echo done; sleep 1000")
        )
        await site.said("done")
        fds = {line.split(" -> ")[0].split()[-1]: line.split(" -> ")[1] for line in site.lines() if " -> " in line}
        assert sorted(fds) == ["0", "1", "2", "3"], fds  # 3 is the folder that ls reads
        assert fds["0"] == "/dev/null"
        assert fds["1"] == fds["2"]
        masks = [int(line.split(":")[1], 16) for line in site.lines() if line.startswith("Sig")]
        assert masks
        # Signals 32 and 33 are the C library's own: nobody can reset them through it, and GNU make leaves them ignored.
        assert not any(mask & ~(1 << 31 | 1 << 32) for mask in masks), masks

    run(test)


def test_sigterm_that_is_ignored_and_then_sigkill() -> None:
    async def test(site: Site) -> None:
        await site.processes.spawn(site.launch("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"))
        await site.said("ready")
        site.processes.terminate("tiny/0", 1)
        waiting = asyncio.create_task(site.processes.wait("tiny/0", 1))
        await asyncio.wait({waiting}, timeout=0.1)
        assert not waiting.done()
        site.processes.kill("tiny/0", 1)
        ended = await waiting
        assert (ended.exit.signal, ended.cleared) == (signal.SIGKILL, True)
        assert not site.owned()

    run(test)


def test_the_backstop_kills_when_nobody_follows_up() -> None:
    async def test(site: Site) -> None:
        program = "trap '' TERM; echo ready; while :; do sleep 1; done"
        await site.processes.spawn(site.launch("sh", "-c", program, backstop_s=0.2))
        await site.said("ready")
        site.processes.terminate("tiny/0", 1)
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit.signal, ended.cleared) == (signal.SIGKILL, True)
        assert ended.note == "nobody followed up on SIGTERM within 0.2 s, so the shim killed the run"
        assert ended.note in site.log()

    run(test)


def test_a_stopped_engine_is_killed() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        os.kill(started.pid, signal.SIGSTOP)
        site.processes.kill("tiny/0", 1)
        assert (await site.processes.wait("tiny/0", 1)).exit.signal == signal.SIGKILL

    run(test)


ORPHAN = """
import os, signal, sys, time
def away():
    there, tell = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if "nameless" in sys.argv: os.execve("/bin/sleep", ["sleep", "1000"], {})
            print(os.getpid(), flush=True)
            os.write(tell, b".")
            time.sleep(1000)
        os._exit(0)
    os.wait()
    os.close(tell)
    os.read(there, 1)
away()
if "stay" in sys.argv: time.sleep(1000)
if "hold" in sys.argv: sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["", "deaf"])
def test_a_grandchild_in_a_session_of_its_own_ends_with_the_engine(kind: str) -> None:
    async def test(site: Site) -> None:
        await site.processes.spawn(site.launch(*PYTHON, ORPHAN + "\nsys.exit(7)", kind))
        ended = await site.processes.wait("tiny/0", 1)
        (orphan,) = await site.numbers(1)
        assert (ended.exit.code, ended.cleared, ended.pids_left) == (7, True, ())
        assert not alive(orphan)
        assert await site.processes.clear("tiny/0", 1, 5) == ()

    run(test)


def test_a_grandchild_without_our_environment_ends_too() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*PYTHON, ORPHAN, "nameless", "stay"))
        await auntil(lambda: len(tree.descendants(started.shim_pid)) == 2)
        pids = [each.pid for each in tree.descendants(started.shim_pid)]
        site.processes.kill("tiny/0", 1)
        assert (await site.processes.wait("tiny/0", 1)).cleared
        assert not any(alive(pid) for pid in pids)

    run(test)


def test_sigkill_of_the_leader_alone() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*PYTHON, ORPHAN, "stay"))
        (orphan,) = await site.numbers(1)
        os.kill(started.pid, signal.SIGKILL)
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit.signal, ended.cleared) == (signal.SIGKILL, True)
        assert not alive(orphan)

    run(test)


def test_sigkill_of_the_shim_takes_the_engine_along() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*PYTHON, ORPHAN, "stay"))
        (orphan,) = await site.numbers(1)
        os.kill(started.shim_pid, signal.SIGKILL)
        ended = await site.processes.wait("tiny/0", 1)
        assert ended.exit == Exit()
        assert not ended.cleared
        assert ended.note == "the shim was killed, and the engine with it"
        assert orphan in ended.pids_left
        assert not alive(started.pid)
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert not alive(orphan)
        assert not site.place().runtime.exists()

    run(test)


def test_without_shim_and_environment_the_session_and_the_log_tell_whose_a_process_is() -> None:
    async def test(site: Site) -> None:
        program = "env -i sleep 1000 & echo $!; sleep 1000"
        started = await site.processes.spawn(site.launch("sh", "-c", program))
        (nameless,) = await site.numbers(1)
        await auntil(lambda: tree.token_of(nameless) is None)
        os.kill(started.shim_pid, signal.SIGKILL)
        await site.processes.wait("tiny/0", 1)
        assert alive(nameless)
        site.processes.kill("tiny/0", 1)
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert not alive(nameless)

    run(test)


def test_a_shim_that_does_not_answer() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        os.kill(started.shim_pid, signal.SIGSTOP)
        os.kill(started.pid, signal.SIGKILL)
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit, ended.cleared, ended.note) == (Exit(), False, "its shim does not answer")
        assert await site.processes.clear("tiny/0", 1, 5) == ()  # SIGCONT wakes it
        assert (await site.processes.wait("tiny/0", 1)).exit.signal == signal.SIGKILL

    run(test)


@pytest.fixture
def freezer() -> Path:
    directory = Path("/sys/fs/cgroup/freezer")
    if not os.access(directory, os.W_OK) or not (directory / "cgroup.procs").exists():
        pytest.skip("needs the v1 freezer cgroup, writable, to make a process that withstands SIGKILL")
    return directory


def test_a_process_that_withstands_sigkill(freezer: Path) -> None:
    async def test(site: Site) -> None:
        group = freezer / f"modelsupd-test-{os.getpid()}"
        group.mkdir()
        try:
            started = await site.processes.spawn(site.launch(*PYTHON, ORPHAN, "stay"))
            (orphan,) = await site.numbers(1)
            (group / "cgroup.procs").write_text(str(orphan))
            (group / "freezer.state").write_text("FROZEN")
            await auntil(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
            os.kill(started.pid, signal.SIGTERM)
            ended = await site.processes.wait("tiny/0", 1)
            assert (ended.exit.signal, ended.cleared, ended.pids_left) == (signal.SIGTERM, False, (orphan,))
            assert await site.processes.clear("tiny/0", 1, 0.4) == (orphan,)
            assert site.place().runtime.exists()
            (group / "freezer.state").write_text("THAWED")
            assert await site.processes.clear("tiny/0", 1, 5) == ()
            assert json.loads((site.place().state / "exit.json").read_text())["cleared"] is True
        finally:
            (group / "freezer.state").write_text("THAWED")
            await auntil(lambda: not (group / "cgroup.procs").read_text())
            group.rmdir()

    run(test)


def test_many_at_once() -> None:
    async def test(site: Site) -> None:
        started = await asyncio.gather(*(site.processes.spawn(site.launch(*FOREVER, run=n)) for n in range(1, 31)))
        assert len({each.pid for each in started}) == 30
        for each in started:
            site.processes.kill("tiny/0", each.run)
        ended = await asyncio.gather(*(site.processes.wait("tiny/0", n) for n in range(1, 31)))
        assert all(each.cleared and each.exit.signal == signal.SIGKILL for each in ended)

    run(test)


def test_no_descriptor_is_left() -> None:
    async def test(site: Site) -> None:
        async def one(number: int) -> None:
            await site.processes.spawn(site.launch(*FOREVER, run=number))
            waiting = asyncio.create_task(site.processes.wait("tiny/0", number))
            await asyncio.sleep(0)
            site.processes.kill("tiny/0", number)
            await waiting
            await site.processes.clear("tiny/0", number, 5)

        def fds(pid: int) -> int:
            return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - only counted

        (spawner,) = site.processes.children()
        await one(1)
        before = fds(os.getpid()), fds(spawner)
        for number in range(2, 12):
            await one(number)
        # The spawner lets go of what it was asked with when it is through, and nobody waits for that.
        await auntil(lambda: fds(os.getpid()) == before[0] and fds(spawner) <= before[1])

    run(test)


def test_old_runs_are_pruned_and_live_ones_kept() -> None:
    async def test(site: Site) -> None:
        for number in range(1, 5):
            await site.processes.spawn(site.launch(*FOREVER, run=number))
        for number in (2, 3, 4):
            site.processes.kill("tiny/0", number)
            await site.processes.wait("tiny/0", number)
            await site.processes.clear("tiny/0", number, 5)
        site.processes.prune("tiny/0", 1)
        assert [site.place(number).state.exists() for number in range(1, 5)] == [True, False, False, True]

    run(test)


def test_an_engine_is_no_zombie_and_a_zombie_is_dead() -> None:
    """A pidfd and /proc agree on a child that nobody has reaped yet."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    seen = tree.stat(pid)
    assert seen is not None
    assert seen.dead
    assert tree.open_pidfd(pid, seen.start) is None
    assert not tree.send(pid, seen.start, signal.SIGTERM)
    os.waitpid(pid, 0)
