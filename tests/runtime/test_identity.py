"""Names of processes and of directories."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from modelsupd.runtime import paths
from modelsupd.runtime.identity import Token
from modelsupd.runtime.shim import tree
from waiting import until

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._:/+@-]{0,126}[A-Za-z0-9])?/[0-9]{1,3}", fullmatch=True)


@given(replica=names, run=st.integers(1, 10**9))
def test_a_token_is_read_back(replica: str, run: int) -> None:
    token = Token("f" * 32, replica, run)
    assert Token.parse(str(token)) == token


def test_what_is_no_token() -> None:
    for text in ("", "a", "a:b", "a#1", "a:b#", "a:b#x", "a:b#-1", "a:b#\N{SUPERSCRIPT TWO}"):
        assert Token.parse(text) is None


@given(replica=names, run=st.integers(1, 10**10 - 1))
def test_directories_have_usable_names(replica: str, run: int) -> None:
    short, readable = paths.runtime_name(replica, run), paths.state_name(replica, run)
    assert len(short) <= 12 + 1 + 10
    assert len(readable) + len(".tmp") <= 255
    assert "/" not in short + readable
    assert not readable.startswith(".")


@given(first=names, second=names)
def test_two_replicas_never_share_a_directory(first: str, second: str) -> None:
    if first != second:
        assert paths.state_name(first, 1) != paths.state_name(second, 1)
        assert paths.runtime_name(first, 1) != paths.runtime_name(second, 1)


def test_the_readable_name_is_readable() -> None:
    assert paths.state_name("qwen3:8b/0", 7) == "qwen3%3A8b%2F0.7"


def test_run_numbers_are_read_from_both_trees(tmp_path: Path) -> None:
    run, state = tmp_path / "run", tmp_path / "state"
    assert paths.highest_run(run, state, "a/0") == 0
    for directory in (state / "runs" / "a%2F0.9", state / "runs" / "a%2F0.10", state / "runs" / "a%2F0.x"):
        directory.mkdir(parents=True)
    assert paths.highest_run(run, state, "a/0") == 10
    assert paths.runs_in_state(state, "a/0") == [9, 10]
    (run / "runs" / paths.runtime_name("a/0", 12)).mkdir(parents=True)
    (state / "runs" / paths.state_name("a/0.9", 99)).mkdir()
    assert paths.highest_run(run, state, "a/0") == 12


def test_a_name_with_brackets_and_spaces_is_no_trap() -> None:
    program = "import time; open('/proc/self/comm', 'w').write('a) R 1 (b'); print(flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        until(lambda: tree.name_of(child.pid) == "a) R 1 (b")
        seen = tree.stat(child.pid)
        assert seen is not None
        assert (seen.ppid, seen.dead) == (os.getpid(), False)
        assert not tree.send(child.pid, seen.start + 1, signal.SIGKILL)
        assert tree.send(child.pid, seen.start, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


def test_both_ways_to_find_descendants_agree() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 1000 & (sleep 1000 & echo; wait) & wait"], stdout=subprocess.PIPE) as top:
        assert top.stdout is not None
        top.stdout.readline()
        until(lambda: len(tree.descendants(top.pid)) == 4 - 1)
        by_children = {each.pid for each in tree.descendants(top.pid)}
        assert {each.pid for each in tree._descendants_by_parent(top.pid)} == by_children
        for each in tree.descendants(top.pid):
            tree.send(each.pid, each.start, signal.SIGKILL)
        top.kill()


def test_a_token_is_found_wherever_it_stands() -> None:
    for env in ({"MODELSUPD_RUN": "a:b#1", "X": "y"}, {"X": "y", "XMODELSUPD_RUN": "no", "MODELSUPD_RUN": "a:b#1"}):
        with subprocess.Popen(["/bin/sleep", "1000"], env=env) as child:
            until(lambda pid=child.pid: tree.token_of(pid) == "a:b#1")  # type: ignore[misc]  # a lambda's default
            child.kill()
    assert tree.token_of(1 << 22) is None
