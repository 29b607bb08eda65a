"""Digests of files."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from pathlib import Path

import pytest

from fetching import noise
from modelsupd.weights import digest
from modelsupd.weights.base import Stopped

SIZES = [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20, 17_000_000]


def made(place: Path, sizes: list[int]) -> list[Path]:
    paths = [place / str(number) for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(noise(size, number))
    return paths


@pytest.mark.parametrize("threads", [None, 1, 3, 100])
def test_digests_come_in_the_order_of_the_files(place: Path, threads: int | None) -> None:
    paths, told = made(place, SIZES), list[int]()
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    assert digest.sha256(paths, told.append, threading.Event(), threads) == expected
    assert sum(told) == sum(SIZES)
    assert min(told) > 0


def test_of_no_files() -> None:
    assert digest.sha256([], lambda _: None, threading.Event()) == []


def test_stop_ends_it(place: Path) -> None:
    stop, told = threading.Event(), list[int]()

    def tell(count: int) -> None:
        told.append(count)
        stop.set()

    with pytest.raises(Stopped):
        digest.sha256(made(place, [30 << 20, 30 << 20]), tell, stop)
    assert sum(told) <= 2 * (8 << 20)


def test_a_file_that_cannot_be_read_is_told_of_and_the_others_are_given_up(place: Path) -> None:
    paths = made(place, [1, 20 << 20])
    (place / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        digest.sha256([*paths, place / "folder"], lambda _: None, threading.Event())
    with pytest.raises(FileNotFoundError):
        digest.sha256([place / "none"], lambda _: None, threading.Event())


def test_a_file_that_is_cut_off_meanwhile_has_another_digest_and_ends_nobody(place: Path) -> None:
    [path] = made(place, [30 << 20])

    def cut(_: int) -> None:
        path.write_bytes(b"")

    [found] = digest.sha256([path], cut, threading.Event())
    assert found != hashlib.sha256(noise(30 << 20, 0)).hexdigest()


def test_git_s_name_of_a_file(place: Path) -> None:
    [path] = made(place, [100_000])
    made_by_git = subprocess.run(
        ["git", "hash-object", "--no-filters", path], capture_output=True, check=False, text=True
    )
    assert digest.git_sha1(path) == made_by_git.stdout.strip()
