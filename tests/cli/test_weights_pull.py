"""`pull` and `lock`: what is fetched, what is written into models.lock, and what is refused."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import settled, small_gguf
from hub_faults import Stall, Wrong
from mock_hub import describe
from stocked import CONTENT, FILE, NAME, SIZE, Stocked, stocked
from waiting import until

SOURCE = f"hf:{NAME}"


@pytest.fixture
def here(place: Path) -> Iterator[Stocked]:
    with stocked(place) as found:
        yield found


def test_what_is_pulled_is_whole_and_locked_and_asked_for_once(here: Stocked) -> None:
    assert here.state() == "missing"
    done = here.run("pull")
    assert (done.code, done.err) == (0, "")
    repo = here.hub.repos["org/m"]
    assert f"m: whole, 256.1 KiB, {SOURCE} at {repo.commit[:12]}\n" in done.out
    assert f"wrote '{here.lock_file}':\n  + {SOURCE}: 1 file, 256.1 KiB at {repo.commit[:12]}\n" in done.out
    assert "'modelsupd reload' has a running daemon take it over" in done.out
    entry = here.locked()[SOURCE]
    assert (entry.commit, [(pin.path, pin.sha256) for pin in entry.files]) == (
        repo.commit,
        [(FILE, repo.file(FILE).sha256)],
    )
    assert here.state() == "whole"
    requests, written = len(here.hub.requests), here.lock_file.stat().st_mtime_ns
    again = here.run("pull", "m")
    assert again.out == f"m: whole, 256.1 KiB, {SOURCE} at {repo.commit[:12]}\n"
    assert (len(here.hub.requests), here.lock_file.stat().st_mtime_ns) == (requests, written)


def test_small_files_are_locked_by_sha256_too(here: Stocked) -> None:
    files = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "m.gguf": small_gguf()}
    here.hub.add("org/w", files, lfs={"m.gguf"})
    here.declare({"w": "hf:org/w/config.json"}, extra="")
    config = here.config.read_text().replace("engine = 'llama.cpp'", "engine = 'command'\ncommand = ['x', '{socket}']")
    here.config.write_text(config)
    assert here.run("pull").code == 0
    (pin,) = here.locked()["hf:org/w/config.json"].files
    assert pin.sha256 == describe(files["config.json"], lfs=False).sha256
    assert pin.blob == describe(files["config.json"], lfs=False).git_sha1


def test_locked_refuses_what_the_lock_does_not_name(here: Stocked) -> None:
    done = here.run("pull", "--locked")
    assert done.code == 1
    assert f"cannot pull with --locked: the lock has no entry for '{SOURCE}' of m" in done.err
    assert not here.hub.requests
    assert not here.lock_file.exists()


def test_locked_takes_what_the_lock_names_whatever_the_branch_is_by_now(here: Stocked) -> None:
    here.run("pull")
    text = here.lock_file.read_text()
    commit = here.hub.repos["org/m"].commit
    here.blob().unlink()
    here.hub.repos["org/m"].push({FILE: small_gguf(2)}, lfs={FILE})
    done = here.run("pull", "--locked")
    assert done.code == 0
    assert commit[:12] in done.out
    assert here.lock_file.read_text() == text


def test_locked_refuses_a_hub_that_has_another_file_at_that_commit(here: Stocked) -> None:
    here.run("pull")
    text = here.lock_file.read_text()
    blob = here.blob()
    blob.unlink()
    repo = here.hub.repos["org/m"]
    repo.commits[repo.commit] = {FILE: describe(small_gguf(9, size_bytes=SIZE), lfs=True)}
    done = here.run("pull", "--locked")
    assert done.code == 1
    assert done.err.startswith("m: cannot ")
    assert not blob.exists()
    assert here.lock_file.read_text() == text


def test_a_sha256_in_models_toml_is_a_lock(here: Stocked) -> None:
    sha256 = here.hub.repos["org/m"].file(FILE).sha256
    here.declare({"m": SOURCE}, extra=f"sha256 = '{sha256}'")
    assert here.run("pull", "--locked").code == 0
    assert not here.lock_file.exists()
    here.declare({"m": SOURCE}, extra=f"sha256 = '{'0' * 64}'")
    done = here.run("pull", "--locked")
    assert done.code == 1
    assert "0" * 64 in done.err
    repo = here.hub.repos["org/m"]
    repo.push({FILE: small_gguf(2)}, lfs={FILE})
    here.declare({"m": SOURCE}, extra=f"sha256 = '{repo.file(FILE).sha256}'")
    assert here.run("pull", "--locked").code == 0
    assert here.state() == "whole"


def test_one_model_that_cannot_be_had_holds_up_no_other(here: Stocked) -> None:
    here.hub.add("org/bad", {FILE: small_gguf(5)}, lfs={FILE})
    here.hub.faults[f"org/bad/{FILE}"] = Wrong(at=3000)
    here.declare({"bad": f"hf:org/bad/{FILE}", "gone": f"hf:org/gone/{FILE}", "m": SOURCE})
    done = here.run("pull")
    assert done.code == 1
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["bad", "gone"]
    assert list(here.locked()) == [SOURCE]
    assert here.state("bad") == "missing"


def test_names_aliases_and_mistakes(here: Stocked) -> None:
    here.declare({"qwen": SOURCE}, extra="aliases = ['q3']")
    done = here.run("pull", "qwn")
    assert (done.code, done.out) == (2, "")
    assert "there is no model 'qwn'" in done.err
    assert "did you mean 'qwen'?" in done.err
    assert here.run("pull", "q3", "qwen").out.count("qwen: whole") == 1


def test_events_for_programs(here: Stocked) -> None:
    done = here.run("pull", "--json")
    kinds = [event["type"] for event in done.events]
    assert kinds[0] == "progress"
    assert kinds[-3:] == ["file", "model", "lock"] or kinds[-2:] == ["model", "lock"]
    last = [event for event in done.events if event["type"] == "progress"][-1]
    assert last["done_bytes"] == last["total_bytes"] == len(CONTENT)
    file = next(event for event in done.events if event["type"] == "file")
    assert (file["path"], file["outcome"], file["size_bytes"]) == (FILE, "fetched", len(CONTENT))
    assert done.events[-1]["changed"]
    here.declare({"gone": f"hf:org/gone/{FILE}"})
    failed = here.run("pull", "--json")
    assert [event["kind"] for event in failed.events if event["type"] == "error"] == ["weights-unavailable"]
    assert failed.code == 1


# lock


def test_an_upgrade_is_shown_and_done_when_it_is_wanted(here: Stocked) -> None:
    here.run("pull")
    assert here.run("lock", "--upgrade", "m").out == "nothing changes\n"
    text = here.lock_file.read_text()
    repo = here.hub.repos["org/m"]
    old = repo.commit
    repo.push({FILE: small_gguf(2)}, lfs={FILE})
    done = here.run("lock", "--upgrade", "m")
    assert (done.code, done.err) == (1, "nothing was changed; --yes does it\n")
    assert done.out.splitlines() == [
        f"~ {SOURCE}: commit {old[:12]} -> {repo.commit[:12]}",
        f"    ~ {FILE}: 256.1 KiB -> 4.1 KiB",
        "4.1 KiB that the lock does not have yet",
    ]
    assert here.lock_file.read_text() == text
    assert here.state() == "whole"
    shown = here.run("lock", "--upgrade", "--json").events
    assert [change["fetched_bytes"] for change in shown[0]["changes"]] == [repo.file(FILE).size]
    assert here.run("lock", "--upgrade", "--yes", "m").code == 0
    assert here.locked()[SOURCE].commit == repo.commit
    assert here.state() == "whole"
    assert here.run("pull", "--locked").code == 0


def test_files_of_this_host_are_locked_when_that_is_asked_for(here: Stocked) -> None:
    weights = settled(here.place / "w.gguf", small_gguf())
    here.declare({"l": weights})
    assert here.run("pull").out == "l: nothing to pull: it loads nothing from a hub\n"
    assert not here.lock_file.exists()
    assert here.run("lock", "l").code == 0
    assert here.locked()[str(weights)].files[0].sha256 == describe(weights, lfs=True).sha256
    assert here.state("l") == "whole"
    settled(here.place / "new", small_gguf(3)).rename(weights)
    done = here.run("lock", "l")
    assert done.code == 1
    assert "in the lock is" in done.err
    assert here.run("lock", "--upgrade", "--yes", "l").code == 0
    assert here.state("l") == "whole"
    assert not here.hub.requests


def test_entries_that_no_model_names_leave_with_a_lock_of_everything(here: Stocked) -> None:
    here.hub.add("org/n", {FILE: small_gguf(1)}, lfs={FILE})
    here.declare({"m": SOURCE, "n": f"hf:org/n/{FILE}"})
    here.run("pull")
    here.declare({"n": f"hf:org/n/{FILE}"})
    here.run("pull")
    here.run("lock", "n")
    assert SOURCE in here.locked()
    done = here.run("lock")
    assert f"- {SOURCE}" in done.out
    assert list(here.locked()) == [f"hf:org/n/{FILE}"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_lock_that_cannot_be_written_is_told_before_anything_is_fetched(here: Stocked) -> None:
    here.place.chmod(0o555)
    done = here.run("pull")
    here.place.chmod(0o755)
    assert done.code == 1
    assert f"cannot write '{here.lock_file}'" in done.err
    assert not here.hub.requests


# In a process of its own


def test_an_interrupted_pull_keeps_what_it_has_and_says_so(here: Stocked) -> None:
    here.hub.faults[NAME] = Stall(after=SIZE // 8)
    process = subprocess.Popen(here.command("pull"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: list(here.cache.rglob("*.modelsupd-part")), what="a file is on its way")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (
        130,
        "interrupted: what was fetched is kept, and the same command goes on from there\n",
    )
    assert list(here.cache.rglob("*.modelsupd-part"))
    assert not here.lock_file.exists()
    here.hub.faults.clear()
    assert here.run("pull").code == 0


def on_terminal(command: list[str], **environ: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit status and all that it wrote."""
    terminal, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environ}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    written = b""
    while select.select([terminal], [], [], 30)[0]:
        try:
            written += os.read(terminal, 65536)
        except OSError:  # so the end of a terminal is told
            break
    os.close(terminal)
    return process.wait(20), written.decode()


def test_bars_on_a_terminal(here: Stocked) -> None:
    code, written = on_terminal(here.command("pull"), NO_COLOR="1")
    assert code == 0, written
    # A frame is drawn over the one before it: it begins where the cursor was put, which need not be a new line.
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written).replace("\r", "\n")
    assert re.search(rf"^{FILE} +[━╸╺ ]+ ", plain, re.MULTILINE), plain
    assert re.search(r"^total +━+ +262\.2/262\.2 kB|^total +━+ +256\.1/256\.1 KiB", plain, re.MULTILINE), plain
    assert f"m: fetched {FILE} (256.1 KiB)" in plain
    assert not re.search(r"\x1b\[3[0-9]", written)
    assert written.endswith("\r\n")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h")


def test_nothing_but_lines_on_a_terminal_that_can_do_no_more(here: Stocked) -> None:
    code, written = on_terminal(here.command("pull"), TERM="dumb")
    assert code == 0, written
    assert "\x1b" not in written
    assert "m: whole" in written


def test_models_are_completed_from_the_configuration(here: Stocked) -> None:
    here.declare({"qwen": SOURCE, "other": SOURCE})
    environ = {
        "_MODELSUPD_COMPLETE": "bash_complete",
        "COMP_WORDS": f"modelsupd --config {here.config} pull q",
        "COMP_CWORD": "4",
    }
    done = subprocess.run(
        here.command()[:3], env={**os.environ, **environ}, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.stdout.split() == ["plain,qwen"]
