"""The unit as it is installed, under a real systemd: what start, restart, stop, a crash and a reboot really do.

One machine and one boot serve all tests but those about rebooting; each test begins with an empty state directory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import QUICK
from machine import FAKE, PYTHON, Machine
from waiting import until

pytestmark = pytest.mark.real

DROP_IN = "etc/systemd/system/modelsupd.service.d/test.conf"


def model(name: str = "m", *flags: str, limits: str = QUICK) -> str:
    command = [PYTHON, "-E", "-S", f"{FAKE}/fake_engine.py", "--uds", "{socket}", *flags]
    return f"[models.{name}]\nengine = 'command'\ncommand = {json.dumps(command)}\n{limits.format(name=name)}"


@pytest.fixture(scope="module")
def installed() -> Iterator[Machine]:
    made = Machine(Path(tempfile.mkdtemp(prefix="n")))
    try:
        why_not = made.unable()
        if why_not:
            pytest.skip(why_not)
        made.install()
        made.boot()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def machine(installed: Machine) -> Iterator[Machine]:
    """Return the machine with our unit stopped, one model declared and nothing known of earlier runs."""
    if not installed.init:
        installed.boot()
    clean(installed)
    declare(installed, model())
    yield installed
    if installed.init:
        clean(installed)


def clean(machine: Machine) -> None:
    adjust(machine, "")
    machine.systemctl("stop", "modelsupd")
    machine.run("modelsupd", "reap")
    machine.systemctl("reset-failed", "modelsupd", check=False)
    machine.run("sh", "-c", "rm -rf /var/lib/modelsupd /run/modelsupd")
    assert machine.processes() == {}, machine.said()


def declare(machine: Machine, models: str) -> None:
    """Write models.toml, whose owner and mode stay as `make install` and tmpfiles made them."""
    (machine.root / "etc/modelsupd/models.toml").write_text(models)


def adjust(machine: Machine, service: str) -> None:
    """Override settings of the unit's [Service], as an operator's drop-in does; nothing: take them back."""
    drop_in = machine.root / DROP_IN
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(service)
    machine.systemctl("daemon-reload")


def start(machine: Machine) -> dict[str, object]:
    machine.systemctl("start", "modelsupd")
    return machine.until_phase("ready")


def main_pid(machine: Machine) -> int:
    return int(machine.property("MainPID"))


def next_daemon(machine: Machine, before: int) -> None:
    """Wait until systemd has put another daemon into the place of the one with this pid, and it answers."""
    until(
        lambda: main_pid(machine) not in (0, before) and machine.property("ActiveState") == "active",
        what="another daemon is ready",
    )


def kill(machine: Machine, signal: str, pid: object) -> None:
    machine.run("kill", f"-{signal}", str(pid))


def nothing_left(machine: Machine) -> bool:
    runs = machine.root / "run/modelsupd/runs"
    return not machine.processes() and (not runs.exists() or not list(runs.iterdir()))


def test_start_is_ready_when_the_admin_api_answers(machine: Machine) -> None:
    machine.systemctl("start", "modelsupd")
    assert machine.answers(), "systemd called it started, and it does not answer"
    assert machine.property("ActiveState") == "active"
    ready = machine.until_phase("ready")
    until(lambda: machine.property("StatusText") == "1 of 1 replicas ready")
    # An operator at a shell needs neither flags nor variables, and neither does a member of the service's group.
    assert machine.run("modelsupd", "status").returncode == 0
    assert f"pid {ready['pid']}" in machine.run("modelsupd", "why", "m").stdout


def test_engines_run_as_the_service_user_and_cannot_speak_for_the_unit(machine: Machine) -> None:
    ready = start(machine)
    for pid in (ready["pid"], ready["shim_pid"]):
        names = {entry.partition(b"=")[0] for entry in (machine.root / f"proc/{pid}/environ").read_bytes().split(b"\0")}
        assert b"MODELSUPD_RUN" in names or pid == ready["shim_pid"]
        assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID", b"INVOCATION_ID", b"JOURNAL_STREAM"}
    status = dict(
        line.split(":\t", 1) for line in (machine.root / f"proc/{ready['pid']}/status").read_text().splitlines()
    )
    assert ready["pid"] in machine.processes()
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapBnd"], 16) == 0
    limits = (machine.root / f"proc/{ready['pid']}/limits").read_text()
    assert " ".join(next(line for line in limits.splitlines() if "core file" in line).split()[4:6]) == "0 0"


def test_restart_leaves_engines_alone(machine: Machine) -> None:
    first = start(machine)
    before = main_pid(machine)
    machine.systemctl("restart", "modelsupd")
    assert main_pid(machine) != before
    again = machine.until_phase("ready")
    assert (again["pid"], again["shim_pid"], again["run"]) == (first["pid"], first["shim_pid"], first["run"])
    assert again["restarts"] == 0
    # This daemon never was the engine's parent, and is told of its end all the same.
    kill(machine, "KILL", first["pid"])
    assert machine.until_phase("ready", run=2)["restarts"] == 1


def test_stop_leaves_nothing(machine: Machine) -> None:
    declare(machine, model("m", "--orphan", "setsid"))
    start(machine)
    until(
        lambda: len(machine.processes()) >= 5, what="daemon, spawner, shim, engine, and the one that left its session"
    )
    machine.systemctl("stop", "modelsupd")
    assert nothing_left(machine)
    assert machine.property("Result") == "success"
    assert machine.run("modelsupd", "status", check=False).returncode == 3


def test_stop_waits_for_a_drain_that_is_longer_than_systemd_would(machine: Machine) -> None:
    """TimeoutStopSec is the limit on one silent step: the daemon asks for more as long as its own limits last."""
    adjust(machine, "[Service]\nTimeoutStopSec=6\n")
    stubborn = model("m", "--term", "ignore").replace("term_timeout_s = 2", "term_timeout_s = 8")
    declare(machine, stubborn)
    start(machine)
    machine.systemctl("stop", "modelsupd")
    assert nothing_left(machine)
    assert machine.property("Result") == "success"


def test_a_killed_daemon_is_replaced_by_one_that_adopts(machine: Machine) -> None:
    first = start(machine)
    before = main_pid(machine)
    kill(machine, "KILL", before)
    next_daemon(machine, before)
    again = machine.until_phase("ready")
    assert (again["pid"], again["run"], again["restarts"]) == (first["pid"], first["run"], 0)
    assert machine.property("NRestarts") == "1"


def test_a_daemon_that_stands_still_is_caught_by_the_watchdog(machine: Machine) -> None:
    adjust(machine, "[Service]\nWatchdogSec=2\n")
    first = start(machine)
    before = main_pid(machine)
    kill(machine, "STOP", before)
    next_daemon(machine, before)
    until(lambda: "Watchdog timeout" in machine.said(), what=machine.said)
    again = machine.until_phase("ready")
    assert (again["pid"], again["run"], again["restarts"]) == (first["pid"], first["run"], 0)


def test_the_watchdog_is_fed_in_time(machine: Machine) -> None:
    adjust(machine, "[Service]\nWatchdogSec=4\n")
    start(machine)
    before = main_pid(machine)
    fed = machine.property("WatchdogTimestampMonotonic")
    for _ in range(3):
        until(lambda last=fed: machine.property("WatchdogTimestampMonotonic") != last)  # type: ignore[misc] # mypy wants no default on a lambda
        fed = machine.property("WatchdogTimestampMonotonic")
    assert main_pid(machine) == before
    assert machine.property("NRestarts") == "0"


def test_a_stop_that_the_daemon_does_not_survive_leaves_nothing(machine: Machine) -> None:
    """What the daemon did not get to is done by ExecStopPost."""
    declare(machine, model("m", "--term", "ignore").replace("term_timeout_s = 2", "term_timeout_s = 60"))
    first = start(machine)
    machine.systemctl("stop", "--no-block", "modelsupd")
    machine.until_phase("stopping")
    kill(machine, "KILL", main_pid(machine))
    until(lambda: machine.property("SubState") == "stop-post")
    assert machine.alive(int(str(first["pid"])))
    until(lambda: machine.property("ActiveState") != "deactivating")
    assert nothing_left(machine)
    assert machine.property("SubState") == "failed", "and it is not started again"


def test_stop_wakes_a_daemon_that_stands_still(machine: Machine) -> None:
    start(machine)
    kill(machine, "STOP", main_pid(machine))
    machine.systemctl("stop", "modelsupd")
    assert nothing_left(machine)
    assert machine.property("Result") == "success"


def test_stop_during_auto_restart_leaves_nothing(machine: Machine) -> None:
    """No ExecStopPost is run then: the engines are `modelsupd reap`'s."""
    adjust(machine, "[Service]\nRestartSec=600\n")
    first = start(machine)
    kill(machine, "KILL", main_pid(machine))
    until(lambda: machine.property("SubState") == "auto-restart")
    assert machine.alive(int(str(first["pid"])))
    machine.systemctl("stop", "modelsupd")
    assert machine.property("ActiveState") == "inactive"
    reaped = machine.run("modelsupd", "reap")
    assert nothing_left(machine), reaped.stdout
    # What root did when it cleared up does not keep the service's user from going on.
    machine.systemctl("start", "modelsupd")
    assert machine.until_phase("ready", run=2)["run"] == 2


def test_stop_after_the_start_limit_leaves_nothing(machine: Machine) -> None:
    """The unit has no such limit; an operator may set one."""
    (machine.root / DROP_IN).write_text(
        "[Unit]\nStartLimitIntervalSec=600\nStartLimitBurst=1\n[Service]\nRestartSec=0\n"
    )
    machine.systemctl("daemon-reload")
    first = start(machine)
    kill(machine, "KILL", main_pid(machine))
    until(lambda: machine.property("ActiveState") == "failed")
    assert machine.alive(int(str(first["pid"])))
    machine.systemctl("stop", "modelsupd")
    reaped = machine.run("modelsupd", "reap")
    assert nothing_left(machine), reaped.stdout


def test_reload_replaces_what_changed_and_an_invalid_file_changes_nothing(machine: Machine) -> None:
    declare(machine, model("a") + model("b"))
    machine.systemctl("start", "modelsupd")
    a, b = (machine.until_phase("ready", name=name) for name in ("a/0", "b/0"))
    declare(machine, model("a") + model("b", "--say", "new"))
    machine.systemctl("reload", "modelsupd")
    assert machine.until_phase("ready", name="b/0", run=2)["pid"] != b["pid"]
    assert machine.replica("a/0")["pid"] == a["pid"]
    declare(machine, "[models.a]\nengine = 'comand'\n")
    machine.systemctl("reload", "modelsupd")
    until(lambda: "configuration not changed" in machine.said())
    assert machine.replica("a/0")["pid"] == a["pid"]
    assert machine.property("ActiveState") == "active"


def test_other_users_cannot_enter(machine: Machine) -> None:
    ready = start(machine)
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    for place in ("/run/modelsupd", "/var/lib/modelsupd", "/etc/modelsupd"):
        listed = machine.run(*as_nobody, "ls", place, check=False)
        assert listed.returncode != 0
        assert "Permission denied" in listed.stderr
    for thing in (
        "/run/modelsupd/control.sock",
        str(ready["endpoint"]).removeprefix("unix:"),
        "/etc/modelsupd/models.toml",
    ):
        machine.run("test", "-e", thing)
        assert machine.run(*as_nobody, "test", "-e", thing, check=False).returncode == 1
    assert machine.run(*as_nobody, "modelsupd", "status", check=False).returncode != 0


def test_what_root_repairs_stays_the_service_users(machine: Machine) -> None:
    first = start(machine)
    machine.run("modelsupd", "restart", "m")
    machine.systemctl("stop", "modelsupd")
    [segment] = (machine.root / "var/lib/modelsupd/journal").glob("*.seg")
    content = segment.read_bytes()
    segment.write_bytes(content.replace(b"starting run 1", b"starting run 7", 1))
    machine.systemctl("start", "modelsupd", check=False)
    until(lambda: "modelsupd journal repair" in machine.said(), what=machine.said)
    machine.systemctl("stop", "modelsupd")
    machine.run("modelsupd", "journal", "repair", "--yes")
    written = list((machine.root / "var/lib/modelsupd").rglob("*"))
    assert {path.lstat().st_uid for path in written} == {segment.stat().st_uid}
    machine.systemctl("reset-failed", "modelsupd", check=False)
    machine.systemctl("start", "modelsupd")
    assert machine.until_phase("ready")["run"] != first["run"]


def test_a_second_boot_brings_back_what_was_wanted_and_nothing_else(machine: Machine) -> None:
    declare(machine, model("a") + model("b") + model("c"))
    machine.systemctl("start", "modelsupd")
    for name in ("a/0", "b/0", "c/0"):
        machine.until_phase("ready", name=name)
    machine.run("modelsupd", "stop", "b")
    machine.power_off()
    machine.boot()
    assert machine.property("ActiveState") == "active", "enabled, so systemd has started it"
    for name in ("a/0", "c/0"):
        again = machine.until_phase("ready", name=name)
        assert (again["run"], again["restarts"]) == (2, 0)
    assert machine.replica("b/0")["phase"] == "stopped"
    assert machine.run("modelsupd", "start", "b").returncode == 0
    assert machine.until_phase("ready", name="b/0")["run"] == 2


def test_a_boot_after_a_power_cut_brings_back_what_was_wanted(machine: Machine) -> None:
    declare(machine, model("a") + model("b"))
    machine.systemctl("start", "modelsupd")
    for name in ("a/0", "b/0"):
        machine.until_phase("ready", name=name)
    machine.run("modelsupd", "stop", "b")
    machine.destroy()
    machine.boot()
    assert machine.until_phase("ready", name="a/0")["run"] == 2
    assert machine.replica("b/0")["phase"] == "stopped"
    assert "torn" not in machine.said()
