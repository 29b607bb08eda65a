"""What is left out of a run without rights is seen to touch nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import pure

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: path.write_text("x"),
        lambda path: os.close(os.open(path, os.O_RDWR | os.O_CREAT)),
        lambda path: path.parent.chmod(0o700),
        lambda _: os.kill(os.getpid(), 0),
        lambda _: socket.socket().close(),
    ],
)
def test_whoever_touches_the_machine_is_not_pure(tmp_path: Path, touch: Callable[[Path], object]) -> None:
    with pure.watched("it"), pytest.raises(AssertionError, match="it is to be pure"):
        touch(tmp_path / "file")
    touch(tmp_path / "file")


def test_the_folders_that_are_left_out_are_those_that_are_watched() -> None:
    script = (TESTS.parent / "tools" / "test_unprivileged.sh").read_text()
    assert [word.rpartition("/")[2] for word in script.split() if "--ignore=tests/" in word] == [*pure.FOLDERS]
    assert pure.is_pure(TESTS / "core" / "test_core_replica.py")
    assert not pure.is_pure(TESTS / "runtime" / "test_core_replica.py")
