"""What must hold in `[gateway]` beyond the type of each setting, and where it listens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from modelsupd.config.listen import host_and_port, loopback
from modelsupd.config.words import nearest
from modelsupd.core.spec import AutoRule, GatewaySpec, Problem

Where = tuple[str, ...]

#: The keys of clients, in the state directory; `modelsupd key add` makes it.
KEYS_NAME = "keys.json"

#: The name by which a client leaves the choice of a model to the rules.
AUTO = "auto"

_ORIGIN = re.compile(r"https?://[a-z0-9.-]+(?::[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](?::[0-9]{1,5})?")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")


def addresses(spec: GatewaySpec | None) -> tuple[tuple[str, int], ...]:
    """Return host and port of every address that is to be listened on; none without a gateway. Port 0 is a free one."""
    if spec is None or not spec.enabled:
        return ()
    return tuple(seen for value in _listed(spec) if (seen := host_and_port(value)))


def of_gateway(known: Collection[str]) -> Callable[[GatewaySpec], Iterator[Problem]]:
    """Return the check of `[gateway]`; `known` are all names and aliases of models."""

    def check(spec: GatewaySpec) -> Iterator[Problem]:
        yield from _listen(spec)
        for given, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
            if getattr(spec, given) is not None and getattr(spec, other) is None:
                yield Problem(("gateway", given), getattr(spec, given), f"is of no use without {other}")
        yield from _words(spec)
        limits = spec.limits
        if limits.buffered_bytes < limits.max_body_bytes:
            why = f"must be at least max_body_bytes, which is {limits.max_body_bytes}"
            yield Problem(("gateway", "limits", "buffered_bytes"), limits.buffered_bytes, why)
        for index, rule in enumerate(spec.auto):
            yield from _rule(("gateway", "auto", f"[{index}]"), rule, known)
        if spec.auto and AUTO in known:
            yield Problem(("gateway", "auto"), None, f"is out of reach: '{AUTO}' is the name of a model")

    return check


def _words(spec: GatewaySpec) -> Iterator[Problem]:
    for index, origin in enumerate(spec.cors_origins):
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            why = "must be an origin as browsers send it, such as 'https://chat.example', or '*'"
            yield Problem(("gateway", "cors_origins", f"[{index}]"), origin, why)
    for index, name in enumerate(spec.session_headers):
        if not _HEADER.fullmatch(name):
            yield Problem(("gateway", "session_headers", f"[{index}]"), name, "must be the name of a header")


def closed(spec: GatewaySpec | None, state_dir: Path) -> Iterator[Problem]:
    """Yield a problem for each address that the network reaches, while there is no key and nobody asked for that."""
    if spec is None or spec.open_to_network or has_keys(state_dir):
        return
    for value in _listed(spec):
        seen = host_and_port(value)
        if seen and spec.enabled and _is_ip(seen[0]) and not loopback(seen[0]):
            why = (
                "whoever reaches it would be served, for there is no key: make one ('modelsupd key add NAME'),"
                " listen on loopback, or set open_to_network = true"
            )
            yield Problem(("gateway", "listen"), value, why)


def has_keys(state_dir: Path) -> bool:
    """Tell whether there are keys. True where that may not be looked at: the gateway itself serves nobody then."""
    try:
        return (state_dir / KEYS_NAME).exists()
    except OSError:
        return True


def warnings(spec: GatewaySpec | None, state_dir: Path) -> Iterator[str]:
    """Yield what is allowed and may still not be meant."""
    wide = [host for host, _ in addresses(spec) if not loopback(host)]
    if spec is None or not wide:
        return
    if not has_keys(state_dir):
        yield "gateway.open_to_network is true and there is no key: whoever reaches the gateway is served"
    elif spec.tls_cert is None:
        yield "gateway.listen is reached from the network without TLS: keys, prompts and answers can be read on the way"


def _listed(spec: GatewaySpec) -> tuple[str, ...]:
    return (spec.listen,) if isinstance(spec.listen, str) else spec.listen


def _listen(spec: GatewaySpec) -> Iterator[Problem]:
    listed = _listed(spec)
    if not listed:
        yield Problem(("gateway", "listen"), listed, "must name an address; enabled = false turns the gateway off")
    for index, value in enumerate(listed):
        where = ("gateway", "listen") if isinstance(spec.listen, str) else ("gateway", "listen", f"[{index}]")
        seen = host_and_port(value)
        if seen is None or not _is_ip(seen[0]):
            yield Problem(where, value, "must be ADDRESS:PORT, such as '127.0.0.1:8080' or '[::1]:8080'")
        elif seen[1] and seen in [host_and_port(other) for other in listed[:index]]:
            yield Problem(where, value, "is there twice")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _rule(where: Where, rule: AutoRule, known: Collection[str]) -> Iterator[Problem]:
    if not rule.models:
        yield Problem((*where, "models"), rule.models, "must name a model")
    for index, name in enumerate(rule.models):
        if name not in known:
            yield Problem((*where, "models", f"[{index}]"), name, f"is no model's name or alias{nearest(name, known)}")
    if rule.prompt_up_to_tokens is not None and rule.prompt_up_to_tokens <= rule.prompt_over_tokens:
        why = f"must be more than prompt_over_tokens, which is {rule.prompt_over_tokens}"
        yield Problem((*where, "prompt_up_to_tokens"), rule.prompt_up_to_tokens, why)
