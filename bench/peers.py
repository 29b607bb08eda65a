"""Other supervisors, each keeping one child alive as its manual says, so that they can be measured beside ours.

What is missing is put into the cache outside the checkout; a peer that cannot be had here is left out by name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import child
from machine import Machine

SUPERVISOR = "supervisor==4.3.0"

#: A child that ends sooner than this after its start counts as one that cannot be started, with runit (one second,
#: runsv.c) and with supervisord (startsecs), and is then made to wait.
SETTLED_S = 1.1

_UNIT = """
[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=/usr/local/lib/bench/child /run/{name}.bell /run/{name}.engine
Restart=always
{how}
"""

#: What the host has installed is none of our business.
_EMPTY = """
rm -rf /etc/systemd/system/* /etc/init.d/* /etc/rc?.d
ln -s /dev/null /etc/systemd/system/console-getty.service
cp /usr/local/lib/bench/*.service /etc/systemd/system
"""


class Unavailable(Exception):  # noqa: N818 - it is no error: a peer is left out
    """A peer that cannot be had here, and why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A supervisor that runs; `bell` tells of its children."""

    name: str
    bell: child.Bell


Start = Callable[[Path, Path], AbstractContextManager[list[Peer]]]
"""Starts supervisors in a directory, with the compiled child; raises Unavailable."""


@contextmanager
def _running(place: Path, name: str, command: Sequence[str | Path], *, how: signal.Signals) -> Iterator[list[Peer]]:
    with contextlib.closing(child.Bell(place / "bell")) as bell, (place / "said").open("wb") as said:
        started = subprocess.Popen(command, cwd=place, stdout=said, stderr=said, start_new_session=True)
        try:
            yield [Peer(name, bell)]
        finally:
            started.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()


def shell(place: Path, program: Path) -> AbstractContextManager[list[Peer]]:
    """Run a loop in the shell."""
    loop = f"while :; do {program} {place}/bell {place}/engine; done"
    return _running(place, "shell loop", ["sh", "-c", loop], how=signal.SIGKILL)


def bare(place: Path, program: Path) -> AbstractContextManager[list[Peer]]:
    """Run the prototype beside this file."""
    script = Path(__file__).with_name("prototype.py")
    command: list[str | Path] = [sys.executable, script, program, place / "bell", place / "engine"]
    return _running(place, "asyncio + pidfd prototype", command, how=signal.SIGKILL)


def runit(place: Path, program: Path) -> AbstractContextManager[list[Peer]]:
    """Run runit's `runsv`, from Debian's package."""
    runsv = shutil.which("runsv") or unpacked("runit") / "usr/bin/runsv"
    if not Path(runsv).exists():
        raise Unavailable("the package runit holds no runsv")
    service = place / "service"
    service.mkdir()
    run = service / "run"
    run.write_text(f"#!/bin/sh\nexec {program} {place}/bell {place}/engine\n")
    run.chmod(0o755)
    return _running(place, "runit (runsv)", [runsv, service], how=signal.SIGTERM)


def unpacked(package: str) -> Path:
    """Return where a Debian package lies unpacked, without installing it."""
    target = child.cache_dir() / package
    if not target.exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"there is no {package} and no {tool}")
        loading = target.with_suffix(".tmp")
        shutil.rmtree(loading, ignore_errors=True)
        loading.mkdir(parents=True)
        got = subprocess.run(["apt-get", "download", package], cwd=loading, capture_output=True, text=True, check=False)
        packages = list(loading.glob("*.deb"))
        if got.returncode != 0 or not packages:
            raise Unavailable(f"there is no {package}, and it cannot be downloaded: {got.stderr.strip()}")
        subprocess.run(["dpkg-deb", "-x", packages[0], loading], check=True)
        loading.rename(target)
    return target


def supervisord(place: Path, program: Path) -> AbstractContextManager[list[Peer]]:
    """Run supervisord from an environment of its own, with its defaults."""
    home = child.cache_dir() / SUPERVISOR.replace("==", "-")
    if not (home / "ready").exists():
        venv.create(home, with_pip=True, clear=True)
        pip: list[str | Path] = [home / "bin/python", "-m", "pip", "install", "--quiet", SUPERVISOR]
        got = subprocess.run(pip, capture_output=True, text=True, check=False)
        if got.returncode != 0:
            raise Unavailable(f"{SUPERVISOR} cannot be installed: {got.stderr.strip()}")
        (home / "ready").touch()
    config = place / "supervisord.conf"
    config.write_text(
        f"[supervisord]\nnodaemon=true\nuser={_user()}\nlogfile={place}/log\npidfile={place}/pid\nchildlogdir={place}\n"
        f"[program:child]\ncommand={program} {place}/bell {place}/engine\nautorestart=true\n"
    )
    command: list[str | Path] = [home / "bin/python", "-m", "supervisor.supervisord", "-c", config]
    return _running(place, "supervisord", command, how=signal.SIGTERM)


def _user() -> str:
    import pwd  # noqa: PLC0415 - needed here only

    return pwd.getpwuid(os.getuid()).pw_name


@contextmanager
def systemd(place: Path, program: Path) -> Iterator[list[Peer]]:
    """Boot a real systemd with two services: one that is started again at once, one with the default pause."""
    booted = Machine(place)
    try:
        why_not = booted.unable()
        if why_not:
            raise Unavailable(why_not)
        units = {"at-once": "RestartSec=0", "default": ""}
        folder = place / "upper/usr/local/lib/bench"
        folder.mkdir(parents=True)
        shutil.copy(program, folder)
        for name, how in units.items():
            (folder / f"{name}.service").write_text(_UNIT.format(name=name, how=how))
        done = booted.script(_EMPTY)
        if done.returncode != 0:
            raise Unavailable(done.stderr.strip())
        try:
            booted.boot()
        except AssertionError as error:
            raise Unavailable(f"it does not boot: {error}") from error
        with contextlib.ExitStack() as bells:
            peers = []
            for name, how in units.items():
                bell = bells.enter_context(contextlib.closing(child.Bell(booted.root / f"run/{name}.bell")))
                booted.systemctl("start", name)
                peers.append(Peer(f"systemd {how or 'default RestartSec'}", bell))
            yield peers
    finally:
        booted.destroy()


ALL: tuple[Start, ...] = (shell, bare, runit, systemd, supervisord)
