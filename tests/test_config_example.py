"""The example models.toml and the JSON Schema: both show all that there is."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import tomli

from configs import host
from modelsupd.config import load, schema
from modelsupd.core.gpu_spec import GpusSpec
from modelsupd.core.spec import DaemonSpec, EngineSpec, GatewaySpec, ModelSpec, WeightsSpec

REPOSITORY = Path(__file__).parent.parent

# The example


def test_the_example_can_be_used_as_it_is(tmp_path: Path) -> None:
    config = load(REPOSITORY / "models.toml", host=host(tmp_path, environ={"MODELSUPD_RUNTIME_DIR": "/run/m"}))
    assert list(config.declaration.models) == ["tiny", "bound", "qwen", "other"]


def test_the_example_shows_every_setting_at_its_default() -> None:
    text = (REPOSITORY / "models.toml").read_text()
    shown = tomli.loads(re.sub(r"(?m)^#(?=[a-z0-9_]+ = )", "", text))
    tiny, bound, other = (shown["models"][name] for name in ("tiny", "bound", "other"))
    elsewhere = {name: other[name] for name in ("command", "allow", "ignore")} | {"python": bound["python"]}
    expected = {
        ("daemon",): (DaemonSpec, shown["daemon"]),
        ("gateway",): (GatewaySpec, shown["gateway"]),
        ("models", "tiny"): (ModelSpec, {**tiny, **elsewhere}),
        ("weights",): (WeightsSpec, shown["weights"]),
        ("gpus",): (GpusSpec, shown["gpus"]),
        ("engines",): (EngineSpec, {**shown["engines"]["llama.cpp"], **shown["engines"]["llama-cpp-python"]}),
    }
    for path, (cls, table) in expected.items():
        _compare(cls, table, path)


def _compare(cls: type, table: dict[str, Any], path: tuple[str, ...]) -> None:
    assert set(table) == {item.name for item in dataclasses.fields(cls)}, path
    for item in dataclasses.fields(cls):
        default = item.default if item.default is not dataclasses.MISSING else None
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if dataclasses.is_dataclass(default):
            _compare(type(default), table[item.name], (*path, item.name))
        elif default is not None and default != {} and item.name != "command":
            shown = table[item.name]
            assert (tuple(shown) if isinstance(shown, list) else shown) == default, (*path, item.name)


# The schema


def test_the_schema_describes_every_setting_and_offers_only_what_load_takes() -> None:
    made = schema()
    json.dumps(made)
    tables = [made, *(table for table in made["$defs"].values() if "properties" in table)]
    assert len(tables) == 18
    for table in tables:
        assert table["additionalProperties"] is False
        for name, setting in table["properties"].items():
            assert setting["description"], name
            assert {"type": "null"} not in setting.get("anyOf", []), name
    model = made["$defs"]["ModelSpec"]
    assert model["required"] == ["engine"]
    assert model["properties"]["replicas"]["anyOf"] == [
        {"type": "integer", "minimum": 1, "maximum": 512},
        {"const": "per-gpu", "type": "string"},
    ]
    assert model["properties"]["gpus"]["anyOf"][0] == {"type": "integer", "minimum": 0}
    assert model["properties"]["sha256"]["pattern"] == "^[0-9a-f]{64}$"
    assert made["$defs"]["HealthLimits"]["properties"]["probe_timeout_s"]["exclusiveMinimum"] == 0
    assert made["$defs"]["Engine"]["enum"] == ["llama.cpp", "llama-cpp-python", "vllm", "command"]
