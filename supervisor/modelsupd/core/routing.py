"""Which run serves a request, and which model `auto` means; or why none.

Three rules:

1. A draining run gets nothing. A suspect one (it failed a client a moment ago) gets something only when nothing else is
   there, and then the one that has been left alone the longest comes first.
2. Among the rest: the session's own, else the fewest in flight, else the one that has been idle the longest.
3. A run that fails fast looks idle. So each failure in a row makes it suspect for longer, and only an answer ends that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: For how long a run is suspect after its first failure; doubled by each further one.
SUSPECT_S = 1.0

#: The longest that a run is suspect without having failed again.
SUSPECT_MAX_S = 60.0

#: A capability by which a model says that it makes vectors. Without `chat` beside it, it makes nothing else.
EMBEDDING = "embedding"
CHAT = "chat"
IMAGES = "images"
TOOLS = "tools"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A run as the choice sees it. Instants are on the caller's clock.

    `home` stays the same when the run is replaced by the next one of its replica, so that a session stays with it.
    """

    key: str
    home: str
    in_flight: int
    last_used_at: float
    draining: bool
    suspect_until: float


def choose(candidates: Iterable[Candidate], now: float, session: str | None = None) -> Candidate | None:
    """Return the run that serves next, None where all are draining or there is none.

    `session` is what the client calls its session, if it does: the same one goes to the same replica for as long as
    that replica is there and not suspect, and no other session moves when a replica comes or goes.
    """
    usable = [each for each in candidates if not each.draining]
    sound = [each for each in usable if each.suspect_until <= now]
    if sound and session is not None:
        return max(sound, key=lambda each: (_weight(each.home, session), each.key))
    if sound:
        return min(sound, key=lambda each: (each.in_flight, each.last_used_at, each.key))
    return min(usable, key=lambda each: (each.suspect_until, each.in_flight, each.key), default=None)


def _weight(home: str, session: str) -> bytes:
    return hashlib.sha256(f"{home}\n{session}".encode(errors="surrogatepass")).digest()


def suspect_for_s(before_s: float) -> float:
    """Return for how many seconds a run is suspect after a failure, from what that was after the one before, if any."""
    return min(SUSPECT_MAX_S, max(SUSPECT_S, 2 * before_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request asks of a model. Tokens are estimated, the answer's included in `context_tokens`."""

    images: bool = False
    tools: bool = False
    embedding: bool = False
    prompt_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A model as `auto` sees it. `waits` where it cannot serve now, but may soon."""

    name: str
    capabilities: tuple[str, ...] = ()
    context_length: int | None = None
    ready: bool = True
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoRule:
    """One of the ordered rules of `auto`: the first one that fits a request names the models to try, best first.

    `images` and `tools` fit where the request has such, or has none; None fits either. The prompt's size is in
    estimated tokens: more than `prompt_over`, and at most `prompt_up_to` if that is given.
    """

    models: tuple[str, ...]
    images: bool | None = None
    tools: bool | None = None
    prompt_over: int = 0
    prompt_up_to: int | None = None

    def fits(self, need: Need) -> bool:
        """Return whether this rule speaks of such a request."""
        return (
            self.images in (None, need.images)
            and self.tools in (None, need.tools)
            and need.prompt_tokens > self.prompt_over
            and (self.prompt_up_to is None or need.prompt_tokens <= self.prompt_up_to)
        )


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """What `auto` means for a request: a model, or why none does."""

    name: str | None
    why: str = ""


def choose_model(need: Need, offers: Sequence[Offer], rules: Sequence[AutoRule] = ()) -> AutoChoice:
    """Return what `auto` means: of the models that can do it, the first by the rules and then in their order.

    One that is ready goes before one that will be. Whatever a rule names is still held against what the request needs:
    a model that cannot do it would only answer with an error.
    """
    able, lacking = _able(need, offers)
    if not able:
        return AutoChoice(None, lacking)
    ordered = _in_order(need, {offer.name: offer for offer in able}, rules)
    chosen = next((offer for offer in ordered if offer.ready), None)
    chosen = chosen or next((offer for offer in ordered if offer.waits), None)
    return AutoChoice(chosen.name) if chosen else AutoChoice(None, "no model that can do it is ready")


def _able(need: Need, offers: Sequence[Offer]) -> tuple[list[Offer], str]:
    """Return the models that can do it, or, where there is none, what they all lack."""
    able = [offer for offer in offers if _kind_fits(need, offer)]
    lacking = "no model makes embeddings" if need.embedding else "no model generates"
    tests = (
        (need.images, IMAGES, "no model takes images"),
        (need.tools, TOOLS, "no model takes tools"),
    )
    for needed, word, why in tests:
        if able and needed:
            able, lacking = [offer for offer in able if word in offer.capabilities], why
    if able:
        lacking = f"no model has a context of {need.context_tokens} tokens"
        able = [offer for offer in able if offer.context_length is None or offer.context_length >= need.context_tokens]
    return able, lacking


def _kind_fits(need: Need, offer: Offer) -> bool:
    if need.embedding:
        return EMBEDDING in offer.capabilities
    return EMBEDDING not in offer.capabilities or CHAT in offer.capabilities


def _in_order(need: Need, able: Mapping[str, Offer], rules: Sequence[AutoRule]) -> list[Offer]:
    """Return all of them; before them those that the first fitting rule names."""
    rule = next((each for each in rules if each.fits(need)), None)
    named = [able[name] for name in rule.models if name in able] if rule else []
    return [*named, *able.values()]
