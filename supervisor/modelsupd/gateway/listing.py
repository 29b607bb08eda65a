"""The models, as clients are told of them: one object that the clients of OpenAI and of Anthropic both read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from modelsupd.gateway.base import Model


def described(model: Model) -> dict[str, Any]:
    """Return a model, with its state and what it can take."""
    created = datetime.fromtimestamp(model.created_s, UTC).isoformat().replace("+00:00", "Z")
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_s,
        "owned_by": "modelsupd",
        "type": "model",
        "display_name": model.name,
        "created_at": created,
        "aliases": list(model.aliases),
        "engine": model.engine,
        "state": str(model.availability),
        "reason": model.reason,
        "replicas_ready": sum(not run.draining for run in model.runs),
        "context_length": model.context_length,
        "max_model_len": model.context_length,
        "capabilities": list(model.capabilities),
    }


def listed(models: Iterable[Model]) -> dict[str, Any]:
    """Return all of them, as one page of which there is no next."""
    data = [described(model) for model in models]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "has_more": False, "first_id": first, "last_id": last}
