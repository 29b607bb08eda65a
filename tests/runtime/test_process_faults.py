"""Spawns that fail, and a spawner that dies: whatever happens, nothing runs that nobody knows of."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelsupd.core.events import FailureClass
from modelsupd.runtime import runs
from modelsupd.runtime.process import SpawnError
from modelsupd.runtime.shim import tree
from running import FOREVER, Site, alive, run
from waiting import auntil


async def refused(site: Site, *argv: str, number: int = 1, **changes: object) -> tuple[FailureClass, str]:
    """Spawn in vain; nothing may be left of it, no directory either."""
    with pytest.raises(SpawnError) as caught:
        await site.processes.spawn(site.launch(*argv, run=number, **changes))
    assert not site.owned()
    assert not site.place(number).runtime.exists()
    assert not site.place(number).state.exists()
    return caught.value.failure.kind, caught.value.failure.detail


def test_a_binary_that_cannot_be_executed(tmp_path: Path) -> None:
    plain, script, orphaned = tmp_path / "plain", tmp_path / "script", tmp_path / "orphaned"
    plain.write_text("no program")
    script.write_text("no program")
    orphaned.write_text("#!/nowhere/python\n")
    script.chmod(0o755)
    orphaned.chmod(0o755)
    missing = tmp_path / "missing"

    async def test(site: Site) -> None:
        assert await refused(site, str(missing)) == (
            FailureClass.MISSING_BINARY,
            f"cannot execute '{missing}': no such file or directory",
        )
        assert await refused(site, "no-such-engine") == (
            FailureClass.MISSING_BINARY,
            "cannot execute 'no-such-engine': no such file or directory",
        )
        for path, words in (
            (plain, "permission denied"),
            (script, "exec format error"),
            (tmp_path, "permission denied"),
        ):
            kind, detail = await refused(site, str(path))
            assert (kind, detail) == (FailureClass.MISSING_BINARY, f"cannot execute '{path}': {words}")
        assert "the interpreter that its first line names" in (await refused(site, str(orphaned)))[1]

    run(test)


def test_a_working_directory_that_is_not_there() -> None:
    async def test(site: Site) -> None:
        kind, detail = await refused(site, *FOREVER, cwd="/nowhere")
        assert kind is FailureClass.SPAWN
        assert detail == "cannot start run 1 of 'tiny/0': cannot enter '/nowhere': No such file or directory"

    run(test)


def test_a_run_is_begun_once() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        with pytest.raises(SpawnError, match="it was begun before"):
            await site.processes.spawn(site.launch(*FOREVER))
        assert alive(started.pid)

    run(test)


def test_the_lock_refuses_a_second_shim() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        answer, fds = await site.processes._spawner.ask(site.place().runtime, 5)
        assert (answer["step"], answer["why"], fds) == ("lock", "another shim holds the lock of this run", [])
        assert set(site.owned()) == {started.pid, started.shim_pid}

    run(test)


def test_a_shim_that_is_late_goes() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        place = site.place()
        kept = site.root / "kept"
        shutil.copytree(place.runtime, kept, ignore=shutil.ignore_patterns("engine.sock"))
        os.kill(started.shim_pid, signal.SIGKILL)
        await site.processes.wait("tiny/0", 1)
        assert place.void()
        answer, _ = await site.processes._spawner.ask(place.runtime, 5)
        assert (answer["step"], answer["why"]) == ("lock", "this run was given up before its shim started")
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        answer, _ = await site.processes._spawner.ask(place.runtime, 5)
        assert "step" in answer
        assert not site.owned()

    run(test)


def test_a_spawn_that_is_cancelled_leaves_nothing() -> None:
    async def test(site: Site) -> None:
        for number in range(1, 8):
            asked = asyncio.create_task(site.processes.spawn(site.launch(*FOREVER, run=number)))
            for _ in range(number - 1):
                await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait({asked})
            if not asked.cancelled():
                site.processes.kill("tiny/0", number)
                await site.processes.wait("tiny/0", number)
                await site.processes.clear("tiny/0", number, 5)
            assert not site.owned()
            assert not site.place(number).runtime.exists()

    run(test)


def highest_descriptor(pid: int) -> int:
    return max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())


@contextmanager
def descriptors(limit: int, pid: int = 0) -> Iterator[None]:
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_descriptors_that_run_out_in_the_daemon() -> None:
    """At whichever descriptor it is, the spawn fails and leaves nothing, or it works."""

    async def test(site: Site) -> None:
        held = await site.processes.spawn(site.launch(*FOREVER))
        used = highest_descriptor(os.getpid())
        fillers = [os.dup(0)]
        while fillers[-1] < used:
            fillers.append(os.dup(0))
        used = max(used, fillers[-1])
        worked = 0
        for number, spare in enumerate(range(1, 9), start=2):
            with descriptors(used + spare):
                try:
                    await site.processes.spawn(site.launch(*FOREVER, run=number))
                    worked += 1
                except SpawnError as error:
                    assert error.failure.kind is FailureClass.SPAWN  # noqa: PT017 - it may also work
                    assert "oo many open files" in error.failure.detail  # noqa: PT017 - the same
                # Those that run are looked after with the few that are held back.
                site.processes.kill("tiny/0", number)
                ended = await site.processes.wait("tiny/0", number)
                assert ended.exit.signal in (None, signal.SIGKILL)
                assert await site.processes.clear("tiny/0", number, 5) == ()
            assert set(site.owned()) == {held.pid, held.shim_pid}
        for fd in fillers:
            os.close(fd)
        assert 0 < worked < 8

    run(test)


def test_descriptors_that_run_out_in_spawner_or_shim() -> None:
    async def test(site: Site) -> None:
        (spawner,) = site.processes.children()
        await site.processes.spawn(site.launch(*FOREVER))
        used = highest_descriptor(spawner)
        failed = 0
        for number, limit in enumerate(range(4, used + 14), start=2):
            with descriptors(limit, spawner):
                try:
                    await site.processes.spawn(site.launch(*FOREVER, run=number))
                except SpawnError as error:
                    failed += 1
                    assert error.failure.kind is FailureClass.SPAWN  # noqa: PT017 - it may also work
                    assert len(site.owned()) == 2
                    continue
            site.processes.kill("tiny/0", number)
            assert (await site.processes.wait("tiny/0", number)).cleared
        assert failed >= 4
        await site.processes.spawn(site.launch(*FOREVER, run=100))

    run(test)


def test_a_shim_without_descriptors_still_ends_its_engine() -> None:
    async def test(site: Site) -> None:
        started = await site.processes.spawn(site.launch(*FOREVER))
        await auntil((site.place().state / "exit.json.tmp").exists)
        resource.prlimit(started.shim_pid, resource.RLIMIT_NOFILE, (3, 3))
        site.processes.kill("tiny/0", 1)
        assert (await site.processes.wait("tiny/0", 1)).exit.signal == signal.SIGKILL

    run(test)


def test_a_shim_that_fails_says_why_and_leaves_nothing_to_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "ORPHAN_GRACE_S", "a word")  # it stumbles over this once the leader is gone

    async def test(site: Site) -> None:
        await site.processes.spawn(site.launch("sh", "-c", "sleep 1000 & echo $!"))
        (orphan,) = await site.numbers(1)
        ended = await site.processes.wait("tiny/0", 1)
        assert not ended.cleared
        assert "the shim failed, and the engine ends with it: Traceback" in site.log()
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert not alive(orphan)

    run(test)


def without_fork(pid: int) -> subprocess.Popen[bytes]:
    inject = "inject=clone,clone3,fork,vfork:error=EAGAIN"
    command = ["strace", "-qq", "-o", "/dev/null", "-e", inject, "-p", str(pid)]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def test_a_fork_that_fails() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace to make fork fail")

    async def test(site: Site) -> None:
        await site.processes.spawn(site.launch(*FOREVER))
        (spawner,) = site.processes.children()
        strace = without_fork(spawner)
        try:
            status = Path(f"/proc/{spawner}/status")
            await auntil(lambda: f"TracerPid:\t{strace.pid}\n" in status.read_text() or strace.poll() is not None)
            if strace.poll() is not None:
                pytest.skip("needs the right to trace our own processes")
            with pytest.raises(SpawnError, match="cannot fork a shim: Resource temporarily unavailable"):
                await site.processes.spawn(site.launch(*FOREVER, run=2))
        finally:
            strace.terminate()
            strace.communicate()
        await site.processes.spawn(site.launch(*FOREVER, run=2))

    run(test)


def test_an_engine_that_cannot_be_forked() -> None:
    """The shim exists and its engine does not: room for two processes, and then for three."""
    controller = Path("/sys/fs/cgroup/pids")
    if not os.access(controller, os.W_OK) or not (controller / "cgroup.procs").exists():
        pytest.skip("needs the v1 pids cgroup, writable, to make fork fail in the shim")

    async def test(site: Site) -> None:
        (spawner,) = site.processes.children()
        group = controller / f"modelsupd-test-{os.getpid()}"
        group.mkdir()
        try:
            (group / "cgroup.procs").write_text(str(spawner))
            (group / "pids.max").write_text("2")
            kind, detail = await refused(site, *FOREVER)
            assert kind is FailureClass.SPAWN
            assert "resource temporarily unavailable" in detail.lower()
            (group / "pids.max").write_text("3")
            await site.processes.spawn(site.launch(*FOREVER, run=2))
        finally:
            for pid in (group / "cgroup.procs").read_text().split():
                (controller / "cgroup.procs").write_text(pid)
            group.rmdir()

    run(test)


def test_a_state_directory_that_cannot_be_written() -> None:
    """A run goes on without a log, and its end is still known."""

    async def test(site: Site) -> None:
        (site.state / "runs").write_text("in the way")
        started = await site.processes.spawn(site.launch("sh", "-c", "echo lost; exec sleep 1000"))
        await auntil(lambda: site.processes.vitals("tiny/0", 1).log_bytes == 5)
        assert site.log() == ""
        environ = (tree.read_file(f"/proc/{started.pid}/environ") or b"").split(b"\0")
        assert f"TMPDIR={site.place().runtime}/tmp".encode() in environ
        site.processes.terminate("tiny/0", 1)
        ended = await site.processes.wait("tiny/0", 1)
        assert (ended.exit.signal, ended.cleared) == (signal.SIGTERM, True)
        assert await site.processes.clear("tiny/0", 1, 5) == ()
        assert not site.place().runtime.exists()

    run(test)


def test_a_runtime_directory_that_cannot_be_written() -> None:
    async def test(site: Site) -> None:
        shutil.rmtree(site.runtime)
        site.runtime.write_text("in the way")
        with pytest.raises(SpawnError, match="cannot start run 1 of 'tiny/0': not a directory"):
            await site.processes.spawn(site.launch(*FOREVER))
        site.runtime.unlink()

    run(test)
