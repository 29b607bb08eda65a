"""A daemon whose model's weights come from a hub: fetched, verified, shown, given up, and started without a network."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from filled_cache import tiny_safetensors
from hosts import NAMESPACE, Host, fake_model, host, settled, small_gguf, whys
from hub_faults import Drop, Pause, Stall, Status, Wrong
from injecting import strace
from mock_hub import MockHub, Repo
from modelsupd.weights.cache import Repo as Cached
from waiting import until

pytestmark = pytest.mark.real  # takes long; `make test` has to stay under two minutes

SIZE = 1 << 20
FILE = "m.gguf"
NAME = f"org/m/{FILE}"

#: From here on nothing comes of a file that a hub holds back; the bytes before it come in parts, and are told of.
HELD_FROM = SIZE // 4


@pytest.fixture
def hub() -> Iterator[MockHub]:
    with MockHub() as hub:
        yield hub


@pytest.fixture
def repo(hub: MockHub) -> Repo:
    return hub.add("org/m", {FILE: small_gguf(size_bytes=SIZE), "README.md": b"hello"}, lfs={FILE})


def declared(place: Path, hub: MockHub, *models: str, more: str = "") -> str:
    """Return the part of models.toml below [daemon], with limits that make a fetch fail quickly, if not for silence."""
    weights = (
        f"[weights]\nendpoint = '{hub.url}'\ncache_dir = '{place / 'hub'}'\nattempts = 3\npart_bytes = 65536\n"
        f"backoff_initial_s = 0.02\nbackoff_max_s = 0.05\nstall_timeout_s = 60\nmin_free_bytes = 0\n{more}\n"
    )
    return weights + "\n".join(models or (of_hub(),))


def of_hub(name: str = "m", source: str = f"hf:org/m/{FILE}", extra: str = "") -> str:
    """Return a model whose engine is told where its weights lie by its environment."""
    model = fake_model(name, extra=f"weights = '{source}'\n{extra}")
    return f"{model}[models.{name}.env]\nWEIGHTS = '{{weights}}'\n"


def weights_of(pid: int) -> Path:
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return Path(next(item for item in environ if item.startswith(b"WEIGHTS=")).removeprefix(b"WEIGHTS=").decode())


def blob(place: Path, repo: Repo, path: str = FILE) -> Path:
    return Cached(place / "hub", repo.name).folder / "blobs" / repo.file(path).etag


def workers(place: Path) -> list[int]:
    """Return the pids of the workers of the daemon in `place`, which write below it."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                words, environ = Path(entry.path, "cmdline").read_bytes(), Path(entry.path, "environ").read_bytes()
            except OSError:
                continue
            if b"modelsupd.weights.worker" in words and str(place.parent).encode() in environ:
                found.append(int(entry.name))
    return found


def fetching(daemon: Host, at_least: int = 1) -> dict[str, Any]:
    """Wait until so many bytes are there, and return what the status says of it."""
    seen: dict[str, Any] = {}

    def there() -> bool:
        seen.update(daemon.replica().get("weights") or {})
        return bool(seen.get("done_bytes", 0) >= at_least)

    until(there, what=lambda: f"{daemon.replica()} {daemon.said()}")
    return seen


def test_weights_are_fetched_verified_and_then_start_without_a_hub(place: Path, hub: MockHub, repo: Repo) -> None:
    hub.faults[NAME] = held = Pause(only_from=HELD_FROM)
    with host(place, declared(place, hub)) as daemon:
        shown = fetching(daemon)
        assert shown["total_bytes"] == repo.file(FILE).size
        assert "fetching" in daemon.replica()["reason"]
        held.go.set()
        first = daemon.until_phase("ready")
        path = weights_of(first["pid"])
        assert path.read_bytes() == small_gguf(size_bytes=SIZE)
        assert path.parent.name == repo.commit
        assert "weights: 1.0 MiB, verified by sha256" in whys(daemon)
        assert not any("README" in request.path for request in hub.requests)
        requests = len(hub.requests)
        hub.close()
        daemon.client.command("restart", "m")
        daemon.until_phase("ready", run=2)
        assert daemon.stop() == 0
        daemon.start()
        daemon.until_phase("ready", run=3)
        assert len(hub.requests) == requests


def test_an_engine_that_is_given_a_folder_finds_what_was_verified_and_nothing_else(place: Path, hub: MockHub) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": tiny_safetensors(), "model.bin": b"b"}
    there = hub.add("org/s", files, lfs={"model.safetensors"})
    own = place / "own"
    own.mkdir()
    for name, content in files.items():
        settled(own / name, content)
    with host(place, declared(place, hub, of_hub("hub", "hf:org/s"), of_hub("own", str(own)))) as daemon:
        folders = {name: weights_of(daemon.until_phase("ready", name=name)["pid"]) for name in ("hub/0", "own/0")}
        for folder in folders.values():
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
                name: content for name, content in files.items() if name != "model.bin"
            }
        # Another tool files more of the repository, and somebody writes into the folder itself.
        snapshot = Cached(place / "hub", "org/s").snapshot(there.commit)
        (snapshot / "extra.safetensors").write_bytes(b"not ours")
        (folders["hub/0"] / "stranger.py").write_text("")
        daemon.client.command("restart", "hub")
        assert weights_of(daemon.until_phase("ready", run=2, name="hub/0")["pid"]) == folders["hub/0"]
        assert {path.name for path in folders["hub/0"].iterdir()} == files.keys() - {"model.bin"}


@pytest.mark.real
def test_a_stop_keeps_what_was_fetched_and_a_start_goes_on_from_there(place: Path, hub: MockHub, repo: Repo) -> None:
    hub.faults[NAME] = Stall(after=0, only_from=HELD_FROM)
    with host(place, declared(place, hub)) as daemon:
        fetching(daemon, SIZE // 8)
        daemon.client.command("stop", "m")
        daemon.until_phase("stopped")
        until(lambda: not workers(place), what="the worker ends")
        before = hub.body_bytes_sent
        del hub.faults[NAME]
        daemon.client.command("start", "m")
        daemon.until_phase("ready")
        assert hub.body_bytes_sent - before < repo.file(FILE).size


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_ends_ends_its_worker_and_the_next_one_goes_on(
    place: Path, hub: MockHub, repo: Repo, number: signal.Signals
) -> None:
    hub.faults[NAME] = Stall(after=0, only_from=HELD_FROM)
    with host(place, declared(place, hub)) as daemon:
        fetching(daemon, SIZE // 8)
        daemon.stop(number)
        until(lambda: not workers(place), what="the worker ends")
        before = hub.body_bytes_sent
        del hub.faults[NAME]
        daemon.start()
        daemon.until_phase("ready")
        assert hub.body_bytes_sent - before < repo.file(FILE).size


@pytest.mark.real
def test_a_worker_that_is_killed_is_no_failure_of_the_model(place: Path, hub: MockHub, repo: Repo) -> None:
    hub.faults[NAME] = Stall(after=0, only_from=HELD_FROM)
    with host(place, declared(place, hub)) as daemon:
        fetching(daemon, SIZE // 8)
        for pid in workers(place):
            os.kill(pid, signal.SIGKILL)
        del hub.faults[NAME]
        daemon.until_phase("ready")
        assert "the worker for the weights ended without an answer: killed by signal 9" in whys(daemon)
        assert repo.file(FILE).size


def test_a_flipped_byte_is_found_moved_aside_and_fetched_again(place: Path, hub: MockHub, repo: Repo) -> None:
    with host(place, declared(place, hub)) as daemon:
        daemon.until_phase("ready")
        daemon.client.command("stop", "m")
        daemon.until_phase("stopped")
        path = blob(place, repo)
        spoiled = bytearray(path.read_bytes())
        spoiled[SIZE // 2] ^= 1
        settled(path, bytes(spoiled))
        daemon.client.command("start", "m")
        ready = daemon.until_phase("ready", run=2)
        assert weights_of(ready["pid"]).read_bytes() == small_gguf(size_bytes=SIZE)
        said = daemon.said()
        assert "weights moved aside" in said
        assert repo.file(FILE).sha256 in said
        kept = [found for found in place.rglob("*quarantine*/**/*") if found.is_file()]
        assert any(found.read_bytes() == bytes(spoiled) for found in kept)


@pytest.mark.real
def test_a_flipped_byte_without_a_hub_starts_nothing_and_says_both_digests(
    place: Path, hub: MockHub, repo: Repo
) -> None:
    with host(place, declared(place, hub)) as daemon:
        daemon.until_phase("ready")
        daemon.client.command("stop", "m")
        daemon.until_phase("stopped")
        hub.close()
        spoiled = bytearray(blob(place, repo).read_bytes())
        spoiled[-1] ^= 0x80
        settled(blob(place, repo), bytes(spoiled))
        daemon.client.command("start", "m")
        reason = daemon.until_phase("backoff", "failed", timeout_s=30)["reason"]
        assert "unreachable" in reason
        assert FILE in reason
        assert "modelsupd import" in reason
        assert f"expected sha256 {repo.file(FILE).sha256}" in daemon.said()


@pytest.mark.real
def test_wrong_bytes_of_the_hub_are_never_loaded(place: Path, hub: MockHub, repo: Repo) -> None:
    hub.faults[NAME] = Wrong(at=SIZE // 2)
    with host(place, declared(place, hub)) as daemon:
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-weights: ")
        assert repo.file(FILE).sha256 in failed["reason"]
        assert not blob(place, repo).exists()
        assert failed["pid"] is None


@pytest.mark.real
def test_what_the_hub_does_not_have_is_said_and_found_later(place: Path, hub: MockHub) -> None:
    model = of_hub(extra="").replace("backoff_initial_s", "cool_down_s = 0.5\nbackoff_initial_s")
    with host(place, declared(place, hub, model)) as daemon:
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("weights-unavailable: ")
        assert "org/m" in failed["reason"]
        hub.add("org/m", {FILE: small_gguf()}, lfs={FILE})
        assert daemon.until_phase("ready")["restarts"] >= 1


def test_offline_names_what_is_missing_and_how_to_bring_it(place: Path, hub: MockHub, repo: Repo) -> None:
    more = "offline = true\n[models.other]\nengine = 'command'\ncommand = ['x', '{socket}']\nstart = 'manual'\n"
    with host(place, declared(place, hub)) as daemon:
        daemon.until_phase("ready")
        daemon.stop()
        blob(place, repo).unlink()
        daemon.declare(declared(place, hub, of_hub(), more=more))
        daemon.start()
        failed = daemon.until_phase("failed")
        assert "weights-unavailable" in failed["reason"]
        assert "1 of 1 files" in failed["reason"]
        assert f"{FILE}; where there is a network, 'modelsupd pull'" in failed["reason"]


@pytest.mark.real
def test_replicas_share_one_fetch_and_models_wait_for_one_another(place: Path, hub: MockHub, repo: Repo) -> None:
    hub.add("org/n", {FILE: small_gguf(1, size_bytes=SIZE)}, lfs={FILE})
    hub.faults[NAME] = hub.faults[f"org/n/{FILE}"] = held = Pause()
    models = of_hub("m", extra="replicas = 2"), of_hub("n", f"hf:org/n/{FILE}")
    with host(place, declared(place, hub, *models, more="downloads = 1")) as daemon:
        until(
            lambda: any("waiting for another download" in daemon.replica(name)["reason"] for name in ("m/0", "n/0")),
            what="one waits for the other",
        )
        assert len(workers(place)) == 1
        held.go.set()
        for name in ("m/0", "m/1", "n/0"):
            daemon.until_phase("ready", name=name)
        assert repo.file(FILE).size <= hub.body_bytes_sent < 4 * SIZE


@pytest.mark.real
def test_an_interrupted_transfer_goes_on_within_the_same_start(place: Path, hub: MockHub, repo: Repo) -> None:
    hub.faults[NAME] = Drop(after=SIZE // 8, times=3)
    hub.faults["org/m"] = Status(status=503, times=1)
    with host(place, declared(place, hub)) as daemon:
        assert daemon.until_phase("ready")["run"] == 1
        assert repo.file(FILE).size


def test_weights_that_change_under_a_running_engine_are_told(place: Path, hub: MockHub) -> None:
    weights = settled(place / "w.gguf", small_gguf())
    with host(place, declared(place, hub, of_hub(source=str(weights)), more="change_look_s = 0.1")) as daemon:
        daemon.until_phase("ready")
        settled(place / "new", small_gguf(7)).rename(weights)
        until(lambda: "has changed since" in daemon.replica()["reason"], timeout_s=15, what=daemon.said)
        assert daemon.replica()["run"] == 1
        daemon.client.command("restart", "m")
        ready = daemon.until_phase("ready", run=2)
        assert "has changed" not in ready["reason"]


@pytest.mark.parametrize("when", ["before", "in the middle"])
def test_a_disk_that_fills_up_says_what_is_missing_and_goes_on_when_there_is_space(
    place: Path, hub: MockHub, repo: Repo, when: str
) -> None:
    """In the middle it happens only where the file system cannot set space aside, which is made so."""
    (place / "hub").mkdir()
    mount = f"mount -t tmpfs -o size=2m,mode=0700 none {place}/hub"
    if subprocess.run([*NAMESPACE, "sh", "-c", mount], check=False, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted in a namespace here (user namespaces are off)")
    hub.faults[NAME] = held = Pause(only_from=HELD_FROM)
    models = of_hub(extra="start = 'manual'"), fake_model("other")
    with host(place, declared(place, hub, *models), start=False) as daemon, contextlib.ExitStack() as traced:
        daemon.start(wrapped=[*NAMESPACE, "sh", "-c", f'{mount} && : > {place}/hub/filler && exec "$@"', "sh"])
        assert daemon.daemon is not None
        # The files of the namespace are reached through the daemon's own root.
        filler = Path(f"/proc/{daemon.daemon.pid}/root{place}/hub/filler")
        other = daemon.until_phase("ready", name="other/0")
        if when == "in the middle":
            traced.enter_context(strace(daemon.daemon.pid, place, "fallocate:error=EOPNOTSUPP"))
            daemon.client.command("start", "m")
            fetching(daemon, HELD_FROM)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for _ in range(1_500):
                file.write(bytes(1000))
        held.go.set()
        if when == "before":
            daemon.client.command("start", "m")
        waiting = daemon.until_phase("backoff")
        assert waiting["reason"].startswith("no-space: ")
        # It tries again and again; the first time something may have been left for the bytes, and none for a name.
        until(
            lambda: re.search(r": \d+ bytes of space are missing \([\d.]+ [KM]iB", whys(daemon)),
            what=lambda: whys(daemon),
        )
        before = hub.body_bytes_sent
        filler.unlink()
        daemon.until_phase("ready")
        if when == "in the middle":
            assert hub.body_bytes_sent - before <= repo.file(FILE).size - HELD_FROM, "it went on from what was there"
        now = daemon.replica("other/0")
        assert (now["phase"], now["pid"], now["restarts"]) == ("ready", other["pid"], 0)


@pytest.mark.real
def test_a_token_opens_what_is_private_and_is_seen_nowhere_else(place: Path, hub: MockHub) -> None:
    secret = "hf_SECRETsecret0123456789"  # noqa: S105 - opens the mock alone
    hub.add("org/m", {FILE: small_gguf()}, lfs={FILE}, token=secret)
    token = place / "token"
    token.write_text("hf_wrong\n")
    token.chmod(0o600)
    quick = of_hub().replace("backoff_initial_s = 0.05\n[models.m.env]", "recheck_s = 0.1\n[models.m.env]")
    with host(place, declared(place, hub, quick, more=f"token_file = '{token}'")) as daemon:
        failed = daemon.until_phase("failed")
        assert "weights-unavailable" in failed["reason"]
        token.write_text(f"{secret}\n")
        daemon.until_phase("ready")
        daemon.stop()
    kept = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file() and path != token)
    assert secret.encode() not in kept
    assert any(request.token == secret for request in hub.requests)


def test_a_reload_tells_what_changes_in_the_lock(place: Path, hub: MockHub, repo: Repo) -> None:
    with host(place, declared(place, hub)) as daemon:
        daemon.until_phase("ready")
        assert daemon.run("pull").returncode == 0
        short = repo.commit[:12]
        assert daemon.run("reload").stdout == f"models.lock: + hf:org/m/{FILE}: 1 file, 1.0 MiB at {short}\n"
        assert daemon.run("reload").stdout == "nothing changes\n"


@pytest.mark.usefixtures("repo")
def test_a_hub_that_asks_to_wait_is_not_asked_before(place: Path, hub: MockHub) -> None:
    hub.faults["*"] = Status(status=429, retry_after="900")
    with host(place, declared(place, hub)) as daemon:
        reason = daemon.until_phase("backoff")["reason"]
        assert "answers 429, and asks to wait 900 s" in reason
        assert "; next start in 900.0 s" in reason
        assert len(hub.requests) == 1
