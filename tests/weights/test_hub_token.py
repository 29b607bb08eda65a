"""How a token is given, where it goes, and where it never shows."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from huggingface_hub import constants

import hub_faults as faults
from hub_world import FILES, NAME, alone, mock, settings
from mock_hub import MockHub
from modelsupd.core.events import FailureClass
from modelsupd.weights import hub
from modelsupd.weights.base import HubSource, WeightsError

__all__ = ["alone", "mock"]  # fixtures

SECRET = "hf_" + "s" * 34


def test_a_token_opens_a_private_repo(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mock.repos[NAME].token = SECRET
    monkeypatch.setenv("HF_TOKEN", SECRET)

    assert len(hub.listing(HubSource(NAME), settings(place, mock.url)).files) == len(FILES)
    assert {request.token for request in mock.requests} == {SECRET}


def test_a_token_goes_to_the_endpoint_however_it_is_spelt(
    mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub.listing(HubSource(NAME), settings(place, mock.url.replace("http://127.0.0.1", "HTTP://LOCALHOST") + "/"))
    assert {request.token for request in mock.requests} == {SECRET}


def test_a_password_in_the_endpoint_is_in_no_message(mock: MockHub, place: Path) -> None:
    for fault in (faults.Html(), faults.Status(status=503), faults.Status(status=404), faults.Redirect(to="{path}")):
        mock.faults["*"] = fault
        with pytest.raises(WeightsError) as caught:
            hub.listing(HubSource(NAME), settings(place, mock.url.replace("://", "://me:pass1@"), attempts=1))
        assert mock.url in str(caught.value)
        assert "pass1" not in str(caught.value)


def test_a_token_goes_to_no_other_host(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither along a redirect nor to where the next page of a listing is said to be."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    mock.page, there = 2, mock.url
    mock.faults["127.0.0.1/org/name"] = faults.Redirect(to=mock.cdn_url + "{path}", times=1)
    mock.url = mock.cdn_url  # from here on the pages are there

    assert len(hub.listing(HubSource(NAME), settings(place, there)).files) == len(FILES)
    assert {(request.host, request.token) for request in mock.requests} == {("127.0.0.1", SECRET), ("127.0.0.2", None)}
    assert sum(request.host == "127.0.0.2" for request in mock.requests) > 2


def test_the_ways_to_give_a_token_and_their_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings(place, "http://h")
    assert hub.token(plain) is None

    login = place / "login"
    login.write_text("from-login\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(login))
    assert hub.token(plain) == "from-login"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert hub.token(plain) is None

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(place))
    assert hub.token(plain) is None
    (place / "hf-token").write_text(" from-systemd\n")
    assert hub.token(plain) == "from-systemd"

    monkeypatch.setenv("HF_TOKEN", "from-environment")
    assert hub.token(plain) == "from-environment"

    (place / "file").write_text("from-file\n")
    assert hub.token(settings(place, "http://h", token_file=place / "file")) == "from-file"


@pytest.mark.parametrize("text", ["", "\n", "two words", "line\nbreak", "nüll", "a" * 5000, "nul\0"])
def test_a_token_that_is_none_is_refused_without_its_text(place: Path, text: str) -> None:
    (place / "file").write_text(text)
    with pytest.raises(WeightsError, match=r"cannot use the token of weights\.token_file") as caught:
        hub.token(settings(place, "http://h", token_file=place / "file"))

    assert caught.value.kind is FailureClass.WEIGHTS_UNAVAILABLE
    assert not text.strip() or text.strip() not in str(caught.value)


def test_a_token_file_that_is_not_there(place: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read the token of weights.token_file: .*: No such file") as caught:
        hub.location("org/name", "0" * 40, "x", settings(place, "http://h", token_file=place / "none"))
    assert caught.value.kind is FailureClass.WEIGHTS_UNAVAILABLE


def test_a_location_is_the_address_of_the_file_and_hides_the_token(
    mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for path in ("plain", "sub/folder/file.gguf", "odd name+é#?&%41.txt"):
        commit = mock.repos[NAME].push({path: path.encode()})
        found = hub.location(NAME, commit, path, settings(place, f"{mock.url}/"))
        asked = urllib.request.Request(found.url, headers=dict(found.headers))  # noqa: S310 - an address of ours
        with urllib.request.urlopen(asked) as answer:  # noqa: S310 - the same
            assert answer.read() == path.encode()
        assert (SECRET in repr(found), found.what) == (False, f"{NAME}/{path}")
    assert {request.token for request in mock.requests} == {SECRET}


def test_a_mirror_by_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror:1")
    assert hub.location("o/n", "main", "x", settings(place, "")).url == "http://mirror:1/o/n/resolve/main/x"
