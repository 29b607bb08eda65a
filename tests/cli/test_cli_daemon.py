"""The verbs against a real daemon with fake engines, each as a program of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, fake_model, host
from waiting import until

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

MODELS = fake_model("tiny", extra="aliases = ['gpt']\nenv = { API_TOKEN = 'it is \"hidden\"' }") + fake_model(
    "manual", extra="start = 'manual'\nreplicas = 2"
)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Host]:
    """One daemon for the tests that leave its processes as they were: `tiny` ready, `manual` stopped."""
    place = Path(tempfile.mkdtemp(prefix="p"))
    with host(place, MODELS) as running:
        running.until_phase("ready", name="tiny/0")
        yield running
    shutil.rmtree(place)


@contextlib.contextmanager
def verb(under_test: Host, *words: str) -> Iterator[subprocess.Popen[str]]:
    """Run a verb that goes on until it is interrupted."""
    with subprocess.Popen(
        under_test.command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=10)


def line(process: subprocess.Popen[str], holding: str) -> str:
    """Return the next line of a verb's output that holds a text."""
    assert process.stdout is not None
    for text in process.stdout:
        if holding in text:
            return text
    raise AssertionError(f"ended without {holding!r}")


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def models(document: dict[str, Any]) -> dict[str, Any]:
    return {model["name"]: model for model in document["models"]}


def test_status(daemon: Host) -> None:
    done = daemon.run("status", "--json")
    document = json.loads(told(done))
    assert document["daemon"]["state"] == "running"
    assert document["daemon"]["pid"] == daemon.daemon.pid  # type: ignore[union-attr]  # it runs
    assert models(document)["tiny"]["ready"] is True
    assert models(document)["manual"]["want"] == "down"
    row = models(document)["tiny"]["replicas"][0]
    text = told(daemon.run("status"))
    assert f"is running, pid {document['daemon']['pid']}" in text
    assert "\x1b" not in text
    shown = next(shown for shown in text.splitlines() if shown.startswith("tiny/0"))
    assert shown.split()[:5] == ["tiny/0", "command", "ready", str(row["run"]), str(row["pid"])]
    assert row["endpoint"] in shown


def test_status_imports_nothing_heavy(daemon: Host) -> None:
    program = (
        "import sys\nfrom modelsupd.cli import main\n"
        f"try: main(['--config', {str(daemon.config)!r}, 'status', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = ('pydantic', 'aiohttp', 'rich', 'huggingface_hub', 'asyncio', 'prometheus_client', 'structlog')\n"
        "heavy += ('click', 'modelsupd.core.spec')\n"
        "print(*(name for name in heavy if name in sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([*daemon.command()[:1], "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["daemon"]["state"] == "running"
    assert done.stderr.strip() == ""


def test_the_short_way_says_what_the_long_one_says(daemon: Host) -> None:
    """A word more, here an option that changes nothing, and the answer goes through the whole command line."""
    config = f"--config={daemon.config}"
    short, long = (
        daemon.run("status", "--json"),
        subprocess.run(
            [*daemon.command()[:3], config, "status", "--json"], capture_output=True, text=True, check=False
        ),
    )
    assert (short.returncode, short.stdout, short.stderr) == (long.returncode, long.stdout, long.stderr)


def test_watching_shows_each_change(daemon: Host) -> None:
    with verb(daemon, "status", "--watch", "--json") as watching:
        assert watching.stdout is not None
        assert models(json.loads(watching.stdout.readline()))["manual"]["want"] == "down"
        told(daemon.run("start", "manual/1"))
        # With what was shown last it exits.
        while not models(json.loads(watching.stdout.readline()))["manual"]["ready"]:
            pass
    assert watching.returncode == 0
    told(daemon.run("stop", "manual/1"))


def test_a_terminal_gets_colours_and_a_table(daemon: Host) -> None:
    command = shlex.join(daemon.command("status"))
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    for extra, coloured in (({"TERM": "xterm-256color"}, True), ({"TERM": "xterm-256color", "NO_COLOR": "1"}, False)):
        done = subprocess.run(
            ["script", "-qec", command, "/dev/null"],
            env={**environ, **extra, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=True,
        )
        assert "WHERE, AND WHY" in done.stdout
        assert ("\x1b[32m" in done.stdout) is coloured


def test_start_and_stop_say_what_came_of_it(daemon: Host) -> None:
    assert told(daemon.run("start", "--no-wait", "manual/0")) == "manual/0: start asked for\n"
    text = told(daemon.run("start", "manual"))
    assert "manual/0: ready after" in text
    assert "manual/1: ready after" in text
    text = told(daemon.run("stop", "manual"))
    assert "manual/0: stopped after" in text
    assert told(daemon.run("why", "manual/0")).endswith(
        "What happens next: nothing, until 'modelsupd start manual/0'.\n"
    )


def test_restart_is_over_when_the_new_run_is_ready(place: Path) -> None:
    with host(place, MODELS) as daemon:
        daemon.until_phase("ready", name="tiny/0")
        before = daemon.replica("tiny/0")
        assert f"run {before['run'] + 1}, pid" in told(daemon.run("restart", "gpt"))
        after = daemon.replica("tiny/0")
        assert (after["phase"], after["run"], after["restarts"]) == ("ready", before["run"] + 1, before["restarts"])


def test_what_is_not_known_is_wrong_use(daemon: Host) -> None:
    for words in (("start", "tinny"), ("why", "tinny"), ("logs", "tinny"), ("show", "tinny"), ("events", "tinny")):
        assert "did you mean 'tiny'" in told(daemon.run(*words), 2)
    assert "there is no log of run 99 of tiny/0; kept are 1" in told(daemon.run("logs", "--run", "99", "tiny"), 2)
    assert "No such command 'stauts'" in told(daemon.run("stauts"), 2)


def test_why_logs_and_events_of_a_crash(place: Path) -> None:
    with host(place, MODELS) as daemon:
        daemon.until_phase("ready", name="tiny/0")
        first = daemon.replica("tiny/0")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("ready", name="tiny/0", run=first["run"] + 1)
        why = told(daemon.run("why", "gpt"))
        assert why.startswith("tiny/0 has been ready since ")
        assert f"run {first['run']} ended: killed by signal 9 (SIGKILL), peak memory" in why
        assert "a crash; " in why
        old = daemon.run("logs", "--run", str(first["run"]), "tiny/0")
        assert "fake_engine: model loaded" in old.stdout
        assert f"--- run {first['run']} of tiny/0 ended at" in old.stderr
        assert "killed by signal 9 (SIGKILL)" in old.stderr
        records = [json.loads(text) for text in told(daemon.run("events", "--json", "tiny/0")).splitlines()]
        assert {record["replica"] for record in records} == {"tiny/0"}
        exits = [record["event"] for record in records if record["event"]["type"] == "Exited"]
        assert exits[-1]["exit"]["signal"] == 9
        assert f"tiny/0#{first['run'] + 1}" in told(daemon.run("events"))
        assert "it is" not in told(daemon.run("events", "--json"))  # the value of API_TOKEN


def test_logs_are_followed_into_the_next_run(place: Path) -> None:
    with host(place, fake_model("tiny")) as daemon:
        daemon.until_phase("ready", name="tiny/0")
        before = daemon.replica("tiny/0")
        with verb(daemon, "logs", "-f", "tiny") as following:
            line(following, f"runs/{Path(before['endpoint']).parent.name}/engine.sock")
            told(daemon.run("restart", "tiny"))
            now = daemon.replica("tiny/0")
            assert now["endpoint"] != before["endpoint"]
            line(following, f"runs/{Path(now['endpoint']).parent.name}/engine.sock")
        with verb(daemon, "logs", "-f", "--run", str(before["run"]), "tiny") as over:
            assert over.wait(10) == 0


def test_events_are_followed(place: Path) -> None:
    with host(place, fake_model("tiny")) as daemon:
        daemon.until_phase("ready", name="tiny/0")
        with verb(daemon, "events", "-f", "--json", "tiny") as following:
            assert following.stdout is not None
            told(daemon.run("restart", "tiny"))
            line(following, "restart asked for by")


def test_show_prints_a_command_that_a_shell_takes(daemon: Host) -> None:
    row = daemon.replica("tiny/0")
    masked = daemon.run("show", "--argv", "tiny")
    assert "hidden" not in told(masked)
    assert "masked: API_TOKEN; --reveal shows them" in masked.stderr
    revealed = daemon.run("show", "--argv", "--reveal", "tiny/0")
    words = shlex.split(revealed.stdout)
    assert words[:2] == ["env", "-i"]
    assert 'API_TOKEN=it is "hidden"' in words
    assert not any(word.startswith("MODELSUPD_RUN=") for word in words)
    argv = Path(f"/proc/{row['pid']}/cmdline").read_text().split("\0")[:-1]
    assert words[-len(argv) :] == argv
    program = revealed.stdout.replace(shlex.join(argv), "env")
    printed = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True).stdout
    environ = dict(text.split("=", 1) for text in Path(f"/proc/{row['pid']}/environ").read_text().split("\0")[:-1])
    environ.pop("MODELSUPD_RUN")
    assert dict(text.split("=", 1) for text in printed.splitlines()) == environ
    text = told(daemon.run("show", "tiny"))
    assert text.startswith('[models.tiny]\nengine = "command"\n')
    assert "probe_interval_s = 0.2" in text
    assert 'API_TOKEN = "********"' in text


def test_reload_changes_all_or_nothing(place: Path) -> None:
    with host(place, fake_model("tiny")) as daemon:
        daemon.until_phase("ready", name="tiny/0")
        before = daemon.replica("tiny/0")
        daemon.declare(fake_model("tiny") + "[models.wrong]\nengin = 'command'\nreplicas = 'many'\n")
        text = told(daemon.run("reload"), 2)
        assert "engin" in text
        assert "replicas" in text
        daemon.declare(fake_model("tiny") + fake_model("more"))
        assert told(daemon.run("reload")) == "more/0: new\n"
        daemon.until_phase("ready", name="more/0")
        daemon.declare(fake_model("tiny"))
        assert told(daemon.run("reload")) == "more/0: removed\n"
        until(lambda: daemon.replica("more/0")["phase"] == "unknown")
        assert told(daemon.run("reload")) == "nothing changes\n"
        assert daemon.replica("tiny/0")["pid"] == before["pid"]


def test_what_needs_the_directories_for_itself_is_refused(daemon: Host) -> None:
    pid = daemon.daemon.pid  # type: ignore[union-attr]  # it runs
    for words in (("run",), ("reap",), ("journal", "repair")):
        assert f"pid {pid}" in told(daemon.run(*words), 1)
    assert "not damaged" in told(daemon.run("journal", "verify"))


def test_completion_knows_the_models(daemon: Host) -> None:
    environ = {**os.environ, "_MODELSUPD_COMPLETE": "bash_complete", "COMP_CWORD": "4"}
    words = f"modelsupd --config {daemon.config} why ma"
    done = subprocess.run(
        daemon.command()[:3], env={**environ, "COMP_WORDS": words}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["plain,manual", "plain,manual/0", "plain,manual/1"]


def test_without_the_daemon_the_last_known_state_is_told(place: Path) -> None:
    with host(place, MODELS) as gone:
        ready = gone.until_phase("ready", name="tiny/0")
        assert told(gone.run("stop", "manual"))
        assert gone.stop() == 0
        text = told(gone.run("status"), 3)
        assert "no daemon is running; this is the last known state" in text
        document = json.loads(told(gone.run("status", "--json"), 3))
        assert document["daemon"]["state"] == "not running"
        assert models(document)["tiny"]["engine"] == "command"
        assert models(document)["tiny"]["replicas"][0]["phase"] == "stopped"
        why = told(gone.run("why", "gpt"))
        assert why.startswith("No daemon is running: this is what the journal last told")
        assert "the daemon stops" in why
        assert f"run {ready['run']} of tiny/0 ended" in told(gone.run("logs", "gpt"))
        assert "env -i" in told(gone.run("show", "--argv", "tiny"))
        for words in (("start", "tiny"), ("stop", "tiny"), ("reload",), ("events", "-f")):
            assert "start one with 'modelsupd run'" in told(gone.run(*words), 3)
        assert "did you mean 'tiny'" in told(gone.run("why", "tinny"), 2)
        assert "nothing to end" in told(gone.run("reap"))


def test_reap_ends_what_a_killed_daemon_left(place: Path) -> None:
    with host(place, fake_model("tiny")) as killed:
        left = killed.until_phase("ready", name="tiny/0")
        killed.stop(signal.SIGKILL)
        row = models(json.loads(told(killed.run("status", "--json"), 3)))["tiny"]["replicas"][0]
        assert (row["phase"], row["pid"]) == ("ready", left["pid"])
        assert "that daemon adopts the process if it still runs" in told(killed.run("why", "tiny"))
        assert "ended tiny/0#1" in told(killed.run("reap"))
        assert not Path(f"/proc/{left['pid']}").exists()


def test_a_start_that_fails_says_so(place: Path) -> None:
    broken = "[models.broken]\nengine = 'command'\ncommand = ['./no-such-program', '{socket}']\nstart = 'manual'\n"
    slow = fake_model("slow", "--load-s", "60", extra="start = 'manual'")
    with host(place, broken + slow) as daemon:
        text = told(daemon.run("start", "broken"), 1)
        assert "cannot start it: it has failed: missing-binary" in text
        assert "no-such-program" in text
        told(daemon.run("start", "--no-wait", "slow"))
        daemon.until_phase("starting", name="slow/0")
        text = told(daemon.run("start", "--timeout", "0.5", "slow"), 1)
        assert "not ready within 0.5 s; what was asked for goes on" in text
        assert "slow/0: starting" in text
        told(daemon.run("stop", "slow"))


def test_what_prometheus_reads_of_a_daemon(place: Path) -> None:
    with host(place, fake_model("tiny"), start=False) as daemon:
        daemon.config.write_text(daemon.config.read_text().replace("metrics_listen = ''", "metrics_listen = '[::1]:0'"))
        daemon.start()
        first = daemon.until_phase("ready", name="tiny/0")
        os.kill(first["pid"], signal.SIGKILL)
        daemon.until_phase("ready", name="tiny/0", run=2)
        found = re.search(r"http://\[::1\]:[0-9]+/metrics", daemon.said())
        assert found, daemon.said()
        with urllib.request.urlopen(found[0], timeout=5) as answer:  # noqa: S310 - an address of our own
            body = answer.read().decode()
        labels = 'engine="command",model="tiny",replica="tiny/0"'
        assert f'modelsupd_replica_restarts_total{{class="crash",{labels}}} 1.0' in body
        assert f"modelsupd_start_seconds_count{{{labels}}} 2.0" in body
        samples = dict(text.rsplit(" ", 1) for text in body.splitlines() if not text.startswith("#"))
        assert float(samples[f"modelsupd_engine_memory_bytes{{{labels}}}"]) > 1e6
        assert float(samples["modelsupd_journal_records_total"]) >= 8
