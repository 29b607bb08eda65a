"""Makes the paths of a declaration absolute: relative ones are relative to models.toml, `~` is the user's home."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelsupd.config.places import Host

if TYPE_CHECKING:
    from modelsupd.core.spec import Declaration, ModelSpec, Problem


def absolute(declaration: Declaration, folder: Path, host: Host, problems: list[Problem]) -> Declaration:
    """Return the declaration with every path absolute; a bare name of a binary stays one, to be found on PATH."""
    from modelsupd.core.spec import EngineSpec  # noqa: PLC0415 - it takes long to import, and `status` does without

    resolver = Resolver(folder, host, problems)
    daemon = replace(
        declaration.daemon,
        state_dir=resolver.path(("daemon", "state_dir"), declaration.daemon.state_dir or None),
        runtime_dir=resolver.path(("daemon", "runtime_dir"), declaration.daemon.runtime_dir or None),
    )
    weights = replace(
        declaration.weights,
        cache_dir=resolver.path(("weights", "cache_dir"), declaration.weights.cache_dir),
        token_file=resolver.path(("weights", "token_file"), declaration.weights.token_file),
    )
    gateway = declaration.gateway and replace(
        declaration.gateway,
        tls_cert=resolver.path(("gateway", "tls_cert"), declaration.gateway.tls_cert),
        tls_key=resolver.path(("gateway", "tls_key"), declaration.gateway.tls_key),
    )
    engines = {
        kind: EngineSpec(
            binary=resolver.binary(("engines", kind, "binary"), engine.binary),
            python=resolver.binary(("engines", kind, "python"), engine.python),
        )
        for kind, engine in declaration.engines.items()
    }
    models = {name: resolver.model(name, model) for name, model in declaration.models.items()}
    return replace(declaration, daemon=daemon, weights=weights, gateway=gateway, engines=engines, models=models)


def is_path(source: str) -> bool:
    """Tell whether a source of weights is a path of this host, as far as can be told without checking it."""
    return not source.startswith("hf:") and "://" not in source


class Resolver:
    """Makes paths absolute, and collects what is wrong with them."""

    def __init__(self, folder: Path, host: Host, problems: list[Problem]) -> None:
        """Take relative paths as relative to `folder`, and add to `problems`."""
        self._folder = folder
        self._host = host
        self._problems = problems

    def model(self, name: str, model: ModelSpec) -> ModelSpec:
        """Return a model with its paths absolute."""
        command = model.command
        if command and "{" not in command[0]:
            program = self.binary(("models", name, "command", "[0]"), command[0])
            command = (program or command[0], *command[1:])
        return replace(
            model,
            weights=self.source(("models", name, "weights"), model.weights),
            mmproj=self.source(("models", name, "mmproj"), model.mmproj),
            draft=self.source(("models", name, "draft"), model.draft),
            lora=tuple(
                self.source(("models", name, "lora", f"[{index}]"), lora) or lora
                for index, lora in enumerate(model.lora)
            ),
            binary=self.binary(("models", name, "binary"), model.binary),
            python=self.binary(("models", name, "python"), model.python),
            command=command,
        )

    def binary(self, where: tuple[str, ...], value: str | None) -> str | None:
        """Return a program's path; a bare name stays one."""
        if value and "/" not in value and value != "~":
            return value
        return self.path(where, value)

    def source(self, where: tuple[str, ...], value: str | None) -> str | None:
        """Return where weights come from; what is no path stays what it is."""
        return self.path(where, value) if value is None or is_path(value) else value

    def path(self, where: tuple[str, ...], value: str | None) -> str | None:
        """Return the path that stands at `where`; None for none, and for one that cannot be."""
        if value is None:
            return None
        if not value or "\0" in value:
            self._refuse(where, value, "must be a path, and is empty or holds a NUL")
            return None
        if value == "~" or value.startswith("~/"):
            value = str(self._host.home) + value[1:]
        elif value.startswith("~"):
            self._refuse(where, value, "only '~/' is understood, not another user's home")
            return None
        return str(self._folder / value)

    def _refuse(self, where: tuple[str, ...], value: str, why: str) -> None:
        from modelsupd.core.spec import Problem  # noqa: PLC0415 - it takes long to import, and all may be well

        # An engine may have refused the same value already, in words that say more.
        if all(problem.path != where for problem in self._problems):
            self._problems.append(Problem(where, value, why))
