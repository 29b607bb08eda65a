"""A machine with a real systemd as PID 1: systemd-nspawn on an overlay of the root file system.

Rules: nothing of the host is written but below the machine's own place; the network is its own once it boots; and
whatever happens to the test, or to the process that runs it, the machine dies with it. For that it lives in a PID and
a mount namespace whose first process the kernel kills when its parent dies, and mounts go with the namespace. Only
cgroups would stay, so it gets one of its own, which is removed by name.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hosts import Watched, alive
from modelsupd.control.client import Client
from waiting import until

REPOSITORY = Path(__file__).parent.parent

#: The interpreter that the service's user can reach: not the one of these tests, which may live in somebody's home.
PYTHON = "/usr/bin/python3"

#: Where the machine finds the source, read-only, and the fake engine.
SOURCE = "/usr/local/src/modelsupd"
FAKE = "/usr/local/lib/fake"

_TOOLS = ("systemd-nspawn", "nsenter", "unshare", "setpriv", "make")

#: Runs in the place, so that no path of it stands in a command line: what has one counts as left over from a test.
#: The cgroups come first, then `--` and what to run. /run is covered, because nspawn leaves locks there.
_SET_UP = """
while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs"; shift; done; shift
mount -t tmpfs tmpfs /run
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
exec env -u PWD -u OLDPWD "$@"
"""

#: nspawn lays an id of its own boot over the host's, and systemd lays a new /proc over that in units like ours. With
#: one of ours laid over both, a boot looks to the daemon and to a shell like one of real hardware.
_BOOT_ID = "/proc/sys/kernel/random/boot_id"

#: Only our unit and what systemd itself brings are to start; what else the host has installed is none of our business.
_INSTALL = f"""
rm -rf /etc/systemd/system/* /etc/init.d/* /etc/rc?.d /etc/modelsupd /var/lib/modelsupd
ln -s /dev/null /etc/systemd/system/console-getty.service
make --directory={SOURCE} install PYTHON={PYTHON} WHEEL="$WHEEL"
mkdir -p {FAKE}
cp {SOURCE}/tests/fake_*.py {FAKE}
chmod -R a+rX {FAKE}
systemd-sysusers
systemd-tmpfiles --create
mkdir -p /etc/systemd/system/modelsupd.service.d
echo '[Service]' > /etc/systemd/system/modelsupd.service.d/boot-id.conf
echo 'BindReadOnlyPaths=/etc/boot-id:{_BOOT_ID}' >> /etc/systemd/system/modelsupd.service.d/boot-id.conf
systemctl enable modelsupd
"""


class Machine(Watched):
    """One disk, and at most one boot of it at a time."""

    def __init__(self, place: Path) -> None:
        """Make the disk's directories; nothing is on it yet but what the host has."""
        self.place = place
        self.init = 0
        self._name = f"modelsupd-{os.getpid()}"
        self._booted: subprocess.Popen[bytes] | None = None
        self._cgroups = [path / self._name for path in _cgroups()]
        for path in self._cgroups:
            # Of a process of tests that was killed, its machine with it, nothing is left but these.
            _remove([old for old in path.parent.glob("modelsupd-*") if not alive(int(old.name.rpartition("-")[2]))])
        for name in ("upper", "work", "root", "upper/etc"):
            (place / name).mkdir()
        # The host's resolver may be a link to somewhere that is covered in the machine.
        (place / "upper/etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())

    def _inside(self, *command: str) -> list[str]:
        """Return what runs a command in namespaces and cgroups of its own, with the disk mounted."""
        namespaces = ["--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # The clocks begin at nought, as at every boot, and in particular before where an earlier one had come.
        clocks = [
            f"--{name}=-{int(time.clock_gettime(clock))}"
            for name, clock in (("monotonic", time.CLOCK_MONOTONIC), ("boottime", time.CLOCK_BOOTTIME))
        ]
        return [
            *("setpriv", "--pdeathsig=KILL", "unshare", *namespaces, "--time", *clocks),
            *("sh", "-ec", _SET_UP, "sh", *map(str, self._cgroups), "--"),
            *command,
        ]

    def _nspawn(self, *how: str) -> list[str]:
        flags = ("--quiet", "--register=no", "--keep-unit", "--resolv-conf=off")
        return self._inside("systemd-nspawn", "--directory=root", f"--machine={self._name}", *flags, *how)

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "LANG": "C.UTF-8"}

    def script(self, text: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script on the disk while it is not booted, with the host's network and way to packages."""
        passed = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(("PIP_", "SSL_CERT_")) or name.lower().endswith("_proxy")
        }
        flags = ["--pipe", f"--bind-ro={REPOSITORY}:{SOURCE}", *(f"--setenv={name}" for name in passed)]
        with self._own_cgroup():
            return subprocess.run(
                self._nspawn(*flags, "sh", "-ec", text),
                cwd=self.place,
                env=passed | self._environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )

    def unable(self) -> str | None:
        """Return why no machine can be had here, or None."""
        if sys.platform != "linux" or os.geteuid() != 0:
            return "only root can boot a machine"
        for tool in (*_TOOLS, PYTHON):
            if shutil.which(tool) is None:
                return f"there is no {tool}"
        probe = "import ensurepip, venv, sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([PYTHON, "-c", probe], capture_output=True, check=False).returncode != 0:
            return f"{PYTHON} is older than 3.11 or lacks the venv module"
        if not self._cgroups:
            return "there is no cgroup hierarchy that can be written"
        # Where namespaces and mounts can be had nspawn has to work: its failure is one of the test.
        with self._own_cgroup():
            tried = subprocess.run(self._inside("true"), cwd=self.place, capture_output=True, text=True, check=False)
        return f"no overlay in namespaces of its own: {tried.stderr.strip()}" if tried.returncode != 0 else None

    def install(self) -> None:
        """Do what the documentation says: `make install`, the account, the directories, and enable the unit."""
        done = self.script(f"WHEEL={shlex.quote(_wheel())}\n{_INSTALL}")
        assert done.returncode == 0, done.stdout + done.stderr

    def boot(self) -> None:
        """Start systemd and wait until all that is enabled has been started."""
        (self.place / "upper/etc/boot-id").write_text(f"{uuid.uuid4()}\n")
        for path in self._cgroups:
            path.mkdir()
        with (self.place / "console").open("ab") as console:
            self._booted = subprocess.Popen(
                self._nspawn("--private-network", "--boot"),
                cwd=self.place,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,  # an interrupt from the keyboard is for the tests, which then end the machine
            )
        until(self._find_init, what=lambda: f"a booted machine: {self.console()}")
        self.client = Client(self.root / "run/modelsupd")
        until((self.root / "run/systemd/private").exists, what=lambda: f"systemd: {self.console()}")
        started = self.run("systemctl", "is-system-running", "--wait", check=False).stdout.strip()
        # nspawn's file is deleted, and on such a one nothing can be mounted.
        self.run("sh", "-c", f"while umount {_BOOT_ID}; do :; done 2>&-; mount --bind /etc/boot-id {_BOOT_ID}")
        assert started == "running", f"{started}: {self.run('systemctl', '--failed', check=False).stdout}"

    def _find_init(self) -> int:
        assert self._booted is not None
        assert self._booted.poll() is None, self.console()
        depth = len(_pids_of(os.getpid())) + 2  # our unshare, then nspawn
        for pid in _below(self._booted.pid):
            pids = _pids_of(pid)
            if len(pids) == depth and pids[-1] == "1":
                self.init = pid
                return pid
        return 0

    def console(self) -> str:
        return (self.place / "console").read_text(errors="replace")

    def power_off(self) -> None:
        """Shut down in order, as an operator's `poweroff`; fails when it takes longer than any unit may."""
        assert self._booted is not None
        self.run("systemctl", "--no-block", "poweroff")
        self._booted.wait(120)
        self._gone()

    def destroy(self) -> None:
        """End it at once, whatever state it is in, and leave nothing on the host."""
        if self._booted is not None:
            self._booted.kill()  # the first process of its PID namespace dies with it, and all others with that one
            self._booted.wait()
            self._gone()

    def _gone(self) -> None:
        self._booted = None
        until(lambda: not alive(self.init), what="init is gone")
        self.init = 0
        _remove(self._cgroups)

    @contextmanager
    def _own_cgroup(self) -> Iterator[None]:
        for path in self._cgroups:
            path.mkdir()
        try:
            yield
        finally:
            _remove(self._cgroups)

    # Inside

    @property
    def root(self) -> Path:
        """The machine's file system, as it sees it itself, /run and /proc included."""
        return Path(f"/proc/{self.init}/root")

    def run(self, *command: str, check: bool = True, timeout_s: float = 150) -> subprocess.CompletedProcess[str]:
        """Run a command there as root, in a clean environment; `check`: fail the test when it fails."""
        inside = ["nsenter", f"--target={self.init}", "--all", "--", "env", "-i", "--chdir=/"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*inside, path, "LANG=C.UTF-8", *command],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check:
            assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.said()}"
        return done

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.run("systemctl", *words, check=check).stdout.strip()

    def property(self, name: str) -> str:
        """Return a property of our unit."""
        return self.systemctl("show", "--value", f"--property={name}", "modelsupd")

    def said(self) -> str:
        return self.run("journalctl", "--unit=modelsupd", "--no-pager", "--lines=60", check=False).stdout

    def alive(self, pid: int) -> bool:
        """Tell whether a process of the machine, by its number there, lives; a zombie does not."""
        try:
            text = (self.root / f"proc/{pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] not in ("Z", "X")

    def processes(self) -> dict[int, str]:
        """Return what the service's user runs there: pid → command line."""
        entries = (self.root / "etc/passwd").read_text().splitlines()
        uid = next(int(entry.split(":")[2]) for entry in entries if entry.startswith("modelsupd:"))
        found = {}
        for entry in os.scandir(self.root / "proc"):
            try:
                if entry.name.isdecimal() and entry.stat().st_uid == uid and self.alive(int(entry.name)):
                    words = Path(entry.path, "cmdline").read_bytes()
                    found[int(entry.name)] = words.replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue  # it has just ended
        return found


def _wheel() -> str:
    """Return the wheel of `make test-compiled`, if it is of what lies here now and for that Python; else the folder.

    The folder is compiled while it is installed, which takes a minute.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    asked = ["make", "--question", ".venv-compiled/.ready"]
    if subprocess.run(asked, cwd=REPOSITORY, env=environ, capture_output=True, check=False).returncode != 0:
        return "."
    tag = subprocess.check_output([PYTHON, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])"], text=True)
    wheels = sorted((REPOSITORY / ".venv-compiled/wheel").glob(f"*-{tag.strip()}-*.whl"))
    return f"{SOURCE}/{wheels[0].relative_to(REPOSITORY)}" if wheels else "."


def _cgroups() -> list[Path]:
    """Return our own cgroups in the hierarchies that systemd-nspawn makes some in: version 2, and systemd's own."""
    mine = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        mine[controllers] = path.lstrip("/")
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        mount = Path(fields.split()[4])
        if kind == "cgroup2":
            found.append(mount / mine.get("", ""))
        elif kind == "cgroup" and "name=systemd" in options:
            found.append(mount / mine.get("name=systemd", ""))
    return [path for path in found if os.access(path, os.W_OK)]


def _remove(cgroups: list[Path]) -> None:
    """Remove cgroups and what is below them; their last processes may still be on the way out."""

    def removed() -> bool:
        for top in cgroups:
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    return False
        return True

    until(removed, what=f"nothing is left in {cgroups}")


def _pids_of(pid: int) -> list[str]:
    """Return a process's numbers, from our PID namespace down to its own; nothing once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return []
    return next(line.split()[1:] for line in lines if line.startswith("NSpid:"))


def _below(pid: int) -> Iterator[int]:
    """Yield every descendant of a process that has no threads of its own."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from _below(child)
