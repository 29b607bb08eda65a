"""The daemon on GPUs of a fake NVML: placement, memory that adds up, quarantine, loads one at a time."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from fake_gpus import GIB, Cards
from hosts import Host, alive, fake, host, whys
from waiting import until

FOUR = "vram_bytes = 4294967296"
FIVE = "vram_bytes = 5368709120"


@pytest.fixture
def folder(place: Path) -> Path:
    return place / "cards"


def rows(daemon: Host) -> dict[int, dict[str, Any]]:
    return {row["index"]: row for row in daemon.client.status()["gpus"]}


def loaded(daemon: Host, name: str = "m/0") -> None:
    """Let an engine that loads for ever be done with it, once it answers that it loads."""
    until(lambda: "Loading model" in daemon.replica(name)["reason"])
    fake(daemon.replica(name)["endpoint"], load_s=0.001)


def environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def test_each_replica_gets_a_gpu_and_sees_no_other(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    model = cards.model("m", use_gib=3, placement=FOUR, extra='replicas = "per-gpu"')
    with host(place, cards.config(model)) as daemon:
        ready = [daemon.until_phase("ready", name=f"m/{number}") for number in range(2)]
        assert sorted(replica["gpus"][0] for replica in ready) == ["GPU-0", "GPU-1"]
        for replica in ready:
            seen = environment(replica["pid"])
            assert seen["CUDA_VISIBLE_DEVICES"] == replica["gpus"][0]
            assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        until(lambda: {row["used_bytes"] for row in rows(daemon).values()} == {3 * GIB})
        assert [row["claimed_bytes"] for row in rows(daemon).values()] == [4 * GIB] * 2
        assert [row["foreign_bytes"] for row in rows(daemon).values()] == [0, 0]
        shown = daemon.run("gpu", "list")
        assert shown.returncode == 0, shown.stderr
        assert "Fake RTX" in shown.stdout
        assert "m/1" in shown.stdout
        assert "Fake RTX" in daemon.run("status").stdout
        # Nothing is told twice of one GPU, and no replica is too many.
        assert daemon.replica("m/2")["phase"] == "unknown"


def test_what_does_not_fit_waits_says_why_and_starts_when_there_is_room(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    models = cards.model("a", placement=FIVE), cards.model("b", placement=FIVE, extra='start = "manual"')
    with host(place, cards.config(*models)) as daemon:
        first = daemon.until_phase("ready", name="a/0")
        assert daemon.run("start", "--no-wait", "b").returncode == 0
        daemon.until_phase("waiting", name="b/0")
        until(lambda: "claimed by a/0" in daemon.replica("b/0")["reason"])
        waiting = daemon.replica("b/0")
        assert "needs 5.0 GiB, 3.0 GiB of 8.0 GiB left (5.0 GiB claimed by a/0)" in waiting["reason"]
        assert waiting["gpus"] == []
        assert "has been waiting for GPUs" in daemon.run("why", "b").stdout
        assert daemon.run("stop", "a").returncode == 0
        second = daemon.until_phase("ready", name="b/0")
        assert second["gpus"] == first["gpus"] == ["GPU-0"]
        assert second["restarts"] == 0


@pytest.mark.real
def test_memory_of_strangers_counts(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    cards.take(os.getpid(), 0, 4 * GIB)
    with host(place, cards.config(cards.model("m", placement=FIVE))) as daemon:
        daemon.until_phase("waiting")
        until(lambda: "4.0 GiB used by others" in daemon.replica()["reason"])
        assert rows(daemon)[0]["foreign_bytes"] == 4 * GIB
        cards.take(os.getpid(), 0, 2 * GIB)
        daemon.until_phase("ready")


@pytest.mark.real
def test_what_claims_no_size_has_its_gpu_for_itself(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    models = [cards.model(name) for name in ("a", "b", "c")]
    with host(place, cards.config(*models)) as daemon:
        until(lambda: sum(daemon.replica(f"{name}/0")["phase"] == "ready" for name in "abc") == 2)
        [last] = [name for name in "abc" if daemon.replica(f"{name}/0")["phase"] != "ready"]
        until(lambda: "has it for itself" in daemon.replica(f"{last}/0")["reason"])


@pytest.mark.real
def test_tensor_parallel_takes_two_and_a_command_is_told_which(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    model = cards.model("m", "--say", "on {gpus}", gpus=2, placement=FOUR)
    with host(place, cards.config(model)) as daemon:
        ready = daemon.until_phase("ready")
        assert ready["gpus"] == ["GPU-0", "GPU-1"]
        assert environment(ready["pid"])["CUDA_VISIBLE_DEVICES"] == "GPU-0,GPU-1"
        until(lambda: "on GPU-0,GPU-1" in daemon.run("logs", "m").stdout)


def test_memory_that_does_not_come_back_puts_the_gpu_into_quarantine(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    with host(place, cards.config(cards.model("m", use_gib=3, placement=FOUR), memory_s=0.3)) as daemon:
        first = daemon.until_phase("ready")
        until(lambda: rows(daemon)[0]["used_bytes"] == 3 * GIB)
        cards.set("linger", "listed")
        os.kill(first["pid"], signal.SIGKILL)
        second = daemon.until_phase("ready", run=2)
        assert (first["gpus"], second["gpus"]) == (["GPU-0"], ["GPU-1"])
        row = rows(daemon)[0]
        assert row["state"] == "quarantined"
        assert f"3.0 GiB of m/0#1 have not come back, held by process {first['pid']}" in row["reason"]
        assert row["pids"] == [first["pid"]]
        listed = daemon.run("gpu", "list")
        assert listed.returncode == 1
        assert f"kill -9 {first['pid']}" in listed.stdout
        assert "have not come back" in whys(daemon)
        # It outlives the daemon, and ends by itself when the memory is back.
        assert daemon.stop(signal.SIGUSR1) == 0
        daemon.start()
        assert rows(daemon)[0]["state"] == "quarantined"
        cards.set("linger", None)
        until(lambda: rows(daemon)[0]["state"] == "ok")


@pytest.mark.real
def test_memory_that_no_process_is_told_of_counts_as_well(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    with host(place, cards.config(cards.model("m", use_gib=3, placement=FOUR), memory_s=0.3)) as daemon:
        first = daemon.until_phase("ready")
        cards.set("linger", "hidden")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("waiting", run=2)
        until(lambda: "in quarantine" in daemon.replica()["reason"])
        assert "3.0 GiB of m/0#1 have not come back, held by no process" in rows(daemon)[0]["reason"]
        cards.set("linger", None)
        daemon.until_phase("ready", run=2)


@pytest.mark.real
def test_memory_that_comes_back_late_is_waited_for(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    with host(place, cards.config(cards.model("m", use_gib=3, placement=FOUR), memory_s=20)) as daemon:
        first = daemon.until_phase("ready")
        cards.set("linger", "listed")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("clearing")
        assert not alive(first["pid"])
        cards.set("linger", None)
        again = daemon.until_phase("ready", run=2)
        assert again["gpus"] == ["GPU-0"]
        assert rows(daemon)[0]["state"] == "ok"


def test_a_lost_gpu_is_left_and_its_run_placed_elsewhere(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    with host(place, cards.config(cards.model("m", placement=FOUR))) as daemon:
        first = daemon.until_phase("ready")
        assert first["gpus"] == ["GPU-0"]
        cards.change(0, lost=True)
        second = daemon.until_phase("ready", run=2)
        assert second["gpus"] == ["GPU-1"]
        assert not alive(first["pid"])
        assert "gpu-lost" in whys(daemon)
        assert rows(daemon)[0]["state"] == "lost"
        # It is not used again by itself.
        cards.change(0, lost=False)
        until(lambda: rows(daemon)[0]["state"] == "quarantined")
        assert daemon.run("gpu", "release", "0").returncode == 0
        assert rows(daemon)[0]["state"] == "ok"


@pytest.mark.real
def test_a_fatal_error_of_the_hardware_counts_as_a_loss(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    with host(place, cards.config(cards.model("m", placement=FOUR))) as daemon:
        daemon.until_phase("ready")
        cards.xid(0, 31)  # a program's own fault
        cards.xid(0, 79)
        assert daemon.until_phase("ready", run=2)["gpus"] == ["GPU-1"]
        assert "Xid 79" in rows(daemon)[0]["reason"]


@pytest.mark.real
def test_an_engine_that_says_its_gpu_is_broken_is_believed(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    says = "CUDA error: uncorrectable ECC error encountered"
    with host(place, cards.config(cards.model("m", "--cuda-says", says, placement=FOUR))) as daemon:
        daemon.until_phase("waiting", run=2)
        until(lambda: "in quarantine" in daemon.replica()["reason"])
        assert "uncorrectable ECC error" in rows(daemon)[0]["reason"]


@pytest.mark.real
def test_out_of_gpu_memory_is_a_class_and_backs_off(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    with host(place, cards.config(cards.model("m", use_gib=9, placement=FOUR))) as daemon:
        until(lambda: re.search("out-of-gpu-memory: .*; next start in ", whys(daemon)), what=lambda: whys(daemon))
        until(lambda: (daemon.replica()["run"] or 0) >= 2)
        assert daemon.run("stop", "m").returncode == 0


@pytest.mark.real
def test_an_operator_keeps_a_gpu_from_being_used(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    with host(place, cards.config(cards.model("m", placement=FOUR))) as daemon:
        first = daemon.until_phase("ready")
        done = daemon.run("gpu", "quarantine", "GPU-0", "--why", "new fan")
        assert done.returncode == 0, done.stderr
        assert daemon.replica()["pid"] == first["pid"], "what runs goes on"
        assert daemon.run("restart", "m").returncode == 0
        assert daemon.replica()["gpus"] == ["GPU-1"]
        assert "new fan" in rows(daemon)[0]["reason"]
        wrong = daemon.run("gpu", "release", "7")
        assert wrong.returncode == 1
        assert "there is no GPU '7'; known are 0 (GPU-0), 1 (GPU-1)" in wrong.stderr
        assert "is not in quarantine" in daemon.run("gpu", "release", "1").stderr


@pytest.mark.real
def test_a_driver_that_hangs_holds_nothing_up_but_new_placements(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    models = cards.model("a", placement=FOUR), cards.model("b", placement=FOUR, extra='start = "manual"')
    with host(place, cards.config(*models, answer_s=0.3)) as daemon:
        first = daemon.until_phase("ready", name="a/0")
        cards.set("hang")
        until(lambda: {row["state"] for row in rows(daemon).values()} == {"unknown"})
        assert daemon.run("start", "--no-wait", "b").returncode == 0
        daemon.until_phase("waiting", name="b/0")
        until(lambda: "did not answer within 0.3 s" in daemon.replica("b/0")["reason"])
        assert daemon.replica("a/0")["pid"] == first["pid"]
        cards.set("hang", None)
        daemon.until_phase("ready", name="b/0")


def test_one_load_at_a_time_on_a_gpu_and_no_stop_beside_it(place: Path, folder: Path) -> None:
    cards = Cards(folder, 16)
    small = "vram_bytes = 1073741824"
    slow = cards.model("slow", "--load-s", "1000", placement=small, extra='start = "manual"')
    models = cards.model("a", placement=small), cards.model("b", placement=small, extra='start = "manual"'), slow
    with host(place, cards.config(*models)) as daemon:
        daemon.until_phase("ready", name="a/0")
        assert daemon.run("start", "--no-wait", "slow").returncode == 0
        daemon.until_phase("starting", name="slow/0")
        assert daemon.run("start", "--no-wait", "b").returncode == 0
        until(lambda: "slow/0 loads on GPU 0" in daemon.replica("b/0")["reason"])
        assert daemon.run("stop", "--no-wait", "a").returncode == 0
        until(lambda: "waits while slow/0 loads beside it" in daemon.replica("a/0")["reason"])
        assert daemon.replica("a/0")["phase"] == "draining"
        loaded(daemon, "slow/0")
        daemon.until_phase("ready", name="slow/0")
        daemon.until_phase("stopped", name="a/0")
        daemon.until_phase("ready", name="b/0")
        order = [
            (record["replica"], record["state"]["phase"]["name"])
            for record in daemon.records()
            if record.get("kind") == "replica" and record["state"]
        ]
        assert order.index(("slow/0", "ready")) < order.index(("b/0", "spawning"))
        assert order.index(("slow/0", "ready")) < order.index(("a/0", "stopping"))


@pytest.mark.real
def test_the_next_daemon_knows_what_its_runs_hold(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8)
    models = cards.model("a", placement=FIVE), cards.model("b", placement=FIVE, extra='start = "manual"')
    with host(place, cards.config(*models)) as daemon:
        first = daemon.until_phase("ready", name="a/0")
        assert daemon.run("start", "--no-wait", "b").returncode == 0
        daemon.until_phase("waiting", name="b/0")
        daemon.stop(signal.SIGKILL)
        daemon.start()
        again = daemon.until_phase("ready", name="a/0")
        assert (again["pid"], again["gpus"]) == (first["pid"], ["GPU-0"])
        until(lambda: "claimed by a/0" in daemon.replica("b/0")["reason"])


@pytest.mark.real
def test_a_driver_that_cannot_be_read_at_the_start_takes_no_replica_away(place: Path, folder: Path) -> None:
    cards = Cards(folder, 8, 8)
    model = cards.model("m", placement=FOUR, extra='replicas = "per-gpu"')
    with host(place, cards.config(model, answer_s=0.5)) as daemon:
        pids = {daemon.until_phase("ready", name=f"m/{number}")["pid"] for number in range(2)}
        assert daemon.stop(signal.SIGUSR1) == 0
        cards.set("hang")
        daemon.start()
        assert {daemon.until_phase("ready", name=f"m/{number}")["pid"] for number in range(2)} == pids
        cards.set("hang", None)
        until(lambda: {row["state"] for row in rows(daemon).values()} == {"ok"})
        assert {daemon.replica(f"m/{number}")["pid"] for number in range(2)} == pids


@pytest.mark.real
def test_a_host_without_a_driver_says_so(place: Path) -> None:
    cards = Cards(place / "cards")
    (place / "cards" / "libnvidia-ml.so.1").unlink()
    with host(place, cards.config(cards.model("m"))) as daemon:
        until(lambda: "needs a GPU, and there is none (nvidia: " in daemon.replica()["reason"])
        listed = daemon.run("gpu", "list")
        assert "nvidia: " in listed.stdout
        assert listed.returncode == 0


def test_a_model_without_gpus_starts_no_process_that_reads_them(place: Path) -> None:
    cards = Cards(place / "cards", 8)
    with host(place, cards.config(cards.model("m", gpus=0))) as daemon:
        ready = daemon.until_phase("ready")
        assert ready["gpus"] == []
        assert daemon.client.status()["gpus"] == []
        assert environment(ready["pid"])["CUDA_VISIBLE_DEVICES"] == ""
        assert daemon.daemon is not None
        children = Path(f"/proc/{daemon.daemon.pid}/task/{daemon.daemon.pid}/children").read_text().split()
        names = [Path(f"/proc/{pid}/comm").read_text() for pid in children]
        assert not any(name.startswith("modelsupd-gpus") for name in names), names


@pytest.mark.real
def test_a_start_says_how_long_the_last_one_took(place: Path) -> None:
    cards = Cards(place / "cards", 8)
    with host(place, cards.config(cards.model("m", "--load-s", "1000", placement=FOUR))) as daemon:
        first = daemon.until_phase("starting")
        assert first["left_s"] is None
        loaded(daemon)
        daemon.until_phase("ready")
        assert daemon.run("restart", "--no-wait", "m").returncode == 0
        second = daemon.until_phase("starting", run=2)
        assert second["left_s"] is not None
        assert "its last start took" in second["reason"]
        loaded(daemon)
        daemon.until_phase("ready", run=2)
        until(lambda: daemon.records()[-1]["state"]["learned"]["start_s"] > 0)
