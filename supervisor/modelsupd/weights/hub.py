"""Asks the hub, through huggingface_hub: which commit a revision is, which files it has; and files what was fetched.

Runs in the worker process only. huggingface_hub is imported inside functions, because its import takes a good part of
a second. Rules:

1. Every request has limits of time and size. huggingface_hub's own have none here (2.4.0): it would wait for ever, and
   sleep for as long as a server asks it to.
2. A token goes to the host of the endpoint and to no other. It is never part of a message, a log or a `repr`.
3. What a hub answers is data from a stranger: commits, digests and sizes are checked here, paths where they are used.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import quote

from modelsupd import __version__
from modelsupd.core.events import FailureClass
from modelsupd.weights.base import HubSource, Location, Pin, Settings, WeightsError
from modelsupd.weights.cache import COMMIT, is_digest
from modelsupd.weights.publishing import Listing, publish
from modelsupd.weights.refusals import hub_of, refused, unreached

if TYPE_CHECKING:
    import httpx2 as httpx
    from huggingface_hub import RepoFile

__all__ = ["CREDENTIAL", "Listing", "classify", "endpoint_of", "listing", "location", "publish", "token"]

#: Name of the systemd credential that holds the token: `LoadCredential=hf-token:/etc/…`.
CREDENTIAL = "hf-token"

#: Whoever waits for a listing wants to know soon that there is no network; the daemon tries again later by itself.
_MOST_ATTEMPTS = 3

_MOST_FILES = 200_000
_MOST_ANSWER_BYTES = 64 * 1024 * 1024
_MOST_TOKEN_BYTES = 4096
_CONNECT_TIMEOUT_S = 10.0

#: More connections than these the client does not keep (httpx's own limit).
_MOST_KEPT = 20

#: A whole listing may take so many times `stall_timeout_s`, however steadily it drips.
_LISTING_STALLS = 10

#: What huggingface_hub raises for an answer that is no listing: it takes the hub's JSON at its word.
_NO_LISTING = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_NO_LISTING_WORDS = "answers with what is no list of files; a proxy or a login page may stand in between"


def endpoint_of(settings: Settings) -> str:
    """Return the address of the hub or mirror, without a slash at the end."""
    from huggingface_hub import constants  # noqa: PLC0415 - rule of this file

    return (settings.endpoint or constants.ENDPOINT).rstrip("/")


def listing(source: HubSource, settings: Settings, *, stop: threading.Event | None = None) -> Listing:
    """Return the commit that a source's revision is now, with all files of that commit; never from a cache.

    Raises WeightsError: UNREACHABLE after a few attempts, with what the server asked to wait, else WEIGHTS_UNAVAILABLE.
    """
    doing = f"list {source.repo}" + (f" at {source.revision}" if source.revision != "main" else "")
    if settings.offline:
        _offline(doing)
    stop = stop or threading.Event()
    attempts = max(1, min(settings.attempts, _MOST_ATTEMPTS))
    for attempt in itertools.count(1):
        try:
            return _ask(source, settings, stop)
        except Exception as error:
            found = classify(error, doing=doing, repo=source.repo, settings=settings)
            wait_s = _wait_s(attempt, found, settings)
            if attempt >= attempts or wait_s is None or stop.wait(wait_s):
                raise found from error
    raise AssertionError


def location(repo: str, commit: str, path: str, settings: Settings) -> Location:
    """Return where a file of a commit is fetched from. Redirects, and the token's not following them, are the caller's.

    Raises WeightsError where a token is to be used and cannot be read, and when we are offline.
    """
    what = f"{repo}/{path}"
    if settings.offline:
        _offline(f"fetch {what}")
    headers = {"User-Agent": f"modelsupd/{__version__}"}
    if (secret := token(settings)) is not None:
        headers["Authorization"] = f"Bearer {secret}"
    return Location(f"{endpoint_of(settings)}/{repo}/resolve/{quote(commit, safe='')}/{quote(path)}", headers, what)


def token(settings: Settings, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the token that goes with requests, None when there is none.

    By `weights.token_file`, then HF_TOKEN, the systemd credential `hf-token`, and the login of huggingface_hub.
    Raises WeightsError where one is named and cannot be read, or is none; never with its text.
    """
    if settings.token_file is not None:
        return _read_token(settings.token_file, "weights.token_file")
    if given := (environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or "").strip():
        return _checked_token(given, "HF_TOKEN")
    if folder := environ.get("CREDENTIALS_DIRECTORY"):
        path = Path(folder, CREDENTIAL)
        if path.exists():
            return _read_token(path, f"the systemd credential '{CREDENTIAL}'")
    if environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    from huggingface_hub import get_token  # noqa: PLC0415 - rule of this file

    try:
        found = get_token()
    except Exception as error:  # it may refresh a login, by a request with errors of many kinds
        words = f"cannot use the login of huggingface_hub: {type(error).__name__}; log in anew by 'hf auth login'"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words) from error
    return _checked_token(found, "the login of huggingface_hub") if found else None


def classify(error: BaseException, *, doing: str, repo: str, settings: Settings) -> WeightsError:
    """Return what an error of huggingface_hub or of its HTTP client means; `doing` completes `cannot …`."""
    from huggingface_hub import errors  # noqa: PLC0415 - rule of this file
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # lazily exported  # noqa: PLC0415 - the same

    if isinstance(error, WeightsError):
        return error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        return classify(error.__cause__, doing=doing, repo=repo, settings=settings)
    endpoint = endpoint_of(settings)
    if isinstance(error, _Refusal | errors.HfHubHTTPError):
        answer = error.response
        sent = "authorization" in answer.request.headers
        return refused(answer.status_code, answer.headers, doing=doing, repo=repo, url=endpoint, token_sent=sent)
    hub = hub_of(endpoint)
    no_address = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
    meanings: tuple[tuple[Any, FailureClass, str], ...] = (
        (errors.OfflineModeIsEnabled, FailureClass.WEIGHTS_UNAVAILABLE, "HF_HUB_OFFLINE is set"),
        (errors.HFValidationError, FailureClass.WEIGHTS_UNAVAILABLE, f"'{repo}' is no name of a repository"),
        (errors.LocalEntryNotFoundError, FailureClass.WEIGHTS_UNAVAILABLE, "it is not in the cache"),
        (no_address, FailureClass.WEIGHTS_UNAVAILABLE, f"'{hub}' is no address of a hub"),
        (httpx.TooManyRedirects, FailureClass.UNREACHABLE, f"{hub} redirects in circles"),
        (httpx.ProxyError, FailureClass.UNREACHABLE, f"the proxy on the way to {hub} refuses: {error}"),
        ((*_NO_LISTING, httpx.DecodingError), FailureClass.UNREACHABLE, f"{hub} {_NO_LISTING_WORDS}"),
    )
    for kinds, kind, why in meanings:
        if isinstance(error, kinds):
            return WeightsError(kind, f"cannot {doing}: {why}")
    return unreached(error, doing=doing, url=endpoint)


# -- tokens


def _read_token(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_TOKEN_BYTES + 1)
    except OSError as error:
        words = f"cannot read the token of {where}: {path}: {error.strerror}"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words, path=path) from error
    return _checked_token(data.decode(errors="replace").strip(), f"{where} ({path})")


def _checked_token(text: str, where: str) -> str:
    """Return a token that can stand in a header; raises WeightsError without its text."""
    if not text or len(text) > _MOST_TOKEN_BYTES or not (text.isascii() and text.isprintable()) or " " in text:
        why = "it is empty" if not text else "it holds what no token does"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, f"cannot use the token of {where}: {why}")
    return text


# -- requests


def _offline(doing: str) -> NoReturn:
    words = f"cannot {doing}: weights.offline or HF_HUB_OFFLINE is set, and it is not in the cache"
    raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words)


def _wait_s(attempt: int, error: WeightsError, settings: Settings) -> float | None:
    """Return how long to wait before the next attempt, None if it is of no use or the hub asks for too much."""
    if error.kind is not FailureClass.UNREACHABLE:
        return None
    most_s = min(settings.backoff_max_s, settings.backoff_initial_s * 2.0 ** (attempt - 1))
    backoff_s = random.uniform(most_s / 2, most_s)  # noqa: S311 - spreads clients, guards nothing
    asked_s = error.retry_after_s or 0.0
    return max(asked_s, backoff_s) if asked_s <= settings.backoff_max_s else None


def _ask(source: HubSource, settings: Settings, stop: threading.Event) -> Listing:
    from huggingface_hub import HfApi, RepoFile  # noqa: PLC0415 - rule of this file

    endpoint = endpoint_of(settings)
    api = HfApi(
        endpoint=endpoint, token=token(settings) or False, library_name="modelsupd", library_version=__version__
    )
    with _limited(settings, endpoint, stop):
        commit = source.revision
        if not COMMIT.fullmatch(commit):
            commit = api.model_info(source.repo, revision=source.revision).sha or ""
        if not COMMIT.fullmatch(commit):
            raise ValueError("no commit")
        found = list(
            itertools.islice(api.list_repo_tree(source.repo, recursive=True, revision=commit), _MOST_FILES + 1)
        )
    if len(found) > _MOST_FILES:
        words = f"cannot list {source.repo}: it has more than {_MOST_FILES} files"
        raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words)
    files = [item for item in found if isinstance(item, RepoFile)]
    pins = tuple(sorted(map(_pin, files), key=lambda pin: pin.path))
    return Listing(str(source), commit, pins, tree={file.path: _entry(file) for file in files})


def _pin(file: RepoFile) -> Pin:
    """Return a listed file; raises ValueError or TypeError for what cannot be one."""
    sha256 = file.lfs.sha256 if file.lfs is not None else None
    size, blob = (file.lfs.size if file.lfs is not None else file.size), sha256 or file.blob_id
    if not isinstance(size, int) or size < 0 or not is_digest(blob) or (sha256 is not None and len(sha256) != 64):  # noqa: PLR2004 - sha256 in hex
        raise ValueError(file.path)
    return Pin(file.path, size, sha256, blob)


def _entry(file: RepoFile) -> dict[str, object]:
    """Return what huggingface_hub keeps of a listed file in `trees/COMMIT.json` (2.4.0, `TreeCacheEntry`)."""
    entry: dict[str, object] = {"size": file.size, "blob_id": file.blob_id}
    if file.lfs is not None:
        entry |= {"lfs_sha256": file.lfs.sha256, "lfs_size": file.lfs.size}
    if isinstance(file.xet_hash, str) and is_digest(file.xet_hash) and len(file.xet_hash) == 64:  # noqa: PLR2004 - it is a hash of 32 bytes
        entry["xet_hash"] = file.xet_hash
    return entry


@dataclass(frozen=True, slots=True)
class _Limits:
    """What holds for the requests of one listing."""

    origin: tuple[str, bytes]
    stall_timeout_s: float
    give_up_at: float
    stop: threading.Event

    def timeouts(self) -> dict[str, float]:
        """Return the client's time limits for one request, in its own words."""
        left_s = max(0.001, min(self.stall_timeout_s, self.give_up_at - time.monotonic()))
        return {"connect": min(left_s, _CONNECT_TIMEOUT_S), "read": left_s, "write": left_s, "pool": left_s}

    def read(self, response: httpx.Response) -> bytes:
        """Return the whole body; raises TimeoutError when it takes too long, ValueError when it is too large."""
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if len(body) > _MOST_ANSWER_BYTES:
                raise ValueError("an answer without an end")
            if self.stop.is_set() or time.monotonic() > self.give_up_at:
                raise TimeoutError
        return bytes(body)


_LIMITS: ContextVar[_Limits | None] = ContextVar("limits", default=None)


@contextmanager
def _limited(settings: Settings, endpoint: str, stop: threading.Event) -> Iterator[None]:
    """Hold every request that huggingface_hub makes in this thread to our limits."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # lazily exported  # noqa: PLC0415 - rule of this file

    _install_client()
    origin = _origin(httpx.URL(endpoint))
    give_up_at = time.monotonic() + _LISTING_STALLS * settings.stall_timeout_s
    before = _LIMITS.set(_Limits(origin, settings.stall_timeout_s, give_up_at, stop))
    try:
        yield
    finally:
        _LIMITS.reset(before)


def _origin(url: httpx.URL) -> tuple[str, bytes]:
    """Return scheme, host and port, in the one spelling that the client has for them."""
    return url.scheme, url.netloc


class _Broken(Exception):  # noqa: N818 - named for what happened to the connection
    """Carries an error of the connection past huggingface_hub, which would try again by its own lights."""


class _Refusal(Exception):  # noqa: N818 - named for what the hub did
    """Carries an answer of 400 or more past it, for the same reason."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code)
        self.response = response


@functools.cache
def _install_client() -> None:
    """Have huggingface_hub send its requests through a client that knows limits; where none are set nothing changes."""
    from huggingface_hub import get_session, set_client_factory  # noqa: PLC0415 - rule of this file
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # lazily exported  # noqa: PLC0415 - the same

    class Client(httpx.Client):
        def send(self, request: httpx.Request, *, stream: bool = False, **how: Any) -> httpx.Response:  # noqa: ANN401 - handed on
            limits = _LIMITS.get()
            if limits is None:
                return super().send(request, stream=stream, **how)
            request.extensions = {**request.extensions, "timeout": limits.timeouts()}
            if _origin(request.url) != limits.origin:
                request.headers.pop("authorization", None)
            try:
                response = self._sent(request, how)
                try:
                    body = limits.read(response)
                finally:
                    response.close()
            except (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError, TimeoutError) as error:
                raise _Broken(str(error)) from error
            kept = [
                (k, v) for k, v in response.headers.multi_items() if k not in ("content-encoding", "content-length")
            ]
            whole = httpx.Response(response.status_code, headers=kept, content=body, request=response.request)
            if whole.is_error:
                raise _Refusal(whole)
            return whole

        def _sent(self, request: httpx.Request, how: dict[str, Any]) -> httpx.Response:
            """Return the answer to a GET, whose body is still to come.

            A kept connection may be closed by the hub at the moment that it is used. That is no fault of anybody and no
            attempt, so it is sent again, until a connection was made for it.
            """
            for left in reversed(range(_MOST_KEPT + 1)):
                seen: list[str] = []
                request.extensions["trace"] = lambda name, _info, seen=seen: seen.append(name)
                try:
                    return super().send(request, stream=True, **how)
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    is_new = any(name.startswith("connection.") for name in seen)
                    if is_new or not left or request.method != "GET":
                        raise
            raise AssertionError  # the last round returns or raises

    hooks = get_session().event_hooks
    set_client_factory(lambda: Client(event_hooks=hooks, follow_redirects=True, timeout=None))
