"""Following a log across its rotations."""

from __future__ import annotations

from pathlib import Path

from modelsupd.cli.tail import Tail


def rotate(directory: Path, keep: int = 3) -> None:
    """Do what the shim does when its log is full."""
    for number in range(keep, 0, -1):
        older = directory / (f"log.{number - 1}" if number > 1 else "log")
        if older.exists():
            older.replace(directory / f"log.{number}")


def write(directory: Path, data: bytes) -> None:
    with (directory / "log").open("ab") as file:
        file.write(data)


def test_lines_end_with_any_of_the_three_ends(place: Path) -> None:
    write(place, b"a\nb\r\nc\rd 50%\rd 100%\n\ne")
    with Tail(place) as tail:
        assert list(tail.lines()) == [b"a", b"b", b"c", b"d 50%", b"d 100%", b""]
        assert list(tail.lines()) == []
        write(place, b"nd\r")
        assert list(tail.lines()) == []
        write(place, b"\nnext\r")
        assert list(tail.lines()) == [b"end"]
        assert tail.rest() == b"next"
        assert tail.rest() == b""


def test_what_is_not_there_yet_is_read_when_it_comes(place: Path) -> None:
    with Tail(place / "later") as tail:
        assert list(tail.lines()) == []
        (place / "later").mkdir()
        write(place / "later", b"\xff\x00 any bytes\n")
        assert list(tail.lines()) == [b"\xff\x00 any bytes"]


def test_rotated_files_come_first_oldest_first(place: Path) -> None:
    for number in (1, 2, 3):
        write(place, b"%d\n" % number)
        rotate(place)
    write(place, b"4\n")
    (place / "log.txt").write_text("not one of them\n")
    with Tail(place) as tail:
        assert list(tail.lines()) == [b"1", b"2", b"3", b"4"]


def test_rotations_while_following_lose_nothing(place: Path) -> None:
    with Tail(place) as tail:
        write(place, b"1\n2 begins")
        assert list(tail.lines()) == [b"1"]
        write(place, b" here\n")
        rotate(place)
        write(place, b"3\n")
        assert list(tail.lines()) == [b"2 begins here", b"3"]
        rotate(place)
        write(place, b"4\n")
        rotate(place)
        write(place, b"5\n")
        assert list(tail.lines()) == [b"4", b"5"]
        rotate(place)
        assert list(tail.lines()) == []
        write(place, b"6\n")
        assert list(tail.lines()) == [b"6"]


def test_what_was_rotated_away_is_lost_and_the_rest_goes_on(place: Path) -> None:
    with Tail(place) as tail:
        write(place, b"1\n")
        assert list(tail.lines()) == [b"1"]
        for number in range(2, 8):
            rotate(place)
            write(place, b"%d\n" % number)
        assert list(tail.lines()) == [b"4", b"5", b"6", b"7"]


def test_long_files_come_in_pieces(place: Path) -> None:
    line = b"x" * 999_999
    write(place, line + b"\n" + line + b"\n")
    with Tail(place) as tail:
        assert list(tail.lines()) == [line, line]
