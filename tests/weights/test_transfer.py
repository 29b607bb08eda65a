"""A file from the mock hub: the right one under its name, or none and a clear error."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import hub_faults as faults
from fetching import KEY, MODEL, REPO, Target, noise, together
from mock_hub import MockHub
from modelsupd.core.events import FailureClass
from modelsupd.weights import download, quarantine
from modelsupd.weights.base import Pin, Stopped, WeightsError
from modelsupd.weights.parts import PartFile
from waiting import until

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

DATA = noise(1 << 20)
SMALL = b'{"a": 1}\n'


@pytest.fixture
def hub() -> Iterator[MockHub]:
    with MockHub() as hub:
        hub.add(REPO, {MODEL: DATA, "config.json": SMALL, "empty": b""}, lfs={MODEL})
        yield hub


def right(target: Target, data: bytes = DATA) -> bool:
    """Tell whether the file has its name and nothing is left beside it."""
    return target.beside == [""] and target.final.read_bytes() == data


def refused(target: Target, kind: FailureClass, *words: str) -> WeightsError:
    """Fetch what cannot be fetched; return the error."""
    with pytest.raises(WeightsError) as error:
        target.fetch()
    assert error.value.kind is kind, error.value
    assert str(error.value).startswith("cannot ")
    for word in words:
        assert word in str(error.value)
    assert not target.final.exists()
    return error.value


def test_a_large_file_comes_in_pieces_over_several_connections(hub: MockHub, place: Path) -> None:
    target = Target.of(hub, place)

    fetched = target.fetch()

    assert right(target)
    assert (fetched.sha256, fetched.received_bytes, fetched.found) == (target.pin.sha256, len(DATA), False)
    assert sum(target.told) == len(DATA)
    assert hub.got(KEY)[0] == "bytes=0-65535"
    assert len(hub.got(KEY)) > 4
    assert len(set(hub.got(KEY))) == len(hub.got(KEY)), "nothing is asked for twice"


@pytest.mark.parametrize(("slow", "connections"), [(0.001, 4), (1e9, 1)])
def test_others_join_where_one_connection_is_so_much_slower_than_the_digest(
    hub: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch, slow: float, connections: int
) -> None:
    monkeypatch.setattr(download, "_SLOW", slow)
    monkeypatch.setattr(download, "BUFFER_BYTES", 8 * 1024)
    monkeypatch.setattr(download, "_JOIN_AFTER_S", 0.02)
    monkeypatch.setattr(download, "_JOIN_ANYWAY_S", 1e9)
    hub.faults[KEY] = faults.Drip(piece=8 * 1024, every_s=0.002, times=2 if connections > 1 else None)
    target = Target.of(hub, place)
    with together(hub, connections):
        target.fetch()

    assert right(target)
    assert hub.connections_made == connections


def test_others_join_where_one_connection_stands_still(
    hub: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_JOIN_AFTER_S", 1e9)
    monkeypatch.setattr(download, "_JOIN_ANYWAY_S", 0.1)
    hub.faults[KEY] = faults.Stall(after=1000, times=1)
    target = Target.of(hub, place).but(stall_timeout_s=2)
    with together(hub, 4):
        target.fetch()

    assert right(target)
    assert hub.connections_made == 5, "the one that stood still, once more, and three"


def test_what_comes_in_order_is_not_read_back(hub: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = PartFile.read

    def noted(self: PartFile, into: memoryview, at: int) -> None:
        read.append(at)
        plain(self, into, at)

    monkeypatch.setattr(PartFile, "read", noted)
    monkeypatch.setattr(download, "BUFFER_BYTES", 10_000)
    target = Target.of(hub, place, parts=1)
    target.fetch()

    assert right(target)
    assert read == []


def test_a_network_that_is_faster_than_the_digest_waits_for_it(
    hub: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_AHEAD_BYTES", 1)
    target = Target.of(hub, place)
    target.fetch()
    assert right(target)


@pytest.mark.parametrize("seed", range(12))
def test_one_trouble_after_another(hub: MockHub, place: Path, seed: int) -> None:
    """Whatever the server does, and however often it is tried: the right file or none."""
    dice = random.Random(seed)  # noqa: S311 - the same troubles every time
    target = Target.of(hub, place, parts=dice.choice([1, 3]), attempts=2, stall_timeout_s=0.05)
    for _ in range(8):
        for key in (KEY, "*"):
            fault = copy.copy(dice.choice([*PASSING.values(), *(fault for fault, _, _ in LASTING.values())]))
            fault.times, fault.only_from = dice.choice([1, 2, 5]), dice.choice([None, 200_000, 700_000])
            hub.faults[key] = fault
        with contextlib.suppress(WeightsError):
            target.fetch()
            assert right(target)
            target.final.unlink()
    hub.faults.clear()
    target.told.clear()
    target.but(stall_timeout_s=10).fetch()
    assert right(target)
    assert sum(target.told) == len(DATA)


@pytest.mark.parametrize(("path", "data"), [("config.json", SMALL), ("empty", b"")])
def test_a_small_file_is_known_by_the_name_that_git_gives_it(hub: MockHub, place: Path, path: str, data: bytes) -> None:
    target = Target.of(hub, place, path)

    fetched = target.fetch()
    assert right(target, data)
    assert fetched.sha256 == hashlib.sha256(data).hexdigest()
    assert hub.got(f"{REPO}/{path}") == ([""] if data else [])


def test_what_is_there_is_found_without_a_request(hub: MockHub, place: Path) -> None:
    Target.of(hub, place).fetch()
    before = len(hub.requests)

    fetched = Target.of(hub, place).fetch()

    assert (fetched.found, fetched.received_bytes, len(hub.requests)) == (True, 0, before)


@pytest.mark.parametrize("damage", [b"", DATA[:-1], DATA[:-1] + b"?"], ids=["empty", "short", "flipped"])
def test_what_is_there_and_wrong_is_moved_aside_and_fetched(hub: MockHub, place: Path, damage: bytes) -> None:
    target = Target.of(hub, place)
    target.final.parent.mkdir(parents=True)
    target.final.write_bytes(damage)

    assert not target.fetch().found

    assert right(target)
    [aside] = quarantine.listing(target.settings.state_dir)
    assert (aside.path.read_bytes(), aside.origin, aside.expected) == (damage, target.final, target.pin.sha256)
    assert sum(target.told) == len(DATA)


def soon(fault: faults.Fault, after_s: float) -> float:
    """Return when a server counts as one that stands still: soon, but only for the faults that have it do so."""
    return after_s if isinstance(fault, faults.Stall | faults.Silence | faults.Drip) else 10


#: What goes by: the right file comes in spite of it.
PASSING = {
    "drop at once": faults.Drop(after=0, times=2),
    "drop": faults.Drop(after=30_000, times=3),
    "end": faults.End(after=30_000, times=3),
    "drop each": faults.Drop(after=70_000),
    "stall": faults.Stall(after=10_000, times=1),
    "silence": faults.Silence(times=1),
    "500": faults.Status(status=500, times=3),
    "503": faults.Status(status=503, times=2),
    "408": faults.Status(status=408, times=2),
    "429": faults.Status(status=429, retry_after="0", times=3),
    "shorter length": faults.Length(by=-10, times=1),
    "longer length": faults.Length(by=10, times=1),
    "cut": faults.Truncated(after=1000, times=1),
    "no ranges": faults.NoRange(),
    "no ranges at first": faults.NoRange(times=1),
    "no ranges later": faults.NoRange(only_from=300_000),
    "wrong range": faults.WrongRange(by=1, times=1),
    "wrong total": faults.WrongRange(total_by=1, times=1),
    "changed once": faults.OtherETag(times=1),
    "changed later": faults.OtherETag(only_from=300_000, times=1),
    "changed for good": faults.OtherETag(only_from=300_000, times=None),
    "page": faults.Html(times=1),
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
def test_what_goes_by_costs_time_and_nothing_else(hub: MockHub, place: Path, fault: faults.Fault, parts: int) -> None:
    target = Target.of(hub, place, parts=parts, stall_timeout_s=soon(fault, 0.3))
    hub.faults[KEY] = fault.__class__(**vars(fault))

    fetched = target.fetch()

    assert right(target)
    assert sum(target.told) == len(DATA)
    assert fetched.received_bytes >= len(DATA)
    assert quarantine.listing(target.settings.state_dir) == []


def test_what_came_wrong_is_moved_aside_and_comes_once_more(hub: MockHub, place: Path) -> None:
    target = Target.of(hub, place, parts=1)
    hub.faults[KEY] = faults.Wrong(at=700_000, times=1)

    assert target.fetch().received_bytes == 2 * len(DATA)

    assert right(target)
    assert sum(target.told) == len(DATA)
    [aside] = quarantine.listing(target.settings.state_dir)
    assert aside.actual == hashlib.sha256(aside.path.read_bytes()).hexdigest() != aside.expected


#: What does not go by, the class of the error, and words that say what it was.
LASTING = {
    "drop": (faults.Drop(after=0), FailureClass.UNREACHABLE, "4 attempts"),
    "end": (faults.End(after=0), FailureClass.UNREACHABLE, "ended the connection"),
    "stall": (faults.Stall(after=0), FailureClass.UNREACHABLE, "next to nothing for 0.1 s"),
    "drip": (faults.Drip(piece=1, every_s=0.05), FailureClass.UNREACHABLE, "next to nothing for 0.1 s"),
    "silence": (faults.Silence(), FailureClass.UNREACHABLE, "does not answer in time"),
    "500": (faults.Status(status=500), FailureClass.UNREACHABLE, "500"),
    "429": (faults.Status(status=429, retry_after="0"), FailureClass.UNREACHABLE, "429"),
    "429 for long": (faults.Status(status=429, retry_after="3600"), FailureClass.UNREACHABLE, "3600 s"),
    "401": (faults.Status(status=401), FailureClass.WEIGHTS_UNAVAILABLE, "give a token by"),
    "403": (faults.Status(status=403, code="GatedRepo"), FailureClass.WEIGHTS_UNAVAILABLE, "is restricted"),
    "404": (faults.Status(status=404, code="EntryNotFound"), FailureClass.WEIGHTS_UNAVAILABLE, "no such file"),
    "416": (faults.Status(status=416), FailureClass.BAD_WEIGHTS, "bytes of it"),
    "204": (faults.Status(status=204), FailureClass.BAD_WEIGHTS, "204"),
    "shorter length": (faults.Length(by=-10), FailureClass.BAD_WEIGHTS, "1048566 bytes of it"),
    "longer length": (faults.Length(by=10), FailureClass.BAD_WEIGHTS, "1048586 bytes of it"),
    "cut": (faults.Truncated(after=1000), FailureClass.BAD_WEIGHTS, "1000 bytes of it"),
    "wrong byte": (faults.Wrong(at=700_000), FailureClass.BAD_WEIGHTS, "what came twice has the digest"),
    "page": (faults.Html(), FailureClass.UNREACHABLE, "login page"),
    "page as long": (faults.Html(body=b"x" * len(DATA)), FailureClass.UNREACHABLE, "login page"),
    "loop": (faults.Redirect(to="{path}"), FailureClass.UNREACHABLE, "redirects more than 5 times"),
    "nowhere": (faults.Redirect(to="ftp://127.0.0.1/"), FailureClass.WEIGHTS_UNAVAILABLE, "no address of http"),
    "nobody": (faults.Redirect(to="http://127.0.0.3:9/"), FailureClass.UNREACHABLE, "refuses the connection"),
}


@pytest.mark.parametrize(("fault", "kind", "words"), LASTING.values(), ids=LASTING)
def test_what_does_not_go_by_ends_in_a_clear_error_and_no_file(
    hub: MockHub, place: Path, fault: faults.Fault, kind: FailureClass, words: str
) -> None:
    target = Target.of(hub, place, parts=1, stall_timeout_s=soon(fault, 0.1))
    hub.faults[KEY] = fault

    error = refused(target, kind, words, KEY)

    assert len(hub.got(KEY)) <= 4 * 6
    assert error.retry_after_s == {"429": 0.0, "429 for long": 3600.0}.get(_name_of(fault))
    hub.faults.clear()
    target.but(stall_timeout_s=10).fetch()
    assert right(target)


def _name_of(fault: faults.Fault) -> str:
    return next(name for name, (known, _, _) in LASTING.items() if known is fault)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (faults.WrongRange(by=1), FailureClass.BAD_WEIGHTS, "bytes 1 to 65537 where 0 to 65536 were asked for"),
        (faults.WrongRange(total_by=1), FailureClass.BAD_WEIGHTS, "has 1048577 bytes of it, not 1048576"),
        (faults.Length(by=1), FailureClass.BAD_WEIGHTS, "announces 65537 bytes for a range of 65536"),
        (faults.Drop(after=0, only_from=500_000), FailureClass.UNREACHABLE, "4 attempts"),
    ],
)
def test_one_connection_of_several_can_end_it(
    hub: MockHub, place: Path, fault: faults.Fault, kind: FailureClass, words: str
) -> None:
    target = Target.of(hub, place)
    hub.faults[KEY] = fault
    refused(target, kind, words)


def test_the_other_etag_for_ever_ends_somewhere(hub: MockHub, place: Path) -> None:
    """A server behind which several disagree on the ETag of one content: the digest decides, over one connection."""
    target = Target.of(hub, place)
    hub.faults[KEY] = faults.OtherETag(only_from=1)

    target.fetch()

    assert right(target)
    assert hub.got(KEY)[-1] == ""


def test_stop_ends_it_and_keeps_what_is_there(hub: MockHub, place: Path) -> None:
    target = Target.of(hub, place)
    hub.faults[KEY] = faults.Stall(after=20_000, only_from=300_000)

    def stop_in_the_middle() -> None:
        until(lambda: sum(target.told) >= 300_000)
        target.stop.set()

    threading.Thread(target=stop_in_the_middle).start()
    with pytest.raises(Stopped):
        target.but(stall_timeout_s=60).fetch()

    assert target.beside == [".modelsupd-part", ".modelsupd-part.json"]
    hub.faults.clear()
    had = sum(target.told)
    assert had >= 300_000
    target.stop.clear()
    target.told.clear()
    assert target.fetch().received_bytes <= len(DATA) - had
    assert (target.told[0], sum(target.told)) == (had, len(DATA))
    assert right(target)


@pytest.mark.parametrize("parts", [1, 4])
def test_what_was_kept_and_is_wrong_is_fetched_anew(hub: MockHub, place: Path, parts: int) -> None:
    target = Target.of(hub, place, parts=parts)
    hub.faults[KEY] = faults.Drop(after=0, only_from=500_000)
    if parts == 1:
        hub.faults[KEY] = faults.Drop(after=500_000, times=1)
        hub.faults["*"] = faults.Drop(after=0, only_from=1)
    refused(target, FailureClass.UNREACHABLE)
    hub.faults.clear()
    part = target.final.with_name(target.final.name + ".modelsupd-part")
    with part.open("r+b") as file:
        file.write(b"wrong")

    target.told.clear()
    target.fetch()

    assert right(target)
    assert sum(target.told) == len(DATA)
    assert quarantine.listing(target.settings.state_dir) == []


def test_two_who_want_the_same_fetch_it_once(hub: MockHub, place: Path) -> None:
    one, other = Target.of(hub, place), Target.of(hub, place)
    hub.faults[KEY] = faults.Drip(piece=20_000, every_s=0.005)
    found: list[bool] = []
    threads = [threading.Thread(target=lambda who=who: found.append(who.fetch().found)) for who in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(found) == [False, True]
    assert right(one)
    assert hub.body_bytes_sent <= len(DATA)
    assert sum(one.told) == sum(other.told) == len(DATA)


def test_who_waits_for_the_lock_can_be_stopped(hub: MockHub, place: Path) -> None:
    one, other = Target.of(hub, place), Target.of(hub, place)
    hub.faults[KEY] = faults.Silence()

    def fetch_until_stopped() -> None:
        with pytest.raises(Stopped):
            one.but(stall_timeout_s=60).fetch()

    thread = threading.Thread(target=fetch_until_stopped)
    thread.start()
    until(lambda: hub.got(KEY))
    other.stop.set()
    with pytest.raises(Stopped):
        other.fetch()
    one.stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_file_without_a_digest_is_not_fetched(hub: MockHub, place: Path) -> None:
    target = Target.of(hub, place)
    target.pin = Pin(MODEL, 5)
    with pytest.raises(ValueError, match="without a digest"):
        target.fetch()


def test_a_cache_that_may_not_be_written_to_is_said_so(hub: MockHub, place: Path) -> None:
    target = Target.of(hub, place)
    (place / "cache").write_bytes(b"")
    refused(target, FailureClass.WEIGHTS_UNAVAILABLE, "cannot write", "Not a directory")
