"""Which paths there are, what each speaks, and who may use it.

Three rules:

1. A path is compared as it came, byte by byte: nothing is decoded, joined or normalised first, so that no spelling of a
   path reaches what the path itself would not.
2. Of an engine only what serves clients is there. Whatever rules it (sleep, RPC, slots, settings, adapters, its
   metrics) is reached by `/upstream/MODEL/…` alone, with an admin key.
3. What is not listed is not there, and the answer says what is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qs, unquote

from modelsupd.gateway.base import Api


class Place(StrEnum):
    """Who answers a path."""

    ENGINE = "engine"
    MODELS = "models"
    MODEL = "model"
    HEALTH = "health"
    READY = "ready"
    UPSTREAM = "upstream"
    PREFLIGHT = "preflight"


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is for. `rest` follows the prefix in `/v1/models/…` and `/upstream/…`, as it came."""

    place: Place
    api: Api = Api.OTHER
    rest: str = ""


@dataclass(frozen=True, slots=True)
class NoTarget:
    """Why a request is for nothing: 404, or 405 with the methods that there are."""

    status: int
    words: str
    allow: str = ""


_OTHER_POSTS: Final = (
    "/v1/embeddings",
    "/embeddings",
    "/embedding",
    "/v1/responses/input_tokens",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/v1/reranking",
    "/reranking",
    "/v1/score",
    "/score",
    "/v1/classify",
    "/classify",
    "/v1/pooling",
    "/pooling",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/images/variations",
    "/tokenize",
    "/detokenize",
    "/extras/tokenize",
    "/extras/tokenize/count",
    "/extras/detokenize",
    "/apply-template",
    "/infill",
    "/completion",
)

_POST: Final = "POST"
_GET: Final = ("GET", "HEAD")

#: Paths that take POST and are passed to an engine. `/completion` and `/infill` are llama-server's own.
_PASSED: Final[dict[str, Target]] = {path: Target(Place.ENGINE) for path in _OTHER_POSTS} | {
    "/v1/chat/completions": Target(Place.ENGINE, Api.CHAT),
    "/chat/completions": Target(Place.ENGINE, Api.CHAT),
    "/v1/completions": Target(Place.ENGINE, Api.COMPLETION),
    "/completions": Target(Place.ENGINE, Api.COMPLETION),
    "/v1/responses": Target(Place.ENGINE, Api.RESPONSES),
    "/v1/messages": Target(Place.ENGINE, Api.MESSAGES),
    "/v1/messages/count_tokens": Target(Place.ENGINE, Api.MESSAGES),
}

_OURS: Final[dict[str, Target]] = {
    "/v1/models": Target(Place.MODELS),
    "/models": Target(Place.MODELS),
    "/health": Target(Place.HEALTH),
    "/v1/health": Target(Place.HEALTH),
    "/ready": Target(Place.READY),
}

#: Further paths by their shape; the model of those that have no body stands in the query.
_SHAPES: Final[tuple[tuple[re.Pattern[str], tuple[str, ...], Target], ...]] = (
    (re.compile(r"/v1/audio/[a-z_]{1,32}"), (_POST, *_GET), Target(Place.ENGINE)),
    (re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}"), (*_GET, "DELETE"), Target(Place.ENGINE)),
    (re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}/cancel"), (_POST,), Target(Place.ENGINE)),
    (re.compile(r"/v1/responses/[A-Za-z0-9_-]{1,128}/input_items"), _GET, Target(Place.ENGINE)),
)

_MODEL_PREFIXES: Final = ("/v1/models/", "/models/")
UPSTREAM_PREFIX: Final = "/upstream/"

#: What a wrong path is answered with: the paths that clients look for.
KNOWN: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/v1/audio/…",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/health",
    "/ready",
)


def find(method: str, path: str) -> Target | NoTarget:
    """Return what a request is for, or why it is for nothing."""
    if method == _POST and (target := _PASSED.get(path)) is not None:
        return target
    if method == "OPTIONS":
        return Target(Place.PREFLIGHT)
    if path.startswith(UPSTREAM_PREFIX):
        return Target(Place.UPSTREAM, rest=path[len(UPSTREAM_PREFIX) :])
    found = _found(path)
    if found is None:
        return NoTarget(404, f"there is no such path here; there are {', '.join(KNOWN)}")
    methods, target = found
    if method not in methods:
        allow = ", ".join(methods)
        return NoTarget(405, f"this path takes {allow}", allow)
    return target


def _found(path: str) -> tuple[tuple[str, ...], Target] | None:
    if path in _PASSED:
        return (_POST,), _PASSED[path]
    if path in _OURS:
        return _GET, _OURS[path]
    for prefix in _MODEL_PREFIXES:
        if path.startswith(prefix) and len(path) > len(prefix):
            return _GET, Target(Place.MODEL, rest=path[len(prefix) :])
    return next(((methods, target) for shape, methods, target in _SHAPES if shape.fullmatch(path)), None)


def api_of(path: str) -> Api:
    """Return which API's errors a client of this path understands."""
    passed = _PASSED.get(path)
    if passed is not None:
        return passed.api
    return Api.MESSAGES if path.startswith("/v1/messages") else Api.OTHER


def split_upstream(rest: str, names: Iterable[str]) -> tuple[str, str] | None:
    """Return the model's name and the engine's own path of `/upstream/` + `rest`; None where no such model is known.

    Names may hold `/`, so the longest one that fits is meant. The engine's path is passed as it came.
    """
    for name in sorted(names, key=len, reverse=True):
        length = _prefix_chars(rest, name)
        if length is not None and (length == len(rest) or rest[length] == "/"):
            return name, rest[length:]
    return None


def _prefix_chars(rest: str, name: str) -> int | None:
    """Return how many characters of `rest` spell `name`, by themselves or percent-encoded."""
    if rest.startswith(name):
        return len(name)
    at = 0
    for char in name:
        encoded = unquote(rest[at : at + 3])
        if rest[at : at + 1] == char:
            at += 1
        elif encoded == char:
            at += 3
        else:
            return None
    return at


def unquoted(name: str) -> str:
    """Return a model's name as it stands in a path, decoded."""
    return unquote(name)


def model_in_query(query: str) -> str | None:
    """Return the model that a request without a body names as `?model=`."""
    try:
        return parse_qs(query, max_num_fields=64).get("model", [None])[-1]
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Cors:
    """Which web pages may use the gateway from a browser: origins, or `*`. None, unless the configuration says so."""

    origins: tuple[str, ...] = ()

    def allows(self, origin: str) -> bool:
        """Return whether pages of this origin may."""
        return "*" in self.origins or origin in self.origins

    def headers(self, origin: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """Return what is added to an answer, so that the page is let to read it."""
        if origin is None or not self.origins or not self.allows(origin):
            return ()
        return (
            (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
            (b"access-control-expose-headers", b"X-Request-Id, X-Modelsupd-Run, Retry-After"),
            (b"vary", b"Origin"),
        )

    def preflight(self, origin: str, asked_headers: str | None) -> tuple[tuple[bytes, bytes], ...]:
        """Return the headers of the answer to a browser that asks first."""
        wanted = asked_headers if asked_headers and _HEADER_NAMES.fullmatch(asked_headers) else "Authorization"
        return (
            *self.headers(origin),
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", wanted.encode()),
            (b"access-control-max-age", b"600"),
        )


_HEADER_NAMES: Final = re.compile(r"[A-Za-z0-9_-]+(?:, ?[A-Za-z0-9_-]+){0,63}")


def same_origin(origin: str, host: str | None) -> bool:
    """Return whether a page comes from the gateway itself, as an engine's own pages do."""
    return bool(host) and origin.partition("://")[2].lower() == (host or "").lower()
