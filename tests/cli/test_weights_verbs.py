"""`list`, `verify`, `show`, `export`, `import` and `gc`: what is told of weights, and what is done with them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny_gguf
from hosts import settled, small_gguf
from hub_faults import Stall
from mock_hub import MockHub
from stocked import CONTENT, FILE, NAME, Stocked, open_to_others, stocked
from waiting import until

SOURCE = f"hf:{NAME}"
NOBODY = 65534

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to work for somebody else")


@pytest.fixture
def here(place: Path) -> Iterator[Stocked]:
    with stocked(place) as found:
        yield found


def spoil(path: Path, at: int = -1) -> None:
    """Flip a bit, long ago."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    settled(path, bytes(content))


# list


def test_a_list_of_all_that_is_declared(here: Stocked) -> None:
    local = settled(here.place / "w.gguf", small_gguf())
    here.declare({"m": SOURCE, "l": local, "gone": here.place / "none.gguf"})
    here.run("pull", "m")
    done = here.run("list")
    assert done.code == 0
    commit = here.hub.repos["org/m"].commit[:12]
    rows = [line.split() for line in done.out.splitlines()]
    assert rows[0] == ["MODEL", "PART", "SOURCE", "COMMIT", "SIZE", "ON", "DISK", "LOCK", "STATE"]
    assert rows[1][:4] == ["m", "weights", SOURCE, commit]
    assert rows[1][-2:] == ["models.lock", "whole"]
    assert rows[2][-2:] == ["-", "unverified"]
    assert rows[3][-5:] == ["missing", "1", "of", "1", "files"]
    assert "gone: cannot read the weights" in done.out
    document = here.run("list", "--json", "m").document
    assert [model["whole"] for model in document["models"]] == [True]
    assert document["on_disk_bytes"] >= len(CONTENT)


def test_a_list_costs_no_request_and_changes_nothing(here: Stocked) -> None:
    here.run("list")
    assert not here.hub.requests
    assert not (here.place / "state").exists()


# verify


def test_every_file_is_told_with_what_proves_it(here: Stocked) -> None:
    local = settled(here.place / "w.gguf", small_gguf())
    here.declare({"m": SOURCE, "l": local})
    here.run("pull")
    requests = len(here.hub.requests)
    done = here.run("verify")
    sha256 = here.hub.repos["org/m"].file(FILE).sha256
    assert (done.code, done.err) == (0, "")
    assert f"m: {FILE}: ok, sha256 {sha256}\n" in done.out
    assert "l: w.gguf: structure only; there is no digest to compare\n" in done.out
    assert done.out.endswith("2 files: 1 ok, 1 structure only\n")
    assert here.state("l") == "whole"
    assert len(here.hub.requests) == requests


def test_a_flipped_bit_is_told_with_both_digests_and_mended_by_a_pull(here: Stocked) -> None:
    here.run("pull")
    right = here.hub.repos["org/m"].file(FILE).sha256
    spoil(here.blob())
    done = here.run("verify", "m")
    assert done.code == 1
    assert f"m: {FILE}: bad, expected sha256 {right}, found sha256 " in done.out
    assert "an engine may not be started on m" in done.err
    (file,) = here.run("verify", "--json").document["models"][0]["files"]
    assert (file["outcome"], file["expected"]) == ("bad", f"sha256 {right}")
    assert file["actual"].startswith("sha256 ")
    assert file["actual"] != file["expected"]
    assert here.state() == "bad"
    assert here.blob().exists()
    done = here.run("pull")
    assert done.code == 0
    assert f"m: moved aside {FILE}: expected sha256 {right}, found sha256 " in done.out
    assert here.run("verify").code == 0
    assert "moved aside, yours to remove: " in here.run("gc").out


def test_what_did_not_change_is_believed_unless_deep(here: Stocked) -> None:
    here.run("pull")
    settled(here.blob())
    assert here.run("verify").code == 0
    before = here.blob().stat()
    content = bytearray(CONTENT)
    content[-1] ^= 1
    here.blob().write_bytes(content)
    os.utime(here.blob(), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert here.run("verify").code == 0
    assert here.run("verify", "--deep").code == 1
    assert here.run("verify").code == 1  # from now on it is known


def test_what_is_cut_off_or_missing(here: Stocked) -> None:
    assert "none of its files is here" in here.run("verify").out
    here.run("pull")
    settled(here.blob(), CONTENT[:-7])
    done = here.run("verify")
    assert done.code == 1
    assert "found sha256" in done.out
    here.blob().unlink()
    done = here.run("verify")
    assert (done.code, f"m: {FILE}: missing; " in done.out) == (1, True)
    here.declare({"l": here.place / "none.gguf"})
    done = here.run("verify")
    assert (done.code, "l: none.gguf: missing; " in done.out) == (1, True)


def test_files_without_digest_are_judged_by_their_structure(here: Stocked) -> None:
    here.declare({"l": settled(here.place / "w.gguf", small_gguf()[:-1])})
    done = here.run("verify")
    assert done.code == 1
    assert "l: w.gguf: bad; " in done.out


# show


def test_show_tells_what_a_model_is_and_how_much_memory_it_takes(here: Stocked) -> None:
    tiny_gguf.write(here.place / "t.gguf")
    settled(here.place / "t.gguf")
    here.declare({"t": here.place / "t.gguf"}, extra="args = { ctx_size = 1024, parallel = 2, cache_type_k = 'q8_0' }")
    done = here.run("show", "t")
    assert done.code == 0
    assert "[models.t.health]" in done.out
    assert "--ctx-size 1024" in done.out
    assert f"# weights: {here.place / 't.gguf'}\n#   architecture llama, 385 k parameters, quantisation F16" in done.out
    assert "claim with context 1024 in 2 slots, cache q8_0/f16: cache 392.0 KiB, VRAM 0 B, RAM 1.1 MiB" in done.out
    (part,) = here.run("show", "--json", "t").document["weights"]["t"]
    assert part["claim"]["kv_bytes"] == 401408
    assert part["claim"]["vram_bytes"] == 0
    assert part["facts"]["context_length"] == 2048


def test_show_of_what_is_not_here_and_of_what_is(here: Stocked) -> None:
    assert "#   not here yet: 'modelsupd pull' fetches it" in here.run("show", "m").out
    here.run("pull")
    done = here.run("show", "m")
    repo = here.hub.repos["org/m"]
    snapshot = here.cache / "models--org--m" / "snapshots" / repo.commit
    assert f"--model {snapshot / FILE} " in done.out
    assert f"# weights: {SOURCE} at {repo.commit}, locked by models.lock" in done.out
    assert f"#   {FILE}  256.1 KiB  sha256 {repo.file(FILE).sha256}" in done.out
    assert "# weights" not in here.run("show", "--argv", "m").out


# export, import


def test_weights_travel_in_one_file_to_a_host_without_a_hub(here: Stocked) -> None:
    here.run("pull")
    done = here.run("export", "m", str(here.place / "m.tar"))
    assert (done.code, done.err) == (0, "")
    with MockHub() as gone:
        there = Stocked(here.place / "t", gone)
        there.hub.repos = here.hub.repos
        there.lock_file.write_text(here.lock_file.read_text())
        done = there.run("import", str(here.place / "m.tar"))
        assert (done.code, done.err) == (0, "")
        assert f"{SOURCE}: 1 file, verified\nm: whole\n" in done.out
        assert there.state() == "whole"
        assert there.run("pull", "--locked").code == 0
        assert there.run("import", "--json", str(here.place / "m.tar")).events[-1]["whole"]
        assert not gone.requests


def test_an_archive_with_a_flipped_bit_brings_nothing(here: Stocked) -> None:
    here.run("pull")
    here.run("export", "m", str(here.place / "m.tar"))
    spoil(here.place / "m.tar", len(CONTENT) // 2)
    with MockHub() as gone:
        there = Stocked(here.place / "t", gone)
        done = there.run("import", str(here.place / "m.tar"))
        assert done.code == 1
        assert "the sha256 of one of its files is" in done.err
        assert there.state() == "missing"
    assert "cannot read" in here.run("import", str(here.place / "none.tar")).err


def test_only_what_is_whole_is_exported(here: Stocked) -> None:
    target = here.place / "m.tar"
    done = here.run("export", "m", str(target))
    assert (done.code, "cannot export 'm': '" in done.err) == (1, True)
    here.run("pull")
    spoil(here.blob())
    done = here.run("export", "m", str(target))
    assert (done.code, f"cannot export 'm': '{FILE}' of '{SOURCE}' is missing" in done.err) == (1, True)
    assert [path.name for path in here.place.iterdir() if "tar" in path.name] == []
    here.run("pull")
    done = here.run("export", "m", str(here.place / "no" / "m.tar"))
    assert f"cannot write '{here.place / 'no' / 'm.tar'}'" in done.err
    assert not (here.place / "no").exists()


# gc


def test_what_nobody_names_any_more_is_listed_and_then_removed(here: Stocked) -> None:
    here.run("pull")
    old = here.blob()
    repo = here.hub.repos["org/m"]
    repo.push({FILE: small_gguf(2)}, lfs={FILE})
    here.run("lock", "--upgrade", "--yes")
    done = here.run("gc")
    assert done.code == 0
    assert "org/m: 1 file of 1 commit, " in done.out
    assert done.out.endswith("nothing was removed: --yes does it\n")
    assert old.exists()
    document = here.run("gc", "--json", "--yes").document
    assert document["removed_bytes"] == document["size_bytes"] >= len(CONTENT)
    assert not old.exists()
    assert here.run("gc").out == "nothing to remove\n"
    assert here.state() == "whole"
    here.declare({})
    assert here.run("gc").out == "nothing to remove\n"  # the lock still names it
    here.lock_file.unlink()
    assert "org/m: 1 file of 1 commit" in here.run("gc").out


# As root, for a service of another user


@needs_root
def test_root_works_as_the_owner_of_the_state_directory_and_writes_the_lock_itself(here: Stocked) -> None:
    wrapped = open_to_others()
    here.place.chmod(0o755)
    state, private = here.place / "state", here.place / "private"
    state.mkdir()
    os.chown(state, NOBODY, NOBODY)
    private.mkdir(mode=0o700)
    here.cache = state / "hub"
    here.declare({"m": SOURCE})
    done = here.apart("pull", wrapped=wrapped)
    assert (done.code, done.err) == (0, "")
    assert "m: whole" in done.out
    assert {path.lstat().st_uid for path in state.rglob("*")} == {NOBODY}
    assert here.lock_file.stat().st_uid == 0
    assert stat.S_IMODE(here.lock_file.stat().st_mode) == 0o644
    assert here.apart("verify", "--deep", wrapped=wrapped).code == 0
    assert here.apart("export", "m", str(private / "m.tar"), wrapped=wrapped).code == 0
    assert (private / "m.tar").stat().st_uid == 0
    here.blob().unlink()
    assert here.apart("import", str(private / "m.tar"), wrapped=wrapped).code == 0
    assert here.blob().stat().st_uid == NOBODY
    assert {path.lstat().st_uid for path in state.rglob("*")} == {NOBODY}


@needs_root
def test_what_fails_as_the_owner_fails_as_root(here: Stocked) -> None:
    wrapped = open_to_others()
    here.place.chmod(0o755)
    (here.place / "state").mkdir()
    os.chown(here.place / "state", NOBODY, NOBODY)
    here.declare({"m": "hf:org/gone/m.gguf"})
    done = here.apart("pull", wrapped=wrapped)
    assert done.code == 1
    assert done.err.startswith("m: cannot list org/gone: ")
    assert not here.lock_file.exists()
    done = here.apart("export", "m", str(here.place / "m.tar"), wrapped=wrapped)
    assert done.code == 1
    assert done.err.startswith("modelsupd: cannot export 'm': ")
    assert not (here.place / "m.tar").exists()


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_owners_part_of_the_work_ends_with_the_command(here: Stocked, number: signal.Signals) -> None:
    wrapped = open_to_others()
    here.place.chmod(0o755)
    (here.place / "state").mkdir()
    os.chown(here.place / "state", NOBODY, NOBODY)
    here.cache = here.place / "state" / "hub"
    here.declare({"m": SOURCE})
    here.hub.faults[NAME] = Stall(after=len(CONTENT) // 8)
    process = subprocess.Popen([*wrapped, *here.command("pull")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    until(lambda: list(here.cache.rglob("*.modelsupd-part")), what="a file is on its way")
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)  # conftest sees to the child
    assert list(here.cache.rglob("*.modelsupd-part"))
