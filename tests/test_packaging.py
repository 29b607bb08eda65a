"""What comes with the package: pins, make targets, and the files of the systemd unit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import compile_gateway

REPOSITORY = Path(__file__).parent.parent
UNITS = REPOSITORY / "units"


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    # A make that runs these tests must not lend its flags to the make that they run.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        command, cwd=REPOSITORY, env={**inherited, **environ}, capture_output=True, text=True, check=False, timeout=60
    )


def needs(tool: str) -> None:
    if not shutil.which(tool):
        pytest.skip(f"there is no {tool}")


# Pins


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pinned}


def test_every_dependency_is_pinned_to_a_version_that_it_may_have() -> None:
    project = tomli.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
    ]
    pinned = pins()
    for text in wanted:
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version, f"{text} is not pinned"
        assert requirement.specifier.contains(version), f"{text} is pinned to {version}"


def test_pins_name_no_address() -> None:
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"#.*||[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line


def test_every_exception_to_the_linter_has_its_reason() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text()
    ignored = re.findall(r'(?m)^    "[A-Z]+[0-9]*",?(.*)$', text)
    assert len(ignored) > 10
    for rest in ignored:
        assert re.match(r" +# \S.{5,}", rest), rest
    assert re.search(r"(?m)^module = .*# \S.{5,}$", text)


# make


def test_make_help_lists_every_target() -> None:
    needs("make")
    listed = set(re.findall(r"(?m)^  make ([a-z-]+) ", run("make", "help").stdout))
    targets = re.findall(r"(?m)^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text())
    assert listed == set(targets)
    assert {"run", "test", "test-real", "test-unprivileged", "install", "uninstall", "help"} <= listed
    assert run("make").stdout == run("make", "help").stdout


def test_install_writes_below_destdir_only_and_uninstall_takes_it_away(tmp_path: Path) -> None:
    needs("make")
    places = (f"DESTDIR={tmp_path}", "PREFIX=/opt/m", "SYSCONFDIR=/opt/m/etc")
    done = run("make", "install-files", *places)
    assert done.returncode == 0, done.stderr
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "opt/m/bin/modelsupd",
        "opt/m/etc/modelsupd/models.toml",
        "opt/m/lib/systemd/system/modelsupd.service",
        "opt/m/lib/sysusers.d/modelsupd.conf",
        "opt/m/lib/tmpfiles.d/modelsupd.conf",
    }
    unit = (tmp_path / "opt/m/lib/systemd/system/modelsupd.service").read_text()
    assert "ExecStart=/opt/m/bin/modelsupd run" in unit
    assert "MODELSUPD_CONFIG=/opt/m/etc/modelsupd/models.toml" in unit
    assert "/usr/local" not in unit
    script = (tmp_path / "opt/m/bin/modelsupd").read_text()
    assert script.startswith("#!/opt/m/lib/modelsupd/bin/python\n")
    compile(script, "modelsupd", "exec")

    config = tmp_path / "opt/m/etc/modelsupd/models.toml"
    config.write_text("# mine\n")
    assert run("make", "install-files", *places).returncode == 0
    assert config.read_text() == "# mine\n"
    assert run("make", "uninstall", *places).returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [config]


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (None, "is not on PATH"),
        ("exit 1", "compiles nothing that includes Python.h"),
        ('case "$*" in *-c*) touch tried.o;; esac', None),
    ],
)
def test_a_compiler_that_does_not_work_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, why: str | None
) -> None:
    """Debian's gcc comes without the C library's headers where nobody asked for what is recommended with it."""
    include = tmp_path / "include"
    include.mkdir()
    (include / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(include))
    compiler = tmp_path / "my cc"
    if script is not None:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"'{compiler}' -O0")
    missing = compile_gateway.lacking()
    assert missing is None if why is None else missing is not None and why in missing


def test_ci_is_a_script_that_bash_can_read() -> None:
    script = REPOSITORY / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert run("bash", "-n", script).returncode == 0


# systemd


def unit_lines() -> list[str]:
    return (UNITS / "modelsupd.service").read_text().splitlines()


def test_systemd_has_nothing_to_say_about_the_unit(tmp_path: Path) -> None:
    needs("systemd-analyze")
    # verify wants the programs to be there; the interpreter of these tests stands for the one that is installed.
    unit = tmp_path / "modelsupd.service"
    unit.write_text("\n".join(unit_lines()).replace("/usr/local/bin/modelsupd", sys.executable) + "\n")
    done = run("systemd-analyze", "verify", "--man=no", unit)
    ours = [line for line in done.stderr.splitlines() if "modelsupd" in line]
    assert (done.returncode, ours) == (0, [])


def test_every_directive_of_the_unit_says_why_it_is_there() -> None:
    bare = []
    explained = False
    for line in unit_lines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = False
        elif not explained:
            bare.append(line)
    # Within one block a comment also covers the directives that follow it; these need no words of their own.
    assert bare == ["Description=Supervisor of local LLM engines", "WantedBy=multi-user.target"]


def test_the_unit_stops_and_leaves_as_the_design_has_it() -> None:
    settings = dict(line.split("=", 1) for line in unit_lines() if "=" in line and not line.startswith("#"))
    expected = {
        "Type": "notify",
        "KillMode": "process",
        "KillSignal": "SIGTERM",
        "RestartKillSignal": "SIGUSR1",
        "RuntimeDirectoryPreserve": "yes",
        "PrivateTmp": "no",
        "OOMPolicy": "continue",
    }
    assert {name: settings.get(name) for name in expected} == expected
    assert "reap" in settings["ExecStopPost"]


@pytest.mark.parametrize(
    ("jobs", "reaps"),
    [("7 modelsupd.service stop running", True), ("7 modelsupd.service restart running", False), ("", False)],
)
def test_what_is_left_is_cleared_only_when_the_unit_is_to_stop(tmp_path: Path, jobs: str, reaps: bool) -> None:
    [line] = [line for line in unit_lines() if line.startswith("ExecStopPost=")]
    script = re.fullmatch(r"ExecStopPost=-/bin/sh -c '(.*)'", line)
    assert script
    for name, text in (("systemctl", f'#!/bin/sh\necho "{jobs}"\n'), ("modelsupd", '#!/bin/sh\necho "did $1"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    command = script[1].replace("%n", "modelsupd.service").replace("/usr/local/bin/", f"{tmp_path}/")
    done = run("/bin/sh", "-c", command, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.stdout == ("did reap\n" if reaps else "")


def test_the_account_can_be_created() -> None:
    needs("systemd-sysusers")
    done = run("systemd-sysusers", "--dry-run", UNITS / "sysusers.conf")
    assert done.returncode == 0, done.stderr
