"""What a gateway is started with: a file that the daemon writes for it, and that only they can read.

It holds what stays the same for as long as the process lives; where one of these settings changes, the daemon starts
another gateway in its place. Models come over the link.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from modelsupd.core.routing import AutoRule
from modelsupd.core.spec import AccessLogLimits, GatewaySpec
from modelsupd.errors import ModelsupdError
from modelsupd.gateway import keyfile, plain
from modelsupd.gateway.base import Limits

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything but the models. `run` is the gateway's own name, `daemon_socket` where it finds the daemon."""

    v: int = VERSION
    run: str
    daemon_socket: str
    state_dir: str
    log_level: str = "info"
    open_to_network: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    warm_after_s: float = 15.0
    session_headers: tuple[str, ...] = ("x-session-id", "x-session-affinity")
    limits: Limits = field(default_factory=Limits)
    access_log: AccessLogLimits = field(default_factory=AccessLogLimits)
    auto: tuple[AutoRule, ...] = ()

    @property
    def keys_path(self) -> Path:
        """Return where the keys are."""
        return Path(self.state_dir) / keyfile.NAME

    @property
    def access_log_path(self) -> Path:
        """Return where the record of requests is written."""
        return Path(self.state_dir) / "gateway" / "access.log"


def of_spec(spec: GatewaySpec, *, run: str, daemon_socket: Path, state_dir: Path, log_level: str = "info") -> Settings:
    """Return the settings of a gateway as it is declared."""
    rules = tuple(
        AutoRule(
            models=rule.models,
            images=rule.images,
            tools=rule.tools,
            prompt_over=rule.prompt_over_tokens,
            prompt_up_to=rule.prompt_up_to_tokens,
        )
        for rule in spec.auto
    )
    return Settings(
        run=run,
        daemon_socket=str(daemon_socket),
        state_dir=str(state_dir),
        log_level=log_level,
        open_to_network=spec.open_to_network,
        tls_cert=spec.tls_cert,
        tls_key=spec.tls_key,
        cors_origins=spec.cors_origins,
        warm_after_s=spec.warm_after_s,
        session_headers=spec.session_headers,
        limits=Limits(**{item.name: getattr(spec.limits, item.name) for item in fields(spec.limits)}),
        access_log=spec.access_log,
        auto=rules,
    )


def write(path: Path, settings: Settings) -> None:
    """Write the file, in one step. Raises OSError."""
    fresh = path.with_name(f"{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, no path
        json.dump(plain.write(settings), file, indent=1)
    fresh.rename(path)


def read(path: Path) -> Settings:
    """Return what stands in the file. Raises ModelsupdError."""
    try:
        raw = json.loads(path.read_bytes())
        version = raw.get("v") if isinstance(raw, dict) else None
        if version != VERSION:
            raise plain.Unreadable(f"it is of version {version!r}, and this is {VERSION}")
        return plain.read(Settings, raw)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ModelsupdError(f"cannot read the gateway's settings '{path}': {why}") from error
    except (ValueError, RecursionError) as error:
        raise ModelsupdError(f"cannot read the gateway's settings '{path}': {error}") from error
