"""`modelsupd key`: what is printed, what is kept, and whose the file is."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from modelsupd.gateway import keyfile
from stocked import open_to_others

NOBODY = 65534


def run(place: Path, *words: str, wrapped: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    directories = ["--state-dir", str(place / "state"), "--runtime-dir", str(place / "run")]
    return subprocess.run(
        [*(wrapped or ()), sys.executable, "-m", "modelsupd", *directories, "key", *words],
        capture_output=True,
        text=True,
        cwd=place,
        check=False,
    )


def test_a_key_is_made_listed_and_revoked(place: Path) -> None:
    made = run(place, "add", "alice", "--models", "qwen*", "--models", "tiny,other", "--rpm", "60", "--concurrent", "4")
    assert made.returncode == 0
    key = made.stdout.strip()
    assert key.startswith("msk-")
    assert "only time" in made.stderr
    assert run(place, "add", "root", "--admin").returncode == 0
    (alice, root) = json.loads(run(place, "list", "--json").stdout)["keys"]
    assert (alice["models"], alice["requests_per_minute"], alice["max_concurrent"]) == (
        ["qwen*", "tiny", "other"],
        60,
        4,
    )
    assert (alice["admin"], root["admin"], alice["revoked"]) == (False, True, None)
    rows = [line.split() for line in run(place, "list").stdout.splitlines()]
    assert rows[1][:5] == ["alice", f"{key[:10]}…", "qwen*,tiny,other", "4", "60"]
    assert run(place, "revoke", "alice").stdout == f"revoked key 'alice' ({key[:10]}…)\n"
    assert "revoked 2" in run(place, "list").stdout
    listed = run(place, "list", "--json").stdout
    assert key not in listed
    assert keyfile.digest_of(key) not in listed


def test_what_cannot_be_is_said_and_changes_nothing(place: Path) -> None:
    assert run(place, "list").stdout == "there are no keys: whoever reaches the gateway is served\n"
    assert not (place / "state").exists()
    gone = run(place, "revoke", "alice")
    assert (gone.returncode, "cannot" in gone.stderr) == (1, True)
    assert run(place, "add", "alice").returncode == 0
    before = (place / "state" / keyfile.NAME).read_bytes()
    for words in (("add", "alice"), ("add", "a b"), ("revoke", "bob"), ("add", "c", "--rpm", "0")):
        refused = run(place, *words)
        assert refused.returncode in {1, 2}
        assert refused.stdout == ""
        assert "Traceback" not in refused.stderr
    assert (place / "state" / keyfile.NAME).read_bytes() == before
    (place / "state" / keyfile.NAME).write_text("{")
    assert "cannot read the keys" in run(place, "add", "bob").stderr


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to work for somebody else")
def test_root_makes_keys_that_the_service_can_read(place: Path) -> None:
    wrapped = open_to_others()
    place.chmod(0o755)
    state = place / "state"
    state.mkdir(mode=0o700)
    os.chown(state, NOBODY, NOBODY)
    done = run(place, "add", "alice", wrapped=wrapped)
    assert (done.returncode, done.stdout[:4]) == (0, "msk-"), done.stderr
    assert {path.stat().st_uid for path in state.rglob("*")} == {NOBODY}
    assert stat.S_IMODE((state / keyfile.NAME).stat().st_mode) == 0o600
    assert "alice" in run(place, "list", wrapped=wrapped).stdout
