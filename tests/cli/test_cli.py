"""The verbs without a daemon."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from modelsupd import __version__
from modelsupd.cli.quick import code
from modelsupd.cli.root import VERBS, cli
from modelsupd.cli.screen import plain
from modelsupd.core.spec import JournalLimits
from modelsupd.runtime.journal import Journal


def run(place: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    directories = ["--state-dir", str(place / "state"), "--runtime-dir", str(place / "run")]
    return subprocess.run(
        [sys.executable, "-m", "modelsupd", *directories, *words],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, **environ},
        check=False,
    )


def written(place: Path, records: int = 10) -> Path:
    """Write a journal of notes; return its first segment."""

    async def write() -> None:
        journal, _ = Journal.open(place / "state" / "journal", JournalLimits())
        notes = [
            {"kind": "note", "at": 0.0, "wall": "2026-01-31T12:00:00+00:00", "why": f"n{i}"} for i in range(records)
        ]
        for note in notes[:10]:  # each synced on its own, so that what comes later proves it
            await journal.append(note)
        await asyncio.gather(*map(journal.append, notes[10:]))
        await journal.close()

    asyncio.run(write())
    return next((place / "state" / "journal").glob("*.seg"))


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_each_verb_has_help_with_examples(verb: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, [*verb, "--help"], prog_name="modelsupd")
    assert done.exit_code == 0
    assert done.output.startswith(f"Usage: {' '.join(('modelsupd', *verb))} ")
    assert "Examples:" in done.output


def test_version(place: Path) -> None:
    assert run(place, "--version").stdout == f"modelsupd {__version__}\n"


def test_nothing_there_at_all(place: Path) -> None:
    done = run(place, "status")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "nothing is recorded")
    assert json.loads(run(place, "status", "--json").stdout)["models"] == []
    assert run(place, "events").stdout == ""
    assert run(place, "journal", "verify").stdout.startswith("there is no journal in")
    assert run(place, "journal", "repair").returncode == 1
    assert "nothing to end" in run(place, "reap").stdout
    assert not (place / "state").exists()


def test_check_tells_all_that_is_wrong(place: Path) -> None:
    file = place / "models.toml"
    file.write_text("[models.a]\nengine = 'comand'\nreplicas = 0\n")
    done = run(place, "check")
    assert done.returncode == 2
    assert "models.a.engine = 'comand'" in done.stderr
    assert "models.a.replicas = 0" in done.stderr
    assert run(place, "run").returncode == 2
    other = place / "other.toml"
    other.write_text("[models.a]\nengine = 'command'\ncommand = ['/bin/none', '{socket}']\nreplicas = 2\n")
    done = run(place, "check", "other.toml")
    assert (done.returncode, done.stdout) == (0, f"{other}: 1 model with 2 replicas: can be used\n")
    assert "warning: " in done.stderr
    assert run(place, "check", "nowhere.toml").returncode == 2
    assert run(place, "status", MODELSUPD_CONFIG="nowhere.toml").returncode == 3  # both directories are given


def test_a_broken_configuration_does_not_hide_the_status(place: Path) -> None:
    (place / "models.toml").write_text("[models.a]\nengine = 'comand'\n")
    assert run(place, "status").returncode == 3


def test_schema_is_json(place: Path) -> None:
    assert json.loads(run(place, "schema").stdout)["type"] == "object"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(place: Path, shell: str) -> None:
    done = run(place, "completion", shell)
    assert done.returncode == 0
    assert "_MODELSUPD_COMPLETE" in done.stdout


def test_export_and_events(place: Path) -> None:
    written(place)
    records = [json.loads(line) for line in run(place, "journal", "export").stdout.splitlines()]
    assert [record["seq"] for record in records] == list(range(1, 12))
    assert records[0]["kind"] == "snapshot"
    assert run(place, "events").stdout.splitlines()[0] == "2026-01-31 12:00:00 UTC  n0"
    assert len(run(place, "events", "--json").stdout.splitlines()) == 10


def test_damage_is_told_and_repaired_only_when_asked(place: Path) -> None:
    segment = written(place)
    data = bytearray(segment.read_bytes())
    at = data.index(b'"n4"')
    data[at : at + 3] = b"zzz"
    segment.write_bytes(data)
    for words in (("journal", "verify"), ("journal", "export"), ("status",)):
        done = run(place, *words)
        assert done.returncode == 1, done
        assert "is damaged" in done.stderr
    done = run(place, "journal", "repair")
    assert done.returncode == 1
    assert "record" in done.stdout
    assert "nothing was changed; --yes repairs it" in done.stderr
    assert segment.read_bytes() == data
    done = run(place, "journal", "repair", "--yes")
    assert done.returncode == 0, done.stderr
    assert "what was damaged is kept as" in done.stdout
    assert run(place, "journal", "verify").returncode == 0
    assert "nothing to repair" in run(place, "journal", "repair").stdout
    lines = run(place, "events").stdout.splitlines()
    assert lines[3:6] == [
        "2026-01-31 12:00:00 UTC  n3",
        "at an unknown time  records before number 7 are lost since a repair of the journal",
        "2026-01-31 12:00:00 UTC  n5",
    ]


def test_a_reader_that_has_seen_enough_is_no_error(place: Path) -> None:
    written(place, 3000)
    command = f"{sys.executable} -m modelsupd --state-dir state --runtime-dir run journal export | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=place, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_a_working_directory_that_was_removed_is_said(place: Path) -> None:
    gone = place / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && exec "$2" -m modelsupd status'
    done = subprocess.run(["sh", "-c", script, "sh", gone, sys.executable], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "modelsupd: cannot look for models.toml: the working directory was removed; cd elsewhere\n"


@pytest.mark.parametrize(
    ("gateway", "words", "status"),
    [
        ({"listen": [], "reason": "cannot listen at 127.0.0.1:80: permission denied", "runs": []}, "permission", 1),
        ({"listen": ["127.0.0.1:8080"], "reason": "", "runs": []}, "takes no connection: it is about", 1),
        (
            {
                "listen": ["127.0.0.1:8080"],
                "reason": "",
                "runs": [{"name": "@gateway-1/0", "phase": "ready", "run": 1, "pid": 7, "accepts": True, "reason": ""}],
            },
            "the gateway listens at 127.0.0.1:8080, pid 7",
            0,
        ),
    ],
)
def test_the_gateway_is_part_of_the_status(gateway: dict[str, Any], words: str, status: int) -> None:
    daemon = {"state": "running", "version": "1", "pid": 1, "since": None, "journal": {"seq": 1, "read_only": None}}
    document = {"daemon": daemon, "models": [], "gpus": [], "gateway": gateway}
    assert words in "\n".join(plain(document, datetime.now(UTC)))
    assert code(document) == status
