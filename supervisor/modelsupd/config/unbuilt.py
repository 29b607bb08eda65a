"""Settings of the design whose feature is not built: refused by name, so that nobody takes them for working."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelsupd.core.spec import Problem

WORKERS = (
    "there is one worker, and no setting for more: how several would share the limits of requests is not designed yet"
)


def of_gateway(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for more than one worker, of which it is known what is meant."""
    if "workers" in raw:
        yield Problem(("gateway", "workers"), raw["workers"], WORKERS)
