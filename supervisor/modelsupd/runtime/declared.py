"""Makes of a configuration what the core compares the fleet with."""

from __future__ import annotations

from collections.abc import Callable

from modelsupd.core.fleet import Declared
from modelsupd.core.spec import Declaration, ModelSpec, launch_digest
from modelsupd.engines.base import adapter


def models(declaration: Declaration, gpus_for: Callable[[str, ModelSpec], int]) -> dict[str, Declared]:
    """Return every declared model with its launch digest; `gpus_for` tells for how many GPUs one has replicas."""
    return {
        name: Declared(
            spec,
            launch_digest(spec, adapter(spec.engine).binary(spec, declaration.engines.get(spec.engine))),
            gpus_for(name, spec),
        )
        for name, spec in declaration.models.items()
    }
