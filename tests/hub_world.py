"""A hub and a cache of it, filled by huggingface_hub or by us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from mock_hub import MockHub, pieces
from modelsupd.weights import hub
from modelsupd.weights.base import HubSource, Pin, Settings
from modelsupd.weights.cache import Repo

NAME = "org/name"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 1000,
    "sub/folder/more.safetensors": b"m" * 500,
    "same.safetensors": b"w" * 1000,
    "empty.txt": b"",
}
LARGE = {"model.safetensors", "sub/folder/more.safetensors", "same.safetensors"}
COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Keep tokens, proxies and settings of this host out; have huggingface_hub use plain HTTP and draw no bars."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy") or name == "CREDENTIALS_DIRECTORY":
            monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(place / "no-token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(place / "no-tokens"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture
def new_client(alone: None) -> Iterator[None]:
    """Have a client made that reads the environment as the test leaves it, and none stay that did."""
    assert alone is None
    huggingface_hub.close_session()
    yield
    huggingface_hub.close_session()


@pytest.fixture
def mock() -> Iterator[MockHub]:
    """Return a hub that has the repository NAME with FILES, the large ones on another host."""
    with MockHub(cdn=True) as hub:
        hub.add(NAME, FILES, lfs=LARGE)
        yield hub


def settings(place: Path, url: str | None = None, **other: object) -> Settings:
    """Return settings for a cache in this place, with short waits."""
    short: dict[str, object] = {"stall_timeout_s": 5.0, "backoff_initial_s": 0.001, "backoff_max_s": 0.01, **other}
    return Settings(cache_dir=place / "hub", state_dir=place / "state", endpoint=url, **short)  # type: ignore[arg-type]  # each test gives its own


def downloaded(mock: MockHub, place: Path, **how: object) -> Path:
    """Have huggingface_hub fill the cache."""
    given_to_it: dict[str, object] = {"cache_dir": place / "hub", "endpoint": mock.url, "token": False, **how}
    return Path(huggingface_hub.snapshot_download(NAME, **given_to_it))  # type: ignore[call-overload]  # any of its many


def local(place: Path, **how: object) -> Path:
    """Have huggingface_hub find the snapshot in the cache, without a network."""
    return Path(huggingface_hub.snapshot_download(NAME, cache_dir=place / "hub", local_files_only=True, **how))  # type: ignore[call-overload]  # the same


def put(repo: Repo, pin: Pin, content: bytes) -> None:
    """Do what the transfer does: the blob lies there, under the name of its digest."""
    repo.blob(pin).parent.mkdir(parents=True, exist_ok=True)
    repo.blob(pin).write_bytes(content)


def pulled(mock: MockHub, place: Path, revision: str = "main") -> tuple[Repo, hub.Listing, Path]:
    """Fill the cache by our own means."""
    ours = settings(place, mock.url)
    listing = hub.listing(HubSource(NAME, revision), ours)
    repo = Repo(ours.cache_dir, NAME)
    assert listing.commit is not None
    for pin in listing.files:
        content = mock.repos[NAME].file(pin.path, listing.commit).content
        put(repo, pin, b"".join(pieces(content)))
    return repo, listing, hub.publish(NAME, listing.commit, revision, listing.files, ours, listing=listing)
