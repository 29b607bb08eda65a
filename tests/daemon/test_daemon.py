"""The daemon from outside: real processes, real signals, a fake engine that fails on demand."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import fake_engine
from hosts import QUICK, alive, fake, fake_model, host, settled, small_gguf, streaming, whys
from waiting import until


def test_starts_proves_and_stops_without_a_trace(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        ready = daemon.until_phase("ready")
        assert ready["run"] == 1
        assert ready["endpoint"].startswith("unix:")
        assert "token" in ready["reason"]
        assert daemon.run("status").returncode == 0
        assert daemon.stop() == 0
        assert not alive(ready["pid"])
        assert not alive(ready["shim_pid"])
        assert list((daemon.runtime / "runs").iterdir()) == []
        assert daemon.run("status").returncode == 3


def test_a_killed_engine_serves_again_and_the_journal_says_why(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2)
        assert again["restarts"] == 1
        assert "killed by signal 9" in whys(daemon)
        why = daemon.run("why", "m")
        assert why.returncode == 0, why.stderr
        assert "signal 9" in why.stdout


def test_a_killed_daemon_leaves_the_engine_and_the_next_adopts_it(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        daemon.stop(signal.SIGKILL)
        assert alive(first["pid"])
        assert daemon.run("status").returncode == 3
        daemon.start()
        again = daemon.until_phase("ready")
        assert (again["pid"], again["run"], again["shim_pid"]) == (first["pid"], first["run"], first["shim_pid"])
        # Its end is seen although this daemon never was its parent.
        os.kill(first["pid"], signal.SIGKILL)
        assert daemon.until_phase("ready", run=2)["restarts"] == 1


def test_an_engine_that_died_while_nobody_looked_is_restarted(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        daemon.stop(signal.SIGKILL)
        os.kill(first["pid"], signal.SIGKILL)
        until(lambda: not alive(first["shim_pid"]))
        daemon.start()
        assert daemon.until_phase("ready", run=2)["restarts"] == 1
        assert "killed by signal 9" in whys(daemon)


def test_usr1_leaves_the_engine_to_the_next_daemon(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        assert daemon.stop(signal.SIGUSR1) == 0
        assert alive(first["pid"])
        daemon.start()
        assert daemon.until_phase("ready")["pid"] == first["pid"]


def test_a_stop_outlives_the_daemon(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        daemon.until_phase("ready")
        assert daemon.run("stop", "m").returncode == 0
        daemon.until_phase("stopped")
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.replica()["phase"] == "stopped"
        assert daemon.client.status()["models"][0]["want"] == "down"
        assert daemon.run("start", "m").returncode == 0
        daemon.until_phase("ready")


def test_a_model_that_runs_is_wanted_again_after_an_orderly_stop(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        daemon.until_phase("ready")
        assert daemon.stop() == 0
        daemon.start()
        assert daemon.until_phase("ready")["restarts"] == 0


def test_reload_replaces_what_changed_and_touches_nothing_else(place: Path) -> None:
    with host(place, fake_model("a") + fake_model("b")) as daemon:
        a = daemon.until_phase("ready", name="a/0")
        b = daemon.until_phase("ready", name="b/0")
        quicker = fake_model("a").replace("probe_interval_s = 0.2", "probe_interval_s = 0.3")
        daemon.declare(quicker + fake_model("b", "--say", "new") + fake_model("c"))
        daemon.send(signal.SIGHUP)
        daemon.until_phase("ready", name="c/0")
        assert daemon.until_phase("ready", name="b/0", run=2)["pid"] != b["pid"]
        assert daemon.replica("a/0")["pid"] == a["pid"]
        assert daemon.replica("b/0")["restarts"] == 0
        daemon.declare(fake_model("a"))
        assert daemon.run("reload").returncode == 0
        until(lambda: {model["name"] for model in daemon.client.status()["models"]} == {"a"})
        assert daemon.replica("a/0")["pid"] == a["pid"]


def test_an_invalid_file_changes_nothing(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        daemon.declare("[models.m]\nengine = 'comand'\n")
        refused = daemon.run("reload")
        assert refused.returncode != 0
        assert "comand" in refused.stderr
        daemon.send(signal.SIGHUP)
        until(lambda: "configuration not changed" in daemon.said())
        assert daemon.replica()["pid"] == first["pid"]
        daemon.declare(fake_model())


def test_an_engine_that_is_polite_and_generates_nothing_is_hung(place: Path) -> None:
    limits = "prove_every_s = 0.5\n[models.m.stop]"
    with host(place, fake_model().replace("[models.m.stop]", limits)) as daemon:
        first = daemon.until_phase("ready")
        fake(first["endpoint"], hang="completions")
        again = daemon.until_phase("ready", run=2)
        assert again["pid"] != first["pid"]
        assert "hung: no answer" in whys(daemon)
        assert not alive(first["pid"])


def test_a_stopped_engine_is_judged_hung_in_time(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGSTOP)
        until(lambda: not alive(first["pid"]))
        daemon.until_phase("ready", run=2)
        # In time is by the second probe that has no answer, which is hang_after_s and one probe_timeout_s at most; how
        # many seconds that takes in the end is the machine's. A daemon that stood still itself asks once more.
        in_time = re.search("hung: no answer.* 2 probes failed in a row", whys(daemon))
        assert in_time or "got no CPU" in daemon.said(), whys(daemon)


def test_zero_tokens_are_not_ready_and_the_reason_says_so(place: Path) -> None:
    limits = "start_stall_s = 1.5\n[models.m.stop]"
    with host(place, fake_model("m", "--zero-tokens").replace("[models.m.stop]", limits)) as daemon:
        seen: dict[str, Any] = {}

        def told() -> bool:
            seen.update(daemon.replica())
            # The reason outlives the phase: it is told of a start that stalled, too.
            return seen["phase"] == "starting" and "zero tokens" in seen["reason"]

        until(told, what=daemon.said)
        until(lambda: "start-stalled: no progress for 1.5 s; last:" in whys(daemon), what=lambda: whys(daemon))


def test_a_crash_loop_ends_in_failed_and_an_operator_starts_it_again(place: Path) -> None:
    quick = "backoff_initial_s = 0.05\nmax_crashes = 2"
    broken = fake_model("m", "--exit-after-requests", "0", "--exit-code", "3")
    with host(place, broken.replace("backoff_initial_s = 0.05", quick)) as daemon:
        failed = daemon.until_phase("failed")
        assert failed["run"] == 3
        assert "3 failures within 600 s" in failed["reason"]
        assert daemon.run("status").returncode == 1
        assert daemon.run("start", "--no-wait", "m").returncode == 0
        assert daemon.until_phase("failed", run=6)["run"] == 6


def test_missing_weights_fail_at_once_and_start_when_they_come(place: Path) -> None:
    weights = place / "w"
    model = fake_model("m", extra=f"weights = '{weights}'").replace(
        "backoff_initial", "recheck_s = 0.2\nbackoff_initial"
    )
    with host(place, model) as daemon:
        failed = daemon.until_phase("failed")
        assert "no such file" in failed["reason"].lower()
        assert failed["run"] == 1
        settled(weights, b"weights")
        daemon.until_phase("ready")


def test_a_killed_shim_leaves_nothing_of_its_engine(place: Path) -> None:
    with host(place, fake_model("m", "--orphan", "setsid")) as daemon:
        first = daemon.until_phase("ready")
        os.kill(first["shim_pid"], signal.SIGKILL)
        daemon.until_phase("ready", run=2)
        assert not alive(first["pid"])
        assert "shim was killed" in whys(daemon)


def test_a_daemon_that_got_no_cpu_gives_no_verdict(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        daemon.send(signal.SIGSTOP)
        stopped_at = time.monotonic()
        until(lambda: time.monotonic() - stopped_at > 4, what="longer than hang_after_s and two probe timeouts")
        daemon.send(signal.SIGCONT)
        until(lambda: "got no CPU" in daemon.said())
        seq = daemon.client.status()["daemon"]["journal"]["seq"]
        resumed_at = time.monotonic()
        until(lambda: time.monotonic() - resumed_at > 1.5, what="time for several probes")
        assert daemon.replica()["pid"] == first["pid"]
        assert daemon.client.status()["daemon"]["journal"]["seq"] == seq


def test_a_second_signal_skips_the_drain_and_a_third_kills(place: Path) -> None:
    limits = fake_model("m", "--term", "ignore", "--token-s", "0.2").replace("_timeout_s = 2", "_timeout_s = 60")
    with host(place, limits) as daemon:
        first = daemon.until_phase("ready")
        stream = streaming(first["endpoint"], tokens=1000)
        daemon.send(signal.SIGTERM)
        daemon.until_phase("draining")
        daemon.send(signal.SIGTERM)
        daemon.until_phase("stopping")
        assert daemon.stop() == 0
        assert not alive(first["pid"])
        stream.close()


def test_a_stream_in_flight_is_finished(place: Path) -> None:
    slow = fake_model("m", "--token-s", "0.1").replace("drain_timeout_s = 2", "drain_timeout_s = 20")
    with host(place, slow) as daemon:
        ready = daemon.until_phase("ready")
        stream = streaming(ready["endpoint"], tokens=10)
        daemon.send(signal.SIGTERM)
        text = b""
        while b"[DONE]" not in text:
            piece = stream.recv(65536)
            assert piece, text
            text += piece
        # The drain of such an engine is over when its connections are closed.
        stream.close()
        assert daemon.daemon is not None
        assert daemon.daemon.wait(60) == 0


def test_two_daemons_do_not_share_a_directory(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        daemon.until_phase("ready")
        second = subprocess.run(daemon.command("run"), capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode != 0
        assert str(daemon.daemon.pid if daemon.daemon else 0) in second.stderr
        assert "cannot start" in second.stderr
        assert daemon.replica()["phase"] == "ready"


def hear(manager: socket.socket, said: list[str]) -> None:
    """Read all that comes, as a service manager does: a socket has room for ten messages, and the rest is lost."""
    while message := manager.recv(4096):
        said.append(message.decode())


def test_the_service_manager_hears_what_it_needs(place: Path) -> None:
    path, said = str(place / "notify.sock"), list[str]()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        hearing = threading.Thread(target=hear, args=(manager, said))
        hearing.start()
        try:
            with host(place, fake_model(), start=False) as daemon:
                daemon.start(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "2000000"})
                until(lambda: "READY=1" in said)
                until(lambda: "WATCHDOG=1" in said)
                ready = daemon.until_phase("ready")
                environment = Path(f"/proc/{ready['pid']}/environ").read_bytes()
                assert b"NOTIFY_SOCKET" not in environment
                assert b"WATCHDOG_USEC" not in environment
                daemon.send(signal.SIGTERM)
                until(lambda: any("STOPPING=1" in each and "EXTEND_TIMEOUT_USEC" in each for each in said))
        finally:
            manager.shutdown(socket.SHUT_RD)
            hearing.join()


def test_how_far_loading_has_come_is_told(place: Path) -> None:
    weights = settled(place / "w.gguf", small_gguf())
    server = fake_engine.install(place)
    model = f"[models.m]\nengine = 'llama.cpp'\nbinary = '{server}'\nweights = '{weights}'\n"
    loads = "[models.m.args]\nload_s = 1000\n" + QUICK.format(name="m")
    with host(place, model + loads) as daemon:
        until(lambda: "its log: " in daemon.replica()["reason"], what=lambda: f"{daemon.replica()} {daemon.said()}")
        until(lambda: "Loading model" in daemon.replica()["reason"])
        fake(daemon.replica()["endpoint"], load_s=0.001)
        daemon.until_phase("ready")


def test_what_reap_ended_is_no_crash(place: Path) -> None:
    with host(place, fake_model()) as daemon:
        first = daemon.until_phase("ready")
        daemon.stop(signal.SIGKILL)
        daemon.reap()
        assert not alive(first["pid"])
        daemon.start()
        assert daemon.until_phase("ready", run=2)["restarts"] == 0
        assert "run 1 ended as it was told to: exit code 0" in whys(daemon)
