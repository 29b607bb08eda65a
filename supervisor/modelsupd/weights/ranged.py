"""HTTP for one file: one GET of a range after another over a connection that is kept.

Rules:

1. The headers of a `Location` are for the host that it names. Whoever that host redirects to, by another name, another
   port or without TLS, gets none of them, and neither does anybody after that.
2. Where a file was found in the end is remembered and asked next time; when it refuses (such addresses are signed and
   run out), the way is gone again from the start.
3. Bytes are believed only where status, Content-Range and Content-Length say what was asked for.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from modelsupd.core.events import FailureClass
from modelsupd.weights import refusals
from modelsupd.weights.base import Location, WeightsError
from modelsupd.weights.dialing import CONNECT_TIMEOUT_S, Connection, Place

MAX_REDIRECTS = 5

_MOVED = frozenset({301, 302, 303, 307, 308})
_WHOLE, _PARTIAL, _BEYOND = 200, 206, 416

#: What a signed address answers when its time is over.
_RUN_OUT = frozenset({400, 401, 403, 404, 410})

#: More than that of an answer's body is not read for the sake of keeping the connection.
_LEFTOVER_BYTES = 65536

#: How often something is asked for that was answered with what cannot be right.
_TRIES_WHEN_WRONG = 3

#: A connection that delivers less than so many bytes a second, over the stall timeout, stands still.
_LEAST_RATE = 64

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")

#: Characters that an address may hold as they are; others are in a Location header by mistake.
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"


class Attempt(Exception):  # noqa: N818 - it is an attempt that came to nothing
    """A try that came to nothing; another one may do better. `error` is what is told when none does.

    `tries` is how often such a thing is tried, None for as often as the settings say.
    """

    def __init__(self, error: WeightsError, *, tries: int | None = None) -> None:
        """Take the error that it will be in the end."""
        super().__init__(str(error))
        self.error = error
        self.tries = tries


@dataclass(frozen=True, slots=True)
class Found:
    """An address in use, with the headers that may be sent there."""

    url: str
    headers: Mapping[str, str]
    moved: bool = False


class Route:
    """Where a file is asked for: its location, or where that led last. Shared by all connections of one transfer."""

    def __init__(self, location: Location, size: int) -> None:
        """Take the location and the size that the file is to have."""
        self.size = size
        self.what = location.what or urlsplit(location.url).path
        self.origin = self.found = Found(location.url, location.headers)

    @property
    def doing(self) -> str:
        """Return what is done, as it stands after `cannot`."""
        return f"fetch {self.what}"

    def unreached(self, error: Exception) -> Attempt:
        """Return what an error of the connection comes to."""
        known = refusals.unreached(error, doing=self.doing, url=self.found.url)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Attempt(known, tries=1)
        return Attempt(known, tries=_TRIES_WHEN_WRONG if isinstance(error, socket.gaierror) else None)

    def broken(self, words: str) -> Attempt:
        """Return what a connection comes to that ended or stood still too early."""
        return Attempt(self._error(FailureClass.UNREACHABLE, words))

    def wrong(self, words: str, kind: FailureClass = FailureClass.BAD_WEIGHTS) -> Attempt:
        """Return what an answer comes to that cannot be right."""
        return Attempt(self._error(kind, words), tries=_TRIES_WHEN_WRONG)

    def refused(self, response: http.client.HTTPResponse) -> Exception:
        """Return what a status of 400 or more comes to: an Attempt where it passes by itself."""
        error = refusals.refused(
            response.status,
            dict(response.getheaders()),
            doing=self.doing,
            repo="/".join(self.what.split("/")[:2]),
            url=self.found.url,
            token_sent=any(name.lower() == "authorization" for name in self.origin.headers),
        )
        return Attempt(error) if error.kind is FailureClass.UNREACHABLE else error

    def _error(self, kind: FailureClass, words: str) -> WeightsError:
        return WeightsError(kind, f"cannot {self.doing}: {urlsplit(self.found.url).hostname} {words}")


class Pace:
    """How fast an answer comes, looked at once in each stall timeout."""

    def __init__(self, stall_timeout_s: float) -> None:
        """Begin now."""
        self._stall_timeout_s = stall_timeout_s
        self._until = time.monotonic() + stall_timeout_s
        self._came_bytes = 0

    def stands_still(self, count: int, now: float) -> bool:
        """Count what came; tell whether it is next to nothing."""
        self._came_bytes += count
        if now < self._until:
            return False
        is_slow = self._came_bytes < _LEAST_RATE * self._stall_timeout_s
        self._until, self._came_bytes = now + self._stall_timeout_s, 0
        return is_slow


class Answer:
    """The bytes `[start, end)` of a file, coming in. `ranged` tells whether the server kept to what was asked for."""

    def __init__(self, route: Route, response: http.client.HTTPResponse, asked: tuple[int, int]) -> None:
        """Check what the server says about them; raises Attempt and WeightsError."""
        self._route = route
        self._response = response
        self.etag = response.getheader("ETag") or ""
        self.ranged = response.status == _PARTIAL
        self.start, self.end = self._extent(asked)
        if (coding := response.getheader("Content-Encoding", "identity")) != "identity":
            raise route.wrong(f"answers with '{coding[:40]}' for a coding that was not asked for")

    def read_into(self, view: memoryview) -> int:
        """Read what has come, at least a byte, and return how many; 0 at the end. Raises OSError, HTTPException."""
        if self._response.chunked:
            data = self._response.read1(len(view))
            view[: len(data)] = data
            return len(data)
        # Past http.client, which would wait until the view is full.
        return self._response.fp.readinto1(view)

    def finish(self) -> bool:
        """Be done with it, when all of `[start, end)` was read; tell whether its connection may be used again."""
        reusable = self._response.length is not None and not self._response.will_close
        self._response.close()
        return reusable

    def _extent(self, asked: tuple[int, int]) -> tuple[int, int]:
        response, route = self._response, self._route
        if response.status == _BEYOND:
            total = response.getheader("Content-Range", "").removeprefix("bytes */")
            raise route.wrong(f"has {total[:20]} bytes of it, not {route.size}")
        if response.status not in (_WHOLE, _PARTIAL):
            raise route.wrong(f"answers {response.status}, which is no answer to a request for a file")
        if self._is_a_page():
            why = "answers with a web page in place of the file: a login page or a proxy may be in between"
            raise route.wrong(why, FailureClass.UNREACHABLE)
        length = response.length
        if not self.ranged:
            if length not in (None, route.size):
                raise route.wrong(f"has {length} bytes of it, not {route.size}")
            return 0, route.size
        said = response.getheader("Content-Range", "")
        if not (found := _CONTENT_RANGE.fullmatch(said)):
            raise route.wrong(f"answers with the range '{said[:80]}', which is none")
        start, end = int(found[1]), int(found[2]) + 1
        if found[3] not in ("*", str(route.size)):
            raise route.wrong(f"has {found[3]} bytes of it, not {route.size}")
        if start != asked[0] or not start < end <= asked[1]:
            raise route.wrong(f"answers with bytes {start} to {end} where {asked[0]} to {asked[1]} were asked for")
        if length not in (None, end - start):
            raise route.wrong(f"announces {length} bytes for a range of {end - start}")
        return start, end

    def _is_a_page(self) -> bool:
        kind = self._response.getheader("Content-Type", "").partition(";")[0].strip().lower()
        return kind == "text/html" and not self._route.what.endswith((".html", ".htm"))


class Wire:
    """Asks for ranges, one after another, over one connection as long as it lasts. Of one thread, but for `abort`."""

    def __init__(self, route: Route, timeout_s: float, ended: threading.Event) -> None:
        """Connect to nobody yet."""
        self._route = route
        self._timeout_s = timeout_s
        self._ended = ended
        self._connection: Connection | None = None
        self._response: http.client.HTTPResponse | None = None
        self._answer_by: float | None = None

    def get(self, start: int, end: int, etag: str | None) -> Answer:
        """Ask for the bytes `[start, end)`, of the file with that ETag if one is given.

        Raises Attempt for what may go better another time, WeightsError for what will not.
        """
        self._answer_by = time.monotonic() + CONNECT_TIMEOUT_S + 2 * self._timeout_s
        try:
            return self._answer(start, end, etag)
        finally:
            self._answer_by = None

    def abort_if_late(self) -> None:
        """End a wait for an answer that comes in drips: each of them is in time, and all of them are not."""
        until = self._answer_by
        if until is not None and time.monotonic() > until:
            self.abort()

    def abort(self) -> None:
        """End a wait of the thread that uses it; it must not go on asking then."""
        if connection := self._connection:
            connection.abort()

    def close(self) -> None:
        """Close the connection; another `get` opens a new one."""
        if self._response:
            self._response.close()  # it holds the socket too, when the server has said that it closes it
            self._response = None
        if self._connection:
            self._connection.close()
            self._connection = None

    def _answer(self, start: int, end: int, etag: str | None) -> Answer:
        headers = {}
        if (start, end) != (0, self._route.size):
            headers["Range"] = f"bytes={start}-{end - 1}"
            if etag and not etag.startswith("W/"):  # a weak one is not allowed there
                headers["If-Range"] = etag
        response = self._follow(headers)
        if response.status in _RUN_OUT and self._route.found.moved:
            self.close()
            self._route.found = self._route.origin
            response = self._follow(headers)
        if response.status >= 400 and response.status != _BEYOND:  # noqa: PLR2004 - where HTTP's errors begin
            refused = self._route.refused(response)
            self.close()
            raise refused
        return Answer(self._route, response, (start, end))

    def _follow(self, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        found = self._route.found
        for _ in range(MAX_REDIRECTS + 1):
            response = self._ask(found, headers)
            if response.status not in _MOVED:
                self._route.found = found
                return response
            if not (to := response.getheader("Location")):
                raise self._route.wrong(f"answers {response.status} without saying where to", FailureClass.UNREACHABLE)
            if response.length is None or response.length > _LEFTOVER_BYTES:
                self.close()
            else:
                response.read()
            found = redirected(found, to)
        raise self._route.wrong(f"redirects more than {MAX_REDIRECTS} times", FailureClass.UNREACHABLE)

    def _ask(self, found: Found, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        try:
            parts = urlsplit(found.url)
            place = Place.of(parts)
            if self._connection and self._connection.alive and self._connection.place == place:
                try:
                    return self._request(self._connection, found, headers)
                except (ConnectionError, http.client.BadStatusLine):
                    pass  # the server has closed a connection that it had kept: no fault of anybody
            self.close()
            self._connection = Connection(place, self._timeout_s, self._ended)
            self._connection.secure(self._ended)
            return self._request(self._connection, found, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._route.unreached(error) from error
        except ValueError as error:  # an address that is none; some errors of TLS are of this kind too
            words = f"cannot {self._route.doing}: {error}"
            raise WeightsError(FailureClass.WEIGHTS_UNAVAILABLE, words) from error

    def _request(self, connection: Connection, found: Found, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        parts = urlsplit(found.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        http_ = connection.http
        http_.putrequest("GET", connection.prefix + path, skip_host=True, skip_accept_encoding=True)
        # A compressed answer has other lengths and ranges than the file.
        own = {"Host": connection.place.host_header, "Accept-Encoding": "identity", **connection.proxy_headers}
        given = {
            name: value for name, value in found.headers.items() if name.lower() not in {"host", "accept-encoding"}
        }
        for name, value in {**given, **own, **headers}.items():
            http_.putheader(name, value)
        http_.endheaders()
        self._response = http_.getresponse()
        return self._response


def redirected(found: Found, to: str) -> Found:
    """Return where a redirect leads, and what may be sent there: to another place, no more than who asks."""
    url = urljoin(found.url, quote(to, safe=_URL_SAFE))
    before, after = urlsplit(found.url), urlsplit(url)
    same = (before.scheme, before.hostname, before.port) == (after.scheme, after.hostname, after.port)
    kept = found.headers if same else {k: v for k, v in found.headers.items() if k.lower() == "user-agent"}
    return Found(url, kept, moved=True)
