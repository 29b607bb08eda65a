"""Bad bytes: every cut, every flipped bit, every zeroed sector, lost and repeated lines; and their repair."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from journal_world import LIMITS, Quick, body, commit, folded, own, reopened
from modelsupd.runtime.journal import (
    Damaged,
    Unreadable,
    Unrepairable,
    apply_repair,
    history,
    plan_repair,
    read,
    verify,
)
from modelsupd.runtime.journal.frame import Chain, framed, synced_to
from modelsupd.runtime.journal.reader import Fold, scan, settled
from modelsupd.runtime.journal.store import Store


@dataclass
class Sample:
    """A journal of one segment: its bytes, where its records begin, and up to where a record proves it synced."""

    directory: Path
    data: bytes
    begins: list[int]
    proven: int

    @property
    def path(self) -> Path:
        """The one segment."""
        return self.directory / "00000001.seg"

    def records_before(self, offset: int) -> int:
        """How many records lie wholly before a byte."""
        ends = [*self.begins[1:], len(self.data)]
        return sum(end <= offset for end in ends)


def _sample(directory: Path, records: int) -> Sample:
    store = Store(directory, LIMITS, Quick())
    number = 0
    while number < records:
        size = min(1 + number % 3, records - number)
        assert commit(store, [body(number + index) for index in range(size)])
        number += size
    store.close()
    data = (directory / "00000001.seg").read_bytes()
    begins = [0, *(index + 1 for index, byte in enumerate(data[:-1]) if byte == 10)]
    proven = max(
        synced_to(data[begin + data[begin:].index(b"{") : end]) or 0 for begin, end in pairwise([*begins, len(data)])
    )
    return Sample(directory, data, begins, proven)


@pytest.fixture(name="sample")
def _fixture(tmp_path: Path) -> Sample:
    return _sample(tmp_path / "sample", 40)


def test_every_cut_leaves_a_prefix(sample: Sample, tmp_path: Path) -> None:
    first_end = sample.begins[1]
    for cut in range(len(sample.data)):
        data = sample.data[:cut]
        if cut < first_end:
            with pytest.raises(Damaged):
                scan("00000001.seg", data)
            continue
        fold = Fold()
        result = scan("00000001.seg", data, fold)
        whole = sample.records_before(cut)
        assert result.chain.records == whole
        assert result.torn_bytes == cut - result.chain.end
        assert {name: json.loads(state) for name, state in fold.states.items()} == folded(map(body, range(whole - 1)))[
            0
        ]
    for cut in range(sample.begins[-3], len(sample.data) + 1, 5):  # and the same through files, up to the cutting
        directory = tmp_path / str(cut)
        directory.mkdir()
        (directory / sample.path.name).write_bytes(sample.data[:cut])
        torn = reopened(directory).reading.torn
        assert own(history(directory)) == [body(number) for number in range(sample.records_before(cut) - 1)]
        if torn:
            assert torn[0].kept == "00000001.seg.torn"
            assert (directory / torn[0].kept).read_bytes() == sample.data[torn[0].offset : cut]
        assert (directory / sample.path.name).stat().st_size == cut - sum(one.size_bytes for one in torn)
        assert reopened(directory).reading.torn == ()
        shutil.rmtree(directory)


@pytest.mark.parametrize("tail", [b"", bytes(40)], ids=["closed", "preallocated"])
def test_no_flipped_bit_is_silent(sample: Sample, tail: bytes) -> None:
    """Each is damage, or a torn tail that nothing proves to have been synced; what comes before is all there."""
    whole = sample.data + tail
    flipped = bytearray(whole)
    silent = []
    for bit in range(0 if not tail else (len(sample.data) - 200) * 8, len(whole) * 8):
        at = bit // 8
        flipped[at] ^= 1 << bit % 8
        try:
            result = scan("00000001.seg", bytes(flipped))
        except Damaged as damage:
            assert damage.offset == max(begin for begin in sample.begins if begin <= at)  # noqa: PT017 - raises would take a second per 10,000 bits
        else:
            proven_gone = at < sample.proven
            if proven_gone or not result.torn_bytes or result.chain.records != sample.records_before(at):
                silent.append(bit)
        flipped[at] ^= 1 << bit % 8
    assert not silent


def test_every_zeroed_sector_is_seen(sample: Sample) -> None:
    for begin in range(0, len(sample.data), 64):
        data = sample.data[:begin] + bytes(64) + sample.data[begin + 64 :]
        whole = sample.records_before(begin)
        if begin + 64 <= sample.proven:  # beyond, the proof goes with what it proves
            with pytest.raises(Damaged, match=rf"damaged at byte {sample.begins[whole]}: "):
                scan("00000001.seg", data)
        else:
            assert scan("00000001.seg", data).chain.records == whole


def test_a_lost_a_repeated_and_a_reordered_record_are_seen(sample: Sample) -> None:
    begins = sample.begins
    for index in range(2, 30):
        begin, end, after = begins[index], begins[index + 1], begins[index + 2]
        lost = sample.data[:begin] + sample.data[end:]
        repeated = sample.data[:end] + sample.data[begin:]
        reordered = sample.data[:begin] + sample.data[end:after] + sample.data[begin:end] + sample.data[after:]
        for data in (lost, repeated, reordered):
            with pytest.raises(Damaged, match="a record is out of order"):
                scan("00000001.seg", data)


def test_the_error_names_file_byte_and_way_out(sample: Sample) -> None:
    at = sample.begins[5]
    sample.path.write_bytes(sample.data[:at] + b"#" + sample.data[at + 1 :])
    with pytest.raises(Damaged) as caught:
        read(sample.directory)
    assert (caught.value.segment, caught.value.offset) == ("00000001.seg", at)
    assert str(caught.value).startswith(f"cannot read the journal: 00000001.seg is damaged at byte {at}: ")
    assert "`modelsupd journal repair`" in str(caught.value)
    with pytest.raises(Damaged):
        Store(sample.directory, LIMITS, Quick())
    with pytest.raises(Damaged):
        list(history(sample.directory))
    assert sorted(path.name for path in sample.directory.iterdir()) == ["00000001.seg", "reserve"]


def test_a_newer_version_is_called_that(sample: Sample) -> None:
    newer, _ = framed(Chain(42, 0).head().replace(b'"v":1', b'"v":2') + b'"kind":"note"}')
    sample.path.write_bytes(sample.data + newer)
    with pytest.raises(Unreadable, match=r"holds at byte [0-9]+ a record of version 2, this program knows only 1"):
        read(sample.directory)


def test_text_that_looks_like_a_record_does_not_pass_for_one(tmp_path: Path) -> None:
    """An engine may print what it likes, a whole journal line included."""
    store = Store(tmp_path, LIMITS, Quick())
    forged = Chain(9, 0).render(b'"kind":"note"}', synced_to=10**6).decode()
    hostile = {"kind": "note", "why": forged + "deadbeef 2 {}\n\\" + '"' + forged}
    assert commit(store, [hostile])
    assert commit(store, [hostile])
    store.close()
    data = (tmp_path / "00000001.seg").read_bytes()
    last = data[:-1].rindex(b"\n") + 1
    damaged = data[: last + 3] + b"#" + data[last + 4 :]  # in the last batch, which nothing proves
    assert scan("00000001.seg", damaged).torn_bytes == len(data) - last
    assert own(history(tmp_path)) == [hostile, hostile]


# Repair


def _bodies_without(bodies: list[dict[str, Any]], lost: set[int]) -> list[dict[str, Any]]:
    return [item for seq, item in enumerate(bodies, 2) if seq not in lost]


def _check_repair(sample: Sample, data: bytes, bodies: list[dict[str, Any]]) -> int:
    """Repair `data` and check that it reads as the plan said; return how many records were lost."""
    for path in sample.directory.glob("*.damaged*"):
        path.unlink()
    sample.path.write_bytes(data)
    plan = plan_repair(sample.directory)
    assert sample.path.read_bytes() == data, "a plan changes nothing"
    kept = apply_repair(plan)
    assert [(sample.directory / name).read_bytes() for name in kept] == [data]
    lost = {seq for patch in plan.patches if patch.lost for seq in range(patch.lost[0], patch.lost[1] + 1)}
    assert plan.lost_records == len(lost)
    assert own(history(sample.directory)) == _bodies_without(bodies, lost)
    assert not verify(sample.directory).damaged
    states = read(sample.directory).states
    expected = folded(bodies)[0]
    for name in set(states) | set(expected):
        assert name in plan.replicas_in_doubt or states.get(name) == expected.get(name)
    assert not plan_repair(sample.directory).patches
    return len(lost)


def test_repair_brings_back_a_flipped_bit(tmp_path: Path) -> None:
    sample = _sample(tmp_path / "sample", 12)
    bodies = [body(number) for number in range(12)]
    draw = random.Random(1)  # noqa: S311 - it is to be the same each time
    for _ in range(60):
        bit = draw.randrange(sample.proven * 8)
        flipped = bytearray(sample.data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert _check_repair(sample, bytes(flipped), bodies) == 0
        assert sample.path.read_bytes() == sample.data


def test_repair_loses_only_what_is_bad(tmp_path: Path) -> None:
    sample = _sample(tmp_path / "sample", 20)
    bodies = [body(number) for number in range(20)]
    total = 0
    for at in range(sample.begins[1], sample.proven - 12, 29):
        data = sample.data[:at] + b"############" + sample.data[at + 12 :]
        lost = _check_repair(sample, data, bodies)
        assert 1 <= lost <= 4
        total += lost
    assert total


def test_repair_says_which_replicas_are_in_doubt(tmp_path: Path) -> None:
    sample = _sample(tmp_path / "sample", 12)
    begin, end = sample.begins[9], sample.begins[10]  # record 10, of m/0, after which m/0 has none
    data = sample.data[: begin + 2] + b"###" + sample.data[begin + 5 :]
    sample.path.write_bytes(data)
    plan = plan_repair(sample.directory)
    assert plan.patches[0].lost == (10, 10)
    assert (plan.patches[0].begin, plan.patches[0].end) == (begin, end)
    assert plan.lost_bytes == end - begin
    assert "m/0" in plan.replicas_in_doubt
    assert "m/2" not in plan.replicas_in_doubt
    assert "records 10 to 10 are lost, of m/0" in str(plan)
    assert "in all 1 records in " in str(plan)


def _several(directory: Path) -> list[dict[str, Any]]:
    store = Store(directory, replace(LIMITS, segment_bytes=900), Quick())
    bodies = [body(number) for number in range(40)]
    for item in bodies:
        assert commit(store, [item])
    store.close()
    assert len(list(directory.glob("*.seg"))) > 3
    return bodies


def test_a_snapshot_is_made_anew_from_the_segment_before(tmp_path: Path) -> None:
    bodies = _several(tmp_path)
    before = read(tmp_path).states
    for path in sorted(tmp_path.glob("*.seg"))[1:]:
        data = path.read_bytes()
        path.write_bytes(b"#" * 20 + data[20:])
        plan = plan_repair(tmp_path)
        assert plan.lost_records == 0
        assert plan.replicas_in_doubt == ()
        apply_repair(plan)
        assert read(tmp_path).states == before
        assert own(history(tmp_path)) == bodies


def test_a_lost_first_snapshot_leaves_what_later_records_say(tmp_path: Path) -> None:
    bodies = _several(tmp_path)
    *older, newest = sorted(tmp_path.glob("*.seg"))
    for path in older:
        path.unlink()
    data = newest.read_bytes()
    newest.write_bytes(b"#" * 20 + data[20:])
    plan = plan_repair(tmp_path)
    assert "every replica that no later record is about" in str(plan)
    apply_repair(plan)
    kept = own(history(tmp_path))
    assert kept
    assert kept == bodies[-len(kept) :]
    assert read(tmp_path).states == folded(kept)[0]


def test_damage_in_old_history_does_not_keep_a_daemon_from_starting(tmp_path: Path) -> None:
    bodies = _several(tmp_path)
    path = sorted(tmp_path.glob("*.seg"))[1]
    data = path.read_bytes()
    path.write_bytes(data[:-100])  # its end is gone, which only the next segment can tell
    assert read(tmp_path).states == folded(bodies)[0]
    with pytest.raises(Damaged, match=f"{path.name} is damaged at byte"):
        list(history(tmp_path))
    report = verify(tmp_path)
    assert [segment.name for segment in report.segments if segment.status == "damaged"] == [path.name]
    plan = plan_repair(tmp_path)
    assert plan.replicas_in_doubt == ()
    apply_repair(plan)
    lost = {seq for patch in plan.patches if patch.lost for seq in range(patch.lost[0], patch.lost[1] + 1)}
    records = list(history(tmp_path))
    seqs = [record["seq"] for record in records if record["kind"] not in ("gap", "snapshot")]
    assert lost
    assert not lost.intersection(seqs)
    assert sorted(seqs) == seqs
    assert len(seqs) == len(bodies) - len(lost)
    assert any("are lost since a repair" in note for segment in verify(tmp_path).segments for note in segment.notes)


def test_a_plan_is_not_carried_out_on_another_journal(sample: Sample) -> None:
    at = sample.begins[5]
    sample.path.write_bytes(sample.data[:at] + b"####" + sample.data[at + 4 :])
    plan = plan_repair(sample.directory)
    sample.path.write_bytes(sample.data)
    with pytest.raises(Unrepairable, match=r"00000001\.seg changed since the plan was made"):
        apply_repair(plan)
    assert sample.path.read_bytes() == sample.data


def test_a_reading_that_a_writer_outran_is_no_damage(sample: Sample) -> None:
    """A reader may see an early page before, and a later one after, two batches; reading again settles it."""

    class Outrun(type(sample.path)):  # type: ignore[misc]  # the concrete class of paths is chosen at run time
        readings = 0

        def read_bytes(self) -> bytes:
            self.readings += 1
            begin = sample.begins[20]
            return sample.data if self.readings > 1 else sample.data[:begin] + bytes(64) + sample.data[begin + 64 :]

    path = Outrun(sample.path)
    with pytest.raises(Damaged):
        scan(path.name, Outrun(sample.path).read_bytes())
    _, result = settled(path)
    assert result.chain.records == 41
    assert path.readings >= 2
