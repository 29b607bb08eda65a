"""What a hub's refusal or a broken connection means, in words for people: for listings and for transfers alike.

The kind decides what follows: UNREACHABLE is tried again by itself, WEIGHTS_UNAVAILABLE waits for somebody to change
something. A refusal says what to do, where there is something to do. A token is never part of it.
"""

from __future__ import annotations

import email.utils
import errno
import math
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from modelsupd.core.events import FailureClass
from modelsupd.errors import printable
from modelsupd.weights.base import WeightsError

#: How a token is given, in the order in which the ways are tried.
WAYS = "weights.token_file, HF_TOKEN, or the systemd credential 'hf-token'"

_LONGEST_MESSAGE = 200
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)

#: Statuses below 500 that speak of the moment and not of what was asked for.
_PASSING = frozenset({408, 425, 429})


def hub_of(url: str) -> str:
    """Return the scheme, host and port of an address; never the password that it may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else url


def refused(
    status: int,
    headers: Mapping[str, str],
    *,
    doing: str,
    repo: str,
    url: str,
    token_sent: bool,
) -> WeightsError:
    """Return what an answer with a status of 400 or more means.

    `doing` completes `cannot …`, for instance `list org/name`; `url` is what was asked for; names of `headers` may be
    in any case. The hub says more than the status by X-Error-Code and X-Error-Message.
    """
    given = {name.lower(): value for name, value in headers.items()}
    code, message = given.get("x-error-code", ""), _shown(given.get("x-error-message", ""))
    hub = hub_of(url)
    if status in _PASSING or status >= 500:  # noqa: PLR2004 - where HTTP's server errors begin
        wait_s = retry_after_s(given.get("retry-after", ""))
        asked = "" if wait_s is None else f", and asks to wait {math.ceil(wait_s)} s"
        return WeightsError(
            FailureClass.UNREACHABLE, f"cannot {doing}: {hub} answers {status}{asked}", retry_after_s=wait_s
        )
    if code == "GatedRepo":
        why = _gated(repo, hub, token_sent=token_sent)
    elif message == "Access to this resource is disabled.":
        why = f"{hub} has disabled access to {repo}"
    elif code == "RevisionNotFound":
        why = f"{repo} has no such revision"
    elif code == "EntryNotFound":
        why = f"{repo} has no such file at this revision"
    elif status == 401 and token_sent:  # noqa: PLR2004 - unauthorized
        why = f"{hub} does not accept the token that was given; a new one is made at {hub}/settings/tokens"
    elif code == "RepoNotFound" or status == 401:  # noqa: PLR2004 - the hub's word for "not without a token"
        why = _unknown(repo, hub, token_sent=token_sent)
    else:
        why = f"{hub} answers {status}" + (f": {message}" if message else "")
    return WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, f"cannot {doing}: {why}")


def unreached(error: BaseException, *, doing: str, url: str) -> WeightsError:
    """Return what an error of the connection to `url` means, as found in it or in what caused it."""
    parts = urlsplit(url)
    host = parts.hostname or url
    why = next((words for cause in _causes(error) if (words := _network_words(cause, host))), None)
    if why is None:
        why = f"{host}: {_shown(str(error)) or type(error).__name__}"
    return WeightsError(FailureClass.UNREACHABLE, f"cannot {doing}: {why}")


def retry_after_s(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks for, from now; None where it says nothing that is a time."""
    value = value.strip()
    if value.isascii() and value.isdecimal() and len(value) < 10:  # noqa: PLR2004 - more digits are no time to wait
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(0.0, at - time.time())


def _gated(repo: str, hub: str, *, token_sent: bool) -> str:
    if token_sent:
        return (
            f"access to {repo} is restricted, and the account of the given token has none; ask for it at {hub}/{repo}"
        )
    return f"access to {repo} is restricted; ask for it at {hub}/{repo}, then give a token by {WAYS}"


def _unknown(repo: str, hub: str, *, token_sent: bool) -> str:
    if token_sent:
        return f"{hub} has no repository '{repo}' that the given token may read"
    return f"{hub} has no repository '{repo}', or it is private: then give a token by {WAYS}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from; the first cause comes last."""
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        yield current
        current = current.__cause__ or current.__context__


def _network_words(cause: BaseException, host: str) -> str | None:
    words = None
    if isinstance(cause, ssl.SSLCertVerificationError):
        words = f"the certificate of {host} is not trusted: {_shown(cause.verify_message)}"
    elif isinstance(cause, ssl.SSLError):
        words = f"no secure connection to {host}: {_shown(cause.reason or str(cause))}"
    elif isinstance(cause, socket.gaierror):
        words = f"the name {host} cannot be resolved: {_shown(cause.strerror or str(cause))}"
    elif isinstance(cause, TimeoutError):
        words = f"{host} does not answer in time; a firewall may drop what is sent to it"
    elif isinstance(cause, ConnectionRefusedError):
        words = f"{host} refuses the connection"
    elif isinstance(cause, ConnectionError):
        words = f"{host} broke the connection off"
    elif isinstance(cause, OSError) and cause.errno in _NO_ROUTE:
        words = f"there is no route to {host}"
    elif isinstance(cause, OSError) and cause.errno:
        words = f"{host}: {os.strerror(cause.errno)}"
    return words


def _shown(text: str) -> str:
    """Return a server's words so that they fit into a line and write nothing else to a terminal."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 1] + "…"
