"""What the hub is asked, and what becomes of it when it is wrong, slow, away or says no."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

import hub_faults as faults
from hub_world import alone, new_client, settings
from mock_hub import MockHub, Repo
from modelsupd.core.events import FailureClass
from modelsupd.weights import hub
from modelsupd.weights.base import HubSource, Pin, WeightsError
from waiting import until

__all__ = ["alone", "new_client"]  # fixtures

SOURCE = HubSource("org/name")
FILES = {"config.json": b"{}", "sub/model.safetensors": bytes(1000), "odd name+é#?.txt": b"odd"}
LARGE = {"sub/model.safetensors"}
SECRET = "hf_" + "s" * 34

UNREACHABLE, UNAVAILABLE = FailureClass.UNREACHABLE, FailureClass.WEIGHTS_UNAVAILABLE


@pytest.fixture
def mock() -> Iterator[MockHub]:
    with MockHub() as hub:
        yield hub


@pytest.fixture
def repo(mock: MockHub) -> Repo:
    return mock.add("org/name", FILES, lfs=LARGE)


def refusal(place: Path, url: str, source: HubSource = SOURCE, **other: object) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        hub.listing(source, settings(place, url, **other))
    return caught.value


# -- listings


def test_a_listing_has_the_commit_and_every_file_with_its_digests(mock: MockHub, repo: Repo, place: Path) -> None:
    found = hub.listing(SOURCE, settings(place, mock.url))

    assert (found.commit, found.source) == (repo.commit, "hf:org/name")
    small, large = repo.file("config.json"), repo.file("sub/model.safetensors")
    assert Pin("config.json", 2, None, small.git_sha1) in found.files
    assert Pin("sub/model.safetensors", 1000, large.sha256, large.sha256) in found.files
    assert [pin.path for pin in found.files] == sorted(FILES)
    assert [request.method for request in mock.requests] == ["GET", "GET"]


def test_a_commit_is_not_asked_for_and_other_branches_are(mock: MockHub, repo: Repo, place: Path) -> None:
    other = repo.push({"other.txt": b"1"}, ref="refs/pr/1")

    at_commit = hub.listing(HubSource("org/name", repo.commit), settings(place, mock.url))
    assert (at_commit.commit, len(mock.requests)) == (repo.commit, 1)
    assert hub.listing(HubSource("org/name", "refs/pr/1"), settings(place, mock.url)).commit == other


def test_a_listing_of_many_pages_is_whole(place: Path) -> None:
    with MockHub(page=7) as mock:
        mock.add("org/name", {f"f{number:02d}/x.txt": b"x" for number in range(20)})
        found = hub.listing(SOURCE, settings(place, mock.url))
    assert len(found.files) == 20


def test_a_slash_at_the_end_of_the_endpoint_changes_nothing(mock: MockHub, repo: Repo, place: Path) -> None:
    assert hub.listing(SOURCE, settings(place, f"{mock.url}/")).commit == repo.commit
    assert all("//" not in request.path for request in mock.requests)


@pytest.mark.parametrize(
    "fault",
    [
        faults.Status(status=500, times=2),
        faults.Status(status=503, retry_after="0", times=2),
        faults.Status(status=429, retry_after="0", times=2),
        faults.Drop(after=10, times=2),
        faults.End(after=10, times=2),
        faults.Truncated(after=40, times=2),
        faults.Length(by=20, times=2),
        faults.Length(by=-20, times=2),
        faults.Html(times=2),
        faults.Status(status=200, body=b"[1]", times=2),
        faults.Status(status=200, body=b'{"sha": "main"}', times=2),
    ],
    ids=lambda fault: f"{type(fault).__name__}-{getattr(fault, 'status', '')}{getattr(fault, 'by', '')}",
)
@pytest.mark.usefixtures("repo")
def test_what_passes_is_tried_again(mock: MockHub, place: Path, fault: faults.Fault) -> None:
    mock.faults["org/name"] = fault
    assert len(hub.listing(SOURCE, settings(place, mock.url)).files) == 3
    assert fault.times == 0


@pytest.mark.usefixtures("repo")
def test_a_connection_that_the_hub_was_about_to_close_costs_no_attempt(mock: MockHub, place: Path) -> None:
    mock.faults["org/name"] = faults.Leave(times=4)
    for _ in range(2):
        assert len(hub.listing(SOURCE, settings(place, mock.url, attempts=1)).files) == 3
    assert (len(mock.requests), mock.connections_made) == (4, 4)


def test_what_does_not_pass_ends_after_a_few_attempts(mock: MockHub, place: Path) -> None:
    mock.faults["*"] = faults.Status(status=502)
    error = refusal(place, mock.url)

    assert (error.kind, len(mock.requests)) == (UNREACHABLE, 3)
    assert str(error) == f"cannot list org/name: {mock.url} answers 502"


def test_a_wait_that_is_too_long_is_left_to_whoever_asked(mock: MockHub, place: Path) -> None:
    mock.faults["*"] = faults.Status(status=429, retry_after="86400")
    error = refusal(place, mock.url)

    assert (error.kind, error.retry_after_s, len(mock.requests)) == (UNREACHABLE, 86400, 1)
    assert str(error) == f"cannot list org/name: {mock.url} answers 429, and asks to wait 86400 s"


@dataclass(frozen=True)
class Case:
    """A way in which the hub says no. `words` is how the error begins, after `cannot list …: `; HUB is its address."""

    name: str
    words: str
    fault: faults.Fault | None = None
    kind: FailureClass = UNAVAILABLE
    source: HubSource = SOURCE
    secret: str = ""
    exists: bool = True


_WAYS = "give a token by weights.token_file, HF_TOKEN, or the systemd credential 'hf-token'"
_INVALID = faults.Status(status=401, message="Invalid credentials in Authorization header")
_DISABLED = faults.Status(status=403, message="Access to this resource is disabled.")
_RUDE = faults.Status(status=403, message="not \x1b[31m" + "here " * 90)
_RESTRICTED = "access to org/name is restricted"
_IN_TIME = "127.0.0.1 does not answer in time; a firewall may drop what is sent to it"
_LOGIN_PAGE = "HUB answers with what is no list of files; a proxy or a login page may stand in between"

REFUSALS = [
    Case("unknown", f"HUB has no repository 'org/name', or it is private: then {_WAYS}", exists=False),
    Case(
        "unknown to us", "HUB has no repository 'org/name' that the given token may read", secret=SECRET, exists=False
    ),
    Case("revision", "org/name has no such revision", source=HubSource("org/name", "v9")),
    Case(
        "token not accepted",
        "HUB does not accept the token that was given; a new one is made at HUB/settings/tokens",
        _INVALID,
        secret=SECRET,
    ),
    Case(
        "gated",
        f"{_RESTRICTED}; ask for it at HUB/org/name, then {_WAYS}",
        faults.Status(status=401, code="GatedRepo"),
    ),
    Case(
        "gated for us",
        f"{_RESTRICTED}, and the account of the given token has none; ask for it at HUB/org/name",
        faults.Status(status=403, code="GatedRepo"),
        secret=SECRET,
    ),
    Case("disabled", "HUB has disabled access to org/name", _DISABLED),
    Case("its own words, which may not write to the terminal", "HUB answers 403: not \\x1b[31mhere here", _RUDE),
    Case("a network that wants a login", _LOGIN_PAGE, faults.Html(), UNREACHABLE),
    Case("redirects in circles", "HUB redirects in circles", faults.Redirect(to="{path}"), UNREACHABLE),
    Case("a connection that breaks", "127.0.0.1 broke the connection off", faults.Drop(after=3), UNREACHABLE),
    Case("silence", _IN_TIME, faults.Silence(), UNREACHABLE),
    Case("a listing that stalls", _IN_TIME, faults.Stall(after=9), UNREACHABLE),
    Case("no name", "'a/b/c' is no name of a repository", source=HubSource("a/b/c")),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_what_a_refusal_says(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    if case.exists:
        mock.add("org/name", FILES)
    if case.fault:
        mock.faults["*"] = case.fault
    if case.secret:
        monkeypatch.setenv("HF_TOKEN", case.secret)
    begun = time.monotonic()
    error = refusal(place, mock.url, case.source, stall_timeout_s=0.15 if case.words is _IN_TIME else 5.0)
    assert time.monotonic() - begun < 5

    shown = str(error).replace(mock.url, "HUB")
    assert error.kind is case.kind
    assert shown.startswith(f"cannot list {case.source.repo}")
    assert shown.partition(": ")[2][: len(case.words)] == case.words
    assert (SECRET in shown, shown.isprintable(), len(shown) < 320) == (False, True, True)


def test_a_listing_that_drips_without_end_is_given_up(mock: MockHub, repo: Repo, place: Path) -> None:
    mock.faults["org/name:tree"] = faults.Drip(piece=1, every_s=0.05)
    begun = time.monotonic()
    error = refusal(place, mock.url, stall_timeout_s=0.06, attempts=1)

    assert (error.kind, time.monotonic() - begun < 5) == (UNREACHABLE, True)
    assert repo.commit


def test_an_answer_without_an_end_is_given_up(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_MOST_ANSWER_BYTES", 10_000)
    mock.faults["*"] = faults.Html(body=b" " * 10_001)
    assert refusal(place, mock.url).kind is UNREACHABLE


@pytest.mark.usefixtures("repo")
def test_a_listing_is_never_cut_short(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_MOST_FILES", 3)  # of three files and a folder
    error = refusal(place, mock.url)
    assert (error.kind, str(error)) == (UNAVAILABLE, "cannot list org/name: it has more than 3 files")


def test_who_is_told_to_stop_does_not_wait(mock: MockHub, place: Path) -> None:
    mock.faults["*"] = faults.Status(status=503)
    stop = threading.Event()
    caught: list[WeightsError] = []

    def ask() -> None:
        with pytest.raises(WeightsError) as error:
            hub.listing(SOURCE, settings(place, mock.url, backoff_initial_s=600, backoff_max_s=600), stop=stop)
        caught.append(error.value)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: mock.requests)
    stop.set()
    thread.join(10)
    assert [error.kind for error in caught] == [UNREACHABLE]


# -- no network


def test_nothing_listens(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = refusal(place, f"http://127.0.0.1:{port}")
    assert (error.kind, str(error)) == (UNREACHABLE, "cannot list org/name: 127.0.0.1 refuses the connection")


def test_a_name_that_cannot_be_resolved(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # the resolver is the host's, and takes its time
    error = refusal(place, "http://hub.invalid")
    words = "cannot list org/name: the name hub.invalid cannot be resolved: Temporary failure in name resolution"
    assert (error.kind, str(error)) == (UNREACHABLE, words)


@pytest.mark.usefixtures("new_client")
def test_a_proxy_that_refuses(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", mock.url)  # it has no CONNECT
    error = refusal(place, "https://hub.invalid")
    assert error.kind is UNREACHABLE
    assert "the proxy on the way to https://hub.invalid refuses: " in str(error)


@pytest.mark.usefixtures("new_client")
def test_a_proxy_is_used(mock: MockHub, repo: Repo, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", mock.url)
    assert hub.listing(SOURCE, settings(place, "http://hub.invalid")).commit == repo.commit


_OPENSSL = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        [*_OPENSSL.split(), "-keyout", folder / "key", "-out", folder / "cert"],
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("openssl cannot make a certificate here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    return context


def test_a_certificate_that_nobody_trusts(certificate: ssl.SSLContext, place: Path) -> None:
    with MockHub(tls=certificate) as mock:
        error = refusal(place, mock.url)
    assert error.kind is UNREACHABLE
    assert str(error).startswith("cannot list org/name: the certificate of 127.0.0.1 is not trusted: self")


def test_no_secure_connection(mock: MockHub, place: Path) -> None:
    error = refusal(place, mock.url.replace("http:", "https:"))
    assert error.kind is UNREACHABLE
    assert str(error).startswith("cannot list org/name: no secure connection to 127.0.0.1: ")


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://127.0.0.1", "http:"])
def test_an_endpoint_that_is_none(place: Path, endpoint: str) -> None:
    error = refusal(place, endpoint)
    assert (error.kind, str(error)) == (UNAVAILABLE, f"cannot list org/name: '{endpoint}' is no address of a hub")


def test_offline_asks_nobody(mock: MockHub, place: Path) -> None:
    error = refusal(place, mock.url, offline=True)
    with pytest.raises(WeightsError, match=r"cannot fetch org/name/x: weights\.offline") as caught:
        hub.location("org/name", "0" * 40, "x", settings(place, mock.url, offline=True))

    assert [error.kind, caught.value.kind, mock.requests] == [UNAVAILABLE, UNAVAILABLE, []]


def test_offline_by_the_environment_at_import(mock: MockHub, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    error = refusal(place, mock.url)
    assert (error.kind, str(error)) == (UNAVAILABLE, "cannot list org/name: HF_HUB_OFFLINE is set")
    assert mock.requests == []


def test_what_huggingface_hub_found_in_its_cache_alone(place: Path) -> None:
    away = errors.LocalEntryNotFoundError("not here")
    words = {"doing": "find it", "repo": "org/name", "settings": settings(place, "http://h")}
    assert str(hub.classify(away, **words)) == "cannot find it: it is not in the cache"  # type: ignore[arg-type]  # three kinds of words
    away.__cause__ = ConnectionRefusedError()
    assert str(hub.classify(away, **words)) == "cannot find it: h refuses the connection"  # type: ignore[arg-type]  # the same


def test_the_client_of_others_in_this_process_is_as_it_was(mock: MockHub, repo: Repo, place: Path) -> None:
    hub.listing(SOURCE, settings(place, mock.url))
    mock.faults["org/name"] = faults.Status(status=404, code="RevisionNotFound", times=1)
    with pytest.raises(errors.RevisionNotFoundError):
        huggingface_hub.HfApi(endpoint=mock.url, token=False).model_info("org/name")
    assert huggingface_hub.HfApi(endpoint=mock.url, token=False).model_info("org/name").sha == repo.commit
