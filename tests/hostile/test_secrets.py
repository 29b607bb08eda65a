"""Secrets that an operator declared are in the engine's own environment and in models.toml, and nowhere else."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import pytest

import fake_engine
from hosts import Host, fake_model, host, settled, small_gguf
from waiting import until

pytestmark = pytest.mark.real  # each starts and ends daemons, or kills a process many times

#: Words that stand for themselves alone.
IN_ENV = "env-3f9c2a71d4"
IN_ARGS = "arg-8b15e6c0aa"


def processes() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 - names only


def showing(secret: str, among: set[int]) -> set[str]:
    """Return the public and private files of processes that show a word."""
    found = set()
    for pid in among - {os.getpid()}:
        for file in ("cmdline", "environ"):
            try:
                text = Path(f"/proc/{pid}/{file}").read_bytes()
            except OSError:
                continue
            if secret.encode() in text:
                found.add(f"{pid}/{file}")
    return found


def files_with(secret: str, *tops: Path) -> set[str]:
    """Return the names of all files that hold a word."""
    files = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]
    return {path.name for path in files if secret.encode() in path.read_bytes()}


def everything_told(daemon: Host) -> str:
    """Return what each verb that shows something says, and the metrics."""
    verbs = [
        ["status"], ["status", "--json"], ["why", "m"], ["events"], ["events", "--json"], ["logs", "m"],
        ["show", "m"], ["show", "--argv", "m"], ["check"], ["journal", "export"], ["journal", "verify"],
    ]  # fmt: skip
    told = []
    for verb in verbs:
        done = daemon.run(*verb)
        assert done.returncode in (0, 1), (verb, done.stderr)
        told.append(done.stdout + done.stderr)
    at = re.findall(r"http://127\.0\.0\.1:[0-9]+/metrics", daemon.said())[-1]
    with urllib.request.urlopen(at, timeout=5) as answer:  # noqa: S310 - an address of our own
        told.append(answer.read().decode())
    return "\n".join(told)


def declared(place: Path) -> str:
    """Return a model as llama.cpp's adapter runs it, with a secret in [env] and one in a flag's value."""
    (place / "bin").mkdir()
    binary = fake_engine.install(place / "bin")
    weights = settled(place / "w.gguf", small_gguf())
    return (
        f"[models.m]\nengine = 'llama.cpp'\nbinary = '{binary}'\nweights = '{weights}'\n"
        f"[models.m.env]\nHF_TOKEN = '{IN_ENV}'\n"
        f"[models.m.health]\nprobe_interval_s = 0.2\n[models.m.restart]\nbackoff_initial_s = 0.05\n"
    )


def with_metrics(daemon: Host) -> Host:
    text = daemon.config.read_text().replace("metrics_listen = ''", "metrics_listen = '127.0.0.1:0'")
    daemon.config.write_text(text.replace("[daemon]", "[daemon]\nlog_level = 'debug'"))
    daemon.config.chmod(0o600)
    return daemon


def test_a_secret_of_the_environment_is_the_engine_s_alone(place: Path) -> None:
    with host(place, declared(place), start=False) as daemon:
        before = processes()
        with_metrics(daemon).start()
        first = daemon.until_phase("ready")
        os.kill(first["pid"], signal.SIGKILL)
        ready = daemon.until_phase("ready", run=2)
        assert showing(IN_ENV, processes() - before) == {f"{ready['pid']}/environ"}
        # The shim is told by spec.json, which is the owner's alone and goes with the run.
        assert files_with(IN_ENV, daemon.runtime, daemon.state, daemon.log) == {"spec.json"}
        assert {path.stat().st_mode & 0o777 for path in daemon.runtime.rglob("spec.json")} == {0o600}
        assert IN_ENV not in everything_told(daemon)
        revealed = daemon.run("show", "--argv", "--reveal", "m")
        assert IN_ENV in revealed.stdout
        # The next daemon, which adopts the run, tells no more.
        assert daemon.stop(signal.SIGUSR1) == 0
        daemon.start()
        assert daemon.until_phase("ready")["pid"] == ready["pid"]
        assert IN_ENV not in everything_told(daemon)
        assert daemon.stop() == 0
        assert files_with(IN_ENV, daemon.runtime, daemon.state, daemon.log) == set()


def test_a_secret_in_a_flag_is_where_the_engine_s_own_command_line_is_and_nowhere_else(place: Path) -> None:
    """A flag is for the whole machine to see: the engine chose that. We add nothing to it."""
    program = place / "engine.py"
    fake = Path(fake_engine.__file__)
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(fake.parent)!r})\nimport fake_engine\n"
        "at = sys.argv.index('--api-key')\ndel sys.argv[at:at + 2]\nfake_engine.main()\n"
    )
    command = [sys.executable, "-ES", str(program), "--uds", "{socket}", "--api-key", IN_ARGS]
    model = fake_model().replace(re.findall(r"command = .*", fake_model())[0], f"command = {json.dumps(command)}")
    with host(place, model, start=False) as daemon:
        before = processes()
        with_metrics(daemon).start()
        ready = daemon.until_phase("ready")
        assert showing(IN_ARGS, processes() - before) == {f"{ready['pid']}/cmdline"}
        assert files_with(IN_ARGS, daemon.runtime, daemon.state, daemon.log) == {"spec.json"}
        assert IN_ARGS not in everything_told(daemon)
        assert IN_ARGS in daemon.run("show", "--argv", "--reveal", "m").stdout
        assert daemon.stop() == 0
        # Without a daemon it is told from the configuration, and no more of it.
        assert IN_ARGS not in daemon.run("show", "m").stdout
        assert daemon.run("show", "--reveal", "m").stdout.count(IN_ARGS) == 2


def test_errors_do_not_repeat_a_secret(place: Path) -> None:
    """Neither a wrong value nor a changed one nor an engine that cannot be started makes anybody tell it."""
    with host(place, declared(place), start=False) as daemon:
        with_metrics(daemon).start()
        daemon.until_phase("ready")
        good = daemon.config.read_text()
        for broken in (
            good.replace(f"'{IN_ENV}'", f"['{IN_ENV}']"),
            good.replace(f"'{IN_ENV}'", f"'{IN_ENV}"),
            good.replace("HF_TOKEN", "LD_PRELOAD\\0"),
        ):
            daemon.config.write_text(broken)
            refused = daemon.run("reload")
            assert refused.returncode != 0, broken
            assert IN_ENV not in refused.stdout + refused.stderr
        daemon.config.write_text(good.replace(IN_ENV, f"{IN_ENV}2"))
        assert daemon.run("reload").returncode == 0
        daemon.until_phase("ready", run=2)
        daemon.config.write_text(good.replace(f"{place}/bin/llama-server", "/nowhere/llama-server"))
        daemon.run("reload")
        until(lambda: daemon.replica()["phase"] == "failed", timeout_s=15)
        assert IN_ENV not in everything_told(daemon)
        assert IN_ENV not in daemon.said()
        daemon.config.write_text(good)
