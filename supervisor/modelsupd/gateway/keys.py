"""Who may ask for what: the keys of clients, as requests meet them.

The file is looked at again when a request comes, at most once a second. Three rules: without a file everyone is served
where the gateway is open, and nobody elsewhere; with one, only who shows a key that is in it; and a file that cannot be
read changes nothing of what was known, and serves nobody where nothing was. A file that somebody removes is as if it
had never been, now as after a restart, and that is said loudly.
"""

from __future__ import annotations

import fnmatch
import hmac
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from modelsupd.errors import ModelsupdError
from modelsupd.gateway import keyfile
from modelsupd.gateway.keyfile import Key

log = structlog.get_logger("gateway.keys")

#: How often, at most, it is looked whether the file has changed.
LOOK_EVERY_S = 1.0

_MINUTE_S = 60.0
_BUCKET = 8  # characters of a digest by which keys are looked up; the rest is compared in constant time
_BEARER = "bearer "
_HEADERS = ("x-api-key", "api-key")


class Headers(Protocol):
    """The headers of a request; names without regard to case."""

    def get(self, name: str, default: str = "") -> str:
        """Return the value of a header, `default` where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served: an HTTP status, a word for programs, words for people, and when to ask again."""

    status: int
    code: str
    words: str
    retry_after_s: float | None = None


@dataclass(slots=True)
class _Use:
    """What a key is used for now; outlives changes of the file."""

    in_flight: int = 0
    begun_at: deque[float] = field(default_factory=deque)


class Principal:
    """Who asks. `name` is the key's, "" for whoever needs none."""

    __slots__ = ("_key", "_use", "admin", "name")

    def __init__(self, key: Key | None = None, use: _Use | None = None) -> None:
        """Stand for a key, or for nobody in particular."""
        self.name = key.name if key else ""
        self.admin = key.admin if key else False
        self._key = key
        self._use = use

    def may_use(self, *names: str) -> bool:
        """Tell whether it may use a model that goes by any of these names."""
        globs = self._key.models if self._key else ()
        return not globs or any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in names)

    def enter(self, now: float) -> Refusal | None:
        """Count a request that begins now, or say why it must not. `leave` follows when one that began has ended."""
        key, use = self._key, self._use
        if key is None or use is None:
            return None
        if key.max_concurrent and use.in_flight >= key.max_concurrent:
            words = f"key '{key.name}' has {use.in_flight} requests in flight, which is its limit (max_concurrent)"
            return Refusal(429, "concurrency_limit_exceeded", words, 1.0)
        if limit := key.requests_per_minute:
            begun = use.begun_at
            while begun and begun[0] <= now - _MINUTE_S:
                begun.popleft()
            if len(begun) >= limit:
                words = f"key '{key.name}' began {len(begun)} requests within a minute, which is its limit"
                return Refusal(429, "rate_limit_exceeded", words, begun[len(begun) - limit] + _MINUTE_S - now)
            begun.append(now)
        use.in_flight += 1
        return None

    def leave(self) -> None:
        """Count a request as ended."""
        if self._use is not None:
            self._use.in_flight -= 1


_ANYONE = Principal()


class Keys:
    """The keys of one file, as they are now."""

    def __init__(self, path: Path, clock: Callable[[], float], *, open_without: bool) -> None:
        """Read the file. `open_without`: where there is none, everyone is served."""
        self.open_without = open_without
        self._path = path
        self._clock = clock
        self._look_again_at = 0.0
        self._seen: tuple[int, ...] | str | None = ""
        self._by_digest: dict[str, list[tuple[Key, Principal]]] | None = None
        self._uses: dict[str, _Use] = {}
        self._trouble = ""

    def check(self, headers: Headers) -> Principal | Refusal:
        """Return who asks, or why nobody is served who asks like this."""
        now = self._clock()
        if now >= self._look_again_at:
            self._look_again_at = now + LOOK_EVERY_S
            self._look()
        if self._by_digest is None:
            return self._without_keys()
        shown = _shown(headers)
        if not shown:
            return Refusal(401, "missing_api_key", "a key is needed: Authorization: Bearer KEY, or x-api-key: KEY")
        digest = keyfile.digest_of(shown)
        found = None
        for key, principal in self._by_digest.get(digest[:_BUCKET], ()):
            if hmac.compare_digest(key.digest, digest):
                found = (key, principal)
        if found is None:
            return Refusal(401, "invalid_api_key", "this key is not known here")
        key, principal = found
        if key.revoked is not None:
            return Refusal(401, "invalid_api_key", f"key '{key.name}' was revoked")
        return principal

    def _without_keys(self) -> Principal | Refusal:
        if self._trouble:
            return Refusal(
                503, "keys_unavailable", "the gateway cannot read its keys, and serves nobody until then", 5.0
            )
        if self.open_without:
            return _ANYONE
        return Refusal(401, "no_keys", "there are no keys yet, and without any only this host itself would be served")

    def _look(self) -> None:
        try:
            status = self._path.stat()
            seen: tuple[int, ...] | str | None = (status.st_mtime_ns, status.st_ino, status.st_size, status.st_ctime_ns)
        except FileNotFoundError:
            seen = None
        except OSError as error:
            seen = str(error)
        if seen == self._seen and not self._trouble:
            return
        self._seen = seen
        try:
            keys = keyfile.read(self._path)
        except ModelsupdError as error:
            if str(error) != self._trouble:
                log.warning("cannot read the keys", why=str(error), served_meanwhile=self._by_digest is not None)
            self._trouble = str(error)
            return
        self._trouble = ""
        if seen is None and self._by_digest is not None:
            served = "everyone who reaches the gateway" if self.open_without else "nobody"
            log.warning("the file of keys is gone", path=str(self._path), served_without=served)
        self._by_digest = self._indexed(keys) if seen is not None else None

    def _indexed(self, keys: Iterable[Key]) -> dict[str, list[tuple[Key, Principal]]]:
        uses: dict[str, _Use] = {}
        found: dict[str, list[tuple[Key, Principal]]] = {}
        for key in keys:
            use = uses[key.digest] = self._uses.get(key.digest) or _Use()
            found.setdefault(key.digest[:_BUCKET], []).append((key, Principal(key, use)))
        self._uses = uses
        return found


def _shown(headers: Headers) -> str:
    """Return the key that a request shows, "" for none."""
    bearer = headers.get("authorization")
    if bearer[: len(_BEARER)].lower() == _BEARER:
        return bearer[len(_BEARER) :].strip()
    return next((value for name in _HEADERS if (value := headers.get(name))), "")
