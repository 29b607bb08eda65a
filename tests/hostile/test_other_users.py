"""Another user of the same machine, who tries every door: sockets, directories, logs, /proc, and the first to come."""

from __future__ import annotations

import os
import re
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from hosts import Host, fake_model, host
from waiting import until

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

#: "nobody"; the account need not have a name.
STRANGER = 65534

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")


def as_stranger(act: Callable[[], object]) -> str:
    """Do something as another user, in a child; return "" or what became of it: the name of its error."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            act()
        except OSError as error:
            os.write(writable, type(error).__name__.encode())
        except BaseException:  # noqa: BLE001 - the child must not run on in the test's own code
            os.write(writable, traceback.format_exc().encode()[:4000])
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as said:  # noqa: PTH123 - a descriptor, no path
        words = said.read().decode()
    os.waitpid(child, 0)
    return words


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def doors(daemon: Host, engine: int, endpoint: str) -> dict[str, Callable[[], object]]:
    """Return everything that a stranger may try, by name."""
    tried: dict[str, Callable[[], object]] = {
        "connect to the admin socket": lambda: connect(daemon.runtime / "control.sock"),
        "connect to the engine": lambda: connect(Path(endpoint.removeprefix("unix:"))),
        "kill the engine": lambda: os.kill(engine, signal.SIGKILL),
        "read the engine's environment": Path(f"/proc/{engine}/environ").read_bytes,
        "open the engine's files": lambda: os.listdir(f"/proc/{engine}/fd"),  # noqa: PTH208 - the same as the others
        "make a file in the runtime directory": (daemon.runtime / "mine").touch,
    }
    for top in (daemon.runtime, daemon.state):
        for path in (top, *top.rglob("*")):
            if path.is_dir():
                tried[f"list {path}"] = partial(os.listdir, path)
                tried[f"replace {path}"] = partial(path.rename, f"{path}.away")
            else:
                tried[f"read {path}"] = path.read_bytes
                tried[f"write {path}"] = partial(path.write_bytes, b"x")
    return tried


@needs_root
def test_nothing_is_reached_but_the_list_of_processes(place: Path) -> None:
    place.chmod(0o755)
    with host(place, fake_model()) as daemon:
        daemon.config.chmod(0o600)
        ready = daemon.until_phase("ready")
        until(lambda: list(daemon.state.rglob("log")), what="the shim has read what the engine said")
        tried = doors(daemon, ready["pid"], ready["endpoint"])
        assert {"log", "exit.json.tmp", "spec.json", "control.sock", "engine.sock", "00000001.seg"} <= {
            name.rpartition("/")[2] for name in tried
        }
        went = {name: as_stranger(act) for name, act in tried.items()}
        assert {name: error for name, error in went.items() if error != "PermissionError"} == {}
        assert daemon.replica()["pid"] == ready["pid"]


@needs_root
def test_directories_that_somebody_made_wide_are_closed_further_in(place: Path) -> None:
    place.chmod(0o755)
    with host(place, fake_model(), start=False) as daemon:
        for directory in (daemon.runtime, daemon.state):
            directory.mkdir()
            directory.chmod(0o755)
        daemon.start()
        ready = daemon.until_phase("ready")
        # The names at the top are seen, and nothing is behind them.
        for name, act in doors(daemon, ready["pid"], ready["endpoint"]).items():
            if name not in (f"list {daemon.runtime}", f"list {daemon.state}"):
                installation = re.fullmatch(r"read .*/installation", name)
                assert as_stranger(act) == "PermissionError", installation or name


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_a_directory_that_somebody_else_may_write_to_is_refused(place: Path, mode: int) -> None:
    """Who owns the directory could put a journal or a socket of their own in the place of ours."""
    with host(place, fake_model(), start=False) as daemon:
        daemon.state.mkdir()
        daemon.state.chmod(mode)
        if mode == 0o700:
            os.chown(daemon.state, STRANGER, STRANGER)
        done = daemon.run("run", timeout_s=20)
        assert done.returncode == 1
        assert f"cannot use '{daemon.state}'" in done.stderr
        assert not (daemon.state / "journal").exists()
        os.chown(daemon.state, 0, 0)
        daemon.state.chmod(0o700)
        daemon.start()
        daemon.until_phase("ready")


def seen_in_proc(mark: bytes) -> None:
    """Raise an error that is no OSError where a word can be read in any process's public files."""
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names only
        for file in ("cmdline", "environ", "comm"):
            try:
                text = Path(f"/proc/{entry}/{file}").read_bytes()
            except OSError:
                continue
            assert mark not in text, f"/proc/{entry}/{file} shows it"


@needs_root
def test_the_mark_by_which_processes_are_found_and_ended_is_nobody_s_to_copy(place: Path) -> None:
    """Whoever carries it is ended with its run, whatever user it became, so that strangers must not learn it."""
    with host(place, fake_model()) as daemon:
        daemon.until_phase("ready")
        installation = (daemon.state / "installation").read_bytes().strip()
        assert len(installation) == 32
        assert as_stranger(lambda: seen_in_proc(installation)) == ""
        with pytest.raises(AssertionError, match="environ shows it"):
            seen_in_proc(installation)
