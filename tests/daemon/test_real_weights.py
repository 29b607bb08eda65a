"""A real llama-server is started only on weights of a hub that were verified."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import llama_server
import tiny_gguf
from hosts import STEADY, host, settled, streaming, whys
from mock_hub import MockHub
from modelsupd.weights.cache import Repo as Cached

pytestmark = pytest.mark.real

FILE = "tiny.gguf"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("w") / FILE
    tiny_gguf.write(path)
    return path.read_bytes()


def declared(place: Path, hub: MockHub) -> str:
    binary = llama_server.find()
    if binary is None:
        pytest.fail("there is no llama-server on PATH or in the cache: run 'make engines' first")
    return (
        f"[weights]\nendpoint = '{hub.url}'\ncache_dir = '{place / 'hub'}'\nattempts = 2\nstall_timeout_s = 10\n"
        f"backoff_initial_s = 0.05\n[models.m]\nengine = 'llama.cpp'\nbinary = '{binary}'\n"
        f"weights = 'hf:org/tiny/{FILE}'\n[models.m.args]\nctx_size = 512\n{STEADY.format(name='m')}"
    )


def test_one_flipped_byte_starts_nothing_and_is_healed_by_the_hub(place: Path, content: bytes) -> None:
    spoiled = bytearray(content)
    spoiled[len(content) * 3 // 4] ^= 0x10  # in a tensor: llama.cpp itself would load it without a word
    with MockHub() as hub:
        repo = hub.add("org/tiny", {FILE: content}, lfs={FILE})
        blob = Cached(place / "hub", "org/tiny").folder / "blobs" / repo.file(FILE).sha256
        with host(place, declared(place, hub)) as daemon:
            daemon.until_phase("ready")
            assert daemon.stop() == 0
            settled(blob, bytes(spoiled))
            daemon.start()
            ready = daemon.until_phase("ready", run=2)
            assert blob.read_bytes() == content
            said = daemon.said()
            assert "weights moved aside" in said
            assert (
                f"expected sha256 {repo.file(FILE).sha256}, found sha256 {hashlib.sha256(spoiled).hexdigest()}" in said
            )
            assert FILE in said
            stream = streaming(ready["endpoint"], tokens=4)
            assert b"[DONE]" in b"".join(iter(lambda: stream.recv(65536), b""))
            stream.close()


def test_with_the_hub_away_nothing_spoiled_starts_and_what_is_whole_asks_nobody(place: Path, content: bytes) -> None:
    spoiled = bytearray(content)
    spoiled[len(content) // 2] ^= 1
    with MockHub() as hub:
        repo = hub.add("org/tiny", {FILE: content}, lfs={FILE})
        blob = Cached(place / "hub", "org/tiny").folder / "blobs" / repo.file(FILE).sha256
        with host(place, declared(place, hub)) as daemon:
            daemon.until_phase("ready")
            daemon.stop()
            requests = len(hub.requests)
            hub.close()
            daemon.start()
            daemon.until_phase("ready", run=2)
            assert len(hub.requests) == requests
            assert "verified by sha256" in whys(daemon)
            daemon.stop()
            settled(blob, bytes(spoiled))
            daemon.start()
            waiting = daemon.until_phase("backoff", timeout_s=30)
            assert waiting["reason"].startswith("unreachable: ")
            assert FILE in waiting["reason"]
            assert waiting["pid"] is None
            said = daemon.said()
            assert (
                f"expected sha256 {repo.file(FILE).sha256}, found sha256 {hashlib.sha256(spoiled).hexdigest()}" in said
            )
            assert "weights moved aside" in said
